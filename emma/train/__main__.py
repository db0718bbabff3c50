"""`python -m emma.train CONFIG --stage pretrain|finetune [--resume auto|never|PATH] [key=value ...]`."""

import argparse
import logging
import shlex
import sys
import warnings

from emma.errors import cli

DESCRIPTION = """Train one stage of a recipe. Output: OUTPUT/STAGE with log.jsonl, checkpoint-N and the finished model/.

Stopped by Ctrl-C, SIGTERM or SIGUSR1 it saves a checkpoint and exits with code 130, 143 or 138; the same command goes
on. bash scripts/pretrain.sh and finetune.sh start it once per GPU, as torchrun, accelerate launch and deepspeed do."""


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m emma.train", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="recipe, for example configs/emma-7b.yaml")
    parser.add_argument("--stage", choices=("pretrain", "finetune"), required=True, help="which stage to train")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: go on from the newest complete checkpoint (default); never: move what is there aside and start "
        "over; PATH: go on from this checkpoint",
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher's

    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example finetune.learning_rate=2e-5")
    options = parser.parse_intermixed_args(arguments)

    from emma.train import TrainingStopped, load_recipe, run
    from emma.train.processes import die_of_usr1, leave_group, rank, report, tell_torchrun, world_size

    die_of_usr1()
    # DeepSpeed calls what torch 2.14 has renamed, and torch says so at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    main_rank = rank() == 0
    logging.basicConfig(level=logging.INFO if main_rank else logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        folder = run(load_recipe(options.config, options.overrides), options.stage, options.resume)
    except TrainingStopped as stopped:
        tell_torchrun(str(stopped))
        if main_rank:
            again = ["python", "-m", "emma.train", options.config, "--stage", options.stage, *options.overrides]
            print(f"Go on with: {shlex.join(again)}", flush=True)
        leave_group()  # after that: torchrun ends the others when the first process ends
        raise
    except Exception as error:
        if world_size() == 1:
            raise
        return report(error)
    leave_group()
    if main_rank:
        print(folder)
    return 0


if __name__ == "__main__":
    main()
