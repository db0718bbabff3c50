"""Puts a recipe's plan together: a dictionary of plain numbers that `table.py` prints and `--json` shows."""

from typing import Any, NamedTuple

from emma.errors import EmmaError
from emma.model import EmmaConfig
from emma.plan.architecture import with_alignment
from emma.plan.counted import count_flops
from emma.plan.fit import candidates, describe, overrides, written
from emma.plan.flops import Batch, Flops, step_flops, total
from emma.plan.lengths import Load, find_load
from emma.plan.memory import GIB, USABLE, Peak, Setting, peak, trained_and_frozen
from emma.plan.shapes import Shapes, read_shapes
from emma.train.arguments import accumulation
from emma.train.recipe import STAGES, Recipe, StageRecipe
from emma.train.work import learned


class Machine(NamedTuple):
    """What the plan is for: `gpus` of `memory` GiB and `peak` operations per second, used to the share `mfu`."""

    name: str
    gpus: int
    memory: float
    peak: float
    mfu: float


def make_plan(
    recipe: Recipe, config: EmmaConfig, machine: Machine, tokens: int | None = None, samples: int | None = None
) -> dict[str, Any]:
    """The plan of both stages.

    Args:
        tokens, samples: override the average length of a sample, and how many an epoch has.

    Raises:
        EmmaError: a batch that cannot be made on so many GPUs; unknown shapes.
    """
    shapes = read_shapes(config)
    for stage in STAGES:  # before the data is measured, which may take minutes
        written(recipe.stage(stage), stage, accumulation(recipe.stage(stage), stage, machine.gpus)[0])
    loads = {stage: find_load(recipe, stage, config, tokens, samples) for stage in STAGES}
    return {
        "config": recipe.source,
        "machine": machine._asdict() | {"usable_gib": USABLE * machine.memory},
        "alignment": config.alignment,
        "parameters": shapes.parameters | {"adapter": shapes.adapter_parameters, "all": shapes.total_parameters},
        "adapter_share": shapes.adapter_parameters / shapes.total_parameters,
        "visual_tokens": shapes.visual_tokens,
        "stages": {stage: _stage(recipe, stage, config, shapes, machine, loads[stage]) for stage in STAGES},
        "over_llava": _over_llava(recipe, config, machine, loads),
    }


def _stage(
    recipe: Recipe, stage: str, config: EmmaConfig, shapes: Shapes, machine: Machine, load: Load
) -> dict[str, Any]:
    settings, trained = recipe.stage(stage), learned(recipe, stage)
    micro, steps = accumulation(settings, stage, machine.gpus)
    parts = step_work(shapes, recipe, stage, load)
    as_written = written(settings, stage, micro)
    compute = _compute_bytes(settings)

    def on_gpu(setting: Setting) -> Peak:
        return peak(shapes, load.micro_batch(setting.micro_batch), trained, setting, machine.gpus, compute)

    def fits(setting: Setting) -> bool:
        return on_gpu(setting).total <= USABLE * machine.memory * GIB

    first = next(filter(fits, candidates(micro)), None)
    shown = [Setting(zero, False, saving, micro) for saving in (False, True) for zero in (0, 2, 3)]
    shown += [Setting(3, True, True, micro)]
    shown += [setting for setting in dict.fromkeys((as_written, first)) if setting and setting not in shown]
    learn, still = trained_and_frozen(shapes, trained)
    return {
        "trained_parameters": learn,
        "frozen_parameters": still,
        "batch_size": settings.batch_size,
        "micro_batch": micro,
        "accumulation": steps,
        "load": {
            "source": load.source,
            "samples": load.samples,
            "tokens_mean": load.length,
            "tokens_longest": load.longest.tokens,
            "supervised_mean": sum(part.supervised for part in load.epoch) / load.counted,
        },
        "flops_per_step": {part: flops._asdict() for part, flops in (parts | {"all": total(parts)}).items()},
        "counter_agrees": _agrees(config, shapes, recipe, stage, load),
        "memory": [_memory_row(setting, on_gpu(setting), machine, as_written, first) for setting in shown],
        "as_written": {"setting": describe(as_written), "fits": fits(as_written)},
        "first_that_fits": first and {"setting": describe(first), "overrides": overrides(stage, first)},
        "time": _time(load, total(parts), machine),
    }


