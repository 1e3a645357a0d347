/** Whether a peer that has said hello is the one that is expected. */
import {
  LINK_VERSION,
  RESET_BUSY,
  RESET_LINK_CLOSED,
  RESET_OTHER_LINK,
  RESET_OTHER_PEER,
  RESET_POLICY,
  RESET_VERSION,
} from "./constants.ts";
import type { Reset } from "./frame.ts";
import { type Hello, NO_ID } from "./hello.ts";

export interface Expected {
  /** `NO_ID`: whatever it is. */
  readonly linkId: string;
  readonly peerId: string;
  /** The highest attempt of the same process that was let in. */
  readonly lastAttempt: number | undefined;
  /** The peer need not know the link's id: it will learn it. */
  readonly mayLearn: boolean;
}

/** What the peer is to be told when it is not let in. */
export function refusalOf(
  hello: Hello,
  expected: Expected,
  judge: ((hello: Hello) => string | undefined) | undefined,
): Reset | undefined {
  const refuse = (code: number, text: string): Reset => ({ serial: 0, code, text });
  if (hello.version !== LINK_VERSION)
    return refuse(RESET_VERSION, `version ${LINK_VERSION} of the link is spoken here`);
  const learns = expected.mayLearn && hello.linkId === NO_ID;
  if (!learns && expected.linkId !== NO_ID && hello.linkId !== expected.linkId) {
    return refuse(RESET_OTHER_LINK, "this is another migration");
  }
  if (hello.senderId === NO_ID || hello.epoch === NO_ID) return refuse(RESET_POLICY, "a side has to say who it is");
  if (expected.peerId !== NO_ID && hello.senderId !== expected.peerId) {
    return refuse(RESET_OTHER_PEER, "the link belongs to another peer");
  }
  if (expected.lastAttempt !== undefined && hello.attempt <= expected.lastAttempt) {
    return refuse(RESET_BUSY, "a newer connection of the same process was there first");
  }
  const judgement = judge?.(hello);
  return judgement === undefined ? undefined : refuse(RESET_POLICY, judgement);
}

/** Whether it is of no use to try again after being refused with `code`. */
export function endsTheLink(code: number): boolean {
  return (
    code === RESET_LINK_CLOSED ||
    code === RESET_OTHER_PEER ||
    code === RESET_OTHER_LINK ||
    code === RESET_POLICY ||
    code === RESET_VERSION
  );
}
