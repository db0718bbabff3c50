"""A stage's data: several annotation files behind one index, with random access and absolute image paths."""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emma.data.annotations import open_annotations
from emma.errors import EmmaError
from emma.paths import resolve

if TYPE_CHECKING:
    from datasets import Dataset

    from emma.train.recipe import DataSource


@dataclass(frozen=True)
class Source:
    """One opened annotation file: its table, image root, and how often an epoch goes through it."""

    annotations: Path
    images: Path
    repeat: int
    table: "Dataset"
    sha256: str

    @cached_property
    def rows(self) -> int:
        """Records of the annotation file."""
        return len(self.table)

    def __len__(self) -> int:
        return self.rows * self.repeat


class Mixture:
    """All samples of a stage under one index 0..n-1, in the order of the sources; `repeat` counts a source several
    times.

    Args:
        sources: opened annotation files.
        rows: int64[n], the samples that are used (all by default), as indices into the joined sources.
    """

    def __init__(self, sources: Sequence[Source], rows: np.ndarray | None = None):
        self.sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))
        self._rows = np.arange(self._ends[-1]) if rows is None else rows

    def select(self, indices: np.ndarray) -> "Mixture":
        """The mixture of these samples only."""
        return Mixture(self.sources, self._rows[indices])

    @classmethod
    def open(cls, data: Sequence["DataSource"], stage: str) -> "Mixture":
        """Open the sources of a recipe's stage.

        Raises:
            EmmaError: no source, a missing annotation file or image folder.
        """
        if not data:
            raise EmmaError(f"{stage}.data is empty: give at least one {{annotations: FILE, images: FOLDER}}")
        sources = []
        for number, item in enumerate(data):
            annotations, images = resolve(item.annotations), resolve(item.images)
            table, sha256 = open_annotations(annotations)
            if not images.is_dir():
                raise EmmaError(
                    f"{stage}.data[{number}].images: folder {images} does not exist; "
                    "image paths in the annotations are relative to it"
                )
            sources.append(Source(annotations, images, item.repeat, table, sha256))
        return cls(sources)

    def __len__(self) -> int:
        return len(self._rows)

    def locate(self, index: int) -> tuple[Source, int]:
        """(source, row in its table) of a sample."""
        which, row = self._place(index)
        return self.sources[which], row

    def _place(self, index: int) -> tuple[int, int]:
        """(number of the source, row in its table) of a sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        position = int(self._rows[index])
        which = bisect_right(self._ends, position)
        source = self.sources[which]
        return which, (position - (self._ends[which] - len(source))) % source.rows

    def __getitem__(self, index: int) -> dict:
        """{"id", "image": list of absolute paths, "conversations"} of one sample; opens no image."""
        source, row = self.locate(index)
        sample = source.table[row]
        return {**sample, "image": [str(source.images / name) for name in sample["image"]]}

    def describe(self, index: int) -> str:
        """A sample as errors name it: its id, record and annotation file."""
        source, row = self.locate(index)
        return f"sample {source.table[row]['id']!r} (record {row} of {source.annotations})"

    def find(self, sample_id: str) -> int:
        """Index of the first sample with this id."""
        ids = itertools.chain.from_iterable(s.table.data.column("id").to_pylist() * s.repeat for s in self.sources)
        positions = np.flatnonzero(np.array([name == sample_id for name in ids])[self._rows])
        if len(positions) == 0:
            raise EmmaError(f"no sample has the id {sample_id!r}")
        return int(positions[0])

    def has_image(self) -> np.ndarray:
        """bool[n]: which samples come with an image."""
        return self.image_counts() > 0

    def image_counts(self) -> np.ndarray:
        """int[n]: images of each sample."""
        import pyarrow.compute as pc

        parts = []
        for source in self.sources:
            counts = pc.list_value_length(source.table.data.column("image").combine_chunks())
            parts.append(np.tile(counts.to_numpy(zero_copy_only=False), source.repeat))
        return np.concatenate(parts)[self._rows]

    def images(self) -> dict[str, int]:
        """Every image of the mixture once, as its absolute path, with the first sample that shows it."""
        columns = [source.table.data.column("image").to_pylist() for source in self.sources]
        found: dict[str, int] = {}
        for index in range(len(self)):
            which, row = self._place(index)
            for name in columns[which][row]:
                found.setdefault(str(self.sources[which].images / name), index)
        return found

    def manifest(self) -> list[dict]:
        """What the run was trained on: per source the file, its rows, repeats, sha256, whether it is the tiny world's.

        Evaluation asks a model of the tiny world the world's own questions (`emma.eval.benchmark.find_data`).
        """
        return [
            {
                "annotations": str(source.annotations),
                "images": str(source.images),
                "rows": source.rows,
                "repeat": source.repeat,
                "sha256": source.sha256,
                "world": (Path(source.annotations).parent / "world.json").is_file(),
            }
            for source in self.sources
        ]
