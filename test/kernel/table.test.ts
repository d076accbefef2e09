import { expect, test } from "bun:test";
import { Type } from "typebox";
import { table } from "../../src/kernel/aggregate.ts";
import { nullable } from "../../src/kernel/schema.ts";
import { conditions, ordered, rowsOf } from "../../src/kernel/table.ts";
import { engine, receiptOf, toWrite } from "./engine.ts";

test("a look-up has one text, however long its lists are and however many rows it wants: each text stays prepared", () => {
  const text = (ids: readonly string[], limit: number) =>
    conditions({ counter_id: { oneOf: ids } }).sql + ordered(["counter_id"], { limit }).sql;
  expect(text(["a"], 1)).toBe(text(["a", "b", "c"], 10_000));
});

test("a list finds what is in it: no value twice, none by another type, nothing for an empty one", () => {
  const kernel = engine();
  const [a, b] = ["a", "b'\"\\"].map((name) => kernel.done("counter.create", { name }).subject.id) as [
    string,
    string,
  ];
  receiptOf(kernel.run(toWrite("counter.add", { counter_id: a, by: [1, 2, 3] })).outcomes[0]![0]!);
  const { find } = kernel.projections;
  const names = (...oneOf: string[]) =>
    find.all("counters", { name: { oneOf } }).map((row) => row.counter_id);
  expect(names("b'\"\\", "a", "a", "c")).toEqual([a, b]);
  expect(names()).toEqual([]);
  const of = (...oneOf: number[]) =>
    find.all("entries", { counter_id: a, by: { oneOf } }).map((row) => row.by);
  expect([of(3, 1), of(4)]).toEqual([[1, 3], []]);
  expect(
    find.all(
      "entries",
      { counter_id: a, by: { oneOf: [1, 2, 3], above: 1 } },
      { descending: true, limit: 1 },
    ),
  ).toMatchObject([{ by: 3 }]);
});

test("a row that lacks a column is a bug, also where NULL could stand", () => {
  const { db } = engine();
  db.run("CREATE TABLE loose (a TEXT, b TEXT) STRICT");
  const { loose } = rowsOf(
    db,
    { loose: table({ a: nullable(Type.String()), b: nullable(Type.String()) }, { key: ["a"] }) },
    "",
  );
  expect(() => loose!.insert({ a: "1" })).toThrow();
  loose!.insert({ b: null, a: "1" });
  expect(db.query("SELECT a, b FROM loose").all()).toEqual([{ a: "1", b: null }]);
});
