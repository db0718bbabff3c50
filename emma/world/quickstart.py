"""`bash scripts/quickstart.sh`: the whole main job on the tiny world, from nothing to a table, resumable throughout."""

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from emma.errors import cli
from emma.paths import project_root

logger = logging.getLogger(__name__)

CONFIG = "configs/tiny.yaml"
BATCH = 64  # questions answered at once
# A shortened run: every phase for real, too little training to learn much.
FAST_WORLD = {"pretrain": 256, "finetune": 256, "held_out": 12, "pairs": 12, "pope": 6, "scenes": 4}
FAST_RECIPE = ["pretrain.max_steps=6", "pretrain.save_every=3", "finetune.max_steps=6", "finetune.save_every=3"]
CHAT = "What is in the image?"


@dataclass(frozen=True)
class Plan:
    """Where a quickstart works and how much it does."""

    output: Path
    world: Path
    fast: bool

    @property
    def record(self) -> Path:
        """Seconds per phase and the table's figures, so that a second run has only to print them."""
        return self.output / "quickstart.json"

    @property
    def model(self) -> Path:
        return self.output / "finetune" / "model"

    @property
    def untrained(self) -> Path:
        return self.output / "pretrain" / "init"

    def overrides(self) -> list[str]:
        """Overrides of the recipe that put this run's data and output in their places."""
        settings = [f"output={self.output}", f"name={self.output.name}"]
        for stage in ("pretrain", "finetune"):
            source = {"annotations": str(self.world / f"{stage}.json"), "images": str(self.world / "images" / "train")}
            settings.append(f"{stage}.data={json.dumps([source])}")
        return settings + (FAST_RECIPE if self.fast else [])


def evaluations(plan: Plan) -> list[tuple[str, str, Path, str]]:
    """(key, benchmark, model folder, image control) of every evaluation, in order."""
    return [
        ("world", "world", plan.model, "none"),
        ("mmvp", "mmvp", plan.model, "none"),
        ("pope", "pope", plan.model, "none"),
        ("untrained/world", "world", plan.untrained, "none"),
        ("untrained/mmvp", "mmvp", plan.untrained, "none"),
        ("untrained/pope", "pope", plan.untrained, "none"),
        ("blind/world", "world", plan.model, "blank"),
        ("blind/mmvp", "mmvp", plan.model, "blank"),
        ("blind/pope", "pope", plan.model, "blank"),
    ]


class Phases:
    """Runs named phases, each once: seconds of finished ones are kept in a record that outlives the process."""

    def __init__(self, path: Path):
        self.path = path
        self.record = json.loads(path.read_text()) if path.exists() else {"phases": {}}

    @contextmanager
    def phase(self, name: str, sentence: str) -> Iterator[None]:
        """Time a phase. Interrupted ones add up: what was done before is kept, and its time counts."""
        logger.info("\n== %s: %s", name, sentence)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.record["phases"][name] = self.record["phases"].get(name, 0) + time.perf_counter() - start
            self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.record, indent=2) + "\n")
        partial.replace(self.path)


def run(plan: Plan) -> dict:
    """Every phase that is not done yet; returns the record."""
    from emma.train import load_recipe, recipe_hash
    from emma.train import run as train

    phases = Phases(plan.record)
    recipe = load_recipe(project_root() / CONFIG, plan.overrides())
    if phases.record.get("complete") == recipe_hash(recipe, "finetune"):
        logger.info("already done: the figures below are from %s", plan.record)
        return phases.record
    from transformers.utils.logging import disable_progress_bar

    from emma.world.data import write_world

    disable_progress_bar()  # loading takes no time here
    with phases.phase("world", "pictures, conversations and evaluation sets, drawn from a seed"):
        write_world(plan.world, **(FAST_WORLD if plan.fast else {}))
    with phases.phase("pretrain", "stage 1 learns the adapter from captions; CLIP and the LLM are frozen"):
        train(recipe, "pretrain")
    with phases.phase("finetune", "stage 2 learns adapter and LLM from conversations"):
        train(recipe, "finetune")
    with phases.phase("evaluate", "held-out questions, MMVP's and POPE's formats; trained, untrained and blind"):
        phases.record["reports"] = _evaluate(plan)
    with phases.phase("chat", "one question about a held-out picture"):
        phases.record["chat"] = _chat(plan)
    phases.record["weights_sha256"] = phases.record["reports"]["world"]["model"]["weights"]
    phases.record["complete"] = recipe_hash(recipe, "finetune")
    phases.save()
    return phases.record


