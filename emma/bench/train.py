"""Pairs of settings of a training step, measured in turn on the same samples, so that noise hits both alike."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from emma.bench.stage import BenchStage, bench_stage
from emma.data.collate import Collator
from emma.data.dataset import TrainingDataset
from emma.data.packing import Packing
from emma.model.text_cache import TextCache
from emma.train.features import filled_cache
from emma.train.recipe import Recipe

WARM_UP = 3  # steps; the first has the longest batch


@dataclass
class Measured:
    """One optimizer step: seconds to read its samples, seconds of forward, backward and update; what it held."""

    load_seconds: float
    step_seconds: float
    samples: int
    tokens: int
    positions: int
    supervised: int
    loss: float


def compare(recipe: Recipe, stage: str, comparisons: list[str], steps: int) -> Iterator[dict]:
    """Lines for each comparison: one a setting, then the speed-up of the second over the first."""
    with bench_stage(recipe, stage) as bench:
        yield {"bench": "machine", **bench.facts()}
        if recipe.stage(stage).gradient_checkpointing:
            model: Any = bench.model  # transformers 5.23 has renamed this
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        for name in comparisons:
            if name == "text_cache" and not bench.model.towers.with_text:
                continue  # alignment none reads no instruction
            yield from _compare(bench, name, _settings(bench, name, steps), steps)


def _settings(bench: BenchStage, name: str, steps: int) -> dict[str, Callable[[], Collator]]:
    """The two settings of a comparison by name: what makes each one hold, and gives its collator."""
    padded = Collator(bench.processor)
    if name == "packing":
        packing = Packing.suited_to(bench.model.llm, bench.dataset.max_length)
        packed = Collator(bench.processor, packing)
        return {"padded": lambda: padded, "packed": lambda: packed}
    holder, attribute, cache = {
        "text_cache": lambda: (bench.model.towers, "text_cache", TextCache()),
        "feature_cache": lambda: (bench.dataset, "features", _fill(bench, steps)),
    }[name]()

    def switch(value) -> Collator:
        setattr(holder, attribute, value)
        return padded

    return {"off": lambda: switch(None), "on": lambda: switch(cache)}


def _fill(bench: BenchStage, steps: int):
    """A feature cache that holds the images of the measured steps."""
    samples = {draw.sample for step in range(WARM_UP + steps) for draw in bench.sampler.step(step)}
    used = bench.dataset.mixture.select(np.array(sorted(samples)))
    part = TrainingDataset(used, bench.processor, max_length=0, over_length="truncate", seed=0)
    return filled_cache(bench.folder / "features", part, bench.model, bench.args)


def _compare(bench: BenchStage, name: str, settings: dict[str, Callable[[], Collator]], steps: int) -> Iterator[dict]:
    trained = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)  # the full work, but both settings see one model
    measured: dict[str, list[Measured]] = {setting: [] for setting in settings}
    for step in tqdm(range(WARM_UP + steps), desc=f"{bench.stage} {name}", leave=False):
        # In changing order: the second of two finds files and processor caches warm.
        for setting in list(settings)[:: 1 if step % 2 else -1]:
            measured[setting].append(_step(bench, settings[setting](), step, optimizer))
    kept = {setting: results[WARM_UP:] for setting, results in measured.items()}
    for setting, results in kept.items():
        yield {"bench": name, "stage": bench.stage, "setting": setting, **_summary(results)}
    first, second = kept.values()
    yield {
        "bench": name,
        "stage": bench.stage,
        "setting": " / ".join(kept),
        "step_speedup": _ratio(first, second, "step_seconds"),
        "load_speedup": _ratio(first, second, "load_seconds"),
        "largest_loss_difference": max(abs(a.loss - b.loss) for a, b in zip(first, second, strict=True)),
    }


def _step(bench: BenchStage, collate: Collator, step: int, optimizer: torch.optim.Optimizer) -> Measured:
    started = time.perf_counter()
    items = [[bench.dataset.encode(draw) for draw in draws] for draws in bench.sampler.micro_batches(step)]
    batches = [collate(part) for part in items]
    loaded = time.perf_counter()
    supervised, device, total = sum(batch["supervised"] for batch in batches), bench.args.device, 0.0
    for batch in batches:
        inputs = {key: tensor.to(device) for key, tensor in batch["model"].items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bench.args.bf16):
            loss = bench.model(**inputs, num_items_in_batch=supervised).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Measured(
        load_seconds=loaded - started,
        step_seconds=time.perf_counter() - loaded,
        samples=sum(batch["samples"] for batch in batches),
        tokens=sum(len(item["input_ids"]) for part in items for item in part),
        positions=sum(batch["model"]["input_ids"].numel() for batch in batches),
        supervised=supervised,
        loss=total,
    )


def _summary(results: list[Measured]) -> dict:
    """Medians over the steps; rates count the step alone, since workers read samples meanwhile."""

    def rate(count: str) -> float:
        return round(median(getattr(result, count) / result.step_seconds for result in results), 2)

    tokens, positions = (sum(getattr(result, count) for result in results) for count in ("tokens", "positions"))
    return {
        "steps": len(results),
        "step_seconds": round(median(result.step_seconds for result in results), 5),
        "load_seconds": round(median(result.load_seconds for result in results), 5),
        "samples_per_second": rate("samples"),
        "tokens_per_second": rate("tokens"),
        "supervised_tokens_per_second": rate("supervised"),
        "padding_share": round(1 - tokens / positions, 4),
    }


def _ratio(first: list[Measured], second: list[Measured], seconds: str) -> float:
    """Median over the steps of how much longer the first setting took for the same samples."""
    return round(median(getattr(a, seconds) / getattr(b, seconds) for a, b in zip(first, second, strict=True)), 3)
