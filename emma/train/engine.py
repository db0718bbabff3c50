"""What DeepSpeed and FSDP need around a model: set up, kept away from a step-0 model, named for resumption."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration

RECORD = "engine.json"
_LONG_NAMES = {"replicated": "plain data parallelism", "fsdp": "FSDP"} | {f"zero{n}": f"ZeRO-{n}" for n in range(4)}


def engine_name(args: TrainingArguments) -> str:
    """`zero1`, `zero2`, `zero3`, `fsdp`, or `replicated`: one process, or several with whole copies (DDP)."""
    if args.deepspeed:
        return f"zero{args.hf_deepspeed_config.config.get('zero_optimization', {}).get('stage', 0)}"
    return "fsdp" if args.fsdp else "replicated"


def prepare_engine(args: TrainingArguments) -> None:
    """Start DeepSpeed's communication, before anything is loaded: ZeRO-3 partitions while loading.

    On a CPU its shared-memory operator is left out: it would be compiled for minutes at the first start, and gloo does
    the same. (`__compatible_ops__` is private; checked with DeepSpeed 0.19.)
    """
    if not args.deepspeed:
        return
    import deepspeed

    if args.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    else:
        deepspeed.init_distributed(auto_mpi_discovery=False)


def prepare_model(args: TrainingArguments, model: EmmaForConditionalGeneration) -> None:
    """Before the engine takes the model: ZeRO-3 collects the towers as one, since they are called as one."""
    if engine_name(args) == "zero3":
        from deepspeed.utils import set_z3_leaf_module

        set_z3_leaf_module(model.towers, True)


def link_states(optimizer: Any) -> None:
    """After a step: let ZeRO-1 and -2 find every parameter's optimizer state.

    DeepSpeed 0.19 links the states of all parameter groups as soon as the first group has stepped, when the others have
    none yet.
    """
    zero: Any = getattr(optimizer, "optimizer", None)
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


@contextmanager
def unpartitioned(args: TrainingArguments) -> Iterator[None]:
    """Inside, models load whole: transformers partitions every model as long as a ZeRO-3 configuration is known."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    config = getattr(args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            set_hf_deepspeed_config(config)


def write_record(args: TrainingArguments, folder: Path) -> None:
    """Note in a checkpoint which engine and how many processes its optimizer state belongs to."""
    (folder / RECORD).write_text(json.dumps(_record(args)), encoding="utf-8")


def _record(args: TrainingArguments) -> dict[str, Any]:
    return {"engine": engine_name(args), "processes": args.world_size}


def check_record(args: TrainingArguments, checkpoint: Path) -> None:
    """Refuse a checkpoint whose optimizer state lies in parts that other processes, or another engine, would need.

    Whole copies can be read by any number of processes.

    Raises:
        EmmaError: names both engines and numbers, and the ways out.
    """
    saved = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    now = _record(args)
    if saved == now or saved["engine"] == now["engine"] == "replicated":
        return
    before, here = (f"{_LONG_NAMES[record['engine']]} on {record['processes']} process(es)" for record in (saved, now))
    raise EmmaError(
        f"{checkpoint} was saved by {before}, and this run is {here}: its optimizer state cannot be read here. "
        f"Go on with {before}, or start over with --resume never"
    )
