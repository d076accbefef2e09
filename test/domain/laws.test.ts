/**
 * Laws over the whole registry, so that a new aggregate is covered the day it is added (SPEC §6, §7, §8, §13): for any
 * sequence of valid commands, the daemon's own ones among them, while time passes and leases run out: decide never throws
 * and gives only reasons that are declared; what it emits passes its schema; a state folded in memory is the state folded
 * from the log; rebuilt tables are the live ones, byte for byte; a lease is there exactly as long as the log says; a
 * command sent twice is carried out once. The seed is printed; MP_TEST_SEED=… repeats a run.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { TObject, TSchema } from "typebox";
import type { Lease } from "../../src/kernel/aggregate.ts";
import type { Outcome } from "../../src/kernel/execute.ts";
import { isProblem, type Problem } from "../../src/kernel/problems.ts";
import { matches, object } from "../../src/kernel/schema.ts";
import { columnsOf, digest } from "../../src/kernel/table.ts";
import { type Kernel, kernel, uuid } from "../support/given.ts";
import { random as dice } from "../support/random.ts";

const seed = Number(process.env.MP_TEST_SEED ?? Date.now()) | 0;
console.log(`test/domain/laws.test.ts: MP_TEST_SEED=${seed}`);

const { registry } = kernel();
const domain = [...registry.commands.values(), ...registry.internal.values()].filter(
  (entry) => entry.aggregate !== undefined,
);
/** The kind of a command, an event or a reason. */
const kindOf = (name: string) => name.split(".")[0]!;
const entryOf = (type: string) => domain.find((entry) => entry.type === type)!;
const tables = Object.assign({}, ...registry.aggregates.map((each) => each.readModel.tables)) as Record<
  string,
  (typeof registry.aggregates)[number]["readModel"]["tables"][string]
>;
/** Reasons that no command meets here: the route that takes bytes gives one, a log that two machines had the other. */
const ELSEWHERE = ["artifact.digest_mismatch", "worktree.other_host"];

/** Bytes that may be in the store; their sizes are 1, 2 and 3. */
const DIGESTS = ["a", "b", "c"].map((digit) => `sha256:${digit.repeat(64)}`);

/** Texts that meet: few, so that names and paths are taken often, and odd. */
const WORDS = [
  ...["a", "A", "ß", "SS", "ẞ", "İ", "ς", "Σ", "名", "😀", "x".repeat(128), "'; --", " "],
  ...["/", "/a", "/A", "/a/b", "/srv/ü", "C:\\a"],
  ...DIGESTS,
  "text/plain",
  "0123456789abcdef0123456789abcdef01234567",
  // Before, soon after and long after the clock begins.
  ...["2025-06-01T00:00:00.000Z", "2026-01-01T00:03:00.000Z", "2026-01-03T00:00:00.000Z"],
];

type Spec = TSchema & {
  type?: string;
  pattern?: string;
  enum?: unknown[];
  const?: unknown;
  anyOf?: TSchema[];
  items?: TSchema;
  minItems?: number;
  minimum?: number;
  maximum?: number;
  properties?: Record<string, TSchema>;
  required?: string[];
};

/** The words that a schema takes; where there are none, texts made from its pattern. */
const pools = new Map<string, string[]>();
function wordsFor(schema: TSchema): string[] {
  const key = JSON.stringify(schema);
  let pool = pools.get(key);
  if (!pool) {
    pool = WORDS.filter((word) => matches(schema, word));
    if (pool.length === 0) {
      const made = fc.stringMatching(new RegExp((schema as Spec).pattern ?? "^.*$"));
      pool = fc.sample(
        made.filter((text) => matches(schema, text)),
        { numRuns: 3, seed: 1 },
      );
    }
    pools.set(key, pool);
  }
  return pool;
}

type Payload = Record<string, unknown>;

/**
 * Makes payloads that go somewhere: ids of things that are there, most of them of the same workspace, epochs that most
 * often are the current ones, and now and then none of that. It looks at the read models, as a client does.
 */
