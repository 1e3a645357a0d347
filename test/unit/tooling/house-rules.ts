/**
 * The rules of this repository that no linter knows, as functions from a tree of files (path → text) to complaints,
 * one a line. `house-rules.test.ts` runs them on the repository, and on bad examples, which each must catch.
 */
export type Tree = ReadonlyMap<string, string>;

const FILE_LINES_MAX = 400;

// Put together here, so that the rule does not catch itself.
const FORBIDDEN_WORDS = ["TO" + "DO", "FIX" + "ME", "XX" + "X"];

/** Every folder of src/ has a README.md that says where to start, and whose table lists exactly what is in the folder. */
export function readmeTables(tree: Tree): string[] {
  const contents = new Map<string, Set<string>>();
  for (const path of tree.keys()) {
    if (!path.startsWith("src/")) continue;
    const parts = path.split("/");
    // `src/a/b/c.ts` puts `c.ts` into src/a/b, `b/` into src/a, and nothing into src itself, which has no README.
    for (let depth = 2; depth < parts.length; depth++) {
      const folder = parts.slice(0, depth).join("/");
      const entry = parts[depth] + (depth === parts.length - 1 ? "" : "/");
      const entries = contents.get(folder) ?? new Set();
      contents.set(folder, entries);
      if (entry !== "README.md") entries.add(entry);
    }
  }
  return [...contents].flatMap(([folder, entries]) =>
    readmeComplaints(folder, entries, tree.get(`${folder}/README.md`)),
  );
}

