"""Which samples belong to which optimizer step: a pure function of seed, step and global batch, whatever the ranks."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

# Batches are cut from shuffled windows of this many global batches, sorted by length inside: little padding, and
# still a random choice among thousands of samples. LLaVA sorts within one global batch (a window of 1).
WINDOW = 8


class Draw(NamedTuple):
    """One row of a batch: the index of a `sample` and its `epoch`; a `masked` one fills up and supervises nothing."""

    sample: int
    epoch: int
    masked: bool


def epoch_order(
    lengths: np.ndarray, has_image: np.ndarray, batch_size: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of one epoch, cut into global batches.

    Args:
        lengths: int[n], tokens of each sample, visual tokens included.
        has_image: bool[n].
        batch_size: G, samples per optimizer step.

    Returns:
        (indices int64[S, G], masked bool[S, G]). Each sample stands exactly once unmasked. A batch holds one modality
        only and similar lengths, longest first; the batch with the longest sample comes first (of several, the one with
        the most tokens), so that running out of memory happens at step 1; batches that had to be filled with masked
        repeats of their own samples (at most one per modality) come last.
    """
    rng = np.random.default_rng([seed, epoch])
    full: list[np.ndarray] = []
    partial: list[np.ndarray] = []
    for modality in (True, False):
        members = rng.permutation(np.flatnonzero(has_image == modality))
        for start in range(0, len(members), WINDOW * batch_size):
            window = members[start : start + WINDOW * batch_size]
            window = window[np.argsort(-lengths[window], kind="stable")]
            for first in range(0, len(window), batch_size):
                batch = window[first : first + batch_size]
                (full if len(batch) == batch_size else partial).append(batch)
    batches = [full[i] for i in rng.permutation(len(full))] + partial
    indices = np.stack([np.resize(batch, batch_size) for batch in batches]).astype(np.int64)
    masked = np.stack([np.arange(batch_size) >= len(batch) for batch in batches])
    tokens = lengths[indices]
    # Truncation makes many samples equally long; rows of packed batches then still differ in what they hold.
    first = np.lexsort((tokens.sum(axis=1), tokens[:, 0]))[-1]
    order = [first, *(i for i in range(len(batches)) if i != first)]
    return indices[order], masked[order]


def steps_per_epoch(has_image: np.ndarray, batch_size: int) -> int:
    """Optimizer steps of one epoch: each modality is rounded up to whole global batches."""
    images = int(np.count_nonzero(has_image))
    return math.ceil(images / batch_size) + math.ceil((len(has_image) - images) / batch_size)


class StepSampler:
    """Batch sampler over all epochs: yields this rank's micro-batches, step after step, as lists of `Draw`.

    Samples [kG, (k+1)G) of the order belong to step k whatever `micro_batch` and `world_size` are. Within a step,
    micro-batch j covers the j-th stretch of the (length-sorted) batch, and its rows are dealt to the ranks in turn,
    so that ranks carry like loads.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        has_image: np.ndarray,
        *,
        batch_size: int,
        micro_batch: int,
        total_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(lengths) == 0:
            raise ValueError("no samples to draw from")
        if batch_size % (micro_batch * world_size):
            raise ValueError(
                f"global batch {batch_size} is no multiple of micro-batch {micro_batch} x {world_size} processes"
            )
        self.lengths, self.has_image = np.asarray(lengths), np.asarray(has_image, dtype=bool)
        self.batch_size, self.micro_batch, self.total_steps, self.seed = batch_size, micro_batch, total_steps, seed
        self.rank, self.world_size = rank, world_size
        self.accumulation = batch_size // (micro_batch * world_size)
        self.steps_per_epoch = steps_per_epoch(self.has_image, batch_size)
        self._cached_order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_order(self.lengths, self.has_image, self.batch_size, self.seed, epoch)

    def step(self, step: int) -> list[Draw]:
        """The G draws of optimizer step `step` (0-based), over all ranks."""
        epoch, row = divmod(step, self.steps_per_epoch)
        indices, masked = self._cached_order(epoch)
        return [Draw(int(i), epoch, bool(m)) for i, m in zip(indices[row], masked[row], strict=True)]

    def micro_batches(self, step: int) -> list[list[Draw]]:
        """This rank's part of a step: `accumulation` lists of `micro_batch` draws."""
        draws, stretch = self.step(step), self.micro_batch * self.world_size
        return [draws[i : i + stretch][self.rank :: self.world_size] for i in range(0, len(draws), stretch)]

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.total_steps):
            yield from self.micro_batches(step)

    def __len__(self) -> int:
        return self.total_steps * self.accumulation
