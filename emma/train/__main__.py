"""`python -m emma.train CONFIG --stage pretrain|finetune [--resume auto|never|PATH] [key=value ...]`."""

import argparse
import logging
import os
import shlex
import sys

from emma.errors import cli

DESCRIPTION = """Train one stage of a recipe. Output: OUTPUT/STAGE with log.jsonl, checkpoint-N and the finished model/.

Stopped by Ctrl-C or SIGTERM it saves a checkpoint and exits with code 130 or 143; the same command goes on."""


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m emma.train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="recipe, for example configs/emma-7b.yaml")
    parser.add_argument("--stage", choices=("pretrain", "finetune"), required=True, help="which stage to train")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: go on from the newest complete checkpoint (default); never: move what is there aside and start "
        "over; PATH: go on from this checkpoint",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher's

    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example finetune.learning_rate=2e-5")
    options = parser.parse_intermixed_args(arguments)

    from emma.train import TrainingStopped, load_recipe, run

    main_rank = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if main_rank else logging.WARNING, format="%(message)s", stream=sys.stdout)
    recipe = load_recipe(options.config, options.overrides)
    try:
        folder = run(recipe, options.stage, options.resume)
    except TrainingStopped:
        if main_rank:
            again = ["python", "-m", "emma.train", options.config, "--stage", options.stage, *options.overrides]
            print(f"Go on with: {shlex.join(again)}", flush=True)
        raise
    if main_rank:
        print(folder)
    return 0


if __name__ == "__main__":
    main()
