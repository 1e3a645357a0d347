/**
 * Bundles the command line into one CommonJS file, `dist/blockferry.cjs`.
 *
 * CommonJS, because pino does not survive being bundled as ESM; for Node 22, so that `await using` is lowered; without
 * koffi, which loads a native library from beside itself. Every source file must therefore do without top-level await.
 */
import { rename, stat } from "node:fs/promises";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const outfile = `${root}dist/blockferry.cjs`;
// Put in its place at once: somebody may be starting the one that is there.
const unfinished = `${outfile}.${process.pid}`;

await build({
  absWorkingDir: root,
  entryPoints: ["src/cli/main.ts"],
  outfile: unfinished,
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node22",
  external: ["koffi"],
  // import.meta is empty in CommonJS; these are what the sources may use of it.
  define: {
    "import.meta.url": "blockferryBundleUrl",
    "import.meta.dirname": "__dirname",
    "import.meta.filename": "__filename",
  },
  banner: { js: 'const blockferryBundleUrl = require("node:url").pathToFileURL(__filename).href;' },
  legalComments: "eof",
  logLevel: "warning",
});

await rename(unfinished, outfile);
const { size } = await stat(outfile);
console.log(`${relative(process.cwd(), outfile)}  ${Math.round(size / 1024)} KiB`);
