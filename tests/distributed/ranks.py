"""One rank: runs the jobs of a json file one after another, in processes that torchrun started.

Starting two ranks costs half a minute of imports, whatever they compute; so one start does many runs. Each job is
`{"recipe", "stage", "overrides", "resume"?, ...}`; what came of it is written as json lines by every rank. Also:
`dies`: it breaks off at the end of this step, before anything is saved for it; `killed`: [step, rank], by `kill -9`;
`fsdp`: accelerate is made to shard on a CPU;
`disk_full`: the disk has no space from this step on; `interleaved`: a step has images on even ranks, only text on odd.
"""

import errno
import json
import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path


def forget_engine() -> None:
    """The next run in this process may use another engine: accelerate and transformers keep theirs globally."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_USE_FSDP"):
        os.environ.pop(name, None)


class Died(BaseException):
    """Stands for a run that broke off: nothing in the project catches it."""


@contextmanager
def breaking_off(job: dict, rank: int):
    from emma.train import weights
    from emma.train.trainer import EmmaTrainer

    original, save = EmmaTrainer._maybe_log_save_evaluate, weights.save_file

    def full(tensors, file, **kwargs):
        if f"checkpoint-{job['disk_full']}" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, file, **kwargs)

    def breaking(self, *args, **kwargs):
        if job.get("killed") == [self.state.global_step, rank]:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.get("dies") == self.state.global_step:
            raise Died
        return original(self, *args, **kwargs)

    EmmaTrainer._maybe_log_save_evaluate = breaking
    if "disk_full" in job:
        weights.save_file = full
    try:
        patches = [fsdp_on_cpu()] if job.get("fsdp") else []
        patches += [interleaved()] if job.get("interleaved") else []
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            yield
    except Died:
        pass
    finally:
        EmmaTrainer._maybe_log_save_evaluate, weights.save_file = original, save


@contextmanager
def fsdp_on_cpu():
    """accelerate shards on GPUs only, and elsewhere it is silently DDP; here it is made to take gloo ranks for GPUs."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    import emma.train.arguments as arguments

    original_init, original_settings = AcceleratorState.__init__, arguments.fsdp_settings

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init
    arguments.fsdp_settings = lambda stage, name, cuda: original_settings(stage, name, True)
    try:
        yield
    finally:
        AcceleratorState.__init__, arguments.fsdp_settings = original_init, original_settings


@contextmanager
def interleaved():
    """Batches of images and text-only samples in turn, which our sampler never makes; ranks are dealt rows in turn."""
    import numpy as np

    from emma.data import sampler

    original = sampler.epoch_order

    def order(lengths, has_image, batch_size, seed, epoch):
        images, texts = np.flatnonzero(has_image), np.flatnonzero(~has_image)
        steps = sampler.steps_per_epoch(has_image, batch_size)
        pairs = np.stack(
            [np.resize(images, steps * batch_size // 2), np.resize(texts, steps * batch_size // 2)], axis=1
        )
        return pairs.reshape(steps, batch_size), np.zeros((steps, batch_size), dtype=bool)

    sampler.epoch_order = order
    try:
        yield
    finally:
        sampler.epoch_order = original


def main() -> None:
    jobs_file = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stdout)
    from emma.errors import EmmaError
    from emma.train import load_recipe, run

    results = jobs_file.with_name(f"{jobs_file.stem}-rank{rank}.jsonl")
    for job in json.loads(jobs_file.read_text(encoding="utf-8")):
        print(f"##### {job['stage']} {job['overrides']}", flush=True)
        started = time.perf_counter()
        outcome = {}
        try:
            with breaking_off(job, rank):
                run(load_recipe(job["recipe"], job["overrides"]), job["stage"], job.get("resume", "auto"))
        except EmmaError as error:
            outcome["error"] = str(error)
        outcome["seconds"] = round(time.perf_counter() - started, 1)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
        forget_engine()


if __name__ == "__main__":
    main()
