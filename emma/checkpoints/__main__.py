"""`python -m emma.checkpoints fetch CONFIG --to DIR`: get the base LLM and CLIP towers that a config names."""

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
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from emma.checkpoints.fetch import fetch as run

    for folder in run(args.config, args.to):
        print(folder)


if __name__ == "__main__":
    main()
