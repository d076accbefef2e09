/** The few requests that the bench makes besides its loads. They throw on any answer but 200. */

async function ask(socket: string, path: string, init: RequestInit = {}): Promise<unknown> {
  const answer = await fetch(`http://mp${path}`, { ...init, unix: socket });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** One query, its parameters as a query string. */
export async function query<Answer>(socket: string, type: string, parameters = ""): Promise<Answer> {
  return (await ask(socket, `/v1/queries/${type}${parameters}`)) as Answer;
}

let keys = 0;

function post(socket: string, path: string, body: string): Promise<unknown> {
  return ask(socket, path, { method: "POST", headers: { "content-type": "application/json" }, body });
}

/** One command, with a key of its own. */
export async function command(
  socket: string,
  type: string,
  payload: object,
): Promise<{ subject: { id: string } }> {
  const idempotency_key = `bench-${process.pid}-${keys++}`;
  const body = JSON.stringify({ type, payload, idempotency_key });
  return (await post(socket, "/v1/commands", body)) as { subject: { id: string } };
}

/** A new workspace to put projects in. */
export async function createWorkspace(socket: string): Promise<string> {
  const name = `bench-${process.pid}-${keys}`;
  return (await command(socket, "workspace.create", { name })).subject.id;
}

/** The body of a batch of `project.create`. */
export function projectBatch(workspace_id: string, count: number): string {
  const commands = Array.from({ length: count }, () => {
    const name = `batch-${process.pid}-${keys++}`;
    return { type: "project.create", payload: { workspace_id, name }, idempotency_key: name };
  });
  return JSON.stringify({ atomic: false, commands });
}

/** Send such a body. */
export async function sendBatch(socket: string, body: string): Promise<void> {
  const { items } = (await post(socket, "/v1/commands/batch", body)) as { items: { kind: string }[] };
  if (items.some(({ kind }) => kind !== "receipt")) throw new Error(JSON.stringify(items));
}

/** Where the log ends. */
export async function head(socket: string): Promise<number> {
  return (await query<{ as_of_seq: number }>(socket, "daemon.ping")).as_of_seq;
}
