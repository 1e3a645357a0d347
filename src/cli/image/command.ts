/** `blockferry image create|info|check|map`: images as files, in the words of qemu-img. */
import { type Command, Option } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { configOption, jsonOption } from "../common-options.ts";
import { parseSize } from "../settings/option-values.ts";

const FORMAT = "format of the image (default: by its extension, else raw; never by its contents)";

const IMAGE = "the image; over others: top.qcow2,backing=mid.qcow2,backing=base.raw";

const CREATE_HELP = `
Options for -o, by format:
  qcow2  cluster_size=SIZE (512 to 2M; default 64K), compat=0.10|1.1 (default 1.1)
  qed    cluster_size=SIZE (4K to 64M; default 64K), table_size=N (clusters: 2, 4, 8 or 16; default 4)
  raw    none

Examples:
  blockferry image create vda.qcow2 40G
  blockferry image create -o cluster_size=1M,compat=0.10 vda.qcow2 40G
  blockferry image create -b base.raw -F raw top.qed`;

const CHECK_HELP = `
Exit codes: 0 nothing is wrong, or everything was repaired · 2 something is wrong: errors, or space that is lost ·
64 bad command line, or a format without tables · 74 some tables cannot be read · 75 somebody uses the image`;

export function addImage(program: Command, context: CommandContext): void {
  const image = program
    .command("image")
    .summary("make images, and look at them")
    .description("Makes images, looks at them, and checks them.");
  addCreate(image);
  addCheck(image, context);
  image
    .command("info")
    .summary("size, format and storage of an image")
    .description("Tells an image's format, its size and the storage it takes, as `qemu-img info` does.")
    .argument("<image>", IMAGE)
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
    .argument("<image>", IMAGE)
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

function addCreate(image: Command): void {
  image
    .command("create")
    .summary("make a new, empty image")
    .description("Makes a new, empty image. There must be nothing at its path.")
    .argument("<image>", "the new image")
    .argument("[size]", "of the disk, such as 40G; default: as large as the backing", parseSize)
    .option("--format <format>", "format of the image (default: by its extension, else raw)")
    .option("-o, --options <options>", "of the format, as in cluster_size=64K,compat=1.1", collect, [])
    .option("-b, --backing <image>", "what it lies over; if relative, from the new image's folder")
    .option("-F, --backing-format <format>", "format of the backing")
    .option("-q, --quiet", "print nothing")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", CREATE_HELP)
    .action(async (path, size, flags) => {
      const { createImage } = await import("./create.ts");
      await createImage(path, size, flags);
    });
}

function addCheck(image: Command, context: CommandContext): void {
  image
    .command("check")
    .summary("look for errors in an image's tables, and repair them")
    .description("Walks the tables of an image, as `qemu-img check` does. Nobody may use the image meanwhile.")
    .argument("<image>", IMAGE)
    .option("--format <format>", FORMAT)
    .addOption(
      new Option("-r, --repair <what>", "leaks: give lost space back; all: put everything right; alone: all").choices([
        "leaks",
        "all",
      ] as const),
    )
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", CHECK_HELP)
    .action(async (path, flags) => {
      const { checkImages } = await import("./check.ts");
      context.exitWith(await checkImages(path, flags));
    });
}

function collect(text: string, before: string[]): string[] {
  return [...before, text];
}
