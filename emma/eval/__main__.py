"""`python -m emma.eval run|all|score|report|compare|export`: ask a model, score answers, show and compare runs."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.errors import EmmaError, cli

if TYPE_CHECKING:
    from emma.eval.answerers import Found
    from emma.eval.report.page import Page


@dataclass
class RunSettings:
    """What `run` takes, as `--batch-size 8` and as `batch_size=8`. Paths are relative to the caller's folder. Any other
    `key=value` is one of the benchmark's own settings."""

    model: str | None = None
    data: str | None = None
    images: str | None = None
    output: str | None = None
    batch_size: int = 16
    image_control: str = "none"
    instruction_control: str = "none"
    shard: str | None = None
    max_new_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None
    restart: bool = False
    benchmark: dict[str, str] = field(default_factory=dict)


NAMES = (
    "abench, amber, foil, gqa, llava_bench_wild, mathvista, mmbench_cn, mmbench_en, mme, mmmu, mmrel, mmvet, mmvp, "
    "muirbench, okvqa, pope, rbench, scienceqa, seed_bench, textvqa, vizwiz, vqav2 or world"
)
HELP = {
    "model": "folder, hf:ID_OR_FOLDER, openai:URL#MODEL or constant:TEXT (default: the last quickstart model)",
    "data": "folder with the benchmark's files, `world`, or `hub` for its data set on the Hugging Face hub (default: "
    "the world's set for a checkpoint trained on it, else playground/data/eval/BENCHMARK)",
    "images": "image folder, when it is not in the usual place",
    "output": "folder of answers and report (default: CHECKPOINT/eval/BENCHMARK, with the controls' names)",
    "batch_size": "questions a batch; answers do not depend on it (default 16)",
    "image_control": "none, or blank: a grey picture in place of every image, to see what the text alone gives",
    "instruction_control": "what the CLIP text tower reads, while the LLM's prompt stays: none (the question), empty, "
    "shuffled (another question's), or unrelated (one neutral sentence)",
    "shard": "K/N: answer the Kth of N shares, for N processes side by side; the last to finish merges and reports "
    "(default: torchrun's RANK and WORLD_SIZE, else all)",
    "max_new_tokens": "longest answer (default: the benchmark's own)",
    "device": "cpu, cuda ... (default: cuda where present)",
    "dtype": "float32, bfloat16 (default: float32 on a CPU, bfloat16 on CUDA)",
    "restart": "drop the answers that are there instead of going on from them",
}


HELP_ALL = {key: text for key, text in HELP.items() if key != "images"} | {
    "data": "folder that holds one folder for each benchmark, `world`, or `hub` (default: the world's sets for a "
    "checkpoint trained on it, else playground/data/eval)",
    "output": "folder of one folder for each benchmark, and of table.md, .json, .html (default: CHECKPOINT/eval)",
}

OUTPUT = "write the page there too, in the form that its ending says: .md, .json or .html"


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported here."""
    main_parser = argparse.ArgumentParser(prog="python -m emma.eval", description=__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask a model every question, score and report")
    run.add_argument("benchmark", help=NAMES)
    every = commands.add_parser("all", help="run every benchmark whose files are here, and make one table")
    for command, options, own in (
        (run, HELP, "the benchmark's own settings"),
        (every, HELP_ALL, "settings of one benchmark as BENCHMARK.key=value"),
    ):
        rest = f"checkpoint folder, the options below, and {own}"
        command.add_argument("rest", nargs="*", metavar="CHECKPOINT | key=value", help=rest)
        for key, text in options.items():
            option = f"--{key.replace('_', '-')}"
            if key == "restart":
                command.add_argument(option, action="store_const", const="true", help=text)
            else:
                command.add_argument(option, help=text)
    score = commands.add_parser("score", help='score an answers file of lines {"id": ..., "text": ...}; prints JSON')
    score.add_argument("benchmark", help=NAMES)
    score.add_argument("--annotations", required=True, metavar="DIR", help="the benchmark's files as downloaded")
    score.add_argument("--predictions", required=True, metavar="FILE.jsonl", help="answers")
    score.add_argument("--output", metavar="FILE.json", help="write the JSON object there too")
    score.add_argument("settings", nargs="*", metavar="key=value", help="the benchmark's own settings")
    export = commands.add_parser("export", help="a submission file for a benchmark's server, from an answers file")
    export.add_argument("benchmark", help="mmbench_cn, mmbench_en, mmmu, seed_bench, vizwiz, vqav2")
    export.add_argument("--annotations", required=True, metavar="DIR", help="the benchmark's files as downloaded")
    export.add_argument("--predictions", required=True, metavar="FILE.jsonl", help="answers")
    export.add_argument("--output", required=True, metavar="FILE", help="what to upload")
    export.add_argument("settings", nargs="*", metavar="key=value", help="the benchmark's own settings")
    report = commands.add_parser("report", help="one table from the reports of several runs, beside published figures")
    report.add_argument("runs", nargs="+", metavar="RUN", help="report.json, or a folder above some")
    report.add_argument("--output", metavar="FILE", help=OUTPUT)
    compare = commands.add_parser("compare", help="whether two runs on the same questions differ by more than chance")
    compare.add_argument("runs", nargs=2, metavar="RUN", help="report.json, or its folder")
    compare.add_argument("--data", metavar="DIR", help="the benchmark's files, where they are elsewhere by now")
    compare.add_argument("--output", metavar="FILE", help=OUTPUT)
    return main_parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parsed arguments; argparse gives up on words that stand after options, so these are added to `rest` here."""
    whole = parser()
    parsed, words = whole.parse_known_args(arguments)
    if words and (parsed.command in ("report", "compare") or any(word.startswith("-") for word in words)):
        whole.error(f"unrecognized arguments: {' '.join(words)}")
    if parsed.command in ("run", "all"):
        parsed.rest += words
    elif parsed.command in ("score", "export"):
        parsed.settings += words
    return parsed


