"""`python -m emma.plan CONFIG [--gpus N] [--gpu NAME] [key=value ...]`: what a recipe costs, before the bill."""

import argparse
import json
import logging
import os
import sys

from emma.errors import EmmaError, cli

DESCRIPTION = """Parameters, FLOPs, memory and time of a recipe's two stages, from configurations alone: no weights are
needed, nothing is downloaded. Lengths are measured where annotations and tokenizer are here, else assumed."""
GPU = "h100"


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(
        prog="python -m emma.plan", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="recipe, for example configs/emma-7b.yaml")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="number of GPUs (default 8)")
    parser.add_argument("--gpu", metavar="NAME", help=f"kind of GPU, such as a100, h100, l40s, 4090 (default {GPU})")
    parser.add_argument("--memory", type=float, metavar="GiB", help="memory of one GPU (default: that of --gpu)")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="its dense bf16 peak (default: that of --gpu)")
    parser.add_argument("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak used (default 0.4)")
    parser.add_argument("--tokens", type=int, metavar="N", help="average tokens of a sample, visual ones included")
    parser.add_argument("--samples", type=int, metavar="N", help="samples of an epoch, where the data is not here")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for python -m emma.train")
    options = parser.parse_intermixed_args(arguments)

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # planning never downloads
    from emma.plan.hardware import Gpu, find_gpu
    from emma.plan.plan import Machine, check_machine, make_plan
    from emma.train.recipe import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    recipe = load_recipe(options.config, options.overrides)
    own = options.gpu is None and options.memory is not None and options.peak is not None
    gpu = Gpu(options.peak * 1e12, options.memory, ()) if own else find_gpu(options.gpu or GPU)
    machine = Machine(
        name="GPU" if own else (options.gpu or GPU),
        gpus=options.gpus,
        memory=gpu.memory if options.memory is None else options.memory,
        peak=gpu.peak if options.peak is None else options.peak * 1e12,
        mfu=options.mfu,
    )
    check_machine(machine)
    for name in ("tokens", "samples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise EmmaError(f"--{name} {getattr(options, name)} must be at least 1")

    from emma.plan.architecture import find_architecture

    plan = make_plan(recipe, find_architecture(recipe), machine, options.tokens, options.samples)
    if options.json:
        print(json.dumps(plan, indent=1))
    else:
        from emma.plan.table import render

        print("\n".join(render(plan)))
    return 0


if __name__ == "__main__":
    main()
