"""Training in two stages: `run(load_recipe("configs/tiny.yaml"), "pretrain")`. Importing this loads no torch."""

from emma.train.identity import recipe_hash
from emma.train.launch import TrainingStopped, run
from emma.train.recipe import Recipe, load_recipe

__all__ = ["Recipe", "TrainingStopped", "load_recipe", "recipe_hash", "run"]
