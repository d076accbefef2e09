/**
 * `mp session run … -- CMD` (SPEC §8) as a verb: what it takes, and what help says. What it does is in run-once.ts, loaded only
 * for a run: every other verb of sessions has these lines among its own.
 */
import { type Args, asking, type Ending, type Values, type Verb, verb } from "./command.ts";
import { waitArg } from "./waiting.ts";

const args = {
  command: {
    type: "positional",
    required: true,
    many: true,
    valueHint: "-- CMD ARGS…",
    description: "the command and its arguments, behind a --",
  },
  worktree: {
    type: "string",
    valueHint: "WORKTREE",
    description: "attach to it, and run the command in its folder: a path or an id",
  },
  write: { type: "boolean", description: "take the worktree's writer lock; refused: nothing is started" },
  task: { type: "string", valueHint: "TASK", description: "claim it; what comes of the command comes of it" },
  next: {
    type: "boolean",
    description:
      "claim the next task that is ready: of the project where one is known, else of the workspace",
  },
  stage: { type: "string", valueHint: "STAGE", description: "with --next: only tasks of this stage" },
  wait: waitArg("wait so long for the task and the lock, before there is a session; exit code 7 after that"),
  workspace: {
    type: "string",
    valueHint: "WORKSPACE",
    fallback: "MP_WORKSPACE",
    description:
      "by name or id; when not given the worktree's or task's, that of the worktree that one is in, or the only open one",
  },
  project: {
    type: "string",
    valueHint: "PROJECT",
    fallback: "MP_PROJECT",
    description:
      "by name or id; when not given the worktree's or task's, or that of the worktree that one is in",
  },
  parent: {
    type: "string",
    valueHint: "SESSION",
    fallback: "MP_SESSION_ID",
    description:
      "the session that this one is part of; that of the environment where it is of this workspace",
  },
  title: { type: "string", valueHint: "TITLE", description: "what the session is about" },
  agent: {
    type: "string",
    valueHint: "NAME",
    description: "who works: the command's own name when not given",
  },
  ttl: {
    type: "string",
    format: "limit",
    valueHint: "TIME",
    description:
      "how long everything is held once this program is gone, 1s to 24h (60s); renewed three times as often",
  },
  "on-lost": {
    type: "string",
    options: ["stop", "tell"],
    valueHint: "stop|tell",
    description:
      "when the lock, the claim or the session is lost: stop the command, or only tell it by SIGURG (stop)",
  },
  grace: {
    type: "string",
    format: "duration",
    valueHint: "TIME",
    description: "after a loss, from SIGTERM to SIGKILL (10s)",
  },
  "leave-task": {
    type: "boolean",
    description: "neither complete nor fail the task at the end, only give it back",
  },
  "no-output": { type: "boolean", description: "do not keep the output" },
  "no-spawn": asking["no-spawn"],
} as const satisfies Args;

export type RunValues = Values<typeof args>;

/** `mp session run`. */
export const run: Verb = verb(
  "Run a command as a session: what it needs is held while it runs, what came of it is told.",
  args,
  async (values, { out }): Promise<Ending> => {
    const { Run } = await import("./run-once.ts");
    return new Run(values, out.asJson).run();
  },
  {
    notes: [
      "The command's environment has MP_SESSION_ID, MP_SESSION_EPOCH, MP_TOKEN, MP_WORKSPACE and, where they apply, MP_PROJECT,",
      "MP_WORKTREE_ID, MP_WRITER_EPOCH, MP_TASK_ID, MP_TASK_EPOCH. With MP_TOKEN, what it does with mp is recorded as the session's.",
      "Exit code: the command's own; 128+n after signal n; 127 or 126 when it cannot be started. A lock or claim that",
      "is refused, or no task that is ready: 5, with --wait 7; the command is not started.",
      "Code 0 completes the task and the session, also after a signal; another fails both. After INT, TERM, HUP or QUIT, passed",
      "on or typed (Ctrl-C, Ctrl-\\), any code but 0 cancels the session and gives the task back. These four go to the command's",
      "process group, USR1 and USR2 to the command itself. A command that reads Ctrl-C as a key, such as an editor, gets no signal.",
      "When something is lost a line on stderr says what and by whom, and the session's end has the reason, such as",
      "worktree.writer_stolen. SIGURG does nothing to a command that does not ask for it.",
      "stdout and stderr pass through unchanged, and up to 64 MiB of both are kept as the artifact output.log. Where stdin,",
      "stdout and stderr are a terminal the command gets a terminal of its own, on which both are one stream.",
      "What the command leaves running in the background loses its output with the command's end.",
      "Killed with -9, this program cannot end anything: the command goes on, what it held is free after the ttl.",
      "--json: one line on stderr at the end: session_id, exit_code, outcome, reason, artifact_id, ended, keys.",
    ],
    examples: [
      "mp session run --worktree ../core-fix --write --task TASK -- my-agent 'fix the parser'",
      "mp session run --worktree ../core-fix --write --next --wait 1h -- my-agent    which reads MP_TASK_ID",
      "mp session run --workspace demo --title nightly -- make test",
      "mp session run --worktree . --write --on-lost tell -- ./migrate.sh",
    ],
    pointers: {
      "/payload/ttl_ms": "--ttl",
      "/payload/title": "--title",
      "/payload/agent/name": "--agent",
      "/payload/parent_session_id": "--parent",
    },
  },
);