def _evaluate(plan: Plan) -> dict:
    from emma.eval.answerers.emma import EmmaAnswerer
    from emma.eval.controls import Controls
    from emma.eval.runner import evaluate

    answerers: dict[Path, EmmaAnswerer] = {}
    reports = {}
    for key, benchmark, folder, control in evaluations(plan):
        if folder not in answerers:
            answerers[folder] = EmmaAnswerer(folder)
        reports[key] = evaluate(
            benchmark,
            answerers[folder],
            plan.world / "eval" / benchmark,
            plan.output / "eval" / key,
            controls=Controls(image=control),
            batch_size=BATCH,
            max_new_tokens=16,  # the untrained model never stops by itself
        )
    return reports


def example_image(world: Path) -> Path:
    return world / "eval" / "world" / "images" / "scene_0.png"


def _chat(plan: Plan) -> dict:
    from emma.eval.answerers.emma import EmmaAnswerer
    from emma.eval.answering import Question

    answerer = EmmaAnswerer(plan.model)
    image = example_image(plan.world)
    question = Question("chat", CHAT, (image,), answerer.instruction(CHAT))
    [answer] = answerer.answer([question], max_new_tokens=64)
    return {"image": str(image), "question": CHAT, "answer": answer.text}


def summary(plan: Plan, record: dict) -> str:
    """The final table: figures of the trained, untrained and blind model, seconds, and what to try next."""
    reports = record["reports"]
    columns = ("", "untrained/", "blind/")
    lines = ["", f"{'':<34}{'trained':>22}{'untrained':>22}{'blind (blank image)':>22}"]

    def row(label: str, benchmark: str, figure: str | None = None, indent: str = "") -> None:
        cells = []
        for prefix in columns:
            report = reports[prefix + benchmark]
            cells.append(_cell(report["figures"][figure or report["metric"]]))
        lines.append(f"{indent + label:<34}" + "".join(f"{cell:>22}" for cell in cells))

    row("held-out questions, all", "world")
    for name in reports["world"]["figures"]:
        if name.startswith("accuracy/"):
            row(name.removeprefix("accuracy/"), "world", name, indent="  ")
    row("world (MMVP format), pairs", "mmvp")
    row("world (POPE format), mean F1", "pope")
    row("world (POPE format), accuracy", "pope", "mean_accuracy")
    lines += ["", "percent [95 % bootstrap interval]", ""]
    seconds = record["phases"]
    lines.append("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    lines.append(f"in all: {sum(seconds.values()):.0f} s")
    chat = record["chat"]
    lines += ["", f"asked about {shown(Path(chat['image']))}:", f"  {chat['question']}", f"  {chat['answer']}", ""]
    lines += [f"model: {shown(plan.model)} (weights sha256 {record['weights_sha256'][:16]})", "next:"]
    lines += [f"  {command}" for command in next_commands(plan)]
    return "\n".join(lines)


def _cell(figure: dict) -> str:
    if figure["interval"] is None:
        return f"{figure['value']:.1f}"
    low, high = figure["interval"]
    return f"{figure['value']:.1f} [{low:.1f}, {high:.1f}]"


def next_commands(plan: Plan) -> list[str]:
    """What to try from the project's folder."""
    model, image = shown(plan.model), shown(example_image(plan.world))
    activate = [] if "VIRTUAL_ENV" in os.environ else [f"source {shown(Path(sys.prefix))}/bin/activate"]
    return [
        *activate,
        f"python -m emma.serve.cli --model {model} --image {image}",
        f"bash scripts/eval/mmvp.sh {model}",
        f"bash scripts/pretrain.sh {CONFIG} name=tiny-llava model.alignment=none",
        f"bash scripts/finetune.sh {CONFIG} name=tiny-llava model.alignment=none",
    ]


def shown(path: Path) -> str:
    """A path for a shell: from the project's folder where it lies inside, quoted where it must be."""
    root = project_root()
    return shlex.quote(str(path.relative_to(root) if path.is_relative_to(root) else path))


@cli
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bash scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a shortened run, for tests: learns next to nothing")
    parser.add_argument("--output", type=Path, help="folder for everything (default: runs/tiny and playground/data)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    name = "tiny-fast" if args.fast else "tiny"
    root = project_root()
    if args.output:
        output = args.output.resolve()
        plan = Plan(output / name, output / "world", args.fast)
    else:
        plan = Plan(root / "runs" / name, root / "playground/data" / name.replace("tiny", "world"), args.fast)
    from emma.train import TrainingStopped

    try:
        print(summary(plan, run(plan)))
    except TrainingStopped:
        again = [*(["--fast"] if args.fast else []), *(["--output", str(args.output)] if args.output else [])]
        print(f"go on with: {shlex.join(['bash', 'scripts/quickstart.sh', *again])}", flush=True)
        raise


if __name__ == "__main__":
    main()
