/**
 * How `mp session run` asks the daemon, while it is there and while it is not (SPEC §7, §8).
 *
 * Always holds: a command is sent under one key however often it is tried, and every key is remembered for the report. What
 * a session starts is done by that session as long as it is live, and by the user once it is not: the end must be told.
 */
import { freshKey, type Target } from "../client/client.ts";
import { ownToken } from "../client/transport.ts";
import { isProblem, type Problem, problem } from "../kernel/problems.ts";
import { daemonLink, type Sent } from "./link.ts";
import { note } from "./output.ts";

type Payload = Readonly<Record<string, unknown>>;

/** How one try is made. */
export interface How {
  /** Milliseconds that one try may take. */
  readonly timeout_ms?: number;
  /** A daemon that does not run may be started. */
  readonly start?: boolean;
}

/** As long as nothing runs, a daemon that is not there is started. */
export const START: How = { start: true };

/** A pause between two tries, in milliseconds. */
const AGAIN_MS = 250;

export class Asker {
  /** The idempotency key of each command that was accepted, by its type. */
  readonly keys: Record<string, string> = {};
  #credential = ownToken(process.env);
  /** Once something is held, losing the parent session must not lose it too. */
  #begun = false;
  /** It was said that the daemon must be started again. */
  #told = false;

  constructor(
    /** `--no-spawn`: no daemon is started, whatever happens. */
    readonly noSpawn: boolean,
  ) {}

  #link({ timeout_ms, start = false }: How, key?: string) {
    return daemonLink(
      {
        "no-spawn": this.noSpawn || !start,
        ...(timeout_ms !== undefined && { timeout: Math.max(1, Math.round(timeout_ms)) }),
        ...(key !== undefined && { key }),
      },
      this.#credential,
    );
  }

  /** A link for what goes before the session: it starts a daemon when need be. */
  link() {
    return this.#link(START);
  }

  /** Carry out a command; a lost answer is asked for again under the same key, for as long as the try may take. */
  async send(type: string, payload: Payload, how: How = {}, key = freshKey()): Promise<Sent | Problem> {
    const { token } = this.#credential;
    const answer = await this.#link(how, key).send(type, payload);
    if (isProblem(answer)) return this.#asUser(answer, token) ? this.send(type, payload, how, key) : answer;
    this.#begun = true;
    this.keys[type] = key;
    return answer;
  }

  /** Put off the end of a lease; leaves no trace in the log, so its key is not for the report. */
  async renew(type: string, payload: Payload, timeout_ms: number): Promise<object | Problem> {
    const { token } = this.#credential;
    const answer = await this.#link({ timeout_ms }).send(type, payload);
    return isProblem(answer) && this.#asUser(answer, token) ? this.renew(type, payload, timeout_ms) : answer;
  }

  async ask(type: string, payload: Payload, how: How = {}): Promise<object | Problem> {
    const { token } = this.#credential;
    const answer = await this.#link(how).ask(type, payload);
    return isProblem(answer) && this.#asUser(answer, token) ? this.ask(type, payload, how) : answer;
  }

  /** Only the user may ask for it. */
  token(session_id: string): Promise<object | Problem> {
    return daemonLink({ "no-spawn": this.noSpawn }, {}).ask("token.session", { session_id });
  }

  async address(how: How = {}): Promise<Target | Problem> {
    const { token } = this.#credential;
    const answer = await this.#link(how).address();
    return isProblem(answer) && this.#asUser(answer, token) ? this.address(how) : answer;
  }

  /**
   * Do it until there is an answer that stands, or until the deadline (of `performance.now`), or the signal. A daemon that was
   * stopped meanwhile is started again, and that is said.
   */
  async until<T extends object>(
    deadline: number,
    signal: AbortSignal,
    work: (how: How) => Promise<T | Problem>,
  ): Promise<T | Problem> {
    for (let start = false; ; ) {
      const answer = await Promise.race([
        work({ timeout_ms: Math.max(1, deadline - performance.now()), start }),
        aborted(signal),
      ]);
      if (answer === undefined) return GIVEN_UP;
      if (isProblem(answer) && answer.code === "daemon_unavailable" && !start && !this.noSpawn) {
        start = true;
        if (!this.#told)
          await note("mp: the daemon does not run any more: it is started again to tell the end");
        this.#told = true;
        continue;
      }
      const over = signal.aborted || performance.now() + AGAIN_MS > deadline;
      if (!isProblem(answer) || over || !answer.retryable) return answer;
      await Bun.sleep(AGAIN_MS);
    }
  }

  /** @param token what the refused request was sent with: of several at once the first has given it up already */
  #asUser({ code }: Problem, token: string | undefined): boolean {
    const may = code === "unauthorized" && this.#begun && token !== undefined;
    if (may) this.#credential = {};
    return may;
  }
}

const GIVEN_UP = problem("timeout", "another signal came before the daemon had answered");

/** Comes when the signal does. */
export function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener("abort", () => resolve(undefined), { once: true });
  });
}
