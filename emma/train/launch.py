"""One entry point for a stage: finished already, resumed, or from the start. Heavy imports wait until there is work."""

import json
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from emma.checkpoints.adapter import read_adapter
from emma.checkpoints.fingerprint import fingerprint
from emma.checkpoints.seal import is_complete
from emma.errors import EmmaError
from emma.paths import resolve
from emma.train.assets import asset_fingerprints
from emma.train.identity import identity, recipe_hash
from emma.train.recipe import Recipe, to_yaml
from emma.train.saving import STAMP, check_same_run, find_checkpoint

logger = logging.getLogger(__name__)


class TrainingStopped(SystemExit):
    """Training was asked to stop, saved a checkpoint and ended; `code` is 128 + the signal's number."""

    def __init__(self, number: int, checkpoint: Path | None):
        super().__init__(128 + number)
        self.signal, self.checkpoint = number, checkpoint

    def __str__(self) -> str:
        return (
            f"stopped by {signal.Signals(self.signal).name}; saved {self.checkpoint}; the same call goes on from there"
        )


def run(recipe: Recipe, stage: str, resume: str = "auto") -> Path:
    """Train a stage and return the folder of the finished model, `OUTPUT/STAGE/model`.

    Args:
        recipe: from `load_recipe`.
        stage: `pretrain` or `finetune`.
        resume: `auto` goes on from the newest complete checkpoint, and returns at once when the stage is finished;
            `never` moves what is there aside and starts over; a path goes on from that checkpoint.

    Raises:
        EmmaError: anything that the user can mend.
        TrainingStopped: after SIGTERM or Ctrl-C, with everything saved.
    """
    settings = recipe.stage(stage)
    folder = resolve(recipe.output) / stage
    model_folder = folder / "model"
    start = None if stage == "pretrain" else initial_folder(recipe)
    stamp = make_stamp(recipe, stage, start)
    if resume == "auto" and is_complete(model_folder):
        check_same_run(folder, stamp_of_model(model_folder), stamp)
        logger.info("%s is already finished: %s", stage, model_folder)
        return model_folder
    if start is not None and not start.is_dir():
        remedy = (
            "run --stage pretrain first, or set finetune.init to a model folder"
            if settings.init is None
            else "set finetune.init to the folder of a model, or to null for this recipe's own pretraining"
        )
        raise EmmaError(f"nothing to fine-tune: {start} does not exist; {remedy}")
    if start is not None and settings.init is None and not is_complete(start):
        raise EmmaError(f"nothing to fine-tune: {start} is not complete; run --stage pretrain again")
    if start is not None and read_adapter(start) is not None:
        raise EmmaError(
            f"cannot fine-tune {start}, a LoRA adapter: merge it into its base first (python -m emma.checkpoints merge "
            f"{start} TARGET) and set finetune.init=TARGET"
        )
    checkpoint = find_checkpoint(folder, resume, stamp)
    if checkpoint is not None:
        logger.info("%s goes on from %s", stage, checkpoint)

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # training never downloads
    from emma.train.session import train_stage

    train_stage(recipe, stage, folder=folder, start=start, checkpoint=checkpoint, stamp=stamp, fresh=resume == "never")
    return model_folder


def initial_folder(recipe: Recipe) -> Path:
    """What fine-tuning starts from: `finetune.init`, or the output of the same recipe's pretraining."""
    init = recipe.finetune.init
    return resolve(init) if init is not None else resolve(recipe.output) / "pretrain" / "model"


def make_stamp(recipe: Recipe, stage: str, start: Path | None) -> dict[str, Any]:
    """What decides about the outcome of a stage: settings, data and starting weights, by content.

    Data and weights that are not here are None and not compared (a finished stage is still recognised without them).
    """
    from emma.data.annotations import content_hash

    files = [resolve(source.annotations) for source in recipe.stage(stage).data]
    here = all(file.is_file() for file in files)
    return {
        "hash": recipe_hash(recipe, stage),
        "stage": stage,
        "recipe": identity(recipe, stage),
        "data": [f"{file.name} sha256 {content_hash(file)[:16]}" for file in files] if here else None,
        "start": asset_fingerprints(recipe) if start is None else fingerprint(start) if start.is_dir() else None,
    }


def stamp_of_model(model_folder: Path) -> dict[str, Any]:
    """The stamp that a finished model carries in its provenance."""
    try:
        return json.loads((model_folder / "provenance.json").read_text(encoding="utf-8"))["run"]
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        raise EmmaError(
            f"{model_folder} does not say which run made it (provenance.json); move it away or choose another output="
        ) from None


def set_aside(folder: Path) -> None:
    """Rename a stage's folder, so that a fresh start destroys nothing."""
    when = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{folder.name}-replaced-{when}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100))))
    target = next(path for name in names if not (path := folder.with_name(name)).exists())
    folder.rename(target)
    logger.info("moved %s to %s", folder, target.name)


def stamp_record(recipe: Recipe, stamp: dict[str, Any]) -> dict[str, str]:
    """The files that a stage's folder and each of its checkpoints carry: the stamp and the resolved recipe."""
    return {STAMP: json.dumps(stamp, indent=1), "train.yaml": to_yaml(recipe)}
