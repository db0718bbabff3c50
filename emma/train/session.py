"""The work of a stage from first to last: processes, data, model, table, training, the finished model folder."""

import dataclasses
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils.logging import disable_progress_bar

from emma.checkpoints import provenance
from emma.checkpoints.adapter import Adapter
from emma.checkpoints.folder import save_folder
from emma.checkpoints.seal import is_complete
from emma.data.collate import Collator
from emma.data.dataset import TrainingDataset, sample_lengths, usable
from emma.data.mixture import Mixture
from emma.data.packing import Packing
from emma.data.sampler import Draw, StepSampler
from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration
from emma.model.text_cache import TextCache
from emma.paths import resolve
from emma.processing.processor import EmmaProcessor
from emma.train.arguments import set_steps, training_arguments
from emma.train.engine import check_record, engine_name, prepare_engine, prepare_model, unpartitioned
from emma.train.features import filled_cache
from emma.train.launch import TrainingStopped, set_aside, stamp_of_model, stamp_record
from emma.train.logs import FILE as LOG_FILE
from emma.train.logs import prepare_trackers, truncate_log
from emma.train.recipe import Recipe, to_yaml
from emma.train.saving import checkpoints, mismatch
from emma.train.signals import StopRequest
from emma.train.stages import build_initial, freeze_table, load_for_stage, processor_for_stage
from emma.train.trainer import EmmaTrainer
from emma.train.weights import gather_trainable, whole_state
from emma.train.work import batch_flops

logger = logging.getLogger(__name__)

PROBED = 32  # samples that the estimate of supervised tokens per step encodes


