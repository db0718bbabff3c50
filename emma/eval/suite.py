"""Every benchmark whose data is present, with one loaded model, and one table at the end."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emma.errors import EmmaError, describe_os_error
from emma.eval.answerers import Found
from emma.eval.benchmark import Benchmark, find_data, usual_place, world_of
from emma.eval.benchmarks import BENCHMARKS
from emma.eval.controls import Controls
from emma.eval.report.record import Run, find_runs
from emma.eval.runner import evaluate

log = logging.getLogger(__name__)


@dataclass
class Suite:
    """What came of each benchmark, by name: `absent` and `failed` with the reason, `waiting` for other shards."""

    done: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """One line for each benchmark that has no report."""
        return [
            *(f"not there: {name} ({reason})" for name, reason in self.absent.items()),
            *(f"waiting for other shares: {name}" for name in self.waiting),
            *(f"FAILED: {name} ({reason})" for name, reason in self.failed.items()),
        ]


def run_all(
    found: Found,
    output: Path,
    data: str | None,
    controls: Controls,
    settings: Mapping[str, str],
    **limits: Any,
) -> Suite:
    """Ask `found` every benchmark whose files are there, into `output/BENCHMARK`; a failure does not end the others.

    Args:
        data: a folder that holds one folder for each benchmark, `world`, `hub`, or None for the usual places.
        settings: the benchmarks' own, as `scienceqa.split`.
        limits: `batch_size`, `max_new_tokens`, `shard`, `restart`, as for `evaluate`.

    Raises:
        EmmaError: no benchmark's files are there.
    """
    suite = Suite()
    for name, benchmark in BENCHMARKS.items():
        try:
            folder = _find_data(benchmark, data, found)
        except EmmaError as error:
            suite.absent[name] = str(error)
            continue
        place = output / f"{name}{controls.suffix}"
        try:
            start = f"{name}."
            chosen = {key.removeprefix(start): text for key, text in settings.items() if key.startswith(start)}
            report = evaluate(benchmark, found.answerer, folder, place, settings=chosen, controls=controls, **limits)
        except EmmaError as error:
            suite.failed[name] = str(error)
        except OSError as error:
            suite.failed[name] = describe_os_error(error)
        else:
            if report is None:
                suite.waiting.append(name)
            else:
                suite.done.append(name)
                print(f"{report['title']}: {report['metric'].replace('_', ' ')} {report['score']:.2f}", file=sys.stderr)
        if name in suite.failed:
            print(f"{name} failed: {suite.failed[name]}", file=sys.stderr)
    if len(suite.absent) == len(BENCHMARKS):
        remedy = "data=world takes the world's sets"
        if data == "world":
            remedy = "the world's are written by: python -m emma.data world"
        raise EmmaError(f"no benchmark's files are there; emma/eval/README.md says where they go, {remedy}")
    return suite


def _find_data(benchmark: Benchmark, data: str | None, found: Found) -> Path:
    """Raises `EmmaError` with a few words where there is none."""
    if data is None and benchmark.name == "world" and world_of(found.provenance) is None:
        raise EmmaError("for models that were trained on the tiny world, or data=world")
    if data not in (None, "world", "hub"):
        data = str(Path(data).expanduser() / benchmark.name)
    if data != "hub":
        folder, _ = usual_place(benchmark, data, found.provenance)
        if not folder.is_dir():
            raise EmmaError(f"no folder {folder}")
    return find_data(benchmark, data, found.provenance)


def runs_of(found: Found, output: Path) -> list[Run]:
    """All reported runs below `output` by this very model, whichever command made them."""
    mine = found.answerer.fingerprint()
    runs = []
    for path in sorted(output.rglob("report.json")):
        try:
            run = find_runs([path])[0]
        except EmmaError as error:
            log.warning("left out of the table: %s", error)
            continue
        if all(run.report["fingerprint"].get(key) == value for key, value in mine.items()):
            runs.append(run)
    return runs
