/**
 * The search for cycles among the dependencies of tasks (SPEC §8), through any number of hops. Part of task.ts.
 */
import type { Find } from "../kernel/aggregate.ts";

/** How many tasks a step of a search looks at in one go. */
const SEARCH_STEP = 500;

/**
 * The shortest way from a task along what it depends on to another, both ends included. Breadth-first from both ends, always
 * on the side where less is open: when either runs dry there is no way, so a task that nothing depends on costs one look.
 * @returns ids of tasks; undefined when there is no way
 */
export function wayFrom(find: Find, from: string, to: string): string[] | undefined {
  if (from === to) return [from];
  const side = (start: string, step: (ids: readonly string[]) => (readonly [string, string])[]) => ({
    came: new Map<string, string | undefined>([[start, undefined]]),
    open: [start],
    step,
  });
  const down = side(from, (ids) =>
    find
      .all("task_dependencies", { task_id: { oneOf: ids } })
      .map(({ task_id, depends_on_task_id }) => [task_id, depends_on_task_id]),
  );
  const up = side(to, (ids) =>
    find
      .all(
        "task_dependencies",
        { depends_on_task_id: { oneOf: ids } },
        { by: ["depends_on_task_id", "task_id"] },
      )
      .map(({ task_id, depends_on_task_id }) => [depends_on_task_id, task_id]),
  );
  while (down.open.length > 0 && up.open.length > 0) {
    const [near, far] = down.open.length < up.open.length ? [down, up] : [up, down];
    const { open } = near;
    near.open = [];
    for (let at = 0; at < open.length; at += SEARCH_STEP)
      for (const [last, reached] of near.step(open.slice(at, at + SEARCH_STEP))) {
        if (near.came.has(reached)) continue;
        near.came.set(reached, last);
        if (far.came.has(reached))
          return [...trail(down.came, reached).reverse(), ...trail(up.came, reached).slice(1)];
        near.open.push(reached);
      }
  }
  return undefined;
}

function trail(came: ReadonlyMap<string, string | undefined>, from: string): string[] {
  const way: string[] = [];
  for (let at: string | undefined = from; at !== undefined; at = came.get(at)) way.push(at);
  return way;
}
