/**
 * A test that goes wrong (binary.test.ts runs it): a daemon runs in its home, others use it, and go on when the test is over, as
 * the rest of a race does when one of those who take part has failed.
 */
import { test } from "bun:test";
import { run, start, tempHome } from "./binary.ts";

/** Ask again and again, for as long as there is anything to ask; whoever asks begins a daemon that is not there. */
async function goOn(home: string): Promise<void> {
  for (;;) await run(["workspace", "list"], { home });
}

test("goes wrong", async () => {
  const home = tempHome();
  console.log(`home=${home}`);
  await run(["daemon", "start"], { home });
  start(["events", "tail"], { home });
  for (let each = 0; each < 3; each += 1) void goOn(home).catch((over: Error) => console.log(over.message));
  await run(["workspace", "create", "w"], { home });
  if (process.env.LEFT === "throws") throw new Error("it went wrong");
  await Promise.withResolvers<void>().promise;
}, 3_000);

test("is followed by another", async () => {
  await Bun.sleep(0);
});
