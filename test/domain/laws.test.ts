/**
 * Laws over the whole registry, so that a new aggregate is covered the day it is added (SPEC §6, §7, §13): for any
 * sequence of valid commands, decide never throws and gives only reasons that are declared; what it emits passes its
 * schema; a state folded in memory is the state folded from the log; rebuilt tables are the live ones, byte for byte;
 * a command sent twice is carried out once. The seed is printed; MP_TEST_SEED=… repeats a run.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { TObject, TSchema } from "typebox";
import type { Outcome } from "../../src/kernel/execute.ts";
import { isProblem } from "../../src/kernel/problems.ts";
import { matches } from "../../src/kernel/schema.ts";
import { type Kernel, kernel, uuid } from "../support/given.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/laws.test.ts: MP_TEST_SEED=${seed}`);

/** Texts that meet: few, so that names and paths are taken often, and odd. */
const TEXTS = ["a", "A", "ß", "SS", "ẞ", "İ", "ς", "Σ", "名", "😀", "x".repeat(128), "'; --", " "];
const PATHS = ["/", "/a", "/A", "/a/b", "/srv/ü", "C:\\a"];

/** Stands for the id of a thing of a kind that the run has made by then. */
interface Named {
  readonly named: string;
  readonly nth: number;
}

type Spec = TSchema & {
  type?: string;
  pattern?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: TSchema[];
  items?: TSchema;
  minimum?: number;
  maximum?: number;
};

/** Any value of a schema; a text that a pattern rules is taken from words that exist for it, or made from it. */
function anyOfSchema(schema: TSchema, field: string): fc.Arbitrary<unknown> {
  const spec = schema as Spec;
  if (spec.anyOf) return fc.oneof(...spec.anyOf.map((each) => anyOfSchema(each, field)));
  if (spec.enum) return fc.constantFrom(...spec.enum);
  if (spec.const !== undefined) return fc.constant(spec.const);
  switch (spec.type) {
    case "object":
      return payloadOf(spec as unknown as TObject);
    case "array":
      return fc.array(anyOfSchema(spec.items!, field), { maxLength: 3 });
    case "integer":
      return fc.integer({ min: spec.minimum ?? -1_000, max: Math.min(spec.maximum ?? 1_000, 1_000_000) });
    case "boolean":
      return fc.boolean();
    case "null":
      return fc.constant(null);
    case "string": {
      const words = [...TEXTS, ...PATHS].filter((word) => matches(schema, word));
      if (words.length > 0) return fc.constantFrom(...words);
      if (matches(schema, uuid(1)) && field.endsWith("_id"))
        return fc.record({ named: fc.constant(field.replace(/_id$/, "")), nth: fc.nat(20) });
      if (matches(schema, uuid(1))) return fc.constant(uuid(1));
      return fc.stringMatching(new RegExp(spec.pattern ?? "^.*$")).filter((text) => matches(schema, text));
    }
    default:
      throw new Error(`say here how to make a ${JSON.stringify(schema)}`);
  }
}

function payloadOf(schema: TObject): fc.Arbitrary<Record<string, unknown>> {
  const fields = Object.entries(schema.properties as Record<string, TSchema>);
  return fc.record(Object.fromEntries(fields.map(([name, field]) => [name, anyOfSchema(field, name)])), {
    requiredKeys: (schema.required ?? []) as unknown as never[],
  });
}

interface Step {
  readonly type: string;
  readonly payload: Record<string, unknown>;
}

/** Any sequence of the domain's commands; those that make something come more often, so that there is something. */
const { registry } = kernel();
const domain = [...registry.commands.values()].filter((entry) => entry.aggregate !== undefined);
const steps = (max: number) =>
  fc.array(
    fc.oneof(
      ...domain.map(({ type, spec }) => ({
        weight: spec.creates ? 3 : 2,
        arbitrary: payloadOf(spec.payload).map((payload): Step => ({ type, payload })),
      })),
    ),
    // "max", because short sequences meet little.
    { minLength: 1, maxLength: max, size: "max" },
  );

/** The payload with the ids of what the run has made in the place of their names. */
function resolved(made: ReadonlyMap<string, string[]>, value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map((each) => resolved(made, each));
  const { named, nth } = value as Named;
  if (named !== undefined) {
    const ids = made.get(named) ?? [];
    // One in seven is about nothing that exists.
    return nth % 7 === 0 || ids.length === 0 ? uuid(0xdead + nth) : ids[nth % ids.length];
  }
  return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, resolved(made, each)]));
}

const subjectOf = (outcome: Outcome) =>
  "receipt" in outcome
    ? (JSON.parse(outcome.receipt) as { subject: { kind: string; id: string } }).subject
    : undefined;

/** Run a sequence. `each` sees every command with its outcome, and what it appended. */
function play(
  it: Kernel,
  sequence: readonly Step[],
  each: (command: Step & { key: string }, outcome: Outcome, before: number) => void = () => undefined,
): void {
  const made = new Map<string, string[]>();
  for (const [index, { type, payload }] of sequence.entries()) {
    const entry = it.registry.commands.get(type)!;
    const whole = resolved(made, payload) as Record<string, unknown>;
    expect([type, matches(entry.spec.payload, whole)]).toEqual([type, true]);
    const key = `law-${index}`;
    const before = it.head();
    const outcome = it.run(type, whole, { idempotency_key: key });
    const subject = subjectOf(outcome);
    if (subject && entry.spec.creates)
      made.set(subject.kind, [...(made.get(subject.kind) ?? []), subject.id]);
    each({ type, payload: whole, key }, outcome, before);
  }
}

