"""`python -m emma.data show CONFIG --stage STAGE` and `python -m emma.data world ...`."""

import argparse
import sys
from collections.abc import Iterator
from itertools import groupby

from emma.errors import EmmaError, cli


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point of the module."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m emma.data", description="Look at training data, or make some.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|world")
    show = commands.add_parser("show", help="one training sample as the model sees it")
    show.add_argument("config", metavar="CONFIG", help="recipe, for example configs/tiny.yaml")
    show.add_argument("--stage", choices=("pretrain", "finetune"), default="finetune")
    which = show.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, metavar="N", help="sample by position (default 0)")
    which.add_argument("--id", metavar="ID", help="sample by id")
    show.add_argument("--epoch", type=int, default=0, metavar="N", help="for the instruction rule random (default 0)")
    show.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m emma.train")
    commands.add_parser("world", help="write the generated world's data (see world --help)", add_help=False)
    if arguments[:1] == ["world"]:
        from emma.world.__main__ import main as world

        world(["data", *arguments[1:]])
        return 0
    options = show.parse_intermixed_args(arguments[1:]) if arguments[:1] == ["show"] else parser.parse_args(arguments)
    for line in describe_sample(options):
        print(line)
    return 0


def describe_sample(options: argparse.Namespace) -> Iterator[str]:
    """Lines about one sample: its place, images, instruction, lengths, and each stretch of text as learned or given."""
    from emma.train.launch import initial_folder
    from emma.train.recipe import load_recipe

    recipe = load_recipe(options.config, options.overrides)
    settings = recipe.stage(options.stage)

    from emma.data.dataset import TrainingDataset
    from emma.data.mixture import Mixture
    from emma.data.sampler import Draw
    from emma.train.stages import processor_without_weights

    mixture = Mixture.open(settings.data, options.stage)
    start = initial_folder(recipe) if options.stage == "finetune" else None
    processor = processor_without_weights(recipe, options.stage, start)
    index = mixture.find(options.id) if options.id is not None else options.index
    if not 0 <= index < len(mixture):
        raise EmmaError(f"--index {index}: {options.stage} has {len(mixture)} samples, 0 to {len(mixture) - 1}")
    dataset = TrainingDataset(
        mixture, processor, max_length=settings.max_length, over_length=settings.over_length, seed=recipe.seed
    )
    encoded = dataset.encode(Draw(index, options.epoch, masked=False))
    sample, (source, row) = mixture[index], mixture.locate(index)
    ids, learned = encoded["input_ids"].tolist(), (encoded["labels"] != -100).tolist()
    yield f"sample       {encoded['id']} (index {index} of {len(mixture)}; record {row} of {source.annotations})"
    for path in sample["image"]:
        yield f"image        {path} -> {settings.image_mode}, {processor.image_size} x {processor.image_size}"
    if encoded["instruction"] is not None:
        yield f"instruction  {encoded['instruction']!r} ({encoded['instruction_cut']} CLIP tokens cut off)"
    yield (
        f"tokens       {len(ids)}, of them {ids.count(processor.image_token_id)} visual and "
        f"{sum(learned[1:])} supervised; {encoded['truncated']} cut off"
    )
    for (is_image, is_learned), run in groupby(
        zip(ids, learned, strict=True), key=lambda pair: (pair[0] == processor.image_token_id, pair[1])
    ):
        tokens = [token for token, _ in run]
        text = f"<{len(tokens)} visual tokens>" if is_image else repr(processor.tokenizer.decode(tokens))
        yield f"{'learned' if is_learned else 'given':<12} {text}"


if __name__ == "__main__":
    main()
