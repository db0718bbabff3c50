"""Several processes share one run without a word to each other: each answers its share into a file of its own."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from emma.errors import EmmaError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Process `number` (from 1) of `of`. What is its share depends on these two alone, never on what is answered."""

    number: int = 1
    of: int = 1

    @classmethod
    def find(cls, text: str | None) -> "Shard":
        """`K/N` as given, else torchrun's RANK and WORLD_SIZE, else the whole.

        Raises:
            EmmaError: anything but two whole numbers with 1 <= K <= N.
        """
        if text is None:
            return cls(int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1)))
        match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise EmmaError(f"shard={text!r}: expected K/N, such as 1/4 to 4/4 for four processes")
        return cls(int(match[1]), int(match[2]))

    def share(self, rows: Sequence[T]) -> list[T]:
        """Every `of`-th, so that shares are alike where neighbours are alike."""
        return list(rows[self.number - 1 :: self.of])

    def file_name(self, stem: str) -> str:
        """`predictions.jsonl`, or `predictions-1-of-4.jsonl`."""
        return f"{stem}.jsonl" if self.of == 1 else f"{stem}-{self.number}-of-{self.of}.jsonl"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
