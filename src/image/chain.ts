/** Images over one another, as the operator has given them. What headers say of backing files is not followed. */
import { type OpenedImage, openImage } from "./format.ts";
import type { ImageEnv, OpenImageOptions } from "./image.ts";

/** One image of a chain. */
export interface ChainLink {
  readonly path: string;
  /** What the operator said; otherwise the extension decides. */
  readonly format?: string;
}

/** The top first. */
export type Chain = readonly [ChainLink, ...ChainLink[]];

export interface OpenChainOptions extends Pick<OpenImageOptions, "readOnly" | "lock"> {
  readonly chain: Chain;
  /** The lowest image may name a backing file that is not part of the chain: what it does not hold is left out. */
  readonly unfounded?: boolean;
}

export interface OpenedChain {
  readonly top: OpenedImage;
  /** The top first. */
  readonly images: readonly OpenedImage[];
  /** Closes all of them. Idempotent. */
  close(): Promise<void>;
}

/** Opens all of them, those below the top read-only. Throws `ImageOpenError`. */
export async function openChain(env: ImageEnv, options: OpenChainOptions): Promise<OpenedChain> {
  const { chain, readOnly, lock, unfounded = false } = options;
  const images: OpenedImage[] = [];
  const close = async (): Promise<void> => {
    for (const { image } of images) await image.close();
  };
  try {
    let below: OpenedImage | undefined;
    for (const [index, which] of [...chain.entries()].reverse()) {
      const backing = below?.image ?? (unfounded ? ("absent" as const) : undefined);
      below = await openImage(env, {
        ...which,
        readOnly: readOnly || index > 0,
        ...(lock !== undefined && { lock }),
        ...(backing !== undefined && { backing }),
      });
      images.unshift(below);
    }
    const [top] = images;
    if (top === undefined) throw new Error("a chain has at least one image");
    return { top, images, close };
  } catch (error) {
    await close();
    throw error;
  }
}
