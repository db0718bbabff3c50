"""The answers of a run: appended as they come, resumed by id, refused under another fingerprint, merged at the end."""

import json
import logging
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.shards import Shard

log = logging.getLogger(__name__)

REMEDY = "name another output, or start over with restart=true"
LEFT_BY_A_RUN = ("predictions*.jsonl", "timing*.jsonl", "fingerprint.json", "report.*", "failures.html")


def fingerprint_differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf in which two fingerprints differ."""
    lines = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += fingerprint_differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {_short(old)} -> {_short(new)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


class Predictions:
    """`predictions.jsonl`, `fingerprint.json` and `timing.jsonl` in one folder; a shard K of N appends to
    `predictions-K-of-N.jsonl` and `timing-K-of-N.jsonl` instead, one process a file.

    A row is written with one call and ends in a newline, so a killed process leaves at most one incomplete last line,
    which it cuts off when it starts again. `done` maps the id of every question that was answered, in any of the
    files, when the folder was opened, or since then by this process, to its row.
    """

    def __init__(self, folder: Path, fingerprint: dict, shard: Shard | None = None, restart: bool = False):
        """Open `folder`, made when missing. `restart` drops the answers (and report) that are there.

        Raises:
            EmmaError: the answers there were made under another fingerprint, with the differences; a line before the
                last is damaged; the folder cannot be written; `restart` with shards.
        """
        self.folder = Path(folder)
        shard = shard or Shard()
        self.path = self.folder / shard.file_name("predictions")
        self._timing = self.folder / shard.file_name("timing")
        if restart and shard.of > 1:
            raise EmmaError(
                "restart=true with several processes: one would drop what another has answered already; "
                f"delete {self.folder}, or name another output"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if restart:
                for path in (path for pattern in LEFT_BY_A_RUN for path in self.folder.glob(pattern)):
                    path.unlink()
            self._claim(fingerprint)
            if self.path.is_file():
                _cut_incomplete_line(self.path)
            self.done = self._read_all()
        except OSError as error:
            raise EmmaError(f"cannot write answers to {self.folder}: {error.strerror}; name another output") from error

    def _claim(self, fingerprint: dict) -> None:
        path = self.folder / "fingerprint.json"
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise EmmaError(f"{path} is damaged ({error}); {REMEDY}") from error
            if differences := fingerprint_differences(before, fingerprint):
                raise EmmaError(
                    f"the answers in {self.folder} were made differently ({'; '.join(differences)}): {REMEDY}"
                )
        elif filled := [path for path in self._files() if path.stat().st_size]:
            raise EmmaError(f"{filled[0]} has answers, but no fingerprint.json says how they were made; {REMEDY}")
        else:
            write_json(path, fingerprint)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("predictions*.jsonl"))

    def _read_all(self) -> dict[str, dict]:
        return {str(row["id"]): row for path in self._files() for row in _rows(path)}

    def append(self, rows: list[dict], timing: dict) -> None:
        """Add answered questions, and one line that says how long they took (kept apart: it differs between runs)."""
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(_line(row) for row in rows))
            with self._timing.open("a", encoding="utf-8") as file:
                file.write(json.dumps(timing) + "\n")
        except OSError as error:
            raise EmmaError(f"cannot write to {self.folder}: {error.strerror}. Answers so far are kept") from error
        self.done |= {str(row["id"]): row for row in rows}

    def merge(self, ids: Iterable[str]) -> int:
        """When all questions `ids` are answered, by whichever process, write `predictions.jsonl`, one line each in
        their order; returns how many are not answered yet. Several processes may do this at once."""
        self.done = self._read_all()
        ids = list(ids)
        if missing := sum(id not in self.done for id in ids):
            return missing
        self.done = {id: self.done[id] for id in ids}
        try:
            _write_whole(self.folder / "predictions.jsonl", b"".join(map(_line, self.done.values())))
        except OSError as error:
            raise EmmaError(f"cannot write to {self.folder}: {error.strerror}. Answers so far are kept") from error
        return 0

    def timings(self) -> list[dict]:
        """The lines of all timing files; one that a killed run left incomplete is passed over."""
        rows = []
        for path in sorted(self.folder.glob("timing*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    log.warning("%s: an incomplete line is passed over", path)
        return rows


def _line(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _cut_incomplete_line(path: Path) -> None:
    content = path.read_bytes()
    whole = b"".join(line + b"\n" for line in _whole_lines(content))
    if len(whole) < len(content):
        log.warning("%s: its last line is incomplete (a killed run); it is dropped and asked again", path)
        os.truncate(path, len(whole))


def _whole_lines(content: bytes) -> list[bytes]:
    """All lines, without a last one that was not written to its end."""
    *lines, _ = content.split(b"\n")
    return lines[:-1] if lines and _row(lines[-1]) is None else lines


def _rows(path: Path) -> list[dict]:
    """The rows of one file; another process may be writing its last line at this moment.

    Raises:
        EmmaError: another line is damaged.
    """
    rows = []
    for number, line in enumerate(_whole_lines(path.read_bytes()), 1):
        if (row := _row(line)) is None:
            raise EmmaError(f"{path} line {number} is damaged: {line[:60]!r}. Delete that line to ask it again")
        rows.append(row)
    return rows


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "id" in row and "text" in row else None


def write_json(path: Path, value: dict) -> None:
    """Write so that `path` is whole or absent."""
    _write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Through a temporary file of a name that no other process has."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
