"""`python tests/killed_run.py MODEL DATA OUTPUT SEED`: a run on MMVP's layout, killed with -9 again and again.

The model is loaded once; each run is a forked child, so that the kills fall into the answering and not into imports.
Runs once undisturbed into OUTPUT/whole, and into OUTPUT/killed until five children are dead and a sixth is done. Prints
how many answers were on disk after each kill, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from emma.eval.answerers.emma import EmmaAnswerer
from emma.eval.runner import evaluate

KILLS = 5


def main(model: str, data: str, output: str, seed: str) -> None:
    rng = random.Random(int(seed))
    answerer = EmmaAnswerer(model)
    assert answerer.model  # loaded here, for all children
    finish(start(answerer, data, f"{output}/whole"))
    total, left = answered(f"{output}/whole"), []
    for target in sorted(rng.sample(range(total - 1), KILLS)):
        child = start(answerer, data, f"{output}/killed")
        while answered(f"{output}/killed") < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))  # somewhere in the next answer or its writing
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left.append(answered(f"{output}/killed"))
    finish(start(answerer, data, f"{output}/killed"))
    print(json.dumps(left))


def start(answerer: EmmaAnswerer, data: str, output: str) -> int:
    """The process id of a child that runs."""
    if child := os.fork():
        return child
    evaluate("mmvp", answerer, data, output, batch_size=1, max_new_tokens=24)
    os._exit(0)


def finish(child: int) -> None:
    """Wait for a child that is to end well."""
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a run failed with status {status}")


def answered(output: str) -> int:
    """Lines on disk."""
    predictions = Path(output, "predictions.jsonl")
    return predictions.read_bytes().count(b"\n") if predictions.is_file() else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
