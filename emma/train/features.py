"""Before training with `feature_cache`: every image that is not in the cache goes through the vision tower, once."""

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import TrainingArguments

from emma.data.dataset import IMAGE_REMEDY, TrainingDataset
from emma.data.features import FeatureCache
from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration
from emma.processing.images import open_image, preprocess
from emma.processing.processor import EmmaProcessor
from emma.train.guards import agree
from emma.train.signals import ignore_in_worker

logger = logging.getLogger(__name__)


def filled_cache(
    root: Path, dataset: TrainingDataset, model: EmmaForConditionalGeneration, args: TrainingArguments
) -> FeatureCache:
    """The cache below `root` with the features of all of a data set's images; the ranks share the work.

    Interrupted, it goes on at the next start: each image's file is written whole or not at all. Images are encoded one
    at a time, so that features depend on nothing but the image.

    Raises:
        EmmaError: an image cannot be read, or the disk has no room for all that is missing.
    """
    with _ready(model.towers.visual, args.device):
        cache = FeatureCache.open(root, model, dataset.processor)
        missing = _missing(cache, dataset)
        # A vote, so that all ranks have looked before one of them writes, and all stop if one must.
        if agree(bool(missing) and not _fits(cache, len(missing), args.process_index == 0), args.device):
            raise EmmaError(
                f"feature_cache: {cache.folder} needs {len(missing) * cache.file_bytes / 2**30:,.2f} GiB for "
                f"{len(missing):,} images, but its disk has {_free(cache) / 2**30:,.2f} GiB free; free some space, "
                "choose another folder, or set feature_cache=null"
            )
        _encode(cache, dataset, missing[args.process_index :: args.world_size], model, args)
        agree(False, args.device)  # all ranks' images are there
    return cache


def _ready(module: nn.Module, device: torch.device) -> AbstractContextManager:
    """A module whose weights are on the device; ones that ZeRO-3 has partitioned are whole inside the context."""
    partitioned = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext(module.to(device))
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def _missing(cache: FeatureCache, dataset: TrainingDataset) -> list[tuple[str, int, Path]]:
    """(image, a sample that shows it, its future file) of every image that is not in the cache."""
    missing = []
    for image, sample in tqdm(dataset.mixture.images().items(), desc="feature cache", leave=False, delay=3):
        try:
            file = cache.file(image)
        except EmmaError as error:
            raise EmmaError(f"{dataset.mixture.describe(sample)}: {error}; {IMAGE_REMEDY}") from error
        if not cache.holds(file):
            missing.append((image, sample, file))
    return missing


def _free(cache: FeatureCache) -> int:
    return shutil.disk_usage(cache.folder).free


def _fits(cache: FeatureCache, images: int, main: bool) -> bool:
    need, free = images * cache.file_bytes, _free(cache)
    if main:
        logger.info(
            "feature cache %s: %s images to encode, %.2f GiB; the disk has %.2f GiB free",
            cache.folder,
            f"{images:,}",
            need / 2**30,
            free / 2**30,
        )
    return need <= free


class _Pixels(Dataset):
    """float[3, H, W] of missing images, or what was wrong with one, as a data set so that workers open them."""

    def __init__(self, images: list[str], processor: EmmaProcessor):
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> torch.Tensor | EmmaError:
        processor = self.processor
        try:
            return preprocess(
                open_image(self.images[number]),
                processor.image_size,
                processor.image_mode,
                processor.image_mean,
                processor.image_std,
            )
        except EmmaError as error:
            return error


def _encode(
    cache: FeatureCache,
    dataset: TrainingDataset,
    missing: list[tuple[str, int, Path]],
    model: EmmaForConditionalGeneration,
    args: TrainingArguments,
) -> None:
    """This rank's share, with a progress bar on the first rank."""
    pixels: Iterator[torch.Tensor | EmmaError] = iter(
        DataLoader(
            _Pixels([image for image, _, _ in missing], dataset.processor),
            batch_size=None,
            num_workers=args.dataloader_num_workers if missing else 0,
            worker_init_fn=ignore_in_worker,
        )
    )
    bar = tqdm(
        missing,
        desc="encoding images",
        unit="image",
        mininterval=0.1 if sys.stderr.isatty() else 60,  # seconds: a log file keeps every line
        disable=args.process_index > 0 or not missing,
    )
    for (_, sample, file), image in zip(bar, pixels, strict=True):
        if isinstance(image, EmmaError):
            raise EmmaError(f"{dataset.mixture.describe(sample)}: {image}; {IMAGE_REMEDY}")
        # As in training, where autocast is on around the frozen tower too, but not under DeepSpeed.
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16 and not args.deepspeed):
            features = model.towers.encode_image(image[None].to(args.device))[0]
        try:
            cache.write(file, features)
        except OSError as error:
            raise EmmaError(f"cannot write {file}: {error}; free some space and start again") from error
