/** `mp log`: verify (SPEC §9, §12). */
import { isProblem } from "../kernel/problems.ts";
import { asking, type Noun, verb } from "./command.ts";

const verify = verb(
  "Check the whole log: hash chain, gaps, schemas, triggers.",
  asking,
  async (values, { out }) => {
    const { longQuery } = await import("./jobs.ts");
    const answer = await longQuery("log.verify", values);
    if (isProblem(answer)) return answer;
    const { ok, events, head_hash, first_bad, log_id } = answer;
    if (out.asJson) await out.json(answer);
    else {
      const bad = first_bad ? { first_bad_seq: first_bad.seq_global, problem: first_bad.problem } : {};
      await out.record({ ok, events, ...bad, log_id, head_hash });
    }
    return ok ? 0 : 1;
  },
  {
    notes: [
      "Exit code 0 when all is well, 1 when not: then first_bad_seq is the first event that is wrong (0 where the fault",
      "is not one event's), and events says how many before it are good. A pipe gets a name and a value per line.",
    ],
  },
);

export const log: Noun = { doc: "The log: check that nothing has been changed.", verbs: { verify } };
