"""What a bench measures on: a stage's real data, model and settings, in one process, with nothing left behind."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils.logging import disable_progress_bar

from emma.bench.machine import device_name
from emma.checkpoints.seal import is_complete
from emma.data.dataset import TrainingDataset, sample_lengths
from emma.data.mixture import Mixture
from emma.data.sampler import StepSampler
from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration
from emma.paths import resolve
from emma.processing.processor import EmmaProcessor
from emma.train.arguments import training_arguments
from emma.train.launch import initial_folder
from emma.train.recipe import Recipe
from emma.train.session import training_data
from emma.train.stages import build_initial, load_for_stage, processor_for_stage


@dataclass
class BenchStage:
    """A stage ready to run: `folder` is temporary."""

    recipe: Recipe
    stage: str
    folder: Path
    args: TrainingArguments
    model: EmmaForConditionalGeneration
    processor: EmmaProcessor
    dataset: TrainingDataset
    sampler: StepSampler

    def facts(self) -> dict[str, Any]:
        """What figures depend on besides the settings that are compared."""
        device = self.args.device
        return {
            "recipe": self.recipe.name,
            "stage": self.stage,
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "precision": "bf16" if self.args.bf16 else "fp32",
            "batch_size": self.sampler.batch_size,
            "micro_batch": self.sampler.micro_batch,
            "torch": torch.__version__,
        }


@contextmanager
def bench_stage(recipe: Recipe, stage: str) -> Iterator[BenchStage]:
    """Load a stage as training would. Where its starting model is not there, a fresh one costs the same.

    Raises:
        EmmaError: started as one rank of several.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise EmmaError("the bench measures one process: start it without torchrun")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else deepspeed, once imported, prints that it found no GPU
    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers' loading and saving
    settings = recipe.stage(stage)
    settings.deepspeed = None
    start = resolve(recipe.output) / "pretrain" / "init" if stage == "pretrain" else initial_folder(recipe)
    with TemporaryDirectory(prefix="emma-bench-") as name:
        folder = Path(name)
        args = training_arguments(settings, stage, folder, recipe.seed)
        mixture = Mixture.open(settings.data, stage)
        if not is_complete(start):
            start = folder / "init"
            build_initial(recipe, start, {}, torch.bfloat16 if args.bf16 else torch.float32)
        model = load_for_stage(recipe, stage, start, args.device, args.bf16)
        processor = processor_for_stage(recipe, stage, start)
        lengths = sample_lengths(mixture, processor, settings.workers)
        dataset, sampler = training_data(recipe, stage, mixture, processor, lengths, args)
        yield BenchStage(recipe, stage, folder, args, model, processor, dataset, sampler)
