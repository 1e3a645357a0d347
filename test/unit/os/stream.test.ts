import { describeStreams } from "./stream-rules.ts";

describeStreams("with native calls where there are any");
