import { expect, test } from "bun:test";
import fc from "fast-check";
import type { Event } from "../../src/kernel/aggregate.ts";
import { canonical } from "../../src/kernel/canonical.ts";
import { factOf } from "../../src/kernel/fact.ts";
import type { Placed } from "../../src/kernel/log.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/kernel/fact.test.ts: MP_TEST_SEED=${seed}`);

const uuid = fc.uuid({ version: 7 });
/** What could be taken for a place to cut, within a string or as the name of a member. */
const text = fc
  .array(
    fc.oneof(
      fc.constantFrom(
        ',"payload":',
        ',"prev_hash":"',
        '"timestamp":"',
        "payload",
        "prev_hash",
        "}",
        ",",
        "\\",
      ),
      fc.string({ unit: "grapheme" }),
    ),
    { maxLength: 4 },
  )
  .map((parts) => parts.join(""));
const json = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4 },
    text,
    fc.double({ noNaN: true, noDefaultInfinity: true }),
    fc.constantFrom(null, true, false),
    fc.array(tie("value"), { maxLength: 4 }),
    fc.dictionary(text, tie("value"), { maxKeys: 4 }),
  ),
}));

/** Events as the executor makes them, odd in everything that comes from outside. */
const anyEvent: fc.Arbitrary<Event> = fc
  .record({
    actor: text,
    behalf: fc.option(text),
    key: text,
    parent: fc.option(uuid),
    ids: fc.tuple(uuid, uuid),
    type: fc.constantFrom("a.b", "counter.added", "project.created"),
    payload: fc.dictionary(text, json.value, { maxKeys: 6 }),
    seqs: fc.tuple(fc.integer({ min: 1 }), fc.nat(12), fc.integer({ min: 1, max: 3 })),
    subject: fc.oneof(uuid, fc.constantFrom("x", `sha256:${"0".repeat(64)}`, "ä")),
    workspace: fc.option(uuid),
    project: fc.option(uuid),
  })
  .map(({ actor, behalf, key, parent, ids, type, payload, seqs, subject, workspace, project }) => {
    const kind = type.slice(0, type.indexOf("."));
    return {
      actor: {
        id: actor,
        kind: "ci",
        ...(behalf !== null && { on_behalf_of: { id: behalf, kind: "user" } }),
      },
      causality: {
        command_id: ids[0],
        idempotency_key: key,
        ...(parent !== null && { parent_event_id: parent }),
      },
      event_id: ids[1],
      event_type: type,
      payload,
      prev_hash: "0123456789abcdef".repeat(4),
      ...(project !== null && { project_id: project }),
      schema_version: seqs[2],
      seq_global: seqs[0],
      seq_stream: seqs[1] + 1,
      stream: `${kind}/${subject}`,
      subject: { id: subject, kind },
      timestamp: "2026-11-22T10:00:00.123Z",
      trace_id: "4bf92f3577b34da6a3ce929d0e0e4736",
      ...(workspace !== null && { workspace_id: workspace }),
    };
  });

function placed(event: Event): Placed {
  return {
    seq_global: event.seq_global,
    event_type: event.event_type,
    schema_version: event.schema_version,
    stream: event.stream,
    seq_stream: event.seq_stream,
    workspace_id: event.workspace_id ?? null,
    project_id: event.project_id ?? null,
    body: canonical(event),
  };
}

test("a fact is what parsing the whole envelope gives, whatever is in it", () => {
  fc.assert(
    fc.property(anyEvent, (event) => {
      const line = placed(event);
      const whole = JSON.parse(line.body) as Event;
      const fact = factOf(line);
      expect(fact).toEqual({
        event_type: whole.event_type,
        payload: whole.payload,
        project_id: whole.project_id,
        schema_version: whole.schema_version,
        seq_stream: whole.seq_stream,
        subject: whole.subject,
        timestamp: whole.timestamp,
        workspace_id: whole.workspace_id,
      });
      // The order of members as well: a read model may store what it is given as text.
      expect(JSON.stringify(fact.payload)).toBe(JSON.stringify(whole.payload));
    }),
    { seed, numRuns: 2_000 },
  );
});

test("a body that is no envelope, or is cut short anywhere, gives no fact", () => {
  const [event] = fc.sample(anyEvent, { seed, numRuns: 1 }) as [Event];
  const line = placed(event);
  for (let length = 0; length < line.body.length; length++)
    expect(() => factOf({ ...line, body: line.body.slice(0, length) })).toThrow();
});
