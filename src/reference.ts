/**
 * `docs/reference.md`, made from the registry and the catalogue of problems, so that it cannot say anything else than
 * the daemon does. Written by `bun run generate`, checked for drift by `bun run check`.
 */
import type { TObject, TSchema } from "typebox";
import { catalogue } from "./kernel/problems.ts";
import type { Registry } from "./kernel/registry.ts";

/** The whole page as Markdown. */
export function reference(registry: Registry): string {
  const commands = [...registry.commands.values()].map(
    ({ type, spec }) => `| \`${type}\` | ${spec.version} | ${fields(spec.payload)} | ${spec.doc} |`,
  );
  const queries = [...registry.queries.values()].map(
    ({ type, spec, params }) => `| \`${type}\` | ${fields(params)} | ${spec.doc} |`,
  );
  const socket = [...registry.socket.values()].map(
    ({ type, spec, params }) => `| \`${type}\` | ${fields(params)} | ${spec.doc} |`,
  );
  const events = [...registry.events.values()].map(
    ({ type, spec }) => `| \`${type}\` | ${spec.version} | ${fields(spec.payload)} |`,
  );
  const reasons = [...registry.reasons].map(
    ([reason, { is, hint }]) => `| \`${reason}\` | ${is} | ${hint} |`,
  );
  const codes = Object.entries(catalogue).map(
    ([code, { status, exit, title, hint, retryable }]) =>
      `| \`${code}\` | ${status ?? "CLI only"} | ${exit} | ${retryable ? "yes" : "no"} | ${title} | ${hint} |`,
  );
  const table = (head: string, rows: readonly string[]) =>
    [`| ${head} |`, `|${" --- |".repeat(head.split("|").length)}`, ...rows].join("\n");
  return `# Reference

Generated from the source by \`bun run generate\`: do not edit. The full JSON Schema of everything here is in \`schemas/\`, and
from a running daemon in \`mp schema get NAME\` and \`/openapi.json\`. A \`?\` marks an optional field.

## Commands

Sent as \`{"type", "payload", "idempotency_key", …}\` to \`POST /v1/commands\`, in a batch, or over the WebSocket.

${table("type | version | payload | what it does", commands)}

## Queries

Sent as an envelope like a command, or as \`GET /v1/queries/TYPE?…\`.

${table("type | parameters | what it answers", queries)}

Only on the WebSocket, \`GET /v1/stream\`, where frames follow the answer:

${table("type | parameters | what it answers", socket)}

## Events

${table("type | version | payload", events)}

## Reasons of a conflict

${table("reason | what is the case | what to do", reasons)}

## Problems and exit codes

A wrong method on a known route is \`not_found\` too. A \`min_seq\` that the log does not reach in time is \`overloaded\`: it is worth
another try only if the position is one of this log. Names must be in Unicode normal form NFC and times must exist: the daemon checks
both beyond what their JSON Schemas can say.

${table("code | HTTP | exit | retryable | title | hint", codes)}
`;
}

function fields(schema: TObject): string {
  const required: readonly string[] = schema.required ?? [];
  const names = Object.entries(schema.properties as Record<string, TSchema>).map(
    ([name]) => `\`${name}${required.includes(name) ? "" : "?"}\``,
  );
  return names.length > 0 ? names.join(" ") : "–";
}