def settings_from(arguments: argparse.Namespace) -> RunSettings:
    """Options and `key=value` words together; a word without `=` is the checkpoint."""
    from emma.eval.benchmark import find_benchmark
    from emma.eval.benchmarks import BENCHMARKS

    if arguments.command == "run":
        options, own = HELP, [setting.name for setting in find_benchmark(arguments.benchmark).settings]
    else:
        options = HELP_ALL
        own = [f"{name}.{setting.name}" for name, benchmark in BENCHMARKS.items() for setting in benchmark.settings]
    given = {key: getattr(arguments, key) for key in options if getattr(arguments, key) is not None}
    for word in arguments.rest:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "model", word
        if key not in options and key not in own:
            near = difflib.get_close_matches(key, [*options, *own], n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join([*options, *own])}"
            raise EmmaError(f"unknown setting {key!r}; {hint}")
        if key in given:
            raise EmmaError(f"{key} is given twice: {given[key]!r} and {value!r}")
        given[key] = value
    settings = RunSettings(**{key: value for key, value in given.items() if key in options})
    settings.benchmark = {key: value for key, value in given.items() if key not in options}
    settings.batch_size = _whole("batch_size", settings.batch_size)
    if settings.max_new_tokens is not None:
        settings.max_new_tokens = _whole("max_new_tokens", settings.max_new_tokens)
    if str(settings.restart).lower() not in ("true", "false"):
        raise EmmaError(f"restart={settings.restart!r}: expected true or false")
    settings.restart = str(settings.restart).lower() == "true"
    return settings


def _whole(key: str, value: str | int) -> int:
    try:
        if (number := int(value)) > 0:
            return number
    except ValueError:
        pass
    raise EmmaError(f"{key}={value!r}: expected a whole number above 0")


def run(name: str, settings: RunSettings) -> None:
    """`run`: everything that can be checked is checked before the model is loaded."""
    from emma.eval.benchmark import find_benchmark, find_data
    from emma.eval.controls import Controls
    from emma.eval.shards import Shard

    controls = Controls(settings.image_control, settings.instruction_control)
    shard = Shard.find(settings.shard)
    benchmark = find_benchmark(name)
    found = _find_model(settings)
    data = find_data(benchmark, settings.data, found.provenance)
    output = Path(settings.output) if settings.output else found.runs / f"{benchmark.name}{controls.suffix}"

    from emma.eval.report import as_markdown
    from emma.eval.runner import evaluate

    report = evaluate(
        benchmark,
        found.answerer,
        data,
        output,
        settings=settings.benchmark,
        controls=controls,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        images=settings.images,
        shard=shard,
        restart=settings.restart,
    )
    if report is None:
        print(f"share {shard} is answered; the last of the {shard.of} to finish, or one more run, reports: {output}")
        return
    print(as_markdown(report))
    print(f"report: {output / 'report.html'}")


