"""What a stage's samples weigh: measured on the data where it is here, else assumed, and said so."""

import math
from pathlib import Path
from typing import NamedTuple

from emma.errors import EmmaError
from emma.model import EmmaConfig
from emma.paths import resolve
from emma.plan.flops import Batch
from emma.train.assets import local_folder
from emma.train.recipe import Recipe, StageRecipe

PROBED = 32  # samples whose supervised tokens are counted
# Sizes that LLaVA-1.5's authors publish with its data (Liu et al. 2023).
PUBLISHED_SAMPLES = {"blip_laion_cc_sbu_558k.json": 558_128, "llava_v1_5_mix665k.json": 665_298}


class Assumed(NamedTuple):
    """Text tokens of a sample, by template, for data that is not here: round numbers, not measurements."""

    text: int
    supervised: int
    longest: int | None  # None: up to max_length


CAPTIONS = Assumed(text=30, supervised=30, longest=200)
CONVERSATIONS = Assumed(text=300, supervised=150, longest=None)


class Load(NamedTuple):
    """Samples of a stage.

    Args:
        source: where the numbers come from, in words.
        samples: of an epoch; None if unknown. steps: of the stage; None likewise.
        epoch: work of the samples with image and of those without, summed over `counted` samples.
        counted: how many samples that is.
        longest: the longest sample, with as many images as any has.
        length: average tokens.
    """

    source: str
    samples: int | None
    steps: int | None
    epoch: tuple[Batch, Batch]
    counted: int
    longest: Batch
    length: float

    def micro_batch(self, rows: int) -> Batch:
        """The largest micro-batch: as long as the longest sample, which the first step holds."""
        return Batch(*(rows * value for value in self.longest))


def find_load(recipe: Recipe, stage: str, config: EmmaConfig, tokens: int | None, samples: int | None) -> Load:
    """Measured where annotations, images and a tokenizer are here and `tokens` is None, else assumed."""
    settings = recipe.stage(stage)
    missing = _missing(recipe, settings)
    if tokens is None and missing is None:
        return _measured(recipe, stage, config)
    if samples is None:
        counts = [PUBLISHED_SAMPLES.get(Path(source.annotations).name) for source in settings.data]
        known = [count * source.repeat for count, source in zip(counts, settings.data, strict=True) if count]
        samples = sum(known) if known and len(known) == len(counts) else None
    visual = config.tower_config.num_visual_tokens
    assumed = CAPTIONS if settings.template == "plain" else CONVERSATIONS
    length = tokens if tokens is not None else min(visual + assumed.text, settings.max_length)
    if length <= visual:
        raise EmmaError(f"--tokens {tokens}: a sample with an image has {visual} visual tokens and more than that")
    if length > settings.max_length:
        raise EmmaError(f"--tokens {tokens} is more than {stage}.max_length {settings.max_length}")
    supervised = min(round((length - visual) * assumed.supervised / assumed.text), length - visual)
    longest = settings.max_length if assumed.longest is None else min(visual + assumed.longest, settings.max_length)
    longest = max(longest, length)
    why = f"{length} from --tokens" if tokens is not None else f"{assumed.text} of text for each; {missing}"
    return Load(
        source=f"assumed, not measured ({why})",
        samples=samples,
        steps=_steps(settings, math.ceil(samples / settings.batch_size) if samples else None),
        epoch=(Batch(1, length, length**2, supervised), Batch(0, 0, 0, 0)),
        counted=1,
        longest=Batch(1, longest, longest**2, round((longest - visual) * assumed.supervised / assumed.text)),
        length=length,
    )


def _steps(settings: StageRecipe, per_epoch: int | None) -> int | None:
    if settings.max_steps or per_epoch is None:
        return settings.max_steps
    return max(1, round(settings.epochs * per_epoch))


def _missing(recipe: Recipe, settings: StageRecipe) -> str | None:
    """What would have to be here to measure the data; None when all is."""
    if not settings.data:
        return "the recipe names no data"
    for source in settings.data:
        if not resolve(source.annotations).is_file():
            return f"{source.annotations} is not here"
        if not resolve(source.images).is_dir():
            return f"{source.images} is not here"
    folder = local_folder(recipe, "llm")
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return f"no tokenizer of {recipe.model.llm} is here"
    return None


def _measured(recipe: Recipe, stage: str, config: EmmaConfig) -> Load:
    """Exact lengths of all samples; supervised tokens from a few, encoded."""
    from transformers import AutoTokenizer

    from emma.data.dataset import TrainingDataset, sample_lengths, usable
    from emma.data.mixture import Mixture
    from emma.data.sampler import Draw, steps_per_epoch
    from emma.processing.instruction import find_clip_bpe
    from emma.train.stages import stage_processor

    settings = recipe.stage(stage)
    tokenizer = AutoTokenizer.from_pretrained(local_folder(recipe, "llm"), local_files_only=True)
    clip = local_folder(recipe, "clip")
    processor = stage_processor(config, tokenizer, settings, find_clip_bpe(clip) if clip else None)
    mixture = Mixture.open(settings.data, stage)
    lengths = sample_lengths(mixture, processor, settings.workers)
    kept = usable(mixture, lengths, settings.max_length, settings.over_length)
    mixture, lengths = mixture.select(kept), lengths[kept].clip(max=settings.max_length).astype("int64")
    dataset = TrainingDataset(
        mixture, processor, max_length=settings.max_length, over_length=settings.over_length, seed=recipe.seed
    )

    def supervised(index: int) -> int:
        return int((dataset.encode(Draw(index, 0, False))["labels"][1:] != -100).sum())

    probe = range(0, len(mixture), max(1, len(mixture) // PROBED))[:PROBED]
    per_sample = sum(supervised(index) for index in probe) / len(probe)
    images = mixture.image_counts()
    epoch = [
        Batch(
            images=int(images[rows].sum()),
            tokens=int(lengths[rows].sum()),
            squared=int((lengths[rows] ** 2).sum()),
            supervised=round(per_sample * int(rows.sum())),
        )
        for rows in (images > 0, images == 0)
    ]
    longest = int(lengths.argmax())
    return Load(
        source=f"measured on the data; supervised tokens on {len(probe)} samples",
        samples=len(mixture),
        steps=_steps(settings, steps_per_epoch(images > 0, settings.batch_size)),
        epoch=(epoch[0], epoch[1]),
        counted=len(mixture),
        longest=Batch(int(images.max()), int(lengths[longest]), int(lengths[longest]) ** 2, supervised(longest)),
        length=float(lengths.mean()),
    )
