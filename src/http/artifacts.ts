/**
 * `PUT` and `GET /v1/artifacts/{digest}` (SPEC §8): bytes in and out, never whole in memory.
 *
 * Always holds: what is answered with 200 or 201 is on the disk, checked and durable; what goes out is never shown as a page
 * by a browser. Left out on purpose: what the bytes are, which `artifact.register` says.
 */
import type { StoredBytes } from "../client/types.ts";
import { isProblem, type Problem } from "../kernel/problems.ts";
import { refused } from "./answers.ts";
import { traceOf } from "./request.ts";

/** The store, as far as the routes need it (daemon/store.ts). */
export interface Bytes {
  /**
   * Take bytes in.
   * @param digest as the URL has it, unchecked
   * @param length what the Content-Length header says; undefined when there is none
   * @returns once they are durable; `created` is false when they were there already
   */
  put(
    digest: string,
    body: ReadableStream<Uint8Array> | null,
    length: number | undefined,
  ): Promise<(StoredBytes & { readonly created: boolean }) | Problem>;
  /** Where bytes are, by their digest as the URL has it, unchecked. */
  find(digest: string): (StoredBytes & { readonly path: string }) | Problem;
}

/**
 * Take an upload.
 * @param admit takes a place among what is open, and gives back how to leave it
 */
export async function putArtifact(
  bytes: Bytes,
  digest: string,
  request: Request,
  admit: () => (() => void) | Problem,
): Promise<StoredBytes> {
  const leave = admit();
  if (isProblem(leave)) return refused(leave, traceOf(request));
  try {
    const length = request.headers.get("content-length");
    const stored = await bytes.put(digest, request.body, length === null ? undefined : Number(length));
    if (isProblem(stored)) return refused(stored, traceOf(request));
    const { created, ...rest } = stored;
    return new Response(JSON.stringify(rest), {
      status: created ? 201 : 200,
      headers: { "content-type": "application/json", "cache-control": "no-store" },
    }) as unknown as StoredBytes;
  } finally {
    leave();
  }
}

/** Answer a download: the file as it is, or the part that a Range header asks for. */
export function getArtifact(bytes: Bytes, digest: string, request: Request): Blob {
  const found = bytes.find(digest);
  if (isProblem(found)) return refused(found, traceOf(request));
  const etag = `"${found.digest}"`;
  const headers = {
    etag,
    // The same bytes for ever, but they may be gone: ask again, and get a 304.
    "cache-control": "private, no-cache",
    "content-type": "application/octet-stream",
    "content-disposition": "attachment",
    "x-content-type-options": "nosniff",
  };
  const known = request.headers.get("if-none-match")?.split(/\s*,\s*/);
  // Elysia takes any Response as it is; the type is for the client, which gets bytes.
  return (known?.includes(etag)
    ? new Response(null, { status: 304, headers })
    : new Response(Bun.file(found.path), { headers })) as unknown as Blob;
}
