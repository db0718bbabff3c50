"""LLaVA annotation files (JSON array or JSON lines) as memory-mapped Arrow tables, converted once per content."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emma.errors import EmmaError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

FORMAT = 1  # of the cached table; a change of the columns below must raise it
CHUNK = 1 << 20  # characters read at a time
ROWS = 2000  # per record batch: what random access reads at most


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(CHUNK):
        digest.update(block)
    return digest.hexdigest()


def cache_folder(beside: Path) -> Path:
    """Where derived tables are kept: `.emma-cache` beside the data; if read-only, in `$XDG_CACHE_HOME`."""
    if os.access(beside, os.W_OK):
        return beside / ".emma-cache"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "emma" / "annotations"


def read_records(path: Path) -> Iterator[dict]:
    """The objects of a JSON array or of JSON lines, one at a time, without holding the file in memory.

    Raises:
        EmmaError: names the file and the record that is no JSON object.
    """
    decoder, buffer, row, ended = json.JSONDecoder(), "", 0, False
    with open(path, encoding="utf-8") as file:
        while True:
            buffer = buffer.lstrip(" \t\r\n,") if row else buffer.lstrip(" \t\r\n[\ufeff")
            if buffer and not (buffer[0] == "]" and ended):
                try:
                    record, end = decoder.raw_decode(buffer)
                except json.JSONDecodeError as error:
                    if ended:
                        raise EmmaError(f"{path}: record {row} is not valid JSON ({error.msg})") from None
                else:
                    if not isinstance(record, dict):
                        raise EmmaError(f"{path}: record {row} is {type(record).__name__}, not an object")
                    yield record
                    buffer, row = buffer[end:], row + 1
                    continue
            elif ended:
                if rest := buffer.strip(" \t\r\n]"):
                    raise EmmaError(f"{path}: unexpected text after record {row - 1}: {rest[:40]!r}")
                return
            # An unfinished record may be long: the chunk grows with it, so that parsing it again stays linear.
            try:
                chunk = file.read(max(CHUNK, len(buffer)))
            except UnicodeDecodeError as error:
                raise EmmaError(
                    f"{path}: not UTF-8 text at or after record {row} (byte {error.object[error.start]:#x}); "
                    "convert the file, for example with iconv"
                ) from None
            buffer, ended = buffer + chunk, not chunk


def normalise(record: dict, row: int, path: Path) -> dict:
    """One LLaVA record as the table's row: id str, image list[str], conversations list of {from, value}.

    Raises:
        EmmaError: names file, record and field.
    """
    name = str(record["id"]) if record.get("id") is not None else f"{path.stem}:{row}"
    where = f"{path}: record {row} (id {name})"
    image = record.get("image") or []
    images = [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise EmmaError(f"{where}: image must be a path or a list of paths, not {image!r}")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise EmmaError(f"{where}: conversations must be a list of at least one turn")
    for number, turn in enumerate(turns):
        if (
            not isinstance(turn, dict)
            or not isinstance(turn.get("from"), str)
            or not isinstance(turn.get("value"), str)
        ):
            raise EmmaError(f'{where}: turn {number} must be {{"from": str, "value": str}}, not {str(turn)[:80]}')
    try:
        "".join((name, *images, *(turn["from"] + turn["value"] for turn in turns))).encode()
    except UnicodeEncodeError as error:
        raise EmmaError(
            f"{where}: {error.object[error.start : error.end]!a} is half a character (a lone surrogate); take it out"
        ) from None
    return {
        "id": name,
        "image": images,
        "conversations": [{"from": turn["from"], "value": turn["value"]} for turn in turns],
    }


def _write_table(source: Path, target: Path) -> int:
    """Convert `source` to an Arrow stream at `target`, complete or not at all; returns the number of rows."""
    import pyarrow as pa

    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    schema = pa.schema([("id", pa.string()), ("image", pa.list_(pa.string())), ("conversations", pa.list_(turn))])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    total = 0
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            rows: list[dict] = []
            for row, record in enumerate(read_records(source)):
                rows.append(normalise(record, row, source))
                total += 1
                if len(rows) == ROWS:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
                    rows = []
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        if total == 0:
            raise EmmaError(f"{source}: no records")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return total


def open_annotations(path: Path) -> tuple["Dataset", str]:
    """The table of an annotation file (converted at the first use of this content) and the sha256 of the file.

    Returns:
        (dataset, sha256): a memory-mapped `datasets.Dataset` with random access; rows are as `normalise` returns them.
    Raises:
        EmmaError: missing file, broken record; the message names path and remedy.
    """
    if not path.is_file():
        raise EmmaError(
            f"annotation file {path} {'is a directory' if path.is_dir() else 'does not exist'}; "
            "set data[].annotations to a LLaVA json file (relative paths start at the project root)"
        )
    digest = content_hash(path)
    table = cache_folder(path.parent) / f"{path.stem}-{digest[:16]}-v{FORMAT}.arrow"
    if not table.is_file():
        rows = _write_table(path, table)
        logger.info("%s: %d samples, table cached in %s", path, rows, table)
    from datasets import Dataset

    return Dataset.from_file(str(table)), digest
