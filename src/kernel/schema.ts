/**
 * Schemas: the primitives every payload is made of, and the one way to check a value against a schema.
 *
 * Always holds: objects refuse unknown fields at every depth, nothing is coerced (SPEC §2). Validators are
 * compiled on first use, because compiling costs about a millisecond and a CLI call needs none of them.
 */
import { type Static, type TObject, type TProperties, type TSchema, Type } from "typebox";
import { Compile } from "typebox/compile";
import { Settings } from "typebox/system";
import type { SchemaError } from "./problems.ts";

/** UUIDv7, lower case (SPEC §1). */
export const Id = Type.String({
  pattern: "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
  description: "a UUIDv7, lower case",
});

/** A name (SPEC §8): 1–128 characters, NFC, no control characters. */
export const Name = Type.Refine(
  Type.String({
    minLength: 1,
    maxLength: 128,
    // Control characters are also those that turn the text of a line around.
    pattern: "^[^\\u0000-\\u001f\\u007f-\\u009f\\u202a-\\u202e\\u2066-\\u2069]+$",
    description: "1–128 characters, Unicode NFC, no control characters",
  }),
  (value) => value === value.normalize("NFC"),
  () => "must be in Unicode normal form NFC",
);

/** A path (SPEC §8): absolute and canonical, so without `.`, `..`, empty segments or a slash at the end. */
export const Path = Type.String({
  maxLength: 4096,
  // It looks at the length first, because a pattern is tried on a text of any length when errors are told.
  pattern:
    "^(?![\\s\\S]{4097})(?:/|(?:/(?!\\.{1,2}(?:/|$))[^/\\u0000]+)+|[A-Z]:\\\\(?:(?!\\.{1,2}(?:\\\\|$))[^\\\\/\\u0000]+(?:\\\\(?!\\.{1,2}(?:\\\\|$))[^\\\\/\\u0000]+)*)?)$",
  description: "an absolute, canonical path",
});

/** RFC 3339 UTC with milliseconds (SPEC §1); a day and an hour that exist. */
export const Time = Type.Refine(
  Type.String({
    pattern: "^\\d{4}-\\d{2}-\\d{2}T\\d{2}:\\d{2}:\\d{2}\\.\\d{3}Z$",
    description: "RFC 3339, UTC, milliseconds",
  }),
  (value) => {
    const at = new Date(value);
    return !Number.isNaN(at.getTime()) && at.toISOString() === value;
  },
  () => "must be a time that exists",
);

/** A position in the log or in a stream. */
export const Seq = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

/** 64 hexadecimal digits. */
export const Sha256 = Type.String({ pattern: "^[0-9a-f]{64}$", description: "SHA-256, hexadecimal" });

/** An object that refuses unknown fields. */
export function object<P extends TProperties>(fields: P, description?: string): TObject<P> {
  return Type.Object(fields, {
    additionalProperties: false,
    ...(description && { description }),
  }) as TObject<P>;
}

/** What a value looks like, in words, where its field's description says what it is for: see `field`. */
const FORM = "~form";

/**
 * A schema as a field of a command or query: what it is for comes first in its description. What is wrong with a value is said
 * by what the schema itself asks of it.
 * @param schema of the value; it stays as it is, so that events which have it too do not change
 * @param is what the field is for: help (cli/fields.ts), the published schemas and the reference have it from here
 */
export function field<T extends TSchema>(schema: T, is: string): T {
  const { description: form } = schema as { description?: string };
  const described: T = Object.create(Object.getPrototypeOf(schema));
  for (const key of Reflect.ownKeys(schema))
    Object.defineProperty(described, key, Object.getOwnPropertyDescriptor(schema, key)!);
  Object.defineProperty(described, FORM, { value: form });
  return Object.assign(described, { description: form === undefined ? is : `${is}: ${form}` });
}

/** One of these words. */
export function oneOf<const W extends readonly string[]>(...words: W) {
  return Type.Enum<[...W]>([...words]);
}

/** The value or null: how read models show what is not there. */
export function nullable<T extends TSchema>(schema: T) {
  return Type.Union([schema, Type.Null()]);
}

/** Rows of a page when the caller asks for no other number, and at most (SPEC §10). */
export const DEFAULT_PAGE = 100;
export const MAX_PAGE = 10_000;
/** At most where a row takes more than one look-up. */
export const LARGE_PAGE = 1_000;

/** A page of rows as every list query answers it (SPEC §3). */
export function pageOf<T extends TSchema>(item: T) {
  return object({
    as_of_seq: Seq,
    items: Type.Array(item),
    next: nullable(Type.String()),
  });
}

/**
 * The form of a name that must be unique: case-insensitive by Unicode folding as far as JavaScript has it
 * (lower, upper, lower, so that `ß`, `ẞ` and `SS` meet), then NFC. Folding twice changes nothing more.
 */
