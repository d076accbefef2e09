import { describe, expect, test } from "bun:test";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Paths, paths, prepare } from "../../src/daemon/paths.ts";
import { tempHome } from "../support/binary.ts";

const root = process.getuid?.() === 0;
const posix = process.platform !== "win32";

const mode = (path: string) => lstatSync(path).mode & 0o777;
const folders = (found: Paths) => [
  found.data,
  found.state,
  found.runtime,
  found.keys,
  found.artifacts,
  found.backups,
];

describe("paths", () => {
  test("MP_HOME puts every file under one folder", () => {
    const found = paths({ MP_HOME: "/srv/mp", HOME: "/home/ada", XDG_DATA_HOME: "/elsewhere" }, "linux");
    expect(found).toEqual({
      home: "/srv/mp",
      data: "/srv/mp",
      config: "/srv/mp",
      state: "/srv/mp",
      runtime: "/srv/mp/run",
      configFile: "/srv/mp/config.toml",
      database: "/srv/mp/kernel.db",
      checkpoints: "/srv/mp/checkpoints.db",
      keys: "/srv/mp/keys",
      artifacts: "/srv/mp/artifacts",
      backups: "/srv/mp/backups",
      socket: "/srv/mp/run/mp.sock",
      lock: "/srv/mp/daemon.lock",
      info: "/srv/mp/daemon.json",
      log: "/srv/mp/daemon.log",
      stderr: "/srv/mp/daemon.stderr",
    });
  });

  test("a relative MP_HOME is meant from where the caller stands, an empty one is none", () => {
    expect(paths({ MP_HOME: "some/../home/" }, "linux").home).toBe(join(process.cwd(), "home"));
    expect(paths({ MP_HOME: "", HOME: "/home/ada" }, "linux").home).toBeUndefined();
  });

  test("without it the XDG folders, or their defaults where a variable is missing or relative", () => {
    const chosen = paths(
      { HOME: "/home/ada", XDG_DATA_HOME: "/x/d", XDG_CONFIG_HOME: "/x/c", XDG_STATE_HOME: "/x/s" },
      "linux",
    );
    expect(chosen.database).toBe("/x/d/mp/kernel.db");
    expect(chosen.configFile).toBe("/x/c/mp/config.toml");
    expect(chosen.log).toBe("/x/s/mp/daemon.log");
    expect(chosen.socket).toBe("/x/s/mp/run/mp.sock");

    const usual = paths({ HOME: "/home/ada", XDG_DATA_HOME: "not/absolute" }, "linux");
    expect(usual.database).toBe("/home/ada/.local/share/mp/kernel.db");
    expect(usual.configFile).toBe("/home/ada/.config/mp/config.toml");
    expect(usual.log).toBe("/home/ada/.local/state/mp/daemon.log");
    expect(usual.socket).toBe("/home/ada/.local/state/mp/run/mp.sock");
  });

  test("the lock and daemon.json do not depend on the session's runtime folder", () => {
    const runtime = tempHome();
    const inside = paths({ HOME: "/home/ada", XDG_RUNTIME_DIR: runtime }, "linux");
    const outside = paths({ HOME: "/home/ada" }, "linux");
    expect(inside.socket).not.toBe(outside.socket);
    expect(inside.lock).toBe(outside.lock);
    expect(inside.info).toBe(outside.info);
  });

  test.if(posix)("XDG_RUNTIME_DIR is used when it is there and ours", () => {
    const env = { HOME: "/home/ada", XDG_STATE_HOME: "/x/s" };
    const runtime = tempHome();
    expect(paths({ ...env, XDG_RUNTIME_DIR: runtime }, "linux").socket).toBe(join(runtime, "mp", "mp.sock"));
    for (const bad of [join(runtime, "absent"), "relative", ""]) {
      expect(paths({ ...env, XDG_RUNTIME_DIR: bad }, "linux").socket).toBe("/x/s/mp/run/mp.sock");
    }
    const foreign = root ? runtime : "/";
    if (root) chownSync(runtime, 12345, 12345);
    expect(paths({ ...env, XDG_RUNTIME_DIR: foreign }, "linux").socket).toBe("/x/s/mp/run/mp.sock");
  });

  test("macOS and Windows have their own folders", () => {
    const mac = paths({ HOME: "/Users/ada", XDG_RUNTIME_DIR: "/tmp" }, "darwin");
    expect(mac.database).toBe("/Users/ada/Library/Application Support/mp/kernel.db");
    expect(mac.configFile).toBe("/Users/ada/Library/Application Support/mp/config.toml");
    expect(mac.log).toBe("/Users/ada/Library/Logs/mp/daemon.log");
    expect(mac.socket).toBe("/Users/ada/Library/Application Support/mp/run/mp.sock");

    const windows = paths({ LOCALAPPDATA: "C:\\L", APPDATA: "C:\\R" }, "win32");
    expect(windows.database).toBe("C:\\L\\mp\\Data\\kernel.db");
    expect(windows.configFile).toBe("C:\\R\\mp\\config.toml");
    expect(windows.log).toBe("C:\\L\\mp\\State\\daemon.log");
  });

  test.if(posix)("a socket path too long for the OS moves to a short one, the same for the same home", () => {
    const long = (letter: string) => `/srv/${letter.repeat(120)}`;
    const found = paths({ MP_HOME: long("a") }, "linux");
    expect(Buffer.byteLength(found.socket)).toBeLessThanOrEqual(100);
    expect(found.socket.startsWith(tmpdir())).toBe(true);
    expect(found.socket).toMatch(/\/mp-\d+\/[0-9a-f]{16}\/mp\.sock$/);
    expect(found.runtime).toBe(dirname(found.socket));
    expect(found.database).toBe(`${long("a")}/kernel.db`);
    expect(paths({ MP_HOME: long("a") }, "linux").socket).toBe(found.socket);
    expect(paths({ MP_HOME: long("b") }, "linux").socket).not.toBe(found.socket);
    expect(paths({ MP_HOME: long("a"), TMPDIR: long("t") }, "linux").socket).toMatch(/^\/tmp\/mp-\d+\//);

    const runtime = tempHome();
    expect(paths({ MP_HOME: long("a"), XDG_RUNTIME_DIR: runtime }, "linux").socket.startsWith(runtime)).toBe(
      true,
    );
  });

  test("the limit counts bytes, and 100 of them still stand", () => {
    const home = (letters: string) => `/srv/${letters}`;
    const room = 100 - "/srv//run/mp.sock".length;
    expect(paths({ MP_HOME: home("a".repeat(room)) }, "linux").socket).toHaveLength(100);
    expect(paths({ MP_HOME: home("a".repeat(room + 1)) }, "linux").socket).not.toStartWith("/srv");
    expect(paths({ MP_HOME: home("é".repeat(room - 10)) }, "linux").socket).not.toStartWith("/srv");
  });
});

describe.if(posix)("prepare", () => {
  const under = (home: string) => paths({ MP_HOME: home });

  test("makes every folder 0700, whatever the umask, and is content to find them", () => {
    const home = join(tempHome(), "a", "b");
    const before = process.umask(0);
    try {
      expect(prepare(under(home))).toBeUndefined();
    } finally {
      process.umask(before);
    }
    for (const folder of [dirname(home), ...folders(under(home))]) expect(mode(folder)).toBe(0o700);
    expect(prepare(under(home))).toBeUndefined();
  });

  test("leaves the caller's umask alone", () => {
    const before = process.umask(0o027);
    try {
      prepare(under(tempHome()));
      expect(process.umask()).toBe(0o027);
    } finally {
      process.umask(before);
    }
  });

  test("makes the hashed folder of a long home too", () => {
    const home = tempHome();
    const found = paths({ MP_HOME: join(home, "h".repeat(120)), TMPDIR: home });
    expect(prepare(found)).toBeUndefined();
    expect(found.runtime.startsWith(home)).toBe(true);
    expect(mode(found.runtime)).toBe(0o700);
    expect(mode(dirname(found.runtime))).toBe(0o700);
  });

  test("takes a home that others may read, but not one that they may write", () => {
    const home = tempHome();
    chmodSync(home, 0o755);
    expect(prepare(under(home))).toBeUndefined();
    for (const bits of [0o775, 0o757, 0o1777]) {
      chmodSync(home, bits);
      const refusal = prepare(under(home));
      expect(refusal?.code).toBe("policy_denied");
      expect(refusal?.detail).toContain(home);
      expect(refusal?.hint).toContain(`chmod 700 '${home}'`);
    }
  });

  test("keeps everybody else out of the socket's and the keys' folder", () => {
    for (const which of ["runtime", "keys"] as const) {
      const found = under(tempHome());
      expect(prepare(found)).toBeUndefined();
      chmodSync(found[which], 0o710);
      expect(prepare(found)?.details).toEqual({ path: found[which] });
    }
  });

  test("refuses a parent that others can change, unless it is sticky", () => {
    const parent = join(tempHome(), "parent");
    mkdirSync(parent);
    const found = under(join(parent, "home"));
    for (const [bits, why] of [
      [0o777, "every user"],
      [0o702, "every user"],
    ] as const) {
      chmodSync(parent, bits);
      expect(prepare(found)?.detail).toContain(why);
    }
    expect(existsSync(found.data)).toBe(false);
    chmodSync(parent, 0o1777);
    expect(prepare(found)).toBeUndefined();
  });

  test("a parent that its group can change passes only where the group is the user alone", () => {
    const parent = join(tempHome(), "parent");
    mkdirSync(parent);
    chmodSync(parent, 0o775);
    const { gid, uid } = statSync(parent);
    const refusal = prepare(under(join(parent, "home")));
    if (gid === uid && gid !== 0) expect(refusal).toBeUndefined();
    else expect(refusal?.detail).toContain("its group");
  });

  test("no folder of ours may be a symlink", () => {
    for (const which of ["data", "runtime", "keys", "artifacts"] as const) {
      const base = tempHome();
      const found = under(join(base, "home"));
      const target = join(base, "target");
      mkdirSync(target, { mode: 0o700 });
      mkdirSync(dirname(found[which]), { recursive: true, mode: 0o700 });
      symlinkSync(target, found[which]);
      const refusal = prepare(found);
      expect(refusal?.code).toBe("policy_denied");
      expect(refusal?.detail).toBe(`the folder ${found[which]} is a symlink`);
    }
  });

  test("symlinks on the way are followed and their targets checked", () => {
    const base = tempHome();
    const real = join(base, "real", "deep");
    mkdirSync(real, { recursive: true, mode: 0o700 });
    symlinkSync("real/./deep/../deep", join(base, "relative"));
    symlinkSync(real, join(base, "absolute"));
    for (const link of ["relative", "absolute"]) {
      expect(prepare(under(join(base, link, `home-${link}`)))).toBeUndefined();
      expect(mode(join(real, `home-${link}`, "run"))).toBe(0o700);
    }
    chmodSync(join(base, "real"), 0o777);
    expect(prepare(under(join(base, "absolute", "another")))?.details).toEqual({ path: join(base, "real") });
  });

  test("symlinks that lead in a circle are refused", () => {
    const base = tempHome();
    symlinkSync("two", join(base, "one"));
    symlinkSync("one", join(base, "two"));
    expect(prepare(under(join(base, "one", "home")))?.detail).toContain("too many symlinks");
  });

  test("a file where a folder should be is named", () => {
    const base = tempHome();
    writeFileSync(join(base, "file"), "");
    expect(prepare(under(join(base, "file")))?.detail).toBe(
      `the folder ${join(base, "file")} is not a folder`,
    );
    expect(prepare(under(join(base, "file", "home")))?.details).toEqual({ path: join(base, "file") });
  });

  test.if(root)("nothing on the way may belong to another user", () => {
    const base = tempHome();
    const parent = join(base, "parent");
    mkdirSync(parent, { mode: 0o755 });
    const found = under(join(parent, "home"));
    expect(prepare(found)).toBeUndefined();
    chownSync(found.runtime, 12345, 12345);
    expect(prepare(found)?.details).toEqual({ path: found.runtime });
    chownSync(found.runtime, 0, 0);
    chownSync(parent, 12345, 12345);
    const refusal = prepare(found);
    expect(refusal?.detail).toBe(`the folder ${parent} belongs to another user`);
    expect(refusal?.hint).toContain("MP_HOME");
  });

  test.if(!root)("a place where nothing can be made is a problem, not an exception", () => {
    const base = tempHome();
    chmodSync(base, 0o500);
    const refusal = prepare(under(join(base, "home")));
    expect(refusal?.code).toBe("policy_denied");
    expect(refusal?.details).toEqual({ path: join(base, "home"), errno: "EACCES" });
    chmodSync(base, 0o700);
  });

  test.if(process.platform === "linux")(
    "a file system that takes no folders is a problem, not an exception",
    () => {
      const refusal = prepare(under("/proc/mp"));
      expect(refusal?.code).toBe("policy_denied");
      expect(refusal?.detail).toContain("/proc/mp");
    },
  );
});
