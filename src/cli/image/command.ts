/** `blockferry image info|map`: what is in an image, in the words of qemu-img. */
import type { Command } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { configOption, jsonOption } from "../common-options.ts";
import { parseSize } from "../settings/option-values.ts";

const FORMAT = "format of the image (default: by its extension, else raw; never by its contents)";

export function addImage(program: Command, _context: CommandContext): void {
  const image = program
    .command("image")
    .summary("look at images")
    .description("Looks at images. Takes no lock and changes nothing.");
  image
    .command("info")
    .summary("size, format and storage of an image")
    .description("Tells an image's format, its size and the storage it takes, as `qemu-img info` does.")
    .argument("<image>", "the image")
    .option("--format <format>", FORMAT)
    .addOption(configOption())
    .addOption(jsonOption())
    .action(async (path, flags) => {
      const { printInfo } = await import("./action.ts");
      await printInfo(path, flags);
    });
  image
    .command("map")
    .summary("what is data and what is a hole")
    .description("Lists the runs of data in an image; with --json also holes and zeroes, as `qemu-img map` does.")
    .argument("<image>", "the image")
    .option("--format <format>", FORMAT)
    .option("-s, --start-offset <size>", "begin here", parseSize)
    .option("-l, --max-length <size>", "look at this much", parseSize)
    .addOption(configOption())
    .addOption(jsonOption())
    .action(async (path, flags) => {
      const { printMap } = await import("./action.ts");
      await printMap(path, flags);
    });
}