def train_stage(
    recipe: Recipe,
    stage: str,
    *,
    folder: Path,
    start: Path | None,
    checkpoint: Path | None,
    stamp: dict[str, Any],
    fresh: bool,
) -> None:
    """Train a stage into `folder`; see `launch.run`, which has decided where to begin.

    Args:
        start: model folder to fine-tune; None: build the step-0 folder from LLM, CLIP and a fresh adapter.
        checkpoint: to go on from.
        fresh: move an existing folder aside.
    """
    settings = recipe.stage(stage)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of transformers' loading and saving, which a log file would keep
    prepare_trackers(settings.report_to, folder, f"{recipe.name}-{stage}")
    args = training_arguments(settings, stage, folder, recipe.seed)
    prepare_engine(args)
    if checkpoint is not None:
        check_record(args, checkpoint)
    initial = start or folder / "init"
    records = stamp_record(recipe, stamp)
    with args.main_process_first(local=False, desc="data and step-0 model"), unpartitioned(args):
        main = args.process_index == 0
        if main and fresh and folder.exists():
            set_aside(folder)
        mixture = Mixture.open(settings.data, stage)
        if main and start is None:
            _prepare_initial(recipe, initial, stamp, args.bf16)
        processor = processor_for_stage(recipe, stage, initial)
        lengths = sample_lengths(mixture, processor, settings.workers)
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "train.yaml").write_text(to_yaml(recipe), encoding="utf-8")
            truncate_log(folder / LOG_FILE, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    dataset, sampler = training_data(recipe, stage, mixture, processor, lengths, args)
    partitioned = engine_name(args) == "zero3"
    model = load_for_stage(
        recipe, stage, initial, None if partitioned else args.device, args.bf16, engine_masters=bool(args.deepspeed)
    )
    prepare_model(args, model)
    packing = Packing.suited_to(model.llm, settings.max_length) if settings.packing else None
    model.towers.text_cache = TextCache() if settings.text_cache else None
    if settings.feature_cache is not None:
        dataset.features = filled_cache(resolve(settings.feature_cache), dataset, model, args)
    if args.process_index == 0:
        logger.info("%s", "\n".join(describe(recipe, stage, model, dataset, sampler)))
    with StopRequest() as stop:
        trainer = EmmaTrainer(
            model=model,
            args=args,
            dataset=dataset,
            sampler=sampler,
            collator=Collator(processor, packing),
            loss_norm=settings.loss_norm,
            adapter_learning_rate=settings.adapter_learning_rate,
            keep=settings.keep,
            records=records,
            initial=initial,
            stop=stop,
            name=f"{recipe.name} {stage}",
            flops=_flops(recipe, stage, model),
        )
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            trainer.progress.close()
        if not stop.received:
            facts = {"stage": stage, "steps": trainer.state.global_step, "run": stamp, "data": mixture.manifest()}
            _finish(recipe, folder, start, trainer, processor, facts)
    if stop.received:
        saved = checkpoints(folder)
        stopped = TrainingStopped(stop.received, saved[max(saved)] if saved else None)
        logger.info("%s", stopped)
        raise stopped


def _flops(recipe: Recipe, stage: str, model: EmmaForConditionalGeneration) -> Any:
    """How to count a batch's FLOPs for the log; None, and said so, for an LLM that the closed form does not cover."""
    try:
        return batch_flops(recipe, stage, model.config)
    except EmmaError as error:
        logger.info("the log will have no FLOPs and no MFU: %s", error)
        return None


def _prepare_initial(recipe: Recipe, folder: Path, stamp: dict[str, Any], bf16: bool) -> None:
    """The step-0 folder of this run, built unless it is there already."""
    if is_complete(folder):
        if not mismatch(stamp_of_model(folder), stamp):
            return
        logger.info("%s is of an earlier recipe or other base weights and is built anew", folder)
        shutil.rmtree(folder)
    build_initial(recipe, folder, stamp, torch.bfloat16 if bf16 else torch.float32)


def training_data(
    recipe: Recipe,
    stage: str,
    mixture: Mixture,
    processor: EmmaProcessor,
    lengths: Any,
    args: TrainingArguments,
) -> tuple[TrainingDataset, StepSampler]:
    """Data set and sampler of a stage; enters the number of steps into `args`."""
    settings = recipe.stage(stage)
    kept = usable(mixture, lengths, settings.max_length, settings.over_length)
    mixture = mixture.select(kept)
    dataset = TrainingDataset(
        mixture,
        processor,
        max_length=settings.max_length,
        over_length=settings.over_length,
        seed=recipe.seed,
    )
    has_image = mixture.has_image()
    sampler = StepSampler(
        lengths[kept].clip(max=settings.max_length),
        has_image,
        batch_size=settings.batch_size,
        micro_batch=args.per_device_train_batch_size,
        total_steps=0,
        seed=recipe.seed,
        rank=args.process_index,
        world_size=args.world_size,
    )
    sampler.total_steps = set_steps(args, settings, sampler.steps_per_epoch)
    return dataset, sampler


def describe(
    recipe: Recipe,
    stage: str,
    model: EmmaForConditionalGeneration,
    dataset: TrainingDataset,
    sampler: StepSampler,
) -> list[str]:
    """The table at the start: parts, frozen or trained, parameters, dtypes, batch, supervised tokens, steps."""
    settings = recipe.stage(stage)
    probe = range(0, len(dataset), max(1, len(dataset) // PROBED))[:PROBED]
    supervised = [int((dataset.encode(Draw(index, 0, False))["labels"][1:] != -100).sum()) for index in probe]
    per_sample = sum(supervised) / len(supervised)
    images = int(sampler.has_image.sum())
    tokens = sampler.lengths.mean()
    own_rate = settings.adapter_learning_rate
    adapter_rate = "" if own_rate is None else f" (adapter {own_rate:g})"
    return [
        f"{recipe.name}: {stage}",
        *freeze_table(model),
        f"data: {len(dataset):,} samples ({images:,} with image), {tokens:.0f} tokens on average, "
        f"{int(sampler.lengths.max()):,} at most",
        f"effective batch: {sampler.batch_size} = {sampler.micro_batch} per process x {sampler.world_size} process(es) "
        f"x {sampler.accumulation} accumulation; loss normalised per {settings.loss_norm}",
        f"supervised tokens: about {per_sample * sampler.batch_size:,.0f} per step "
        f"({per_sample:.1f} per sample, mean of {len(supervised)})",
        f"steps: {sampler.total_steps:,} = {sampler.total_steps / sampler.steps_per_epoch:.2f} epochs of "
        f"{sampler.steps_per_epoch:,}; learning rate {settings.learning_rate:g}{adapter_rate}, "
        f"{settings.schedule}",
    ]


def _finish(
    recipe: Recipe,
    folder: Path,
    start: Path | None,
    trainer: EmmaTrainer,
    processor: EmmaProcessor,
    facts: dict[str, Any],
) -> None:
    """Save the finished model as one self-contained folder, or, with LoRA, as an adapter folder on the one it began at.

    It gets its name when it is complete.
    """
    lora, main = recipe.stage(facts["stage"]).lora, trainer.is_world_process_zero()
    state = gather_trainable(trainer.model, main) if lora else whole_state(trainer.model, trainer.args.bf16, main)
    if main:
        target, partial = folder / "model", folder / "model.partial"
        if partial.exists():
            shutil.rmtree(partial)
        parent = str(start) if start else {"llm": recipe.model.llm, "clip": recipe.model.clip}
        facts = provenance.collect() | facts | {"parent": parent}
        adapter = None
        if lora and start:
            quantization = recipe.stage(facts["stage"]).quantization
            adapter = Adapter.of(target, start, dataclasses.asdict(lora), quantization, facts["run"]["start"])
        save_folder(partial, trainer.model, processor, facts, to_yaml(recipe), state_dict=state, adapter=adapter)
        if target.exists():
            set_aside(target)
        partial.rename(target)
        logger.info("finished: %s", target)
    trainer.accelerator.wait_for_everyone()
