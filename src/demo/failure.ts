/** Why the demo could not show what it set out to show. Three lines for the user, as everywhere. */
export class DemoFailure extends Error {
  override readonly name = "DemoFailure";
  readonly what: string;
  readonly why: string;
  readonly hint: string;

  constructor(what: string, why: string, hint: string) {
    super(`${what}: ${why}`);
    this.what = what;
    this.why = why;
    this.hint = hint;
  }
}
