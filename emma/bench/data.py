"""Samples a second that come from disk, encoded and collated, by number of worker processes."""

import time
from collections.abc import Iterator
from statistics import median

from torch.utils.data import DataLoader
from tqdm import tqdm

from emma.bench.stage import BenchStage, bench_stage
from emma.data.collate import Collator
from emma.train.recipe import Recipe

ROUNDS = 3


def loading(recipe: Recipe, stage: str, workers: list[int], steps: int) -> Iterator[dict]:
    """One line a number of workers; the rounds go through all numbers in turn, so that noise hits all alike."""
    with bench_stage(recipe, stage) as bench:
        yield {"bench": "machine", **bench.facts()}
        rates: dict[int, list[float]] = {number: [] for number in workers}
        rounds = [(again, number) for again in range(ROUNDS) for number in workers]
        for _, number in tqdm(rounds, desc=f"{stage} data loading", leave=False):
            rates[number].append(_rate(bench, number, steps))
        for number, measured in rates.items():
            yield {
                "bench": "data",
                "stage": stage,
                "workers": number,
                "rounds": ROUNDS,
                "samples_per_second": round(median(measured), 2),
            }


def _rate(bench: BenchStage, workers: int, steps: int) -> float:
    """Samples a second after the first micro-batch, which waits for the workers to start."""
    batches = [batch for step in range(1 + steps) for batch in bench.sampler.micro_batches(step)]
    loader = DataLoader(bench.dataset, batch_sampler=batches, collate_fn=Collator(bench.processor), num_workers=workers)
    started, samples = 0.0, 0
    for number, batch in enumerate(loader):
        if "error" in batch:
            raise batch["error"]
        if number == 0:
            started = time.perf_counter()
        else:
            samples += len(batch["ids"])
    return samples / (time.perf_counter() - started)
