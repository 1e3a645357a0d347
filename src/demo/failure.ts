/** Why the demo could not show what it set out to show. Three lines for the user, as everywhere. */
export class DemoFailure extends Error {
  override readonly name = "DemoFailure";
  readonly what: string;
  readonly why: string;
  readonly hint: string;
  /** `setup`: this machine lacks something. `defect`: what was shown is not as it should be. */
  readonly kind: "defect" | "setup";

  constructor(what: string, why: string, hint: string, kind: "defect" | "setup" = "defect") {
    super(`${what}: ${why}`);
    this.what = what;
    this.why = why;
    this.hint = hint;
    this.kind = kind;
  }
}
