/**
 * Makes the executables and the generated files.
 *
 *   bun build.ts                       dist/mp for this machine
 *   bun build.ts --all                 dist/mp-<version>-<os>-<arch>[-musl][.exe] for every target, and SHA256SUMS
 *   bun build.ts --generate [--check]  write schemas/ from the source; with --check only say what differs (exit 1)
 *
 * Always so: nothing is minified (it breaks some error handlers at start), the program reads no `.env`, `bunfig.toml`
 * or BUN_OPTIONS of the caller, and every bundle lies flat in the executable. Left out on purpose: signing, packaging.
 */
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { version } from "./package.json" with { type: "json" };

const root = import.meta.dir;
const dist = join(root, "dist");

/** The program, then the workers: a worker is in the executable only when it is listed here. Base names are unique. */
const ENTRIES = ["src/main.ts", "src/daemon/writer.ts", "src/daemon/jobs.ts"];

/** Suffix of the file name → Bun's name of the target. Bun fetches the runtime of a foreign target itself. */
const TARGETS: Readonly<Record<string, Bun.Build.CompileTarget>> = {
  "linux-x64": "bun-linux-x64",
  "linux-arm64": "bun-linux-arm64",
  "linux-x64-musl": "bun-linux-x64-musl",
  "linux-arm64-musl": "bun-linux-arm64-musl",
  "macos-x64": "bun-darwin-x64",
  "macos-arm64": "bun-darwin-arm64",
  "windows-x64": "bun-windows-x64",
};

/** The key of TARGETS this machine would be, so that its own executable gets bytecode under --all too. */
function hostName(): string {
  const os = { darwin: "macos", win32: "windows" }[process.platform as string] ?? process.platform;
  const header = (process.report.getReport() as { header?: { glibcVersionRuntime?: string } }).header;
  const musl = process.platform === "linux" && header?.glibcVersionRuntime === undefined;
  return `${os}-${process.arch}${musl ? "-musl" : ""}`;
}

/** The commit the tree is at, `-dirty` when it has changes; empty outside a git checkout. */
function commit(): string {
  if (Bun.which("git") === null) return "";
  const git = Bun.spawnSync(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], {
    cwd: root,
    stderr: "ignore",
  });
  return git.success ? git.stdout.toString().trim() : "";
}

/**
 * Compiles one executable. `target` is null for this machine. Throws on any error the bundler reports, also those it
 * only logs: without its bytecode a program would start three times slower and nobody would see why.
 */
async function compile(
  outfile: string,
  target: Bun.Build.CompileTarget | null,
  bytecode: boolean,
): Promise<void> {
  const result = await Bun.build({
    entrypoints: ENTRIES.map((entry) => join(root, entry)),
    root: join(root, "src"),
    target: "bun",
    format: "esm",
    // With splitting, what main.ts imports lazily is a file of its own inside the executable: a trivial command
    // does not even map it. Flat names make `new URL("./writer.ts", import.meta.url)` right here and from source.
    splitting: true,
    naming: { entry: "[name].[ext]", chunk: "chunk-[hash].[ext]" },
    bytecode,
    minify: false,
    sourcemap: "none",
    define: { MP_VERSION: JSON.stringify(version), MP_COMMIT: JSON.stringify(commit()) },
    compile: {
      outfile,
      ...(target === null ? {} : { target }),
      autoloadDotenv: false,
      autoloadBunfig: false,
      autoloadTsconfig: false,
      autoloadPackageJson: false,
      // Bun puts BUN_OPTIONS in front of these, so the closing `--` turns whatever they say into plain words.
      execArgv: ["--"],
    },
  });
  const errors = result.logs.filter((log) => log.level === "error");
  if (errors.length > 0) throw new Error(errors.map(String).join("\n"));
}

/** `<hex>  <file name>`, one line of SHA256SUMS. */
async function checksumLine(path: string): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk);
  return `${hash.digest("hex")}  ${basename(path)}\n`;
}

async function buildHost(): Promise<void> {
  await compile(join(dist, "mp"), null, true);
  console.log("built dist/mp");
}

async function buildAll(): Promise<void> {
  for (const old of readdirSync(dist)) if (/^(mp-.*|SHA256SUMS)$/.test(old)) rmSync(join(dist, old));
  const host = hostName();
  let sums = "";
  for (const [name, target] of Object.entries(TARGETS)) {
    const path = join(dist, `mp-${version}-${name}${name.startsWith("windows") ? ".exe" : ""}`);
    await compile(path, target, name === host);
    sums += await checksumLine(path);
    console.log(`built dist/${basename(path)}`);
  }
  await Bun.write(join(dist, "SHA256SUMS"), sums);
  console.log("wrote dist/SHA256SUMS");
}

/** Returns the exit code: 1 when `check` is set and a committed file is not what the source makes. */
async function generateFiles(check: boolean): Promise<number> {
  const { generate } = await import("./src/generate.ts");
  const files = await generate(root, check);
  if (!check) {
    console.log(`wrote ${files.length} generated files`);
    return 0;
  }
  if (files.length === 0) {
    console.log("the generated files are what the source makes");
    return 0;
  }
  console.error(
    `not what the source makes (run: bun run generate):\n${files.map((file) => `  ${file}`).join("\n")}`,
  );
  return 1;
}

/** Returns the process's exit code. */
async function main(args: readonly string[]): Promise<number> {
  const flags = args.join(" ");
  if (flags === "--generate") return generateFiles(false);
  if (flags === "--generate --check") return generateFiles(true);
  if (flags !== "" && flags !== "--all") {
    console.error("usage: bun build.ts [--all | --generate [--check]]");
    return 2;
  }
  const missing = ENTRIES.filter((entry) => !existsSync(join(root, entry)));
  if (missing.length > 0) {
    console.error(`build.ts lists entry points that do not exist: ${missing.join(", ")}`);
    return 1;
  }
  mkdirSync(dist, { recursive: true });
  await (flags === "--all" ? buildAll() : buildHost());
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
