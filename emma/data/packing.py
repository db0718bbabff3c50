"""Several samples in one row: the same tokens as the padded batch, with less padding, and the same loss."""

import heapq
import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import BatchFeature, PreTrainedModel

from emma.errors import EmmaError
from emma.processing.batch import join_images
from emma.processing.tokens import IGNORE


class Packing(NamedTuple):
    """How to pack: into rows of at most `capacity` tokens (or of the longest sample), or all samples into `one_row`.

    `even_at` is the row length at which attention costs as much as the rest of the LLM, see `layout`.
    """

    capacity: int
    even_at: int
    one_row: bool = False

    @classmethod
    def suited_to(cls, llm: PreTrainedModel, capacity: int) -> "Packing":
        """What this LLM's attention can keep apart: any rows with sdpa, eager or flex, one row with flash attention.

        transformers finds packed samples by their restarting positions (`masking_utils.find_packed_sequence_indices`;
        `_is_packed_sequence` for flash attention, which looks at a single row only).

        Raises:
            EmmaError: it would mix the samples of a row.
        """
        attention = str(llm.config._attn_implementation)
        reason = None
        if llm._is_stateful:
            reason = "carries a state from one token to the next"
        elif "position_ids" not in inspect.signature(llm.forward).parameters:
            reason = "takes no position_ids, which tell packed samples apart"
        elif attention not in ("sdpa", "eager", "flex_attention") and "flash" not in attention:
            reason = f"runs with attention {attention!r}, not known to keep packed samples apart"
        if reason is not None:
            raise EmmaError(f"packing: true, but {type(llm).__name__} {reason}; set packing: false")
        return cls(capacity, even_at=6 * llm.config.hidden_size, one_row="flash" in attention)


def layout(lengths: Sequence[int], packing: Packing) -> list[list[int]]:
    """Which samples share a row: the layout that costs least when all rows are padded to the longest.

    For every possible number of rows the samples are dealt longest first, each to the row that is shortest so far
    (Graham's LPT rule, 1969). A position of a row of L tokens costs 24 D^2 + 4 L D FLOPs in a block of width D whose
    MLP is 4 D wide (Kaplan et al., 2020, table 1), attention being computed over the whole row; so B rows cost as
    B L (6 D + L). One sample a row, the padded batch, is among the candidates: packing never costs more than padding.

    Args:
        lengths: tokens of each sample.

    Returns:
        Sample numbers by row, every sample once.
    """
    capacity = max(packing.capacity, *lengths)
    longest_first = sorted(range(len(lengths)), key=lambda sample: -lengths[sample])
    candidates = []
    for count in range(-(-sum(lengths) // capacity), len(lengths) + 1):
        rows: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, row) for row in range(count)]
        for sample in longest_first:
            filled, row = heap[0]
            heapq.heapreplace(heap, (filled + lengths[sample], row))
            rows[row].append(sample)
        longest = max(filled for filled, _ in heap)
        if longest <= capacity:
            candidates.append((count * longest * (packing.even_at + longest), rows))
    return min(candidates)[1]


def pack_batch(samples: Sequence[dict], pad_id: int, packing: Packing) -> BatchFeature:
    """Encoded samples as packed rows: `input_ids`, `position_ids`, `labels`, int64[B, L], and the images.

    Positions start at 0 with each sample and there is no attention mask: from that transformers sees where a sample
    ends and keeps them apart. No label asks for a sample's first token, which would be predicted from its neighbour.
    What fills up a row continues its last sample, and nothing before it attends to it. Images and instructions stand in
    the reading order of the packed rows.

    Args:
        samples: with `input_ids` and `labels`, int64[l] each.
        pad_id: id that fills up.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    rows = [list(range(len(samples)))] if packing.one_row else layout(lengths, packing)
    length = max(sum(lengths[i] for i in row) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORE)
    positions = torch.empty(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        start = 0
        for i in row:
            end = start + lengths[i]
            ids[number, start:end] = samples[i]["input_ids"]
            labels[number, start + 1 : end] = samples[i]["labels"][1:]
            positions[number, start:] = torch.arange(length - start)
            start = end
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels}
    return BatchFeature(batch | join_images([samples[i] for row in rows for i in row]))