export function foldCase(name: string): string {
  return name.toLowerCase().toUpperCase().toLowerCase().normalize("NFC");
}

const compiled = new WeakMap<
  TSchema,
  { Check(value: unknown): boolean; Errors(value: unknown): unknown[] }
>();

function validatorOf(schema: TSchema) {
  let validator = compiled.get(schema);
  if (!validator) {
    validator = Compile(schema);
    compiled.set(schema, validator);
  }
  return validator;
}

/** True when the value is exactly of the schema. */
export function matches<T extends TSchema>(schema: T, value: unknown): value is Static<T> {
  return validatorOf(schema).Check(value);
}

interface RawError {
  keyword: string;
  schemaPath: string;
  instancePath: string;
  params: Record<string, unknown>;
  message: string;
}

/** At most so many places are told: more than a request made in good faith has, too few to be a way to burn time. */
export const MOST_ERRORS = 100;
// The library stops at 8 by itself, and it can name a place several times (each branch of a union, for instance).
Settings.Set({ maxErrors: 10 * MOST_ERRORS });

/** The message about a field that no schema has: the only one whose pointer has a word of the sender's in it. */
export const UNKNOWN_FIELD = "is not a known field";

/**
 * Every place in which a value breaks a schema.
 * @param schema what it should be
 * @param value any JSON value
 * @param at the pointer of the value itself, for instance `/payload`
 * @returns no element when the value is right; at most MOST_ERRORS otherwise, one per place
 */
export function schemaErrors(schema: TSchema, value: unknown, at = ""): SchemaError[] {
  const validator = validatorOf(schema);
  if (validator.Check(value)) return [];
  const raw = validator.Errors(value) as RawError[];
  const found = new Map<string, string>();
  const say = (pointer: string, message: string) => {
    if (!found.has(pointer) && found.size < MOST_ERRORS) found.set(pointer, message);
  };
  // A failed union also lists the errors of each of its branches: one line for the union says it better.
  const unions = new Set(raw.filter((error) => error.keyword === "anyOf").map((error) => error.schemaPath));
  for (const error of raw) {
    const pointer = at + error.instancePath;
    if ([...unions].some((path) => error.schemaPath.startsWith(`${path}/anyOf/`))) continue;
    switch (error.keyword) {
      case "additionalProperties":
        break; // its "boolean" twin names the field
      case "boolean":
        say(pointer, UNKNOWN_FIELD);
        break;
      case "required":
        for (const name of error.params.requiredProperties as string[])
          say(`${pointer}/${name}`, "is required");
        break;
      case "enum":
        say(pointer, `must be one of ${(error.params.allowedValues as unknown[]).join(", ")}`);
        break;
      case "pattern":
        say(pointer, describedAs(schema, error.schemaPath) ?? "has the wrong form");
        break;
      case "anyOf":
        say(pointer, describedAs(schema, error.schemaPath) ?? "has none of the allowed forms");
        break;
      default:
        say(pointer, sentence(error));
    }
  }
  return [...found].map(([pointer, message]) => ({ pointer, message }));
}

/** The library's remaining messages as sentences; what is not here it says well enough itself. */
function sentence({ keyword, params, message }: RawError): string {
  const { type, limit } = params as { type?: string; limit?: number };
  switch (keyword) {
    case "type":
      return `must be ${/^[aeio]/.test(type ?? "") ? "an" : "a"} ${type}`;
    case "minLength":
      return `must have at least ${limit} character${limit === 1 ? "" : "s"}`;
    case "maxLength":
      return `must have at most ${limit} characters`;
    case "minItems":
      return `must have at least ${limit} item${limit === 1 ? "" : "s"}`;
    case "maxItems":
      return `must have at most ${limit} items`;
    default:
      return message;
  }
}

/** What the schema itself says a field must be: kinder than its regular expression. */
function describedAs(schema: TSchema, schemaPath: string): string | undefined {
  let at: unknown = schema;
  for (const step of schemaPath.replace(/^#\/?/, "").split("/").filter(Boolean)) {
    at = (at as Record<string, unknown> | undefined)?.[step.replaceAll("~1", "/").replaceAll("~0", "~")];
  }
  const described = at as { description?: string; [FORM]?: string } | undefined;
  const form = described && FORM in described ? described[FORM] : described?.description;
  return form && `must be ${form}`;
}

/** What Elysia accepts as a schema: the Standard Schema interface (version 1), with our types inside. */
export interface Bridge<T> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: "mp";
    readonly validate: (value: unknown) => { value: T } | { issues: readonly { message: string }[] };
    readonly types?: { readonly input: T; readonly output: T };
  };
}

/**
 * Give Elysia, and through it Eden, a type without giving it a validator: requests are checked once, by
 * `dispatch`, with our own errors (SPEC §3), on every transport alike.
 */
export function typed<T>(): Bridge<T> {
  return { "~standard": { version: 1, vendor: "mp", validate: (value) => ({ value: value as T }) } };
}
