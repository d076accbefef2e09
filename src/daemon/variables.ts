/**
 * The variables that tell a process which session it belongs to (SPEC §8): `mp session run` sets those that apply for its child
 * and takes away the rest, which would be another session's. A daemon that such a process happens to start forgets
 * them all: it acts for nobody.
 */

/** Their names; what each holds is in the help of `mp session run`. */
export const sessionVariables = [
  "MP_SESSION_ID",
  "MP_SESSION_EPOCH",
  "MP_TOKEN",
  "MP_WORKSPACE",
  "MP_PROJECT",
  "MP_WORKTREE_ID",
  "MP_WRITER_EPOCH",
  "MP_TASK_ID",
  "MP_TASK_EPOCH",
] as const;
