"""A plan as text for people: aligned, with units, at most 120 columns."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from emma.plan.memory import GIB

WIDTH = 118
UNITS = (("TFLOP", 10**12), ("GFLOP", 10**9), ("MFLOP", 10**6), ("FLOP", 1))
NAMES = {
    "vision": "vision tower",
    "text": "text tower",
    "instruction_projection": "instruction projection",
    "alignment": "alignment",
    "projector": "projector",
    "llm": "LLM",
    "all": "all",
}


def render(plan: dict[str, Any]) -> Iterator[str]:
    """Lines of the whole plan."""
    machine = plan["machine"]
    yield from _wrap(
        f"{plan['config']} on {machine['gpus']} x {machine['name']}, each {machine['memory']:g} GiB and "
        f"{machine['peak'] / 1e12:g} TFLOP/s (dense bf16); nothing was downloaded or allocated"
    )
    yield ""
    yield from _parameters(plan)
    for stage, content in plan["stages"].items():
        yield ""
        yield from _stage(stage, content, plan)
    yield ""
    yield _over_llava(plan["over_llava"])


def _parameters(plan: dict[str, Any]) -> Iterator[str]:
    numbers = plan["parameters"]
    everything, stages = numbers["all"], plan["stages"]
    rows: list[tuple[str, ...]] = [("parameters", "number", "share", *stages)]
    for part in NAMES:
        if part not in numbers:
            continue
        states = [
            f"{content['trained_parameters']:,} trained" if part == "all" else _state(part, numbers, content)
            for content in stages.values()
        ]
        rows.append((NAMES[part], f"{numbers[part]:,}", f"{100 * numbers[part] / everything:.2f} %", *states))
    yield from _align(rows, left=(0, 3, 4))
    yield (
        f"adapter (instruction projection, alignment, projector): {numbers['adapter']:,} = "
        f"{_count(numbers['adapter'])}, {100 * plan['adapter_share']:.2f} % of all"
    )


def _state(part: str, numbers: dict[str, int], stage: dict[str, Any]) -> str:
    if part in ("vision", "text"):
        return "frozen"
    if part != "llm":
        return "trained"
    rest = stage["trained_parameters"] - numbers["adapter"]
    return "frozen" if rest == 0 else "trained" if rest == numbers["llm"] else f"frozen, LoRA {rest:,} trained"


def _stage(name: str, stage: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    load, machine = stage["load"], plan["machine"]
    title = f"{name}: {stage['batch_size']} samples a step = {stage['micro_batch']} per GPU x {machine['gpus']} GPUs"
    title += f" x {stage['accumulation']} accumulation"
    yield title
    yield "-" * len(title)
    yield from _wrap(
        f"tokens per sample: {load['tokens_mean']:,.0f} on average (an image is {plan['visual_tokens']} of them), "
        f"{load['tokens_longest']:,} at most, {load['supervised_mean']:.0f} supervised; {load['source']}"
    )
    yield ""
    yield from _flops(stage)
    yield ""
    yield from _memory(stage, machine)
    yield ""
    yield from _fit(name, stage, plan)
    yield from _time(stage, machine)


def _flops(stage: dict[str, Any]) -> Iterator[str]:
    flops = stage["flops_per_step"]
    # A unit that leaves three digits or more before the point, so that small parts can be read too.
    unit, size = next((unit, size) for unit, size in UNITS if flops["all"]["forward"] >= 100 * size or size == 1)
    rows: list[tuple[str, ...]] = [(f"{unit} of a step", "forward", "backward", "recomputed", "share")]
    for part, numbers in flops.items():
        share = 100 * sum(numbers.values()) / sum(flops["all"].values())
        rows.append((NAMES[part], *(f"{number / size:,.3f}" for number in numbers.values()), f"{share:.2f} %"))
    yield from _align(rows)
    agree = "counts the same" if stage["counter_agrees"] else "DIFFERS: this model is not what the closed form covers"
    yield f"closed form; torch's flop counter, run for one sample on the meta device, {agree}"
    yield "attention is counted over the full L x L square, although it is causal; padding is not counted"


def _memory(stage: dict[str, Any], machine: dict[str, Any]) -> Iterator[str]:
    columns = ("weights", "masters", "gradients", "optimizer", "buffers", "activations", "logits", "working")
    heads = ("weights", "masters", "grads", "AdamW", "buffers", "activ.", "logits", "work")
    # Small models would show nothing but zeros in GiB.
    unit, size = ("GiB", GIB) if max(row["peak_bytes"] for row in stage["memory"]) >= GIB else ("MiB", 2**20)
    rows: list[tuple[str, ...]] = [(f"{unit} per GPU", "ckpt", "micro", *heads, "peak", "fits", "")]
    for row in stage["memory"]:
        marks = ["recipe"] * row["as_written"] + ["first"] * row["first_that_fits"]
        rows.append(
            (
                f"ZeRO-{row['zero']}{' offload' if row['offload'] else ''}",
                "on" if row["gradient_checkpointing"] else "off",
                str(row["micro_batch"]),
                *(f"{row['bytes'][column] / size:,.2f}" for column in columns),
                f"{row['peak_bytes'] / size:,.2f}",
                "yes" if row["fits"] else "no",
                ", ".join(marks),
            )
        )
    yield from _align(rows, left=(0, len(rows[0]) - 1))
    yield from _wrap(
        "the longest micro-batch; masters: float32 copies of what is trained; work: gradients inside one layer, and "
        "the layer itself where it is made again; peak: all but the smaller of logits and work; fits up to "
        f"{machine['usable_gib']:.1f} GiB: {100 * machine['usable_gib'] / machine['memory']:.0f} % (assumed) of "
        f"{machine['memory']:g}, the rest for CUDA, NCCL and fragmentation"
    )
    if host := max(row["bytes"]["host"] for row in stage["memory"]):
        yield f"offloading takes {host / size:,.2f} {unit} of the host's memory for each GPU"


def _fit(name: str, stage: dict[str, Any], plan: dict[str, Any]) -> Iterator[str]:
    written, first = stage["as_written"], stage["first_that_fits"]
    yield f"the recipe:      {written['setting']}: {'fits' if written['fits'] else 'does not fit'}"
    if first is None:
        yield f"first that fits: none; use more or larger GPUs, or a smaller {name}.max_length"
        return
    yield f"first that fits: {first['setting']}"
    yield f"  {' '.join(first['overrides'])}"


def _time(stage: dict[str, Any], machine: dict[str, Any]) -> Iterator[str]:
    time = stage["time"]
    rate = f"{time['seconds_per_step']:.3g} s a step at an MFU of {machine['mfu']:g} (assumed)"
    if time["steps"] is None:
        yield f"time:            {rate}; steps unknown without the data: give --samples N"
        return
    hours, gpu_hours = (f"{n:,.1f}" if n >= 0.1 else f"{n:.2g}" for n in (time["hours"], time["gpu_hours"]))
    yield f"time:            {time['steps']:,} steps, {hours} h, {gpu_hours} GPU-hours; {rate}"


def _over_llava(over: dict[str, Any]) -> str:
    stages = over["stages"].items()
    flops = ", ".join(f"{100 * numbers['flops_share']:+.2f} % {stage}" for stage, numbers in stages)
    memory = ", ".join(f"{numbers['peak_bytes'] / GIB:+.2f}" for _, numbers in stages)
    trained, loaded = over["trained_parameters"] / 1e6, over["loaded_frozen_parameters"] / 1e6
    return f"EMMA over LLaVA: {trained:+.2f} M trained, {loaded:+.0f} M loaded; FLOPs {flops}; GiB/GPU {memory}"


def _count(number: int) -> str:
    unit, size = next((unit, size) for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)) if number >= size)
    return f"{number / size:.1f} {unit}"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _align(rows: Sequence[Sequence[str]], left: tuple[int, ...] = (0,)) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
