/**
 * Places to work in, made through the API alone: a workspace with a project, and whatever a test wants in them.
 *
 * Always so: every name and path is new, everything is made by commands that had to be accepted, leases are long unless a
 * test says otherwise. Left out on purpose: anything that git must be there for.
 */
import { waitFor } from "../support/binary.ts";
import { type Api, ask } from "./api.ts";

/** A thing that does not exist, of any kind. */
export const NOWHERE = "01900000-0000-7000-8000-000000000000";

let made = 0;
/** A name that nothing else has. */
export const fresh = (what: string) => `${what} ${++made}`;
/** A path that nothing else has; nothing need be there. */
export const freshPath = () => `/srv/mp-test-${process.pid}/${++made}`;

export const digestOf = (bytes: string) =>
  `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;

interface Lease {
  readonly epoch: number;
  readonly expires_at: string;
}

/**
 * Make a workspace with a project.
 * @param repository its repository, where a test needs one
 */
export async function makePlace(mp: Api, socket: string, repository?: string) {
  const make = async (type: string, payload: object) => (await mp.done(type, payload)).subject.id;
  const workspace_id = await make("workspace.create", { name: fresh("workspace") });
  const project = (more: object = {}) =>
    make("project.create", { workspace_id, name: fresh("project"), ...more });
  const project_id = await project(repository === undefined ? {} : { repo_path: repository });

  const place = {
    workspace_id,
    project_id,
    project,
    close: () => mp.done("workspace.close", { workspace_id }),
    open: () => mp.done("workspace.open", { workspace_id }),
    archive: (id = project_id) => mp.done("project.archive", { project_id: id }),

    session: (more: object = {}) =>
      make("session.spawn", { workspace_id, project_id, agent: { name: "tester" }, ...more }),
    end: (session_id: string) => mp.done("session.end", { session_id, outcome: "cancelled" }),
    /** A session whose heartbeats have not come. */
    async lost() {
      const session_id = await place.session({ ttl_ms: 1_000 });
      await waitFor(async () => (await mp.answer("session.get", { session_id })).status === "lost", {
        what: "the session to be lost",
      });
      return session_id;
    },

    /** A folder, registered; and a session attached to it, where a test wants that. */
    worktree: () => make("worktree.register", { project_id, path: freshPath() }),
    async attached(worktree_id: string, mode: "read" | "write" = "write") {
      const session_id = await place.session();
      await mp.done("worktree.attach", { worktree_id, session_id, mode });
      return session_id;
    },
    lock: async (worktree_id: string, session_id: string) =>
      (await mp.done("worktree.lock_writer", { worktree_id, session_id })).result as Lease,
    /** A worktree whose writer lock is held. */
    async written() {
      const worktree_id = await place.worktree();
      const session_id = await place.attached(worktree_id);
      return { worktree_id, session_id, ...(await place.lock(worktree_id, session_id)) };
    },

    task: (more: object = {}) => make("task.create", { project_id, title: fresh("task"), ...more }),
    claim: async (task_id: string, session_id: string) =>
      (await mp.done("task.claim", { task_id, session_id })).result as Lease & { attempt: number },
    /** A task that a session has claimed. */
    async claimed(more: object = {}) {
      const [task_id, session_id] = [await place.task(more), await place.session()];
      return { task_id, session_id, ...(await place.claim(task_id, session_id)) };
    },
    async done(task_id: string) {
      const { epoch } = await place.claim(task_id, await place.session());
      await mp.done("task.complete", { task_id, epoch });
    },

    /** A board of lanes of these names; a lane's id is at the same place. */
    async board(...names: string[]) {
      const lanes = (names.length > 0 ? names : ["to do", "done"]).map((name) => ({ name }));
      const board_id = await make("board.create", { workspace_id, name: fresh("board"), lanes });
      const shown = await mp.answer("board.get", { board_id });
      const lane_ids = (shown.lanes as { lane_id: string }[]).map(({ lane_id }) => lane_id);
      return { board_id, lane_ids, lane_id: lane_ids[0]! };
    },
    /** A node at the end of a lane; a comment when no more is said. */
    async node(board_id: string, lane_id: string, what: object = { kind: "comment", text: "words" }) {
      const { result } = await mp.done("board.add_node", { board_id, lane_id, ...what });
      return (result as { node_id: string }).node_id;
    },

    /** Bytes in the store, and what registering them says. */
    async bytes(text = fresh("bytes")) {
      const reply = await ask(socket, "PUT", `/v1/artifacts/${digestOf(text)}`, text);
      if (reply.status >= 300) throw new Error(reply.text);
      return { digest: digestOf(text), size: text.length, media_type: "text/plain" };
    },
    artifact: async (more: object = {}) =>
      make("artifact.register", {
        ...(await place.bytes()),
        links: [{ kind: "workspace", id: workspace_id }],
        ...more,
      }),

    /** Some thing of a kind, here. */
    async one(kind: string): Promise<string> {
      switch (kind) {
        case "workspace":
          return workspace_id;
        case "project":
          return project_id;
        case "session":
          return place.session();
        case "worktree":
          return place.worktree();
        case "task":
          return place.task();
        case "board":
          return (await place.board()).board_id;
        case "lane":
          return (await place.board()).lane_id;
        case "node": {
          const { board_id, lane_id } = await place.board();
          return place.node(board_id, lane_id);
        }
        case "artifact":
          return place.artifact();
        default:
          throw new Error(`there is no kind ${kind}`);
      }
    },
  };
  return place;
}
export type Place = Awaited<ReturnType<typeof makePlace>>;
