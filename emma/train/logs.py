"""What a run reports while it trains: one JSON line per interval, a progress bar or lines, and throughput."""

import json
import logging
import netrc
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlparse

import torch
from tqdm import tqdm
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

FILE = "log.jsonl"


def truncate_log(file: Path, step: int) -> None:
    """Keep the lines up to `step`, so that a resumed run doubles none; a half-written last line goes too."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] > step:
            break
        kept.append(line + "\n")
    temporary = file.with_name(f"{file.name}.partial")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


COUNTED = ("supervised", "samples", "truncated", "instruction_cut", "tokens", "flops")


def peak_memory(device: torch.device) -> float:
    """GiB that this process has held at most: allocated by torch on a GPU, resident in all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB


class Throughput:
    """Counts of the interval since the last log line.

    Args:
        processes: ranks, each with a device of its own.
        peak: operations per second of a device at its best; None if not known.
    """

    def __init__(self, processes: int = 1, peak: float | None = None) -> None:
        self.processes, self.peak = processes, peak
        self.reset()

    def reset(self) -> None:
        """Start a new interval."""
        self.started = time.perf_counter()
        self.waited = 0.0
        self.counts = dict.fromkeys(COUNTED, 0)

    def add(self, counts: dict[str, int]) -> None:
        """Add an optimizer step's counts over all ranks, by the names in `COUNTED`."""
        for name in COUNTED:
            self.counts[name] += counts[name]

    def read(self, ranks: Sequence[tuple[float, float]]) -> dict[str, float]:
        """Rates per second of wall time over all ranks, and per device.

        Args:
            ranks: of every rank, seconds waited for data and peak memory in GiB.

        Returns:
            numbers for the log line; `data_wait` is the share of the time that the rank which waited longest spent so.
            `model_flops` and what follows from it is left out if not counted, `mfu` if the device's peak is unknown.
        """
        seconds, counts = max(time.perf_counter() - self.started, 1e-9), self.counts
        waits, memory = zip(*ranks, strict=True)
        numbers = {
            "samples_per_second": round(counts["samples"] / seconds, 3),
            "tokens_per_second": round(counts["tokens"] / seconds, 2),
            "supervised_tokens_per_second": round(counts["supervised"] / seconds, 2),
            "tokens_per_second_per_device": round(counts["tokens"] / seconds / self.processes, 2),
            "tokens": counts["tokens"],
            "supervised_tokens": counts["supervised"],
            "samples": counts["samples"],
            "samples_truncated": counts["truncated"],
            "instructions_cut": counts["instruction_cut"],
            "data_wait": round(max(waits) / seconds, 4),
            "memory_gib": round(max(memory), 3),
            "memory_gib_min": round(min(memory), 3),
            "seconds": round(seconds, 3),
        }
        if counts["flops"]:
            rate = counts["flops"] / seconds / self.processes
            numbers |= {"model_flops": counts["flops"], "model_flops_per_second_per_device": round(rate)}
            if self.peak:
                numbers["mfu"] = round(rate / self.peak, 4)
        return numbers


class JsonLog(TrainerCallback):
    """Appends each interval's numbers to `log.jsonl`: step, epoch, loss, learning_rate, grad_norm and throughput."""

    def __init__(self, file: Path):
        self.file = file

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class Progress(TrainerCallback):
    """A bar on a terminal, else one line per log interval."""

    def __init__(self, name: str):
        self.name = name
        self.bar: tqdm | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, dynamic_ncols=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", tokens_s=f"{logs['supervised_tokens_per_second']:.0f}")
            return
        logger.info(
            "%s step %d/%d  loss %.4f  lr %.3g  grad %.3g  %.1f samples/s  %.0f supervised tokens/s  data wait %.0f %%",
            self.name,
            state.global_step,
            state.max_steps,
            logs["loss"],
            logs["learning_rate"],
            logs.get("grad_norm", float("nan")),
            logs["samples_per_second"],
            logs["supervised_tokens_per_second"],
            100 * logs["data_wait"],
        )

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Leave the bar where it stands, also when training ends by an exception."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def prepare_trackers(report_to: list[str], folder: Path, name: str) -> None:
    """Environment for the trackers: wandb goes offline when nobody is logged in; files land in the stage's folder."""
    if "wandb" in report_to:
        os.environ.setdefault("WANDB_PROJECT", "emma")
        os.environ.setdefault("WANDB_DIR", str(folder))
        os.environ.setdefault("WANDB_NAME", name)
        if "WANDB_MODE" not in os.environ and not _wandb_login():
            os.environ["WANDB_MODE"] = "offline"  # before wandb is imported: it reads this once
            logger.info("wandb: not logged in, so the run is kept offline in %s/wandb (wandb sync uploads it)", folder)
    if "tensorboard" in report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    if "trackio" in report_to:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))


def _wandb_login() -> bool:
    """Whether wandb has a key, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    base = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        hosts = netrc.netrc(file).hosts
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
    return any(host in hosts for host in (base, "api.forge.coreweave.com"))
