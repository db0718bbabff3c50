"""Encoded training samples by index, and the exact token length of every sample, computed once and cached."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from emma.data.annotations import cache_folder
from emma.data.features import FeatureCache
from emma.data.mixture import Mixture
from emma.data.sampler import Draw
from emma.errors import EmmaError
from emma.processing.images import open_image
from emma.processing.tokens import IGNORE

if TYPE_CHECKING:
    from emma.processing.processor import EmmaProcessor

logger = logging.getLogger(__name__)

IMAGE_REMEDY = "put the image there, take the record out, or mend this source's `images:` folder"


class TrainingDataset(Dataset):
    """Maps a `Draw` to an encoded sample; images are opened here, so in the worker process, one sample at a time.

    Args:
        mixture: the samples.
        processor: with the stage's template, image mode and instruction rule.
        max_length: most tokens per sample, visual tokens counted.
        over_length: `truncate`, `error`, or `drop` (the samples to drop never get into the sampler).
        seed: for the instruction rule `random`.

    `features`, None at first, may be set to a filled cache: samples then hold `vision_features` instead of
    `pixel_values`, and no image is opened.
    """

    def __init__(self, mixture: Mixture, processor: "EmmaProcessor", *, max_length: int, over_length: str, seed: int):
        self.mixture, self.processor = mixture, processor
        self.max_length, self.over_length, self.seed = max_length, over_length, seed
        self.features: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.mixture)

    def encode(self, draw: Draw) -> dict:
        """The processor's `encode_training` of the drawn sample, plus `masked`; if that, it supervises nothing."""
        sample = self.mixture[draw.sample]
        try:
            if self.features is not None:
                visual: dict = {"vision_features": self.features.read(sample["image"])}
            else:
                visual = {"images": [open_image(path) for path in sample["image"]]}
        except EmmaError as error:
            remedy = "" if self.features is not None else f"; {IMAGE_REMEDY}"
            raise EmmaError(f"{self.mixture.describe(draw.sample)}: {error}{remedy}") from error
        encoded = self.processor.encode_training(
            {**sample, **visual},
            max_length=self.max_length,
            over_length=self.over_length,
            epoch=draw.epoch,
            seed=self.seed,
        )
        if draw.masked:
            encoded["labels"] = encoded["labels"].new_full(encoded["labels"].shape, IGNORE)
        return {**encoded, "masked": draw.masked}

    def __getitem__(self, draw: Draw) -> dict | EmmaError:
        """As `encode`, but a user's error is returned, not raised: see `Collator`."""
        try:
            return self.encode(draw)
        except EmmaError as error:
            return error


class _Lengths(Dataset):
    """Token length by row of one source's table, as a data set so that a `DataLoader` spreads the work."""

    def __init__(self, table, processor: "EmmaProcessor"):
        self.table, self.processor = table, processor

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> int | EmmaError:
        try:
            return self.processor.length(self.table[row])
        except EmmaError as error:
            return error


def sample_lengths(mixture: Mixture, processor: "EmmaProcessor", workers: int = 0) -> np.ndarray:
    """int32[n]: exact tokens of every sample before truncation, visual tokens counted; no image is opened.

    Cached beside the annotations, by their content and by what decides about tokens (tokenizer, template, visual
    tokens).

    Raises:
        EmmaError: the first malformed sample.
    """
    settings = {
        "tokenizer": processor.tokenizer.backend_tokenizer.to_str(),
        "template": [processor.template, processor.chat_template],
        "visual_tokens": processor.num_visual_tokens,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    parts = []
    for source in mixture.sources:
        name = f"{source.annotations.stem}-{source.sha256[:16]}-lengths-{key}.npy"
        file = cache_folder(source.annotations.parent) / name
        lengths = (
            np.load(file) if file.is_file() else _measure(source.table, processor, workers, source.annotations, file)
        )
        parts.append(np.tile(lengths, source.repeat))
    return np.concatenate(parts)


def _measure(table, processor: "EmmaProcessor", workers: int, annotations: Path, file: Path) -> np.ndarray:
    loader = DataLoader(
        _Lengths(table, processor),
        batch_size=256,
        num_workers=workers if len(table) > 10_000 else 0,
        collate_fn=list,
    )
    lengths: list[int] = []
    for batch in tqdm(loader, desc=f"token lengths of {annotations.name}", leave=False, delay=3):
        for item in batch:
            if isinstance(item, EmmaError):
                raise EmmaError(f"{annotations}: {item}")
            lengths.append(item)
    array = np.array(lengths, dtype=np.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial.npy")
    np.save(partial, array)
    partial.replace(file)
    return array


def usable(mixture: Mixture, lengths: np.ndarray, max_length: int, over_length: str) -> np.ndarray:
    """int64: indices of the samples that a stage trains on, by its `over_length` rule; what is cut or dropped is
    counted.

    Raises:
        EmmaError: rule `error` and an over-long sample, or nothing left.
    """
    too_long = np.flatnonzero(lengths > max_length)
    if len(too_long) == 0:
        return np.arange(len(lengths))
    worst = int(too_long[np.argmax(lengths[too_long])])
    example = (
        f"{len(too_long)} of {len(lengths)} samples exceed max_length {max_length}; "
        f"the longest, {mixture[worst]['id']!r}, has {lengths[worst]} tokens"
    )
    if over_length == "error":
        raise EmmaError(f"{example}; raise max_length, or set over_length to truncate or drop")
    logger.warning("%s: over_length %s", example, over_length)
    if over_length == "truncate":
        return np.arange(len(lengths))
    kept = np.flatnonzero(lengths <= max_length)
    if len(kept) == 0:
        raise EmmaError(f"{example}; over_length drop leaves no sample")
    return kept
