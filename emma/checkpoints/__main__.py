"""`python -m emma.checkpoints fetch|import|merge ...`: get the weights that a config names; read the checkpoints of
others; fold LoRA into its base."""

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
    merge = commands.add_parser("merge", help="write an adapter folder (LoRA) and its base as one self-contained model")
    merge.add_argument("adapter", metavar="ADAPTER", type=Path, help="for example runs/emma-7b-lora/finetune/model")
    merge.add_argument("target", metavar="TARGET", type=Path, help="folder to write; it must not exist")
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of towers and LLM in TARGET; default: as in the base"
    )
    merge.set_defaults(run=_merge)
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


def _merge(args: argparse.Namespace) -> None:
    from emma.checkpoints.merge import merge_folder

    print(merge_folder(args.adapter, args.target, args.dtype))


if __name__ == "__main__":
    main()
