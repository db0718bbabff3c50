"""The answers file of a run: appended as answers come, resumed by id, refused under another fingerprint."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from emma.errors import EmmaError

log = logging.getLogger(__name__)


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
    """`predictions.jsonl`, `fingerprint.json` and `timing.jsonl` in one folder; one process writes at a time.

    A row is written with one call and ends in a newline, so a killed run leaves at most one incomplete last line, which
    is cut off when the folder is opened again. `done` maps the id of every answered question to its row.
    """

    def __init__(self, folder: Path, fingerprint: dict, restart: bool = False):
        """Open `folder`, made when missing. `restart` drops the answers (and report) that are there.

        Raises `EmmaError` when the answers there were made under another fingerprint, with the differences; when a line
        before the last is damaged; when the folder cannot be written.
        """
        self.folder = Path(folder)
        self.path = self.folder / "predictions.jsonl"
        self._timing = self.folder / "timing.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if restart:
                for name in ("predictions.jsonl", "timing.jsonl", "fingerprint.json", "report.json", "report.md"):
                    (self.folder / name).unlink(missing_ok=True)
            self._claim(fingerprint)
            self.done = self._read()
        except OSError as error:
            raise EmmaError(f"cannot write answers to {self.folder}: {error.strerror}; name another output") from error

    def _claim(self, fingerprint: dict) -> None:
        path = self.folder / "fingerprint.json"
        remedy = "name another output, or start over with restart=true"
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise EmmaError(f"{path} is damaged ({error}); {remedy}") from error
            if differences := fingerprint_differences(before, fingerprint):
                raise EmmaError(
                    f"the answers in {self.folder} were made differently ({'; '.join(differences)}): {remedy}"
                )
        elif self.path.is_file() and self.path.stat().st_size:
            raise EmmaError(f"{self.path} has answers, but no fingerprint.json says how they were made; {remedy}")
        else:
            write_json(path, fingerprint)

    def _read(self) -> dict[str, dict]:
        """The rows on disk by id, after cutting off an incomplete last line."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        *lines, rest = content.split(b"\n")
        if not rest and lines and _row(lines[-1]) is None:
            rest = lines.pop() + b"\n"
        if rest:
            log.warning("%s: its last line is incomplete (a killed run); it is dropped and asked again", self.path)
            os.truncate(self.path, len(content) - len(rest))
        done = {}
        for number, line in enumerate(lines, 1):
            row = _row(line)
            if row is None:
                raise EmmaError(
                    f"{self.path} line {number} is damaged: {line[:60]!r}. Delete that line to ask it again"
                )
            done[str(row["id"])] = row
        return done

    def append(self, rows: list[dict], timing: dict) -> None:
        """Add answered questions, and one line that says how long they took (kept apart: it differs between runs)."""
        try:
            with self.path.open("ab") as file:
                file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
            with self._timing.open("a", encoding="utf-8") as file:
                file.write(json.dumps(timing) + "\n")
        except OSError as error:
            raise EmmaError(f"cannot write to {self.folder}: {error.strerror}. Answers so far are kept") from error
        self.done |= {str(row["id"]): row for row in rows}

    def timings(self) -> list[dict]:
        """The lines of `timing.jsonl`; one that a killed run left incomplete is passed over."""
        lines = self._timing.read_text(encoding="utf-8").splitlines() if self._timing.is_file() else []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                log.warning("%s: an incomplete line is passed over", self._timing)
        return rows


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "id" in row and "text" in row else None


def write_json(path: Path, value: dict) -> None:
    """Write through a temporary file, so that `path` is whole or absent."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
