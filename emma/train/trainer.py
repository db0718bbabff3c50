"""Hugging Face's Trainer with our own order of samples, loss normalisation, guards and checkpoints."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from emma.data.collate import Collator
from emma.data.dataset import TrainingDataset
from emma.data.sampler import StepSampler
from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration, part_of
from emma.plan.hardware import device_peak
from emma.train.engine import write_record
from emma.train.guards import ChangeCheck, agree, check_gradient, check_launch, check_loss
from emma.train.logs import COUNTED, JsonLog, Progress, Throughput, peak_memory
from emma.train.logs import FILE as LOG_FILE
from emma.train.saving import PARTIAL, checkpoints, publish, rotate
from emma.train.signals import StopRequest, ignore_in_worker
from emma.train.weights import check_names, check_saved, gather_trainable, read_trainable, set_masters, write_trainable

logger = logging.getLogger(__name__)


class EmmaTrainer(Trainer):
    """Trains one stage.

    Args:
        model: frozen as the stage wants it.
        args: from `training_arguments` and `set_steps`.
        dataset, sampler, collator: the stage's data; the sampler decides which samples an optimizer step sees.
        loss_norm: `global` (all supervised tokens of the optimizer step weigh the same) or `microbatch` (mean of the
            means).
        adapter_learning_rate: of instruction projection, alignment and projector; None: that of the rest.
        keep: newest complete checkpoints that stay.
        records: small text files that every checkpoint carries, by name.
        initial: the model folder that `model` was loaded from.
        stop: request to save and end, looked at after every step.
        flops: model FLOPs of a collated batch, if they can be counted.
    """

    def __init__(
        self,
        *,
        model: EmmaForConditionalGeneration,
        args: TrainingArguments,
        dataset: TrainingDataset,
        sampler: StepSampler,
        collator: Collator,
        loss_norm: str,
        adapter_learning_rate: float | None,
        keep: int,
        records: dict[str, str],
        stop: StopRequest,
        initial: Path,
        name: str,
        flops: Callable[[dict[str, Any]], int] | None = None,
    ):
        had_cache = model.config.to_dict().get("use_cache")
        super().__init__(model=model, args=args, train_dataset=dataset, data_collator=collator)
        # Trainer switches the cache off in the config, which would be saved; the model trains without one by itself.
        if had_cache is None:
            model.config.__dict__.pop("use_cache", None)
        else:
            model.config.use_cache = had_cache
        check_launch(args, self.accelerator)
        self.sampler, self.loss_norm, self.keep, self.records, self.stop = sampler, loss_norm, keep, records, stop
        self.initial = initial
        self.flops = flops
        on_gpu_in_bf16 = args.device.type == "cuda" and args.bf16
        peak = device_peak(torch.cuda.get_device_name(args.device)) if on_gpu_in_bf16 else None
        self.throughput = Throughput(args.world_size, peak)
        self.adapter_learning_rate = adapter_learning_rate
        self.step_ids: list[str] = []
        self.remove_callback(PrinterCallback)
        self.add_callback(_Flow(self))
        self.add_callback(ChangeCheck(args.warmup_steps))
        self.add_callback(JsonLog(self.folder / LOG_FILE))
        self.progress = Progress(name)
        self.add_callback(self.progress)

    @property
    def folder(self) -> Path:
        """The stage's output folder."""
        return Path(self.args.output_dir)

    # --------------------------------------------------------------------------------------------------- batches

    def get_train_dataloader(self) -> DataLoader:
        """All steps of all epochs, as this rank's micro-batches; the sampler, not accelerate, shards."""
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=(self.args.dataloader_prefetch_factor or 2) if workers else None,
            worker_init_fn=ignore_in_worker,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | None]:
        """The micro-batches of one optimizer step, and the number of its supervised tokens over all ranks.

        Raises:
            EmmaError: a sample could not be read, or the whole step supervises nothing.
        """
        started = time.perf_counter()
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        self.throughput.waited += time.perf_counter() - started
        for batch in batches:
            if "error" in batch:
                raise batch["error"]
        self.step_ids = [name for batch in batches for name in batch["ids"]]
        for batch in batches:
            batch["flops"] = self.flops(batch) if self.flops else 0
        gathered = torch.tensor([[sum(batch[key] for batch in batches) for key in COUNTED]])
        if self.args.world_size > 1:
            gathered = self.accelerator.gather(gathered.to(device))
        counts = dict(zip(COUNTED, gathered.sum(0).tolist(), strict=True))
        supervised = counts["supervised"]
        if supervised == 0:
            raise EmmaError(
                f"step {self.state.global_step + 1} has no supervised token; its samples: "
                f"{', '.join(self.step_ids[:16])}. Were the answers cut off? Raise max_length, or set over_length: drop"
            )
        self.throughput.add(counts)
        return batches, torch.tensor(supervised, device=device) if self.loss_norm == "global" else None

    # ------------------------------------------------------------------------------------------- loss and gradient

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's loss, stopped before backward when it is not finite on any rank."""
        loss, outputs = super().compute_loss(model, inputs["model"], True, num_items_in_batch)
        check_loss(loss, inputs["ids"], self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer; each group split in two where the adapter has a learning rate of its own."""
        optimizer = super().create_optimizer(model)
        if self.adapter_learning_rate is None:
            return optimizer
        adapter = {id(p) for name, p in self.model.named_parameters() if part_of(name) == "adapter"}
        groups = []
        for rate, of_adapter in ((self.args.learning_rate, False), (self.adapter_learning_rate, True)):
            for group in optimizer.param_groups:
                parameters = [p for p in group["params"] if (id(p) in adapter) == of_adapter]
                if parameters:
                    groups.append({**group, "params": parameters, "lr": rate})
        optimizer.param_groups = groups
        return optimizer

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        check_gradient(grad_norm, self.step_ids, self.state.global_step + 1)
        return grad_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the generic estimate walks all parameters at every micro-batch and is wrong for frozen parts anyway."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the throughput of the interval to Trainer's numbers."""
        if "loss" in logs:
            ranks = torch.tensor([[self.throughput.waited, peak_memory(self.args.device)]], device=self.args.device)
            if self.args.world_size > 1:
                ranks = self.accelerator.gather(ranks)
            logs.update(self.throughput.read(ranks.tolist()))
            self.throughput.reset()
        super().log(logs, start_time)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any = None) -> None:
        """Everything that going on needs, under a temporary name; the final name only when all of it is on disk."""
        target = self.folder / f"checkpoint-{self.state.global_step}"
        partial = target.with_name(target.name + PARTIAL)
        tensors = gather_trainable(self.model, self.is_world_process_zero())

        def begin() -> None:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            write_trainable(tensors, partial)
            write_record(self.args, partial)
            for name, text in self.records.items():
                (partial / name).write_text(text, encoding="utf-8")
            self.state.save_to_json(str(partial / "trainer_state.json"))

        def each_rank() -> None:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))

        def end() -> None:
            publish(partial, target)
            rotate(self.folder, self.keep)
            logger.info("saved %s", target)

        for write, main_only in ((begin, True), (each_rank, False), (end, True)):
            self._write(write, main_only, partial)
        self.throughput.reset()

    def _write(self, write: Callable[[], None], main_only: bool, partial: Path) -> None:
        """Run a part of saving, on rank 0 or on all; all ranks stop when it fails on one.

        Inside DeepSpeed's own saving ranks wait for each other: one that fails there stops alone, and the launcher ends
        the others.

        Raises:
            EmmaError: names the folder and the last complete checkpoint.
        """
        error: Exception | None = None
        if self.is_world_process_zero() or not main_only:
            try:
                write()
            except (OSError, SafetensorError, RuntimeError) as caught:
                error = caught
        alone = self.is_deepspeed_enabled and not main_only
        if error is not None if alone else agree(error is not None, self.args.device):
            intact = list(checkpoints(self.folder).values())
            raise EmmaError(
                f"cannot write {partial}: {error or 'another rank failed'}. Last complete checkpoint: "
                f"{intact[-1] if intact else 'none'}; free some space and start again"
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return self._forget_zero_step(self.state.global_step)
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.is_world_process_zero():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            self._forget_zero_step(state["global_step"])

    def _forget_zero_step(self, global_step: int) -> None:
        """FSDP: torch makes an optimizer without state step once with zero gradients before it saves or loads it, and
        AdamW's bias correction would count that step for the rest of the run."""
        if self.is_fsdp_enabled and global_step == 0:
            self.optimizer.state.clear()

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: str | None):
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Not with the checkpoint: transformers would want the frozen weights in it.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is None:
            set_masters(self.model, self.initial)
        else:
            check_names(self.model, Path(resume_from_checkpoint))
            self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)  # here: the schedule
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        read_trainable(self.model if model is None else model, Path(resume_from_checkpoint))

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        position = super()._init_training_state(max_steps, *args, **kwargs)
        # A loaded state brings the intervals of the earlier start; those of this start count.
        self.state.compute_steps(self.args, max_steps)
        self.state.log_history = []  # stands in log.jsonl
        return position

    def prove_saving(self) -> None:
        """Save at step 0 and read back: path, space, permissions and file system hold before hours are spent."""
        self._save_checkpoint(self.model)
        check_saved(self.model, self.folder / f"checkpoint-{self.state.global_step}", main=self.is_world_process_zero())


class _Flow(TrainerCallback):
    """What happens around steps: the step-0 proof, the true epoch, stopping on request, a log line with every save."""

    def __init__(self, trainer: EmmaTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.trainer.prove_saving()
        self.trainer.throughput.reset()

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / self.trainer.sampler.steps_per_epoch
        if agree(bool(self.trainer.stop.received), args.device):
            # A rank that was not signalled itself stops as the others do.
            self.trainer.stop.received = self.trainer.stop.received or 15
            control.should_save = control.should_training_stop = True
        if control.should_save:
            # An interval then never reaches over a checkpoint, and a resumed run logs what the uninterrupted one does.
            control.should_log = True
