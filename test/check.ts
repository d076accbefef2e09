/**
 * Everything that must hold before a change goes in, in one run: format, lint, types, generated files, the
 * executable, all tests (those of the executable too). `bun run check` installs first and then runs this.
 *
 * Always so: it stops at the first step that fails, exits non-zero then, and the last line it prints is
 * `N passed, N failed[, N skipped]`, taken from the test runner's own report. Every tool is a script of a locked
 * package run by this same Bun, so that neither Node nor anything on PATH decides which one it is.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const plain = process.env.CI !== undefined || !process.stdout.isTTY;
const scratch = mkdtempSync(join(tmpdir(), "mp-check-"));
const report = join(scratch, "junit.xml");

const biome = ["node_modules/.bin/biome"];
const biomeFlags = plain ? ["--colors=off"] : [];

/** Tests wait for conditions with limits of their own; this one only ends a test that forgot to. */
const TEST_TIMEOUT_MS = 30_000;

const checks: readonly (readonly [title: string, args: readonly string[]])[] = [
  ["format", [...biome, "format", ...biomeFlags, "."]],
  ["lint", [...biome, "check", "--formatter-enabled=false", "--error-on-warnings", ...biomeFlags, "."]],
  ["types", ["node_modules/.bin/tsc", "--noEmit"]],
  ["generated files", ["build.ts", "--generate", "--check"]],
  ["build dist/mp", ["build.ts"]],
];

const tests = ["test", `--timeout=${TEST_TIMEOUT_MS}`, "--reporter=junit", `--reporter-outfile=${report}`];

/** Runs Bun with `args` under a heading, its output passed through; returns the exit code. */
async function step(title: string, args: readonly string[]): Promise<number> {
  console.log(`\n== ${title}`);
  const started = performance.now();
  const child = Bun.spawn([process.execPath, ...args], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
    env: {
      ...process.env,
      MP_BINARY: join(root, "dist", process.platform === "win32" ? "mp.exe" : "mp"),
      ...(plain ? { NO_COLOR: "1", FORCE_COLOR: "0" } : {}),
    },
  });
  const code = await child.exited;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(`-- ${title}: ${code === 0 ? "ok" : `FAILED (exit code ${code})`}, ${seconds} s`);
  return code;
}

/**
 * The closing line, from the totals of a JUnit report. A run that failed without a failing test (a file that does not
 * load, a crash that left no report) counts as one failure, so that the line never says less than the exit code.
 */
function closingLine(xml: string, exitCode: number): string {
  const totals = /<testsuites\b[^>]*>/.exec(xml)?.[0] ?? "";
  const total = (name: string) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(totals)?.[1] ?? 0);
  const skipped = total("skipped");
  const failures = total("failures");
  const passed = total("tests") - failures - skipped;
  const failed = exitCode === 0 ? failures : Math.max(1, failures);
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

/** Runs all steps; returns the closing line and the exit code. */
async function check(): Promise<{ line: string; code: number }> {
  for (const [title, args] of checks) {
    const code = await step(title, args);
    if (code !== 0) {
      console.log(`\nthe step "${title}" failed, what follows it did not run`);
      return { line: "0 passed, 1 failed", code: 1 };
    }
  }
  const code = await step("tests", tests);
  const line = closingLine(existsSync(report) ? readFileSync(report, "utf8") : "", code);
  return { line, code: code === 0 ? 0 : 1 };
}

const { line, code } = await check();
rmSync(scratch, { recursive: true, force: true });
console.log(`\n${line}`);
process.exitCode = code;
