"""A stage's settings as `transformers.TrainingArguments`, with unknown names and double meanings refused."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from emma.errors import EmmaError
from emma.train.engine_files import deepspeed_file, fsdp_settings
from emma.train.processes import be_alone, check_launcher, world_size
from emma.train.recipe import StageRecipe

# TrainingArguments that a recipe sets by keys of its own, or that the trainer must control.
OWN = {
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "batch_size",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "bf16": "precision",
    "fp16": "precision",
    "gradient_checkpointing": "gradient_checkpointing",
    "activation_checkpointing": "gradient_checkpointing",
    "save_steps": "save_every",
    "save_total_limit": "keep",
    "logging_steps": "log_every",
    "report_to": "report_to",
    "deepspeed": "deepspeed",
    "fsdp": "fsdp",
    "fsdp_config": "fsdp",
    "dataloader_num_workers": "workers",
    "seed": "seed (top level)",
    "data_seed": "seed (top level)",
    "output_dir": "output (top level)",
}
FIXED = {
    "use_cpu", "remove_unused_columns", "save_strategy", "average_tokens_across_devices", "logging_nan_inf_filter",
    "ignore_data_skip", "train_sampling_strategy", "dataloader_drop_last", "auto_find_batch_size", "push_to_hub",
    "load_best_model_at_end", "eval_strategy", "do_eval", "restore_callback_states_from_checkpoint", "disable_tqdm",
    "label_smoothing_factor",
}  # fmt: skip


def accumulation(stage: StageRecipe, name: str, world_size: int) -> tuple[int, int]:
    """(micro-batch per process, accumulation steps) that make up the global batch.

    Raises:
        EmmaError: they cannot.
    """
    share, rest = divmod(stage.batch_size, world_size)
    micro = stage.micro_batch or share
    if rest or micro == 0 or share % micro:
        raise EmmaError(
            f"{name}.batch_size {stage.batch_size} cannot be made of micro_batch {stage.micro_batch or 'automatic'} x "
            f"{world_size} processes x whole accumulation steps; make it a multiple of micro_batch x processes"
        )
    return micro, share // micro


def use_bf16(stage: StageRecipe, name: str) -> bool:
    """Whether a stage computes in bfloat16: `auto` is bf16 on CUDA and float32 on a CPU.

    Raises:
        EmmaError: bf16 asked for on a GPU without it.
    """
    if stage.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    if stage.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise EmmaError(f"{name}.precision is bf16, but this GPU does not have it; set {name}.precision=fp32")
    return stage.precision == "bf16"


def training_arguments(stage: StageRecipe, name: str, folder: Path, seed: int) -> TrainingArguments:
    """TrainingArguments of a stage; `max_steps` and `warmup_steps` follow with `set_steps` once the data is counted.

    Creating them sets up the process group under torchrun, and ZeRO-3's partitioned loading.

    Raises:
        EmmaError: a key under `trainer:` that transformers does not know, or that has its place elsewhere; a DeepSpeed
            or FSDP file that is missing or contradicts the recipe; a launcher that does.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    _check_extra(stage.trainer, name, known)
    cuda, bf16 = torch.cuda.is_available(), use_bf16(stage, name)
    check_launcher(stage, name, bf16, cuda)
    micro, steps = accumulation(stage, name, world_size())
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    engine: dict[str, Any] = {}
    zero = 0
    if stage.deepspeed is not None:
        path, zero = deepspeed_file(stage, name, world_size(), micro, steps, bf16)
        engine["deepspeed"] = str(path)
    if stage.fsdp is not None:
        engine |= {"fsdp": True, "fsdp_config": fsdp_settings(stage, name, cuda)}
    if engine:
        be_alone()
    splits = "ZeRO-3" if zero == 3 else "FSDP" if stage.fsdp is not None else None
    if splits and stage.quantization != "none":
        raise EmmaError(
            f"{name}.quantization {stage.quantization} does not go with {splits}: it splits every weight over the "
            "processes, and packed 4- or 8-bit weights cannot be split and gathered. Use one process, DDP "
            f"({name}.deepspeed=null) or ZeRO-2 ({name}.deepspeed=configs/deepspeed/zero2.json)"
        )
    # The other kind compares what forward and recomputation saved. Under ZeRO-3 weights are whole in one and in parts
    # in the other; with PEFT's layers that stops backward in some versions (huggingface/transformers issue 47254).
    reentrant = zero == 3 and stage.lora is not None
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": steps,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.schedule,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "max_steps": 1,
        "seed": seed,
        "use_cpu": not cuda,
        "bf16": bf16,
        checkpointing: stage.gradient_checkpointing,
        f"{checkpointing}_kwargs": {"use_reentrant": reentrant} if stage.gradient_checkpointing else None,
        "logging_steps": stage.log_every,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": stage.save_every,
        "report_to": list(stage.report_to) or "none",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "average_tokens_across_devices": True,
        "dataloader_num_workers": stage.workers,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        "log_level": "warning",
    }
    try:
        return TrainingArguments(**(settings | engine | stage.trainer))
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise EmmaError(f"{name}: transformers refuses the training arguments: {reason}") from error


def _check_extra(extra: dict[str, Any], name: str, known: set[str]) -> None:
    for key in extra:
        if key in OWN:
            raise EmmaError(f"{name}.trainer.{key}: set {OWN[key]} of the recipe instead")
        if key in FIXED:
            raise EmmaError(f"{name}.trainer.{key}: fixed by the trainer and not to be changed")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EmmaError(f"{name}.trainer.{key}: transformers has no such training argument{hint}")


def set_steps(args: TrainingArguments, stage: StageRecipe, steps_per_epoch: int) -> int:
    """Enter the total number of optimizer steps and the warm-up; returns the total."""
    total = stage.max_steps or max(1, round(stage.epochs * steps_per_epoch))
    args.max_steps = total
    args.warmup_steps = int(stage.warmup) if stage.warmup >= 1 else int(-(-stage.warmup * total // 1))
    return total
