"""One rank: runs the jobs of a json file one after another, in processes that torchrun started.

Starting two ranks costs half a minute of imports, whatever they compute; so one start does many runs. Each job is
`{"recipe", "stage", "overrides", "resume"?, "kill"?}`; what came of it is written as json lines by every rank.
"""

import json
import logging
import os
import signal
import sys
import time
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


def die_at_step(step: int, rank: int) -> None:
    """`kill -9` of one rank at the end of a step, before anything is saved for it."""
    from emma.train.trainer import EmmaTrainer

    original = EmmaTrainer._maybe_log_save_evaluate

    def dying(self, *args, **kwargs):
        if self.state.global_step == step and int(os.environ.get("RANK", 0)) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    EmmaTrainer._maybe_log_save_evaluate = dying


def main() -> None:
    jobs_file = Path(sys.argv[1])
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(message)s", stream=sys.stdout)
    from emma.errors import EmmaError
    from emma.train import load_recipe, run

    results = jobs_file.with_name(f"{jobs_file.stem}-rank{rank}.jsonl")
    for job in json.loads(jobs_file.read_text(encoding="utf-8")):
        if "kill" in job:
            die_at_step(*job["kill"])
        print(f"##### {job['stage']} {job['overrides']}", flush=True)
        started = time.perf_counter()
        outcome = {}
        try:
            run(load_recipe(job["recipe"], job["overrides"]), job["stage"], job.get("resume", "auto"))
        except EmmaError as error:
            outcome["error"] = str(error)
        outcome["seconds"] = round(time.perf_counter() - started, 1)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
        forget_engine()


if __name__ == "__main__":
    main()
