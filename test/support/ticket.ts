/**
 * An aggregate that no product has, with a past: `ticket.opened` is at version 3, the command that makes it too, and both
 * still take versions 1 and 2. For tests of upcasters in every place where an old version can turn up.
 */
import { Type } from "typebox";
import { aggregate, command, event, query, reject, table } from "../../src/kernel/aggregate.ts";
import { Id, object, pageOf, Seq } from "../../src/kernel/schema.ts";

const text = Type.String({ maxLength: 200_000 });
const V1 = object({ title: text });
const V2 = object({ title: text, priority: Type.Integer() });
const now = { headline: text, priority: Type.Integer(), tags: Type.Array(text) };

const steps = {
  1: { payload: V1, up: ({ title }: { title: string }) => ({ title, priority: 2 }) },
  2: {
    payload: V2,
    up: ({ title, priority }: { title: string; priority: number }) => ({
      headline: title,
      priority,
      tags: [],
    }),
  },
};

const tickets = table(
  { ticket_id: Id, headline: Type.String(), priority: Type.Integer(), tags: Type.String(), version: Seq },
  { key: ["ticket_id"] },
);

declare module "../../src/kernel/aggregate.ts" {
  interface Tables {
    tickets: { ticket_id: string; headline: string; priority: number; tags: string; version: number };
  }
}

export const ticket = aggregate("ticket", { headline: "", priority: -1 })({
  commands: {
    open: command(now, "Open a ticket.", { creates: true, version: 3, older: steps }),
    /** Gives what it has seen of the state, so that a test can see it too. */
    close: command({ ticket_id: Id }, "Close a ticket.", {
      result: object({ headline: text, priority: Type.Integer() }),
    }),
    break: command({ ticket_id: Id, how: text }, "Meet a bug."),
  },
  events: { opened: event(3, now, steps), closed: event(1, {}) },
  reasons: { "ticket.unwanted": { is: "nobody wants it", hint: "say what is wanted" } },
  scope: () => ({}),
  decide: {
    open: (_, payload) =>
      payload.headline === "unwanted"
        ? reject("ticket.unwanted", { priority: payload.priority })
        : [{ type: "opened", payload }],
    close: (state) => ({ events: [{ type: "closed", payload: {} }], result: { ...state } }),
    break: (_, { how }) => {
      if (how === "throw") throw new Error("a bug in decide");
      return [{ type: "opened", payload: { headline: 5 } as never }];
    },
  },
  evolve: {
    opened: (_, { headline, priority }) => ({ headline, priority }),
    closed: (state) => state,
  },
  readModel: {
    version: 1,
    tables: { tickets },
    apply: {
      opened: (rows, { subject, payload, seq_stream }) => {
        if (payload.headline === "unbearable") throw new Error("a bug in apply");
        rows.tickets.insert({
          ticket_id: subject.id,
          headline: payload.headline,
          priority: payload.priority,
          tags: payload.tags.join(" "),
          version: seq_stream,
        });
      },
      closed: (rows, { subject, seq_stream }) =>
        rows.tickets.update({ ticket_id: subject.id }, { version: seq_stream }),
    },
  },
  queries: {
    list: query({}, pageOf(tickets.row), "List tickets.", (read, page) => read.page("tickets", {}, page)),
  },
});
