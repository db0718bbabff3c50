"""`python -m emma.world foundation|data`: rebuild the world's pretrained parts, or write its data."""

import argparse
import json
import logging
import sys
from pathlib import Path

from emma.errors import cli
from emma.paths import project_root


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m emma.world data`, which is also `python -m emma.data world`."""
    parser.add_argument(
        "--to", type=Path, default=project_root() / "playground/data/world", help="folder (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pretrain", type=int, default=6400, help="captioned pictures of stage 1 (%(default)s)")
    parser.add_argument("--finetune", type=int, default=16000, help="conversations of stage 2 (%(default)s)")


def write_data(args: argparse.Namespace) -> None:
    """Write the world's data, or say that it is there."""
    from emma.world.data import write_world

    write_world(args.to, seed=args.seed, pretrain=args.pretrain, finetune=args.finetune)
    print(f"the world's data is in {args.to}")


def build_foundation(args: argparse.Namespace) -> None:
    """Rebuild CLIP and the language model, and print the provenance."""
    from emma.world.foundation import PARTS, rebuild

    parts = (args.only,) if args.only else PARTS
    print(json.dumps(rebuild(args.to, seed=args.seed, short=args.short, parts=parts), indent=2))


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m emma.world", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    foundation = commands.add_parser(
        "foundation",
        help="train the world's CLIP and language model from nothing",
        description="Train the tiny world's CLIP and text-only language model from nothing.",
    )
    foundation.add_argument("--to", type=Path, default=Path("runs/foundation"), help="folder (%(default)s)")
    foundation.add_argument("--seed", type=int, default=0)
    foundation.add_argument("--only", choices=("clip", "llm"), help="one of the two")
    foundation.add_argument("--short", action="store_true", help="a few steps only: proves the path, learns nothing")
    foundation.set_defaults(run=build_foundation)
    data = commands.add_parser("data", help="write the world's training and evaluation data")
    add_data_arguments(data)
    data.set_defaults(run=write_data)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args.run(args)


if __name__ == "__main__":
    main()