function maker(it: Kernel, from: number) {
  const random = dice(from);
  const chance = (of: number) => random() < of;
  const pick = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)]!;
  /** The kind that the payload is for. */
  let own = "";
  const nobody = () => uuid(0xdead + Math.floor(random() * 3));

  /** The rows of a table that fit what is chosen already, else all; ids of other streams are no guide to themselves. */
  function rows(table: string, chosen: Payload, column: string): Payload[] {
    const columns = columnsOf(tables[table]!);
    const where = Object.entries(chosen).filter(
      ([name, value]) =>
        name !== column && typeof value === "string" && name.endsWith("_id") && columns.includes(name),
    );
    const select = (conditions: string, values: string[]) =>
      it.db
        .query<Payload, string[]>(`SELECT * FROM ${table}${conditions} ORDER BY ${tables[table]!.key}`)
        .all(...values);
    const fitting =
      where.length > 0 && chance(0.9)
        ? select(
            ` WHERE ${where.map(([name]) => `${name} = ?`).join(" AND ")}`,
            where.map(([, value]) => value as string),
          )
        : [];
    return fitting.length > 0 ? fitting : select("", []);
  }

  /** The table that has a row for each thing of a kind. */
  const tableOf = (kind: string) =>
    Object.keys(tables).find((name) => String(tables[name]!.key) === `${kind}_id`);

  /** An id for a field; undefined when nothing is there that it could name. */
  function id(field: string, chosen: Payload, subject: Payload | undefined): string | undefined {
    if (chance(0.04)) return nobody();
    // A reference by kind and id.
    const kind = field === "id" || field === "ref_id" ? (chosen.kind as string) : undefined;
    const column =
      kind !== undefined
        ? `${kind}_id`
        : field === "after" || field === "before"
          ? "node_id"
          : (/[a-z]+_id$/.exec(field)?.[0] ?? `${own}_id`);
    // Whoever holds the thing, or the like: a column of its row that names one.
    const held = Object.entries(subject ?? {})
      .filter(
        ([name, value]) =>
          name.endsWith(column) && name !== `${subject!.kind}_id` && typeof value === "string",
      )
      .map(([, value]) => value as string);
    if (held.length > 0 && field === column && chance(0.5)) return pick(held);
    const main = tableOf(column.replace(/_id$/, ""));
    const related = Object.keys(tables).filter(
      (name) =>
        name !== main && columnsOf(tables[name]!).includes(column) && tables[name]!.key.includes(column),
    );
    const within = related.length > 0 && (main === undefined || chance(0.4)) ? pick(related) : main;
    const found = within === undefined ? [] : rows(within, chosen, column);
    if (found.length === 0) return undefined;
    // The subject is in each status as often as in another; what it refers to is mostly one that lives, or that came last.
    const lives = found.filter((row) => it.lease(`${column.replace(/_id$/, "")}/${row[column]}`));
    if (field !== `${own}_id` && lives.length > 0 && chance(0.7)) return pick(lives)[column] as string;
    const statuses = [...new Set(found.map(({ status }) => status))];
    const of =
      field === `${own}_id` && chance(0.6) ? statuses[Math.floor(random() * statuses.length)] : undefined;
    const alike = of === undefined ? found : found.filter(({ status }) => status === of);
    return pick(chance(0.4) ? alike : alike.slice(-3))[column] as string;
  }

  /** A thing of a kind that has a lease, for commands that are about one; undefined when there is none. */
  function leased(kind: string): string | undefined {
    const streams = it.db
      .query<{ stream: string }, [string]>("SELECT stream FROM leases WHERE stream LIKE ? ORDER BY stream")
      .all(`${kind}/%`);
    return streams.length === 0 ? undefined : pick(streams).stream.slice(kind.length + 1);
  }

  function value(schema: TSchema, field: string, chosen: Payload, subject: Payload | undefined): unknown {
    const spec = schema as Spec;
    if (spec.anyOf) return value(pick(spec.anyOf), field, chosen, subject);
    if (spec.enum) return pick(spec.enum);
    if (spec.const !== undefined) return spec.const;
    switch (spec.type) {
      case "object":
        return payload(schema as TObject, chosen, subject);
      case "array": {
        const length = Math.max(spec.minItems ?? 0, Math.floor(random() * 3.5));
        return Array.from({ length }, () => value(spec.items!, field, chosen, subject)).filter(
          (item) => item !== undefined,
        );
      }
      case "integer": {
        const { minimum = -5, maximum = 1e9 } = spec;
        const bounded = (number: number) => Math.min(maximum, Math.max(minimum, number));
        if (field.endsWith("epoch")) {
          const [current = 1] = Object.entries(subject ?? {})
            .filter(([name]) => name.endsWith("epoch"))
            .map(([, epoch]) => epoch as number);
          return bounded(chance(0.85) ? current : current + pick([-1, 1]));
        }
        if (field.endsWith("seq")) return bounded(it.head() + pick([0, 0, -1, 1, 1_000]));
        if (field === "size") return chance(0.9) ? DIGESTS.indexOf(chosen.digest as string) + 1 : 4;
        if (field.endsWith("_ms")) return bounded(pick([minimum, 300_000, 900_000]));
        return bounded(minimum + Math.floor(random() * 4));
      }
      case "boolean":
        return chance(0.5);
      case "null":
        return null;
      case "string":
        return matches(schema, uuid(1)) && !matches(schema, "a")
          ? id(field, chosen, subject)
          : pick(wordsFor(schema));
      default:
        return pick([null, 1, "a", {}]);
    }
  }

  function payload(schema: TObject, outer: Payload, subject: Payload | undefined): Payload {
    const made: Payload = {};
    const required = (schema.required ?? []) as string[];
    for (const [field, spec] of Object.entries((schema.properties ?? {}) as Record<string, TSchema>)) {
      if (!required.includes(field) && !chance(0.4)) continue;
      const found = value(spec, field, { ...outer, ...made }, subject);
      if (found !== undefined) made[field] = found;
      else if (required.includes(field)) made[field] = nobody();
    }
    return made;
  }

  return {
    random,
    /** A payload for a schema; undefined when none turns up that its rule takes. */
    payloadFor(schema: TObject, kind: string): Payload | undefined {
      own = kind;
      for (let time = 0; time < 40; time++) {
        const key = `${kind}_id`;
        const given: Payload = {};
        let subject: Payload | undefined;
        if (
          schema.properties &&
          key in schema.properties &&
          (schema.required?.includes(key) || chance(0.6))
        ) {
          const fenced = schema.required?.some((field) => field.endsWith("epoch"));
          given[key] =
            (chance(fenced ? 0.7 : 0.25) ? leased(kind) : undefined) ?? id(key, {}, undefined) ?? nobody();
          subject =
            it.db
              .query<Payload, [string]>(`SELECT * FROM ${tableOf(kind)} WHERE ${key} = ?`)
              .get(given[key] as string) ?? undefined;
          if (subject) subject.kind = kind;
        }
        // What is chosen for it lies mostly where it lies.
        const near: Payload = {};
        for (const name of ["workspace_id", "project_id"])
          if (typeof subject?.[name] === "string") near[name] = subject[name];
        const { [key]: _, ...rest } = (schema.properties ?? {}) as Record<string, TSchema>;
        const others = object(rest) as unknown as TObject;
        const made = {
          ...given,
          ...payload(
            { ...others, required: schema.required ?? [] } as TObject,
            { ...near, ...given },
            subject,
          ),
        };
        if (matches(schema, made)) return made;
      }
      return undefined;
    },
  };
}

