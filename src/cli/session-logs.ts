/**
 * `mp session logs` (SPEC §8, §12): what the command of a session wrote, as `mp session run` has kept it.
 *
 * Always holds: stdout gets those bytes and nothing else. Where there are none it says why; it waits for nothing: the output
 * becomes an artifact when the command has ended.
 */
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { interruptible, printBytes } from "./artifact.ts";
import type { Ending } from "./command.ts";
import { daemonLink } from "./link.ts";
import type { Output } from "./output.ts";
import type { Values, Wanted } from "./payload.ts";
import { OUTPUT_NAME } from "./run-spool.ts";

interface Artifact {
  readonly artifact_id: string;
  readonly digest: string;
}
interface Session {
  readonly session_id: string;
  readonly status: string;
}

/** Write the output of a session to stdout, or say why there is none. */
export function showLogs(values: Values, wanted: Wanted, out: Output): Promise<Ending> {
  return interruptible((signal) => logs(values, wanted, out, signal));
}

async function logs(values: Values, wanted: Wanted, out: Output, signal: AbortSignal): Promise<Ending> {
  const link = daemonLink(values);
  const params = await wanted.fill(link, values, out.env);
  if (isProblem(params)) return params;
  const session = await link.ask("session.get", params);
  if (isProblem(session)) return session;
  const { session_id, status } = session as Session;
  const listed = await link.ask("artifact.list", { linked_to: session_id, name: OUTPUT_NAME });
  if (isProblem(listed)) return listed;
  const items = (listed as { readonly items: readonly Artifact[] }).items;
  if (out.asJson) {
    await out.json({ session_id, status, items });
    return undefined;
  }
  if (items.length === 0) return none(session_id, status);
  const at = await link.address();
  if (isProblem(at)) return at;
  for (const { digest } of items) {
    const wrong = await printBytes(
      { at, digest, timeout: values.timeout as number | undefined, signal },
      out,
    );
    if (wrong || out.gone || out.failed) return wrong;
  }
  return undefined;
}

const LIVE = new Set(["starting", "running", "idle", "waiting"]);

function none(session_id: string, status: string): Problem {
  const [detail, hint] = LIVE.has(status)
    ? [
        `the session is ${status}: its output is kept when its command has ended`,
        "until then it is where 'mp session run' was started",
      ]
    : status === "lost"
      ? [
          "the session is lost, and so is its output, for nobody was there to keep it",
          "'mp session resume' takes up the session, not the command",
        ]
      : [
          "the session has no output: its command printed nothing, or it was not run by 'mp session run'",
          "with --no-output nothing is kept; 'mp artifact list --session SESSION' shows what else belongs to it",
        ];
  return problem("not_found", detail, { hint, details: { session_id, status } });
}
