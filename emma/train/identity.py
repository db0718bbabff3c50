"""What of a recipe decides about a stage's result, its hash, and in what two of them differ."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from emma.train.recipe import Recipe

# Settings of a stage that do not change what is learned (up to the order of float sums): free to change between a run
# and its resumption, and no part of the recipe's hash.
FREE = (
    "micro_batch",
    "packing",
    "text_cache",
    "feature_cache",
    "gradient_checkpointing",
    "deepspeed",
    "fsdp",
    "save_every",
    "keep",
    "log_every",
    "report_to",
    "workers",
)
# Settings that change nothing unless they are set: left out then, so that runs from before they existed go on.
OFF = {"lora": None, "quantization": "none", "adapter_learning_rate": None}


def identity(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What of a recipe decides about a stage's result, as plain nested values; the rest may differ on resumption."""
    settings = dataclasses.asdict(recipe.stage(stage))
    init = settings.pop("init")
    # Where files lie decides nothing; their contents are compared by the stamp of a run (launch.make_stamp).
    settings["data"] = [
        {"annotations": Path(source["annotations"]).name, "repeat": source["repeat"]} for source in settings["data"]
    ]
    decisive = {
        "seed": recipe.seed,
        "model": {key: value for key, value in dataclasses.asdict(recipe.model).items() if key != "assets"},
        stage: {
            key: value for key, value in settings.items() if key not in FREE and not (key in OFF and value == OFF[key])
        },
    }
    if stage == "finetune":
        decisive["init"] = init if init is not None else identity(recipe, "pretrain")
    return decisive


def recipe_hash(recipe: Recipe, stage: str) -> str:
    """16 hex digits over `identity`."""
    text = json.dumps(identity(recipe, stage), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every leaf in which two nested dictionaries differ."""
    return [
        f"{key}: {flat_old.get(key, 'absent')} -> {flat_new.get(key, 'absent')}"
        for flat_old, flat_new in [(_flat(old), _flat(new))]
        for key in sorted({*flat_old, *flat_new})
        if flat_old.get(key, "absent") != flat_new.get(key, "absent")
    ]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list) and any(isinstance(entry, dict) for entry in node):
        items = [(str(number), value) for number, value in enumerate(node)]
    else:
        return {prefix.rstrip("."): node}
    return {key: value for name, child in items for key, value in _flat(child, f"{prefix}{name}.").items()}