function readmeComplaints(folder: string, entries: ReadonlySet<string>, readme: string | undefined): string[] {
  if (readme === undefined) return [`${folder}: has no README.md`];
  const listed = new Set([...readme.matchAll(/^\|\s*`([^`]+)`/gm)].map((match) => match[1] ?? ""));
  const complaints: string[] = [];
  for (const entry of entries) if (!listed.has(entry)) complaints.push(`${folder}/README.md: does not list ${entry}`);
  for (const entry of listed)
    if (!entries.has(entry)) complaints.push(`${folder}/README.md: lists ${entry}, which is not there`);
  if (!/start reading at/i.test(readme)) complaints.push(`${folder}/README.md: does not say "Start reading at …"`);
  return complaints;
}

export function fileLengths(tree: Tree): string[] {
  return sources(tree, /^(src|bench|tools|scripts)\//).flatMap(([path, text]) => {
    const lines = text.split("\n").length - 1;
    return lines > FILE_LINES_MAX ? [`${path}: ${lines} lines, at most ${FILE_LINES_MAX}`] : [];
  });
}

/**
 * Relative imports name the file as it is on disk, because Node runs the sources without a compiler; and plainly,
 * because `./../room/file.ts` would slip past the linter's layers.
 */
export function importExtensions(tree: Tree): string[] {
  return sources(tree).flatMap(([path, text]) =>
    importsOf(text)
      .filter((from) => from.startsWith(".") && (!/\.(ts|json)$/.test(from) || /[^.]\/\.\.?\/|^\.\/\./.test(from)))
      .map((from) => `${path}: imports "${from}", which is not a plain path with its .ts`),
  );
}

/** The bundle is CommonJS, which has no await at the top level. */
export function topLevelAwait(tree: Tree): string[] {
  return sources(tree, /^src\//).flatMap(([path, text]) =>
    /^(?:(?:const|let|export const) [^=\n]+= )?await\b/m.test(text) ? [`${path}: awaits at top level`] : [],
  );
}

export function barrels(tree: Tree): string[] {
  return [...tree.keys()]
    .filter((path) => /(^|\/)index\.[cm]?[jt]sx?$/.test(path))
    .map((path) => `${path}: is a barrel`);
}

export function forbiddenWords(tree: Tree): string[] {
  return [...tree].flatMap(([path, text]) =>
    FORBIDDEN_WORDS.filter((word) => new RegExp(`\\b${word}\\b`).test(text)).map((word) => `${path}: says ${word}`),
  );
}

export function exactPins(tree: Tree): string[] {
  const manifest = JSON.parse(tree.get("package.json") ?? "{}") as Record<string, unknown>;
  const groups = ["dependencies", "optionalDependencies", "devDependencies"];
  const pins = groups.flatMap((group) => Object.entries((manifest[group] ?? {}) as Record<string, string>));
  return pins
    .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
    .map(([name, version]) => `package.json: ${name} is pinned to "${version}", not to one version`);
}

/** What the program imports and what it declares are the same packages; nothing for development among them. */
export function dependencies(tree: Tree): string[] {
  const manifest = JSON.parse(tree.get("package.json") ?? "{}") as Record<string, Record<string, string> | undefined>;
  const declared = Object.keys({ ...manifest["dependencies"], ...manifest["optionalDependencies"] });
  const program = sources(tree, /^src\//);
  const lock = JSON.parse(tree.get("package-lock.json") ?? "{}") as {
    packages?: Record<string, { peerDependencies?: Record<string, string> }>;
  };
  const peers = declared.flatMap((name) =>
    Object.keys(lock.packages?.[`node_modules/${name}`]?.peerDependencies ?? {}),
  );
  const imported = (name: string) =>
    program.some(([, text]) => text.includes(`"${name}"`) || text.includes(`"${name}/`));
  const unused = declared.filter((name) => !peers.includes(name) && !imported(name));
  const undeclared = program.flatMap(([path, text]) =>
    importsOf(text)
      .filter((from) => !/^(\.|node:)/.test(from))
      .map((from) => /^(@[^/]+\/)?[^/]+/.exec(from)?.[0] ?? from)
      .filter((name) => !declared.includes(name))
      .map((name) => `${path}: imports ${name}, which package.json does not declare`),
  );
  return [...unused.map((name) => `package.json: nothing in src imports ${name}`), ...undeclared];
}

/** The lock file names no registry: whoever installs decides where packages come from. */
export function lockFileHosts(tree: Tree): string[] {
  const hosts = (tree.get("package-lock.json") ?? "").match(/"resolved": "(?:git\+)?\w+:\/\/[^"]+"/g) ?? [];
  return hosts.map((host) => `package-lock.json: ${host}`);
}

/** The simulator runs the real overlay; one of its own would prove nothing. */
export function simulatedOverlays(tree: Tree): string[] {
  return sources(tree, /^test\/sim\//).flatMap(([path, text]) =>
    [...text.matchAll(/\bclass\s+(\w*Overlay\w*)/g)].map((match) => `${path}: defines its own ${match[1]}`),
  );
}

/** Tests wait for what they expect (`expect.poll`, an event), not for time to pass. */
export function sleepingTests(tree: Tree): string[] {
  const naps = [/\bsleep\s*\(/, /new Promise[^;]*\bsetTimeout\(/, /from "node:timers\/promises"/];
  return sources(tree, /^test\/.*\.test\.ts$/).flatMap(([path, text]) =>
    naps.some((nap) => nap.test(text)) ? [`${path}: sleeps`] : [],
  );
}

function sources(tree: Tree, where = /^/): [string, string][] {
  return [...tree].filter(([path]) => path.endsWith(".ts") && where.test(path));
}

function importsOf(text: string): string[] {
  // Only at the start of a line, so that strings and comments which speak of imports are left alone.
  const named = text.matchAll(/^(?:import|export)\s(?:type\s)?[\w\s{},*$]*?\bfrom\s*["']([^"']+)["']/gm);
  const bare = text.matchAll(/^import\s*["']([^"']+)["']/gm);
  const calls = text.matchAll(/\bawait import\(\s*["']([^"']+)["']/g);
  return [...named, ...bare, ...calls].map((match) => match[1] ?? "");
}
