/** `mp version`: what this program is. The daemon's own version is in `mp daemon status`. */
import { API_VERSION, COMMIT, VERSION } from "../version.ts";
import { verb } from "./command.ts";

export const version = verb(
  "Show the version of this program.",
  {},
  async (_, { out }) => {
    const found = {
      version: VERSION,
      commit: COMMIT,
      api_version: API_VERSION,
      runtime: `bun ${Bun.version}`,
      platform: `${process.platform}-${process.arch}`,
    };
    if (out.asJson) await out.json(found);
    else {
      const commit = COMMIT === null ? "" : `, commit ${COMMIT}`;
      await out.said(`mp ${VERSION} (${found.platform}, ${found.runtime}, api ${API_VERSION}${commit})`, [
        "mp",
        VERSION,
        COMMIT,
      ]);
    }
    return undefined;
  },
  { notes: ["A pipe gets: mp, version, commit. The daemon's version: mp daemon status."] },
);
