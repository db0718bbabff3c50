"""Training in two stages: `run(load_recipe("configs/tiny.yaml"), "pretrain")`. Importing this loads no torch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emma.train.identity import recipe_hash
    from emma.train.launch import TrainingStopped, run
    from emma.train.recipe import Recipe, load_recipe

__all__ = ["Recipe", "TrainingStopped", "load_recipe", "recipe_hash", "run"]

# Imported on first use, so that `python -m emma.train` in an environment without the dependencies can say so.
_HOMES = {
    "Recipe": "emma.train.recipe",
    "TrainingStopped": "emma.train.launch",
    "load_recipe": "emma.train.recipe",
    "recipe_hash": "emma.train.identity",
    "run": "emma.train.launch",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'emma.train' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