/** One step of a sequence: a command with the seed of its payload, or time that passes. */
interface Step {
  readonly type: string;
  readonly with: number;
}
const TIME = "(time passes)";
const BYTES = "(bytes come and go)";

/** What closes, ends or takes away comes less often: little happens in a world where everything is over. */
const RARE =
  /\.(close|archive|end|lose|remove|cancel|complete|fail|expire|retention_over|update_lanes|remove_node|leave|record_removed)$/;
/** What much else needs comes more often. */
const OFTEN = /\.(open|claim|attach|lock_writer)$/;
/** @param kinds those whose commands are to come more often; all alike when absent */
const steps = (max: number, min = 1, kinds: ReadonlySet<string> = new Set()) =>
  fc.array(
    fc.record({
      type: fc.oneof(
        ...domain.map(({ type }) => ({
          weight: (OFTEN.test(type) ? 16 : RARE.test(type) ? 2 : 8) * (kinds.has(kindOf(type)) ? 6 : 1),
          arbitrary: fc.constant(type),
        })),
        { weight: 16, arbitrary: fc.constant(TIME) },
        { weight: 3, arbitrary: fc.constant(BYTES) },
      ),
      // Another number makes another payload, not a smaller one.
      with: fc.noShrink(fc.nat()),
    }),
    // "max", because short sequences meet little.
    { minLength: min, maxLength: max, size: "max" },
  );
