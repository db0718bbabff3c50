"""Annotation files as rows, whatever table format they come in: json, jsonl, csv, tsv, parquet, or a parquet's twin."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emma.errors import EmmaError

SUFFIXES = (".parquet", ".jsonl", ".json", ".tsv", ".csv")


def find_files(data: Path, patterns: Sequence[str], what: str) -> list[Path]:
    """The files of the first pattern that matches any in `data`, in order of name (shards of one table).

    A pattern `test-*.parquet` also finds twins `test-*.jsonl`, the same rows without the pictures, of files that are
    not there themselves.

    Raises:
        EmmaError: none; names the patterns.
    """
    for pattern in patterns:
        found = {path.with_suffix(""): path for path in Path(data).glob(pattern) if path.is_file()}
        if pattern.endswith(".parquet"):
            twins = Path(data).glob(pattern.removesuffix(".parquet") + ".jsonl")
            found = {path.with_suffix(""): path for path in twins if path.is_file()} | found
        if found:
            return [found[stem] for stem in sorted(found)]
    raise EmmaError(f"no {what} in {data}: expected {' or '.join(patterns)}")


def read_rows(files: Path | Iterable[Path], what: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one file or of all shards, in order; every cell of csv and tsv is text, empty where nothing stands.

    Args:
        what: of which benchmark, for messages.
        columns: of parquet, to leave pictures on disk; a column that is not there is left out. None: all.

    Raises:
        EmmaError: names a file that cannot be read as what its ending says.
    """
    rows: list[dict[str, Any]] = []
    for path in [files] if isinstance(files, Path) else files:
        try:
            rows += _READERS[path.suffix](path, columns)
        except KeyError:
            raise EmmaError(f"{what}: {path} is no table; its name must end in {', '.join(SUFFIXES)}") from None
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's and json's errors are ValueErrors
            raise EmmaError(f"{what}: cannot read {path}: {' '.join(str(error).split())}") from error
    return rows


def read_json(path: Path, what: str) -> Any:
    """The content of a json file.

    Raises:
        EmmaError: names the file and the reason.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise EmmaError(f"{what}: cannot read {path}: {error}") from error


def _json(path: Path, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    """A list of objects, or (as several official `.json` files are) one object a line."""
    text = path.read_text(encoding="utf-8-sig").strip()
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, or one object a line")
    return rows


def _separated(delimiter: str):
    def read(path: Path, columns: Sequence[str] | None) -> list[dict[str, Any]]:
        csv.field_size_limit(sys.maxsize)  # MMBench keeps pictures in cells
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=delimiter, restval=""))
        return [{name: cell for name, cell in row.items() if name is not None} for row in rows]

    return read


def _parquet(path: Path, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    present = pq.read_schema(path).names
    return pq.read_table(path, columns=None if columns is None else [c for c in columns if c in present]).to_pylist()


_READERS = {
    ".json": _json,
    ".jsonl": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
