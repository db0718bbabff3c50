"""The DeepSpeed and FSDP files of a recipe, read and held against the recipe, which remains the place that decides."""

import json
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.paths import resolve
from emma.train.recipe import StageRecipe

FSDP_KEYS = {
    "version", "reshard_after_forward", "cpu_offload", "cpu_ram_efficient_loading", "state_dict_type",
    "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params",
}  # fmt: skip


def _read(path: Path, key: str) -> dict[str, Any]:
    if not path.is_file():
        raise EmmaError(f"{key}: file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EmmaError(f"{key}: {path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise EmmaError(f"{key}: {path} must hold a JSON object, not a {type(content).__name__}")
    return content


def deepspeed_file(
    stage: StageRecipe, name: str, world_size: int, micro: int, accumulation: int, bf16: bool
) -> tuple[Path, int]:
    """Path and ZeRO stage of a training stage's DeepSpeed file, checked: nothing in it acts behind the recipe's back.

    Raises:
        EmmaError: names file, key, value and remedy.
    """
    assert stage.deepspeed is not None
    path = resolve(stage.deepspeed)
    content = _read(path, f"{name}.deepspeed")

    def refuse(key: str, value: object, reason: str) -> EmmaError:
        return EmmaError(f"{name}.deepspeed: {path}: {key} is {json.dumps(value)}; {reason}")

    zero = content.get("zero_optimization")
    number = zero.get("stage") if isinstance(zero, dict) else None
    if type(number) is not int or number not in (0, 1, 2, 3):
        raise refuse("zero_optimization.stage", number, "it must be 0, 1, 2 or 3, as in configs/deepspeed/zero2.json")
    if _enabled(content, "fp16") not in (False, "auto"):
        raise refuse("fp16.enabled", _enabled(content, "fp16"), 'training is bf16 or fp32: set it to "auto" or false')
    if _enabled(content, "bf16") not in (bf16, "auto"):
        value = _enabled(content, "bf16")
        meaning = f"{stage.precision} and means {'bf16' if bf16 else 'fp32'} here"
        raise refuse("bf16.enabled", value, f'but {name}.precision is {meaning}: set it to "auto"')
    if "scheduler" in content:
        value = content["scheduler"]
        raise refuse("scheduler", value, f"it would replace {name}.schedule and {name}.warmup: remove it")
    if "optimizer" in content:
        _check_optimizer(content["optimizer"], refuse)
    expected = {
        "train_micro_batch_size_per_gpu": (micro, f"{name}.micro_batch gives"),
        "gradient_accumulation_steps": (accumulation, f"batch_size, micro_batch and {world_size} process(es) make"),
        "train_batch_size": (stage.batch_size, f"{name}.batch_size is"),
        "gradient_clipping": (stage.max_grad_norm, f"{name}.max_grad_norm is"),
    }
    for key, (wanted, origin) in expected.items():
        if key not in content and key != "train_batch_size":  # DeepSpeed has a default of its own for these
            raise EmmaError(f'{name}.deepspeed: {path} has no {key}; add "{key}": "auto"')
        if content.get(key, "auto") not in ("auto", wanted):
            raise refuse(key, content[key], f'but {origin} {wanted}: set it to "auto"')
    return path, number


def _enabled(content: dict[str, Any], section: str) -> Any:
    value = content.get(section, {"enabled": False})
    return value.get("enabled", False) if isinstance(value, dict) else value


def _check_optimizer(optimizer: Any, refuse) -> None:
    kind = optimizer.get("type") if isinstance(optimizer, dict) else optimizer
    if kind not in ("Adam", "AdamW"):
        raise refuse("optimizer.type", kind, "the recipe's optimizer is AdamW: remove the section")
    for key, value in optimizer.get("params", {}).items():
        if value != "auto" and not isinstance(value, bool):  # switches such as torch_adam choose an implementation
            raise refuse(
                f"optimizer.params.{key}", value, 'the recipe decides: set it to "auto", or remove the section'
            )


def fsdp_settings(stage: StageRecipe, name: str, cuda: bool) -> dict[str, Any]:
    """A stage's FSDP file as `TrainingArguments(fsdp_config=...)`, checked.

    Raises:
        EmmaError: names file, key, value and remedy; no GPU.
    """
    assert stage.fsdp is not None
    path = resolve(stage.fsdp)
    content = _read(path, f"{name}.fsdp")
    for key in content:
        if key not in FSDP_KEYS:
            raise EmmaError(f"{name}.fsdp: {path}: {key} is not one of {', '.join(sorted(FSDP_KEYS))}")
    if content.get("version", 2) != 2:
        raise EmmaError(f"{name}.fsdp: {path}: version is {json.dumps(content['version'])}; only 2 is supported")
    if content.get("state_dict_type", "FULL_STATE_DICT") != "FULL_STATE_DICT":
        value = json.dumps(content["state_dict_type"])
        raise EmmaError(
            f'{name}.fsdp: {path}: state_dict_type is {value}; the finished model is one folder: set "FULL_STATE_DICT"'
        )
    if not cuda:
        raise EmmaError(
            f"{name}.fsdp is set, but there is no GPU, and on a CPU accelerate would silently train with DDP instead; "
            f"set {name}.fsdp=null, or use {name}.deepspeed, which also works on CPUs"
        )
    return content
