/**
 * workspace: the place where projects live (SPEC §8). `open ⇄ closed`.
 *
 * A name is taken by any workspace, open or closed, without regard to case; so is a root path. Opening an
 * open workspace, or closing a closed one, is accepted and changes nothing.
 */
import { Type } from "typebox";
import {
  aggregate,
  born,
  command,
  event,
  missing,
  query,
  type RowOf,
  reject,
  table,
  touched,
} from "../kernel/aggregate.ts";
import { field, foldCase, Id, Name, nullable, oneOf, Path, pageOf, Seq, Time } from "../kernel/schema.ts";

const Status = oneOf("open", "closed");

const shown = {
  workspace_id: Id,
  name: Name,
  status: Status,
  root_path: nullable(Path),
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const workspaces = table(
  { ...shown, name_key: Type.String() },
  { key: ["workspace_id"], unique: [["name_key"], ["root_path"]], hidden: ["name_key"] },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    workspaces: RowOf<typeof workspaces>;
  }
}

export const workspace = aggregate("workspace", { status: "absent" as "absent" | "open" | "closed" })({
  commands: {
    create: command(
      {
        name: field(Name, "what it is called"),
        root_path: Type.Optional(field(Path, "the folder that it is about, no other workspace's")),
      },
      "Create a workspace, open from the start.",
      { creates: true },
    ),
    open: command({ workspace_id: field(Id, "the workspace to open") }, "Open a closed workspace."),
    close: command(
      { workspace_id: field(Id, "the workspace to close") },
      "Close a workspace: nothing in it can change until it is opened again.",
    ),
  },
  events: {
    created: event(1, { name: Name, root_path: Type.Optional(Path) }),
    opened: event(1, {}),
    closed: event(1, {}),
  },
  reasons: {
    "workspace.name_taken": {
      is: "another workspace has that name",
      hint: "choose another name, or use the workspace whose id is in the details",
    },
    "workspace.path_taken": {
      is: "another workspace has that root path",
      hint: "choose another root path, or use the workspace whose id is in the details",
    },
    "workspace.closed": {
      is: "the workspace is closed, so nothing in it can change",
      hint: "open it first: mp workspace open WORKSPACE",
    },
  },
  scope: (id) => ({ workspace_id: id }),
  decide: {
    create(_, { name, root_path }, { find }) {
      const named = find.one("workspaces", { name_key: foldCase(name) });
      if (named) return reject("workspace.name_taken", { workspace_id: named.workspace_id });
      const rooted = root_path === undefined ? undefined : find.one("workspaces", { root_path });
      if (rooted) return reject("workspace.path_taken", { workspace_id: rooted.workspace_id });
      return [{ type: "created", payload: { name, root_path } }];
    },
    open: (state) => (state.status === "open" ? [] : [{ type: "opened", payload: {} }]),
    close: (state) => (state.status === "closed" ? [] : [{ type: "closed", payload: {} }]),
  },
  evolve: {
    created: () => ({ status: "open" }),
    opened: () => ({ status: "open" }),
    closed: () => ({ status: "closed" }),
  },
  readModel: {
    version: 2,
    tables: { workspaces },
    apply: {
      created: (rows, event) => {
        const { subject, payload } = event;
        rows.workspaces.insert({
          ...born(event),
          workspace_id: subject.id,
          name: payload.name,
          status: "open",
          root_path: payload.root_path ?? null,
          name_key: foldCase(payload.name),
        });
      },
      opened: (rows, event) =>
        rows.workspaces.update({ workspace_id: event.subject.id }, { status: "open", ...touched(event) }),
      closed: (rows, event) =>
        rows.workspaces.update({ workspace_id: event.subject.id }, { status: "closed", ...touched(event) }),
    },
  },
  queries: {
    list: query(
      {
        status: Type.Optional(field(Status, "only those with this status")),
        name: Type.Optional(field(Name, "only the one of this name")),
      },
      pageOf(Type.Object(shown, { additionalProperties: false })),
      "List workspaces, oldest first.",
      (read, { status, name, ...page }) =>
        read.page("workspaces", { status, name_key: name === undefined ? undefined : foldCase(name) }, page),
    ),
    get: query(
      { workspace_id: field(Id, "the workspace to show") },
      Type.Object({ as_of_seq: Seq, ...shown }, { additionalProperties: false }),
      "Show one workspace.",
      (read, { workspace_id }) =>
        read.one("workspaces", { workspace_id }) ?? missing("workspace", workspace_id),
    ),
  },
});