def _compute_bytes(settings: StageRecipe) -> int:
    """Of a number in the computation: on a GPU, `auto` is bfloat16."""
    return 4 if settings.precision == "fp32" else 2


def step_work(shapes: Shapes, recipe: Recipe, stage: str, load: Load) -> dict[str, Flops]:
    """Operations of an average optimizer step over all GPUs, by part."""
    settings, trained = recipe.stage(stage), learned(recipe, stage)
    with_image, text_only = (step_flops(shapes, part, trained, settings.gradient_checkpointing) for part in load.epoch)
    step: dict[str, Flops] = {}
    for part in with_image:
        epoch = (a + b for a, b in zip(with_image[part], text_only[part], strict=True))
        step[part] = Flops(*(flops * settings.batch_size // load.counted for flops in epoch))
    return step


def _agrees(config: EmmaConfig, shapes: Shapes, recipe: Recipe, stage: str, load: Load) -> bool:
    """Whether torch's counter finds what the closed form says, for one sample with an image and of average length."""
    trained, checkpointing = learned(recipe, stage), recipe.stage(stage).gradient_checkpointing
    length = max(round(load.length), shapes.visual_tokens + 1)
    sample = Batch(1, length, length**2, max(1, load.longest.supervised * length // load.longest.tokens))
    counted = count_flops(config, length, sample.supervised, trained, checkpointing)
    return counted == total(step_flops(shapes, sample, trained, checkpointing))


def _memory_row(
    setting: Setting, at_peak: Peak, machine: Machine, as_written: Setting, first: Setting | None
) -> dict[str, Any]:
    return {
        **setting._asdict(),
        "bytes": at_peak.states._asdict()
        | {"activations": at_peak.activations, "logits": at_peak.logits, "working": at_peak.working},
        "peak_bytes": at_peak.total,
        "fits": at_peak.total <= USABLE * machine.memory * GIB,
        "as_written": setting == as_written,
        "first_that_fits": setting == first,
    }


def _time(load: Load, step: Flops, machine: Machine) -> dict[str, Any]:
    seconds = step.model / (machine.gpus * machine.peak * machine.mfu)
    hours = None if load.steps is None else load.steps * seconds / 3600
    return {
        "steps": load.steps,
        "seconds_per_step": seconds,
        "hours": hours,
        "gpu_hours": None if hours is None else hours * machine.gpus,
    }


def _over_llava(recipe: Recipe, config: EmmaConfig, machine: Machine, loads: dict[str, Load]) -> dict[str, Any]:
    """What the alignment adds to the same model without it; for a recipe without one, what the linear one would add."""
    alignment = config.alignment if config.alignment != "none" else "linear"
    emma, llava = (read_shapes(with_alignment(config, name)) for name in (alignment, "none"))
    stages = {}
    for stage in STAGES:
        settings, trained = recipe.stage(stage), learned(recipe, stage)
        load, compute = loads[stage], _compute_bytes(settings)
        setting = written(settings, stage, accumulation(settings, stage, machine.gpus)[0])
        work = [total(step_work(shapes, recipe, stage, load)) for shapes in (emma, llava)]
        largest = [
            peak(shapes, load.micro_batch(setting.micro_batch), trained, setting, machine.gpus, compute).total
            for shapes in (emma, llava)
        ]
        stages[stage] = {
            "flops_share": work[0].model / work[1].model - 1,
            "peak_bytes": largest[0] - largest[1],
        }
    return {
        "alignment": alignment,
        "trained_parameters": emma.adapter_parameters - llava.adapter_parameters,
        "loaded_frozen_parameters": emma.parameters["text"],
        "stages": stages,
    }


def check_machine(machine: Machine) -> None:
    """Refuses numbers that no machine has."""
    if machine.gpus < 1:
        raise EmmaError(f"--gpus {machine.gpus} must be at least 1")
    if not machine.memory > 0 or not machine.peak > 0:
        raise EmmaError("--memory and --peak must be positive")
    if not 0 < machine.mfu <= 1:
        raise EmmaError(f"--mfu {machine.mfu} is a share: more than 0, at most 1")