const parameters = { seed, numRuns: 25 };

/** What of an event does not depend on the hour or on chance. */
const lasting = (it: Kernel) =>
  it
    .events()
    .map(
      ({ event_type, payload, stream, seq_stream, seq_global, schema_version, workspace_id, project_id }) =>
        JSON.stringify([
          event_type,
          payload,
          stream,
          seq_stream,
          seq_global,
          schema_version,
          workspace_id,
          project_id,
        ]),
    );

/** Every row of every read model, as SQLite has it. */
function tables(it: Kernel): Record<string, unknown[]> {
  const names = it.registry.aggregates.flatMap((aggregate) => Object.keys(aggregate.readModel.tables));
  return Object.fromEntries(
    names.map((name) => [
      name,
      it.db.query(`SELECT *, typeof(version) AS typed FROM ${name} ORDER BY 1`).all(),
    ]),
  );
}

describe("for any sequence of valid commands", () => {
  test("decide never throws, its reasons are declared, and what it emits passes its schema", () => {
    const met = new Set<string>();
    fc.assert(
      fc.property(steps(150), (sequence) => {
        const it = kernel();
        play(it, sequence, ({ type }, outcome, before) => {
          expect(it.bugs).toEqual([]);
          const made = it.events(before);
          if ("problem" in outcome) {
            expect(isProblem(outcome.problem)).toBe(true);
            expect(["conflict", "not_found"]).toContain(outcome.problem.code);
            const { reason, detail, hint } = outcome.problem;
            if (reason !== null) expect(it.registry.reasons.get(reason)).toEqual({ is: detail, hint });
            expect(made).toEqual([]);
            met.add(reason ?? outcome.problem.code);
          }
          for (const event of made) {
            const { spec } = it.registry.events.get(event.event_type)!;
            expect([event.event_type, matches(spec.payload, event.payload)]).toEqual([
              event.event_type,
              true,
            ]);
            expect(event.schema_version).toBe(spec.version);
            expect(event.subject.kind).toBe(event.stream.split("/")[0]!);
            met.add(event.event_type);
          }
          met.add(type);
        });
      }),
      parameters,
    );
    // The sequences are worth something: they met every command, every event and every reason.
    const all = [...domain.map((entry) => entry.type), ...registry.events.keys(), ...registry.reasons.keys()];
    expect(all.filter((name) => !met.has(name))).toEqual([]);
  });

  test("a state that is kept in memory is the state that is folded from the log", () => {
    fc.assert(
      fc.property(steps(40), (sequence) => {
        const [kept, folded] = [kernel(), kernel()];
        const outcomes: string[][] = [[], []];
        play(kept, sequence, (_, outcome) =>
          outcomes[0]!.push("problem" in outcome ? outcome.problem.detail : "accepted"),
        );
        play(folded, sequence, (_, outcome) => {
          outcomes[1]!.push("problem" in outcome ? outcome.problem.detail : "accepted");
          folded.forget();
        });
        expect(outcomes[1]).toEqual(outcomes[0]!);
        expect(lasting(folded)).toEqual(lasting(kept));
      }),
      parameters,
    );
  });

  test("tables that are rebuilt from the log are the live ones, byte for byte", () => {
    fc.assert(
      fc.property(steps(60), (sequence) => {
        const it = kernel();
        play(it, sequence);
        const live = tables(it);
        for (const { name } of it.projections.status()) it.projections.rebuild(name);
        while (it.projections.step() !== undefined);
        expect(it.projections.status().map((each) => [each.status, each.as_of_seq])).toEqual(
          it.projections.status().map(() => ["serving", it.head()]),
        );
        expect(tables(it)).toEqual(live);
      }),
      parameters,
    );
  });

  test("a command that is sent twice with one key is carried out once, now and after a restart", () => {
    fc.assert(
      fc.property(steps(25), (sequence) => {
        const it = kernel();
        const first: (readonly [Step & { key: string }, Outcome])[] = [];
        play(it, sequence, (command, outcome) => {
          first.push([command, outcome]);
          const head = it.head();
          const again = it.run(command.type, command.payload, { idempotency_key: command.key });
          if ("problem" in outcome) expect(again).toMatchObject({ problem: { code: outcome.problem.code } });
          else expect(again).toEqual({ receipt: outcome.receipt, replayed: true });
          expect(it.head()).toBe(head);
        });
        it.forget();
        const head = it.head();
        for (const [command, outcome] of first)
          if ("receipt" in outcome)
            expect(it.run(command.type, command.payload, { idempotency_key: command.key })).toEqual({
              receipt: outcome.receipt,
              replayed: true,
            });
        expect(it.head()).toBe(head);
      }),
      parameters,
    );
  });

  test("positions and versions have no gap, and a stream never changes its scope", () => {
    fc.assert(
      fc.property(steps(40), (sequence) => {
        const it = kernel();
        play(it, sequence);
        const streams = new Map<string, { version: number; scope: string }>();
        for (const [index, event] of it.events().entries()) {
          const scope = JSON.stringify([event.workspace_id, event.project_id]);
          const known = streams.get(event.stream) ?? { version: 0, scope };
          expect([event.seq_global, event.seq_stream, scope]).toEqual([
            index + 1,
            known.version + 1,
            known.scope,
          ]);
          streams.set(event.stream, { version: event.seq_stream, scope });
        }
      }),
      parameters,
    );
  });
});
