"""Text features of instructions that come again: computed once, kept in memory."""

from collections import OrderedDict
from collections.abc import Callable

import torch


class TextCache:
    """The most recently used rows of text features, by instruction ids.

    What is not there is computed as a batch of one, so that a row's value never depends on which rows came with it or
    before it: a resumed run, whose cache is empty, computes exactly what the uninterrupted one does.

    Where weights are partitioned over ranks, the whole tower must be collected before it is called, as ZeRO-3 does here
    (`train.engine.prepare_model`). If each layer collected its own, ranks whose instructions are not equally new would
    wait for each other for ever.

    Args:
        size: rows kept; one of 77 x 768 in bfloat16 takes 116 KiB.
    """

    def __init__(self, size: int = 256):
        self.size = size
        self._rows: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def features(self, encode: Callable[[torch.Tensor], torch.Tensor], instruction_ids: torch.Tensor) -> torch.Tensor:
        """T float[I, M, Dt] of instruction_ids int[I, M]; `encode` maps int[1, M] to float[1, M, Dt]."""
        rows = []
        for number, key in enumerate(row.tobytes() for row in instruction_ids.cpu().numpy()):
            if key not in self._rows:
                self._rows[key] = encode(instruction_ids[number : number + 1])[0]
                if len(self._rows) > self.size:
                    self._rows.popitem(last=False)
            self._rows.move_to_end(key)
            rows.append(self._rows[key])
        return torch.stack(rows)

    def clear(self) -> None:
        """Forget everything: the tower's weights, dtype or device have changed."""
        self._rows.clear()