/** Three of everything: a world in which something can happen. */
const firsts: readonly Step[] = [1, 2, 3].flatMap((time) =>
  domain.filter(({ spec }) => spec.creates).map(({ type }) => ({ type, with: time })),
);

interface Sent {
  readonly type: string;
  readonly payload: Payload;
  readonly key: string;
}

/** Let some time pass, and end the leases that run out. What was due must be gone. */
function pass(it: Kernel, random: () => number): void {
  it.clock.forward(Math.floor(random() * random() * 400_000));
  if (random() < 0.2) it.grace();
  const now = it.clock.now();
  const due = it.db
    .query<{ stream: string; epoch: number }, [number]>(
      "SELECT stream, epoch FROM leases WHERE expires_at <= ?",
    )
    .all(now);
  for (let committed = it.expire(); committed; committed = it.expire())
    for (const outcome of committed.outcomes.flat()) expect(outcome).not.toHaveProperty("problem");
  for (const { stream, epoch } of due) expect([stream, it.lease(stream)?.epoch]).not.toEqual([stream, epoch]);
}

/** The store gets bytes, or loses those that no artifact has any more. */
function bytes(it: Kernel, random: () => number): void {
  const index = Math.floor(random() * DIGESTS.length);
  const digest = DIGESTS[index]!;
  const there = it.db.query("SELECT 1 FROM blobs WHERE digest = ?").get(digest);
  if (!there) it.store(digest, index + 1);
  else if (
    "artifacts" in tables &&
    !it.db.query("SELECT 1 FROM artifacts WHERE digest = ? AND status = 'available'").get(digest)
  )
    it.db.query("DELETE FROM blobs WHERE digest = ?").run(digest);
}

/** Run a sequence. `each` sees every command with its outcome, and where the log was before it. */
function play(
  it: Kernel,
  sequence: readonly Step[],
  each: (command: Sent, outcome: Outcome, before: number) => void = () => undefined,
): void {
  for (const size of [1, 2]) it.store(DIGESTS[size - 1]!, size);
  for (const [index, step] of [...firsts, ...sequence].entries()) {
    const made = maker(it, step.with);
    if (step.type === TIME) pass(it, made.random);
    else if (step.type === BYTES) bytes(it, made.random);
    else {
      const { spec, aggregate } = entryOf(step.type);
      const payload = made.payloadFor(spec.payload, aggregate!.kind);
      if (!payload) continue;
      const key = `law-${index}`;
      const before = it.head();
      each({ type: step.type, payload, key }, it.run(step.type, payload, { idempotency_key: key }), before);
    }
    expect(it.bugs).toEqual([]);
  }
}

const numRuns = 12;
// A run that fails is made smaller, but not for ever.
const parameters = { seed, numRuns, includeErrorInReport: true, interruptAfterTimeLimit: 40_000 };
const LONG = 180_000;

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

/** Every row of every read model, as SQLite has it, and the digest of each read model. */
function contents(it: Kernel): Record<string, unknown> {
  const rows = Object.keys(tables).map((name) => [
    name,
    it.db.query(`SELECT * FROM ${name} ORDER BY ${tables[name]!.key}`).all(),
  ]);
  const digests = registry.aggregates.map(({ kind, readModel }) => [
    `digest of ${kind}`,
    digest(it.db, readModel.tables),
  ]);
  return Object.fromEntries([...rows, ...digests]);
}

/** The leases that the log says there are, folded, against those that are kept. */
function expectLeasesFolded(it: Kernel): void {
  const streams = new Set(it.events().map((event) => event.stream));
  const told = [...streams].flatMap((stream) => {
    const aggregate = registry.aggregates.find(({ kind }) => kind === stream.split("/")[0])!;
    const lease: Lease | undefined = aggregate.lease?.of(it.folded(stream) as never);
    return lease
      ? [{ stream, epoch: lease.epoch, ttl_ms: lease.ttl_ms, grace: lease.grace === false ? 0 : 1 }]
      : [];
  });
  expect(it.db.query("SELECT stream, epoch, ttl_ms, grace FROM leases ORDER BY stream").all()).toEqual(
    told.sort((a, b) => (a.stream < b.stream ? -1 : 1)),
  );
}

