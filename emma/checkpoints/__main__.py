"""`python -m emma.checkpoints COMMAND ...`: checkpoints of others in, standard formats out, and what a folder is."""

import argparse
import logging
import sys
from pathlib import Path

from emma.errors import cli


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m emma.checkpoints", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="download the weights that a config names, with checksums")
    fetch.add_argument("config", metavar="CONFIG", type=Path)
    fetch.add_argument("--to", default="playground/models", help="folder (%(default)s)")
    fetch.set_defaults(run=_fetch)
    imports = commands.add_parser(
        "import",
        help="write a released EMMA, LLaVA-1.5 or llava-hf checkpoint as a model folder",
        description="SOURCE: a folder of the released EMMA or LLaVA-1.5, of their stage 1 or LoRA, or of llava-hf. "
        "What it is, is recognised by its files and keys.",
    )
    imports.add_argument("source", metavar="SOURCE", help="folder, or hub name such as saraghznfri/emma-7b")
    imports.add_argument("target", metavar="TARGET", type=Path, help="folder to write; it must not exist")
    imports.add_argument("--assets", metavar="DIR", type=Path, help="folder with the CLIP and LLM that SOURCE names")
    imports.add_argument(
        "--clip",
        metavar="FROM",
        help="CLIP folder, open_clip name such as ViT-L-14-336-quickgelu:openai, or `checkpoint` for the copy inside "
        "SOURCE; default: what SOURCE names, from --assets or the local cache",
    )
    imports.add_argument(
        "--llm", metavar="FOLDER", help="base LLM of a stage-1 or LoRA folder (default: what it names), or tokenizer"
    )
    imports.set_defaults(run=_import)
    exports = commands.add_parser(
        "export",
        help="write a model folder as released EMMA or LLaVA-1.5, as llava-hf, its LLM or its adapter alone",
        description="emma, llava: what the released code of EMMA and of LLaVA-1.5 loads. llava-hf: what transformers' "
        "LlavaForConditionalGeneration loads, where the alignment is none. llm: the language model, for "
        "AutoModelForCausalLM. adapter: instruction projection, alignment and projector in one safetensors file. A "
        "LoRA adapter folder must be merged first.",
    )
    exports.add_argument("folder", metavar="FOLDER", help="for example runs/emma-7b/finetune/model")
    exports.add_argument("target", metavar="TARGET", type=Path, help="folder (adapter: file) to write")
    exports.add_argument("--format", required=True, choices=("emma", "llava", "llava-hf", "llm", "adapter"))
    exports.add_argument(
        "--vision-tower",
        metavar="NAME",
        help="emma, llava: the CLIP that config.json names, such as openai/clip-vit-large-patch14-336 if the "
        "towers are still those; default: the towers are written to TARGET/clip, which is named by its absolute path",
    )
    exports.set_defaults(run=_export)
    merge = commands.add_parser("merge", help="write an adapter folder (LoRA) and its base as one self-contained model")
    merge.add_argument("adapter", metavar="ADAPTER", type=Path, help="for example runs/emma-7b-lora/finetune/model")
    merge.add_argument("target", metavar="TARGET", type=Path, help="folder to write; it must not exist")
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of towers and LLM in TARGET; default: as in the base"
    )
    merge.set_defaults(run=_merge)
    show = commands.add_parser(
        "show",
        help="what a folder or file of weights is: parts, sizes, alignment, settings, origin, what is missing",
        description="Any folder or file: of this project, released EMMA, LLaVA-1.5, llava-hf, stage 1, LoRA, LLM or "
        "CLIP. Reads headers, and of values only the alignment's.",
    )
    show.add_argument("folder", metavar="FOLDER", help="folder, file, or hub name such as saraghznfri/emma-7b")
    show.add_argument("--json", action="store_true", help="all of it, for programs")
    show.set_defaults(run=_show)
    push = commands.add_parser(
        "push", help="publish a model folder on the Hugging Face hub, with its evaluation reports"
    )
    push.add_argument("folder", metavar="FOLDER", type=Path, help="reports are taken from FOLDER/eval/*/report.json")
    push.add_argument("repository", metavar="REPO", help="USER/NAME, made if there is none")
    push.add_argument("--private", action="store_true", help="if it is made")
    push.set_defaults(run=_push)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args.run(args)


def _fetch(args: argparse.Namespace) -> None:
    from emma.checkpoints.fetch import fetch

    for folder in fetch(args.config, args.to):
        print(folder)


def _import(args: argparse.Namespace) -> None:
    from emma.checkpoints.importing import import_folder

    print(import_folder(args.source, args.target, args.assets, args.clip, args.llm))


def _export(args: argparse.Namespace) -> None:
    from emma.checkpoints.exporting import export_folder

    print(export_folder(args.folder, args.target, args.format, args.vision_tower))


def _merge(args: argparse.Namespace) -> None:
    from emma.checkpoints.merge import merge_folder

    print(merge_folder(args.adapter, args.target, args.dtype))


def _show(args: argparse.Namespace) -> None:
    import json

    from emma.checkpoints.hub import source_folder
    from emma.checkpoints.showing import describe, print_description

    facts = describe(source_folder(args.folder))
    if args.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_description(facts)


def _push(args: argparse.Namespace) -> None:
    from emma.checkpoints.push import push

    print(push(args.folder, args.repository, args.private))


if __name__ == "__main__":
    main()
