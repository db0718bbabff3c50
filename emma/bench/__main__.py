"""`python -m emma.bench train|data|eval`: throughput on this machine, as JSON lines."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator

from emma.errors import EmmaError, cli

DESCRIPTION = """Measure throughput on this machine, one process. Prints JSON lines.

train  pairs of settings of a training step: padded or packed, text cache off or on, feature cache off or on
data   samples a second that come from disk, by number of worker processes
eval   questions a second of the evaluation, by batch size, images encoded once or for each question anew"""
COMPARISONS = ("packing", "text_cache", "feature_cache")


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point of the module."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m emma.bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(BENCHES))
    benches = {name: add(commands) for name, (add, _) in BENCHES.items()}
    name = arguments[0] if arguments else ""
    # Options may stand between the free arguments, which argparse allows to a single parser only.
    options = benches[name].parse_intermixed_args(arguments[1:]) if name in benches else parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for line in BENCHES[name][1](options):
        print(json.dumps(line), flush=True)
    return 0


def _common(parser: argparse.ArgumentParser, steps: int) -> argparse.ArgumentParser:
    parser.add_argument("arguments", nargs="*", metavar="[CONFIG] key=value", help="recipe (default configs/tiny.yaml)")
    parser.add_argument("--stage", choices=("pretrain", "finetune"), help="only this stage (default: both)")
    parser.add_argument("--steps", type=int, default=steps, metavar="N", help="optimizer steps (%(default)s)")
    return parser


def _add_train(commands) -> argparse.ArgumentParser:
    parser = _common(commands.add_parser("train", help="pairs of settings of a training step"), steps=20)
    parser.add_argument("--only", choices=COMPARISONS, help="one comparison (default: all)")
    return parser


def _add_data(commands) -> argparse.ArgumentParser:
    parser = _common(commands.add_parser("data", help="data loading by number of workers"), steps=40)
    parser.add_argument("--workers", default="0,1,2,4", metavar="N,N,...", help="numbers of workers (%(default)s)")
    return parser


def _add_eval(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser("eval", help="questions a second, by batch size and with images encoded once")
    parser.add_argument("model", nargs="?", metavar="CHECKPOINT", help="model folder (default: the last quickstart's)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="with six questions each (%(default)s)")
    parser.add_argument("--batch-sizes", default="1,4,16,64", metavar="N,N,...", help="after 1 (%(default)s)")
    return parser


def _train(options: argparse.Namespace) -> Iterator[dict]:
    from emma.bench.train import compare

    wanted = [options.only] if options.only else list(COMPARISONS)
    for recipe, stage in _stages(options):
        yield from compare(recipe, stage, wanted, options.steps)


def _data(options: argparse.Namespace) -> Iterator[dict]:
    workers = _numbers("--workers", options.workers, least=0)
    from emma.bench.data import loading

    for recipe, stage in _stages(options):
        yield from loading(recipe, stage, workers, options.steps)


def _eval(options: argparse.Namespace) -> Iterator[dict]:
    sizes = _numbers("--batch-sizes", options.batch_sizes, least=1)
    if options.images < 1:
        raise EmmaError(f"--images {options.images} must be at least 1")
    from emma.serve import find_model

    model = options.model or find_model()
    from transformers.utils.logging import disable_progress_bar

    from emma.bench.eval import answering

    disable_progress_bar()
    yield from answering(model, options.images, sorted({1, *sizes}))


def _numbers(option: str, text: str, least: int) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        raise EmmaError(f"{option} {text!r} is not a list of numbers such as 1,2") from None
    if min(numbers) < least:
        raise EmmaError(f"{option} {text!r}: {min(numbers)} must be at least {least}")
    return numbers


def _stages(options: argparse.Namespace) -> Iterator[tuple]:
    """(recipe, stage) of all that is to be measured."""
    from emma.paths import resolve
    from emma.train.recipe import STAGES, load_recipe

    if options.steps < 1:
        raise EmmaError(f"--steps {options.steps} must be at least 1")
    given = list(options.arguments)
    config = given.pop(0) if given and "=" not in given[0] else resolve("configs/tiny.yaml")
    recipe = load_recipe(config, given)
    for stage in [options.stage] if options.stage else STAGES:
        yield recipe, stage


BENCHES: dict[str, tuple[Callable, Callable]] = {
    "train": (_add_train, _train),
    "data": (_add_data, _data),
    "eval": (_add_eval, _eval),
}


if __name__ == "__main__":
    main()