function expectDeclared({ code, reason, detail, hint }: Problem): void {
  expect(["conflict", "not_found"]).toContain(code);
  if (reason !== null) expect({ is: detail, hint }).toMatchObject({ ...registry.reasons.get(reason) });
}

describe("for any sequence of valid commands, while time passes", () => {
  test(
    "decide never throws, its reasons are declared, and what it emits and tells passes its schema",
    () => {
      const met = new Set<string>();
      const all = [...domain.map(({ type }) => type), ...registry.events.keys(), ...registry.reasons.keys()];
      const missing = () => all.filter((name) => !met.has(name) && !ELSEWHERE.includes(name));
      const run = (sequence: readonly Step[]) => {
        const it = kernel();
        play(it, sequence, ({ type }, outcome, before) => {
          const made = it.events(before);
          if ("problem" in outcome) {
            expect(isProblem(outcome.problem)).toBe(true);
            expectDeclared(outcome.problem);
            expect(made).toEqual([]);
            met.add(outcome.problem.reason ?? outcome.problem.code);
          } else {
            const { result, version, seq_global, subject } = JSON.parse(outcome.receipt);
            expect([type, matches(entryOf(type).spec.result, result), result]).toEqual([type, true, result]);
            expect([version > 0, seq_global]).toEqual([true, it.head()]);
            expect(subject.kind).toBe(kindOf(type));
            met.add(type);
          }
        });
        for (const event of it.events()) {
          const { spec } = registry.events.get(event.event_type)!;
          expect([event.event_type, matches(spec.payload, event.payload)]).toEqual([event.event_type, true]);
          expect(event.schema_version).toBe(spec.version);
          expect(event.subject.kind).toBe(event.stream.split("/")[0]!);
          met.add(event.event_type);
        }
      };
      // The sequences are worth something: all in all they meet every command, every event and every reason. What was not
      // met yet is looked for where it may be met.
      for (let round = 0; round < 80 && (round === 0 || missing().length > 0); round++) {
        const kinds = new Set(round === 0 ? [] : missing().map(kindOf));
        fc.assert(fc.property(steps(600, 300, kinds), run), {
          ...parameters,
          seed: seed + round,
          numRuns: 6,
        });
      }
      expect(missing()).toEqual([]);
    },
    LONG,
  );

  test(
    "a state that is kept in memory is the state that is folded from the log",
    () => {
      fc.assert(
        fc.property(steps(150), (sequence) => {
          const [kept, folded] = [kernel(), kernel()];
          const outcomes: string[][] = [[], []];
          const note = (list: string[]) => (_: Sent, outcome: Outcome) =>
            list.push(
              "problem" in outcome
                ? `${outcome.problem.detail}`
                : outcome.receipt.replace(/"event_id":"[^"]*"/g, ""),
            );
          play(kept, sequence, note(outcomes[0]!));
          play(folded, sequence, (command, outcome) => {
            note(outcomes[1]!)(command, outcome);
            folded.forget();
          });
          expect(outcomes[1]).toEqual(outcomes[0]!);
          expect(lasting(folded)).toEqual(lasting(kept));
        }),
        parameters,
      );
    },
    LONG,
  );

  test(
    "tables that are rebuilt from the log, with no clock, are the live ones, byte for byte",
    () => {
      let expiries = 0;
      fc.assert(
        fc.property(steps(250), (sequence) => {
          const it = kernel();
          play(it, sequence);
          // Those that time alone has made are among them.
          expiries += it.events().filter(({ actor }) => actor.id === "mpd").length;
          const live = contents(it);
          for (const { name } of it.projections.status()) it.projections.rebuild(name);
          while (it.projections.step() !== undefined);
          expect(it.projections.status().map((each) => [each.status, each.as_of_seq])).toEqual(
            it.projections.status().map(() => ["serving", it.head()]),
          );
          expect(contents(it)).toEqual(live);
        }),
        parameters,
      );
      if (registry.aggregates.some(({ lease }) => lease)) expect(expiries).toBeGreaterThan(0);
    },
    LONG,
  );

  test(
    "a lease is there exactly as long as the log says, with its epoch and its ttl",
    () => {
      fc.assert(
        fc.property(steps(120), (sequence) => {
          const it = kernel();
          let checked = 0;
          play(it, sequence, (_, __, before) => {
            // Looking at the whole log each time would take long.
            if (it.head() > before && ++checked % 12 === 0) expectLeasesFolded(it);
          });
          expectLeasesFolded(it);
        }),
        parameters,
      );
    },
    LONG,
  );

  test(
    "a command that is sent twice with one key is carried out once, now and after a restart",
    () => {
      fc.assert(
        fc.property(steps(80), (sequence) => {
          const it = kernel();
          const first: (readonly [Sent, { receipt: string }])[] = [];
          /** The last renewal of each lease. */
          const renewals = new Map<string, { key: string; epoch: unknown }>();
          const again = ({ type, payload, key }: Sent) => it.run(type, payload, { idempotency_key: key });
          play(it, sequence, (command, outcome) => {
            const head = it.head();
            if ("problem" in outcome)
              expect(again(command)).toMatchObject({ problem: { code: outcome.problem.code } });
            else {
              expect(again(command)).toEqual({ receipt: outcome.receipt, replayed: true });
              first.push([command, outcome]);
              const { subject } = JSON.parse(outcome.receipt);
              const stream = `${subject.kind}/${subject.id}`;
              if (entryOf(command.type).spec.renews)
                renewals.set(stream, { key: command.key, epoch: it.lease(stream)!.epoch });
            }
            expect(it.head()).toBe(head);
          });
          it.forget();
          const head = it.head();
          // Of renewals only the last one of a lease that still is there is known; the others leave no trace.
          const known = new Set(
            [...renewals]
              .filter(([stream, { epoch }]) => it.lease(stream)?.epoch === epoch)
              .map(([, { key }]) => key),
          );
          const forgotten = ([{ type, key }]: (typeof first)[number]) =>
            entryOf(type).spec.renews && !known.has(key);
          for (const each of first.filter((sent) => !forgotten(sent)))
            expect(again(each[0])).toEqual({ receipt: each[1].receipt, replayed: true });
          for (const each of first.filter(forgotten)) {
            const outcome = again(each[0]);
            if ("problem" in outcome) expectDeclared(outcome.problem);
            else expect([outcome.replayed, JSON.parse(outcome.receipt).events]).toEqual([false, []]);
          }
          expect(it.head()).toBe(head);
        }),
        parameters,
      );
    },
    LONG,
  );

  test(
    "positions and versions have no gap, and a stream never changes its scope",
    () => {
      fc.assert(
        fc.property(steps(150), (sequence) => {
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
    },
    LONG,
  );

  test(
    "a query answers by its schema or refuses for a reason that is declared, whatever it is asked",
    () => {
      const queries = [...registry.queries.values()].filter(({ reads }) => reads);
      const answered = new Set<string>();
      const silent = () => queries.map(({ type }) => type).filter((type) => !answered.has(type));
      const run = (sequence: readonly Step[], from: number) => {
        const it = kernel();
        play(it, sequence);
        const made = maker(it, from);
        for (const { type, spec, params, reads } of queries)
          for (let time = 0; time < 8; time++) {
            const asked = made.payloadFor(spec.params, reads!.kind);
            if (!asked) continue;
            const paged = "limit" in params.properties ? { limit: 1 + Math.floor(made.random() * 5) } : {};
            const found = it.ask(type, { ...asked, ...paged });
            if ("problem" in found) expectDeclared(found.problem);
            else answered.add(type);
          }
      };
      // Until each was answered once, at least.
      for (let round = 0; round < 8 && (round === 0 || silent().length > 0); round++) {
        const kinds = new Set(round === 0 ? [] : silent().map(kindOf));
        fc.assert(fc.property(steps(200, 1, kinds), fc.nat(), run), { ...parameters, seed: seed + round });
      }
      expect(silent()).toEqual([]);
    },
    LONG,
  );
});
