// Only what needs types, plus nesting depth, which Biome cannot measure. Everything else is Biome's (biome.json).
import tseslint from "typescript-eslint";

export default [
  { ignores: ["node_modules/", "dist/", "coverage/", "test/fixtures/probes/", "**/*.js"] },
  {
    files: ["**/*.ts"],
    languageOptions: {
      parser: tseslint.parser,
      parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname },
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    plugins: { "@typescript-eslint": tseslint.plugin },
    rules: {
      "@typescript-eslint/no-floating-promises": "error",
      "@typescript-eslint/no-misused-promises": "error",
      "@typescript-eslint/await-thenable": "error",
      "@typescript-eslint/return-await": ["error", "error-handling-correctness-only"],
      // A `default:` that deals with the rest of a union is an answer; a switch without one must name every member.
      "@typescript-eslint/switch-exhaustiveness-check": ["error", { considerDefaultExhaustiveForUnions: true }],
      "@typescript-eslint/only-throw-error": "error",
      "max-depth": ["error", 3],
    },
  },
];