def _find_model(settings: RunSettings) -> "Found":
    from transformers.utils import logging as transformers_logging

    from emma.eval.answerers import find_answerer
    from emma.serve import find_model

    transformers_logging.disable_progress_bar()
    model = settings.model
    if model is None:
        model = str(find_model())
        print(f"model: {model} (the last quickstart model)", file=sys.stderr)
    return find_answerer(model, settings.dtype, settings.device)


def run_all(settings: RunSettings) -> int:
    """`all`: 1 when a benchmark failed; one whose data is not there is only named."""
    from emma.eval import suite
    from emma.eval.controls import Controls
    from emma.eval.report import markdown, table
    from emma.eval.shards import Shard

    controls = Controls(settings.image_control, settings.instruction_control)
    shard = Shard.find(settings.shard)
    found = _find_model(settings)
    output = Path(settings.output) if settings.output else found.runs
    came = suite.run_all(
        found,
        output,
        settings.data,
        controls,
        settings.benchmark,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        shard=shard,
        restart=settings.restart,
    )
    if runs := suite.runs_of(found, output):
        print(markdown.table(table.write(runs, output / "table")))
    for remark in came.remarks():
        print(remark)
    if runs:
        print(f"table: {output / 'table.html'} (and .md, .json)")
    return 1 if came.failed else 0


def score(arguments: argparse.Namespace) -> None:
    """`score`: one JSON object on standard output."""
    from emma.eval.benchmark import find_benchmark
    from emma.eval.report import score_report

    annotations = Path(arguments.annotations)
    if not annotations.is_dir():
        raise EmmaError(f"--annotations {annotations}: no such folder")
    benchmark = find_benchmark(arguments.benchmark)
    result = score_report(benchmark, annotations, Path(arguments.predictions), _words(arguments.settings))
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    _write(arguments.output, text + "\n")


def _words(words: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key in settings:
            raise EmmaError(f"{word!r}: expected key=value, each key once")
        settings[key] = value
    return settings


def export(arguments: argparse.Namespace) -> None:
    """`export`: writes the file, and says on standard error what was found."""
    from emma.eval.answers import read_answers
    from emma.eval.benchmark import find_benchmark
    from emma.eval.export import export as write

    annotations, output = Path(arguments.annotations), Path(arguments.output)
    if not annotations.is_dir():
        raise EmmaError(f"--annotations {annotations}: no such folder")
    benchmark = find_benchmark(arguments.benchmark)
    answers = read_answers(Path(arguments.predictions))
    counts = write(benchmark, annotations, answers, output, _words(arguments.settings))
    print(output)
    print(", ".join(f"{name} {count}" for name, count in counts.items()), file=sys.stderr)


def report(arguments: argparse.Namespace) -> None:
    """`report`: the page of several runs, in markdown, on standard output."""
    from emma.eval.report import find_runs, table

    runs = find_runs(arguments.runs)
    made = table.summary(runs)
    _show(table.page(runs, made, Path(arguments.output).parent if arguments.output else None), made, arguments.output)


def compare(arguments: argparse.Namespace) -> None:
    """`compare`: the second run against the first, in markdown, on standard output."""
    from emma.eval.report import compare

    made = compare.compare(compare.find_run(arguments.runs[0]), compare.find_run(arguments.runs[1]), arguments.data)
    _show(compare.page(made), made, arguments.output)


def _show(page: "Page", made: dict[str, Any], output: str | None) -> None:
    """Print a page in markdown; write it to `output` in the form that the ending says (`made` is its JSON form)."""
    from emma.eval.report import html, markdown

    forms: dict[str, Callable[[], str]] = {
        ".md": lambda: markdown.render(page),
        ".html": lambda: html.render(page),
        ".json": lambda: json.dumps(made, indent=2, ensure_ascii=False) + "\n",
    }
    suffix = Path(output).suffix if output else ".md"
    if suffix not in forms:
        raise EmmaError(f"--output {output}: its name must end in {', '.join(forms)}")
    print(markdown.render(page), end="")
    _write(output, forms[suffix]())


def _write(path: str | None, text: str) -> None:
    if path:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise EmmaError(f"cannot write {path}: {error.strerror}") from error


@cli
def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parsed = parse(arguments)
    if parsed.command == "run":
        run(parsed.benchmark, settings_from(parsed))
    elif parsed.command == "all":
        return run_all(settings_from(parsed))
    else:
        commands = {"score": score, "export": export, "report": report, "compare": compare}
        commands[parsed.command](parsed)
    return 0


if __name__ == "__main__":
    main()
