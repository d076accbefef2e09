/**
 * project: one repository (or plain folder) of a workspace (SPEC §8). `active → archived`.
 *
 * Ids are UUIDs: two clones of one repository are two projects, the git common directory is an attribute that
 * the client, which sees the disk, tells. Nothing changes in a closed workspace.
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
import { shut } from "./scope.ts";

const Status = oneOf("active", "archived");

const shown = {
  project_id: Id,
  workspace_id: Id,
  name: Name,
  status: Status,
  repo_path: nullable(Path),
  git_common_dir: nullable(Path),
  created_at: Time,
  updated_at: Time,
  version: Seq,
};

const projects = table(
  { ...shown, name_key: Type.String() },
  {
    key: ["project_id"],
    unique: [["workspace_id", "name_key"]],
    hidden: ["name_key"],
  },
);

declare module "../kernel/aggregate.ts" {
  interface Tables {
    projects: RowOf<typeof projects>;
  }
}

export const project = aggregate("project", { status: "absent" as "absent" | "active" | "archived" })({
  commands: {
    create: command(
      {
        workspace_id: field(Id, "the workspace that it lies in"),
        name: field(Name, "what it is called"),
        repo_path: Type.Optional(field(Path, "the folder of its repository")),
        git_common_dir: Type.Optional(
          field(Path, "the folder of git that all worktrees of the repository share"),
        ),
      },
      "Create a project in a workspace.",
      { creates: true },
    ),
    archive: command(
      { project_id: field(Id, "the project to archive") },
      "Archive a project: it stays readable, its name stays taken.",
    ),
  },
  events: {
    created: event(1, {
      name: Name,
      repo_path: Type.Optional(Path),
      git_common_dir: Type.Optional(Path),
    }),
    archived: event(1, {}),
  },
  reasons: {
    "project.name_taken": {
      is: "another project of the workspace has that name",
      hint: "choose another name, or use the project whose id is in the details",
    },
    "project.archived": {
      is: "the project is archived, so nothing new can begin in it",
      hint: "use another project: an archived one stays archived",
    },
    "project.other_workspace": {
      is: "the project is in another workspace",
      hint: "give the workspace whose id is in the details, or a project of the workspace",
    },
  },
  scope: (id, { workspace_id }) => ({ workspace_id: workspace_id as string, project_id: id }),
  decide: {
    create(_, { workspace_id, name, repo_path, git_common_dir }, { find }) {
      const refused = shut(find, { workspace_id });
      if (refused) return refused;
      const named = find.one("projects", { workspace_id, name_key: foldCase(name) });
      if (named) return reject("project.name_taken", { project_id: named.project_id });
      return [{ type: "created", payload: { name, repo_path, git_common_dir } }];
    },
    archive: (state, _, { find, scope: { workspace_id } }) =>
      state.status === "archived"
        ? []
        : (shut(find, { workspace_id }) ?? [{ type: "archived", payload: {} }]),
  },
  evolve: {
    created: () => ({ status: "active" }),
    archived: () => ({ status: "archived" }),
  },
  readModel: {
    version: 2,
    tables: { projects },
    apply: {
      created: (rows, event) => {
        const { subject, workspace_id, payload } = event;
        rows.projects.insert({
          ...born(event),
          project_id: subject.id,
          workspace_id: workspace_id ?? "",
          name: payload.name,
          status: "active",
          repo_path: payload.repo_path ?? null,
          git_common_dir: payload.git_common_dir ?? null,
          name_key: foldCase(payload.name),
        });
      },
      archived: (rows, event) =>
        rows.projects.update({ project_id: event.subject.id }, { status: "archived", ...touched(event) }),
    },
  },
  queries: {
    list: query(
      {
        workspace_id: Type.Optional(field(Id, "only those of this workspace")),
        status: Type.Optional(field(Status, "only those with this status")),
        name: Type.Optional(field(Name, "only those of this name")),
      },
      pageOf(Type.Object(shown, { additionalProperties: false })),
      "List projects, oldest first.",
      (read, { workspace_id, status, name, ...page }) =>
        read.page(
          "projects",
          { workspace_id, status, name_key: name === undefined ? undefined : foldCase(name) },
          page,
        ),
    ),
    get: query(
      { project_id: field(Id, "the project to show") },
      Type.Object({ as_of_seq: Seq, ...shown }, { additionalProperties: false }),
      "Show one project.",
      (read, { project_id }) => read.one("projects", { project_id }) ?? missing("project", project_id),
    ),
  },
});
