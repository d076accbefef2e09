/**
 * A bad network: a Unix socket in front of a daemon's, which loses, cuts, delays or redirects what passes through it.
 * Bytes go through with back-pressure, so what a client does not read stays with the daemon.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Proxy extends AsyncDisposable {
  readonly socket: string;
  /** Everything that clients sent, a text per connection. */
  readonly sent: readonly string[];
  /** Bytes of answers that went on to clients. */
  readonly passed: number;
  /** Where new connections go. */
  to: string;
  /** How many more answers are lost: the connection breaks when the answer has reached the proxy. */
  losing: number;
  /** How many bytes of an answer that is lost still arrive. */
  cutAt: number;
  /** Arrives in the place of an answer that is lost. */
  instead: string | undefined;
  /** Called when an answer is lost, before the client can know. */
  onLost: () => void;
  /** Pieces of this size are passed on, each for itself; undefined: as they come. */
  pieces: number | undefined;
  /** While true nothing is passed on to clients, though all connections stay. */
  frozen: boolean;
  /** Once so many bytes have passed, it freezes. */
  freezing: number;
  /** Break all connections. */
  cut(): void;
}

/** Open a proxy in front of the socket `to`. */
export async function proxy(to: string): Promise<Proxy> {
  const folder = mkdtempSync(join(tmpdir().length < 60 ? tmpdir() : "/tmp", "mp-proxy-"));
  const open = new Set<Socket>();
  const sent: string[] = [];
  let passed = 0;
  const server = createServer((client) => {
    const daemon = connect(self.to);
    const index = sent.push("") - 1;
    for (const socket of [client, daemon]) {
      open.add(socket);
      // A broken connection is what this proxy is for.
      socket.on("error", () => socket.destroy());
      socket.on("close", () => {
        open.delete(socket);
        client.destroy();
        daemon.destroy();
      });
    }
    client.on("data", (bytes: Buffer) => {
      sent[index] += bytes.toString("latin1");
      daemon.write(bytes);
    });
    daemon.on("data", (bytes: Buffer) => {
      if (self.frozen) return;
      if (self.losing > 0) {
        self.losing -= 1;
        self.onLost();
        client.end(self.instead ?? bytes.subarray(0, self.cutAt), () => daemon.destroy());
        return;
      }
      passed += bytes.length;
      if (passed >= self.freezing) {
        self.freezing = Number.POSITIVE_INFINITY;
        self.frozen = true;
      }
      const size = self.pieces ?? bytes.length;
      let taken = true;
      for (let at = 0; at < bytes.length; at += size) taken = client.write(bytes.subarray(at, at + size));
      if (!taken) daemon.pause();
    });
    client.on("drain", () => daemon.resume());
  });
  const cut = () => {
    for (const socket of open) socket.destroy();
  };
  const self: Proxy = {
    socket: join(folder, "s"),
    sent,
    get passed() {
      return passed;
    },
    to,
    losing: 0,
    cutAt: 0,
    instead: undefined,
    onLost: () => {},
    pieces: undefined,
    frozen: false,
    freezing: Number.POSITIVE_INFINITY,
    cut,
    async [Symbol.asyncDispose]() {
      cut();
      const { promise, resolve } = Promise.withResolvers<void>();
      server.close(() => resolve());
      await promise;
      rmSync(folder, { recursive: true, force: true });
    },
  };
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("error", reject);
  server.listen(self.socket, resolve);
  await promise;
  return self;
}
