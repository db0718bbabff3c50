"""Helpers of the training tests: read what a run left behind, run two steps."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from emma.train import load_recipe, run


def weights(model_folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(model_folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def log_lines(stage_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (stage_folder / "log.jsonl").read_text().splitlines()]


def assert_same_model(one: Path, two: Path):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def part(name):
    first = name.split(".")[0]
    return first if first in ("towers", "llm") else "adapter"


def one_step(assets, output, *overrides, stage="finetune", pretrained=None):
    if pretrained is not None:
        overrides = (*overrides, f"finetune.init={pretrained}")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={output}", f"{stage}.max_steps=2", *overrides])
    return run(recipe, stage).parent
