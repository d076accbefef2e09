import { describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { logger } from "../../src/daemon/logger.ts";
import { tempHome } from "../support/binary.ts";

const logPath = () => join(tempHome(), "daemon.log");

const lines = (path: string): Record<string, unknown>[] =>
  readFileSync(path, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));

describe("logger", () => {
  test("a line is JSON with level, time in RFC 3339 UTC with milliseconds, pid, fields and msg", () => {
    const path = logPath();
    const log = logger(path, { level: "info" });
    const before = Date.now();
    log.info({ trace_id: "t" }, "ready");
    log.debug("not at this level");
    log.error(new Error("broken"));
    const [first, second, ...rest] = lines(path);
    expect(first).toEqual({
      level: "info",
      time: expect.any(String),
      pid: process.pid,
      trace_id: "t",
      msg: "ready",
    });
    expect(String(first?.time)).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    expect(Date.parse(String(first?.time))).toBeGreaterThanOrEqual(before);
    expect(second).toMatchObject({ level: "error", msg: "broken", err: { type: "Error" } });
    expect(rest).toEqual([]);
  });

  test("continues an existing file and makes it private", () => {
    const path = logPath();
    const before = process.umask(0);
    try {
      logger(path, { level: "info" }).info("first");
    } finally {
      process.umask(before);
    }
    expect(statSync(path).mode & 0o777).toBe(0o600);
    chmodSync(path, 0o644);
    logger(path, { level: "info" }).info("second");
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(lines(path).map(({ msg }) => msg)).toEqual(["first", "second"]);
  });

  test("what was logged before a SIGKILL is in the file", async () => {
    const path = logPath();
    const script = `import { logger } from ${JSON.stringify(join(import.meta.dir, "../../src/daemon/logger.ts"))};
      const log = logger(process.argv[1], { level: "info" });
      for (let n = 1; n <= 500; n++) log.info({ n });
      process.kill(process.pid, "SIGKILL");`;
    const child = Bun.spawn([process.execPath, "-e", script, path], {
      stdio: ["ignore", "inherit", "inherit"],
    });
    await child.exited;
    expect(child.signalCode).toBe("SIGKILL");
    expect(lines(path).map(({ n }) => n)).toEqual(Array.from({ length: 500 }, (_, i) => i + 1));
  });

  test("rotates by size, keeps three old files and loses no line between them", () => {
    const path = logPath();
    const max_bytes = 1_000;
    const log = logger(path, { level: "info", max_bytes });
    const total = 200;
    for (let n = 0; n < total; n++) log.info({ n }, "line");
    expect(readdirSync(dirname(path)).toSorted()).toEqual([
      "daemon.log",
      "daemon.log.1",
      "daemon.log.2",
      "daemon.log.3",
    ]);
    const files = [`${path}.3`, `${path}.2`, `${path}.1`, path];
    for (const file of files) {
      expect(statSync(file).size).toBeLessThanOrEqual(max_bytes);
      expect(statSync(file).mode & 0o777).toBe(0o600);
    }
    const kept = files.flatMap(lines).map(({ n }) => Number(n));
    expect(kept).toEqual(Array.from({ length: kept.length }, (_, i) => total - kept.length + i));
  });

  test("counts what an earlier process wrote, and lets a line above the limit pass whole", () => {
    const path = logPath();
    logger(path, { level: "info", max_bytes: 500 }).info("x".repeat(2_000));
    expect(readdirSync(dirname(path))).toEqual(["daemon.log"]);
    logger(path, { level: "info", max_bytes: 500 }).info("next");
    expect(lines(`${path}.1`)).toHaveLength(1);
    expect(lines(path).map(({ msg }) => msg)).toEqual(["next"]);
  });

  test("the default limit is 10 MiB", () => {
    const path = logPath();
    const log = logger(path, { level: "info" });
    const megabyte = "x".repeat(1024 * 1024);
    for (let n = 0; n < 9; n++) log.info(megabyte);
    expect(existsSync(`${path}.1`)).toBe(false);
    log.info(megabyte);
    expect(existsSync(`${path}.1`)).toBe(true);
  });

  test("a line that was cut short is not continued", () => {
    const path = logPath();
    writeFileSync(path, '{"msg":"whole"}\n{"msg":"cut sho');
    const log = logger(path, { level: "info" });
    log.info("one");
    log.info("two");
    const [whole, cut, ...rest] = readFileSync(path, "utf8").trimEnd().split("\n");
    expect([whole, cut]).toEqual(['{"msg":"whole"}', '{"msg":"cut sho']);
    expect(rest.map((line) => JSON.parse(line).msg)).toEqual(["one", "two"]);
  });

  test("a folder that is missing is survived, and the first line afterwards says what is lost", () => {
    const folder = join(tempHome(), "state");
    const path = join(folder, "daemon.log");
    const log = logger(path, { level: "info" });
    log.info("lost");
    log.error("lost too");
    mkdirSync(folder);
    log.info("back");
    log.info("again");
    expect(lines(path)).toMatchObject([{ level: "warn", lost_lines: 2 }, { msg: "back" }, { msg: "again" }]);
  });

  test.if(process.platform === "linux")(
    "a full disk is survived, and the first line afterwards says so",
    () => {
      const path = logPath();
      symlinkSync("/dev/full", path);
      const mode = statSync("/dev/full").mode;
      const log = logger(path, { level: "info" });
      for (let n = 0; n < 3; n++) expect(() => log.info("lost")).not.toThrow();
      expect(statSync("/dev/full").mode).toBe(mode);
      rmSync(path);
      log.info("back");
      expect(lines(path)).toMatchObject([{ lost_lines: 3 }, { msg: "back" }]);
    },
  );
});
