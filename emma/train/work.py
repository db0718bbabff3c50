"""How many model FLOPs a batch takes: the closed form of `emma.plan.flops` for what a stage trains."""

from collections.abc import Callable
from typing import Any

from emma.model import EmmaConfig
from emma.plan.flops import Batch, Trained, model_flops
from emma.plan.shapes import read_shapes
from emma.train.recipe import Recipe
from emma.train.stages import TRAINED


def learned(recipe: Recipe, stage: str) -> Trained:
    """What of the model a stage trains, as the closed forms want it."""
    settings = recipe.stage(stage)
    if settings.lora is None:
        return Trained(llm="llm" in TRAINED[stage])
    targets = None if settings.lora.targets is None else tuple(settings.lora.targets)
    return Trained(
        llm=False, lora_rank=settings.lora.rank, lora_targets=targets, quantized=settings.quantization != "none"
    )


def batch_flops(recipe: Recipe, stage: str, config: EmmaConfig) -> Callable[[dict[str, Any]], int]:
    """A function from a collated batch to its model FLOPs: forward and backward, padding and recomputation left out.

    Raises:
        EmmaError: an LLM that the closed form does not cover.
    """
    shapes, trained = read_shapes(config), learned(recipe, stage)

    def count(batch: dict[str, Any]) -> int:
        work = Batch(batch["images"], batch["tokens"], batch["squared_tokens"], batch["supervised"])
        return model_flops(shapes, work, trained)

    return count
