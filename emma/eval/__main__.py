"""`python -m emma.eval run|score|report`: ask a model, score answers that exist, show reports side by side."""

import argparse
import difflib
import json
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from emma.errors import EmmaError, cli


@dataclass
class RunSettings:
    """What `run` takes, as `--batch-size 8` and as `batch_size=8`. Paths are relative to the caller's folder."""

    model: str | None = None
    data: str | None = None
    images: str | None = None
    output: str | None = None
    batch_size: int = 16
    image_control: str = "none"
    max_new_tokens: int | None = None
    device: str | None = None
    dtype: str | None = None
    restart: bool = False


HELP = {
    "model": "checkpoint folder (default: the last quickstart model)",
    "data": "folder with the benchmark's files, or `world` (default: the world's set for a checkpoint trained on it, "
    "else playground/data/eval/BENCHMARK)",
    "images": "image folder, when it is not in the usual place",
    "output": "folder of answers and report (default: CHECKPOINT/eval/BENCHMARK, with -blank for blank images)",
    "batch_size": "questions a batch; answers do not depend on it (default 16)",
    "image_control": "none, or blank: a grey picture in place of every image, to see what the text alone gives",
    "max_new_tokens": "longest answer (default: the benchmark's own)",
    "device": "cpu, cuda ... (default: cuda where present)",
    "dtype": "float32, bfloat16 (default: float32 on a CPU, bfloat16 on CUDA)",
    "restart": "drop the answers that are there instead of going on from them",
}


def parser() -> argparse.ArgumentParser:
    """The command line; nothing heavy is imported here."""
    main_parser = argparse.ArgumentParser(prog="python -m emma.eval", description=__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="ask a model every question, score and report")
    run.add_argument("benchmark", help="mmvp, pope, world")
    run.add_argument(
        "rest", nargs="*", metavar="CHECKPOINT | key=value", help="checkpoint folder, and the options below"
    )
    for field in fields(RunSettings):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "restart":
            run.add_argument(option, action="store_const", const="true", help=HELP[field.name])
        else:
            run.add_argument(option, help=HELP[field.name])
    score = commands.add_parser("score", help='score an answers file of lines {"id": ..., "text": ...}; prints JSON')
    score.add_argument("benchmark", help="mmvp, pope, world")
    score.add_argument("--annotations", required=True, metavar="DIR", help="the benchmark's files as downloaded")
    score.add_argument("--predictions", required=True, metavar="FILE.jsonl", help="answers")
    score.add_argument("--output", metavar="FILE.json", help="write the JSON object there too")
    score.add_argument("settings", nargs="*", metavar="key=value", help="the benchmark's own settings")
    report = commands.add_parser("report", help="one table from the reports of several runs")
    report.add_argument("runs", nargs="+", metavar="RUN", help="report.json, or a folder above some")
    report.add_argument("--output", metavar="FILE.md", help="write the table there too")
    return main_parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parsed arguments; argparse gives up on words that stand after options, so these are added to `rest` here."""
    whole = parser()
    parsed, words = whole.parse_known_args(arguments)
    if words and (parsed.command == "report" or any(word.startswith("-") for word in words)):
        whole.error(f"unrecognized arguments: {' '.join(words)}")
    if parsed.command == "run":
        parsed.rest += words
    elif parsed.command == "score":
        parsed.settings += words
    return parsed


def settings_from(arguments: argparse.Namespace) -> RunSettings:
    """Options and `key=value` words together; a word without `=` is the checkpoint."""
    given = {f.name: getattr(arguments, f.name) for f in fields(RunSettings) if getattr(arguments, f.name) is not None}
    for word in arguments.rest:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "model", word
        if key not in HELP:
            near = difflib.get_close_matches(key, HELP, n=1)
            raise EmmaError(
                f"unknown setting {key!r}; {f'did you mean {near[0]}?' if near else f'known: {list(HELP)}'}"
            )
        if key in given:
            raise EmmaError(f"{key} is given twice: {given[key]!r} and {value!r}")
        given[key] = value
    settings = RunSettings(**given)
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
    from emma.eval.benchmark import check_image_control, find_benchmark, find_data
    from emma.serve import find_model

    check_image_control(settings.image_control)

    benchmark = find_benchmark(name)
    if settings.model:
        folder = Path(settings.model).expanduser()
    else:
        folder = find_model()
        print(f"model: {folder} (the last quickstart model)", file=sys.stderr)
    from emma.checkpoints import provenance

    data = find_data(benchmark, settings.data, provenance.read(folder))
    suffix = "" if settings.image_control == "none" else f"-{settings.image_control}"
    output = Path(settings.output) if settings.output else folder / "eval" / f"{benchmark.name}{suffix}"

    from emma.eval.report import as_markdown
    from emma.eval.runner import evaluate, questions_hash

    questions_hash(benchmark, benchmark.items(data, Path(settings.images) if settings.images else None))

    from transformers.utils import logging as transformers_logging

    import emma

    transformers_logging.disable_progress_bar()
    model, processor = emma.load(folder, dtype=settings.dtype, device=settings.device)
    report = evaluate(
        benchmark,
        model,
        processor,
        data,
        output,
        folder=folder,
        batch_size=settings.batch_size,
        image_control=settings.image_control,
        max_new_tokens=settings.max_new_tokens,
        images=settings.images,
        restart=settings.restart,
    )
    print(as_markdown(report))
    print(f"report: {output / 'report.md'}")


def score(arguments: argparse.Namespace) -> None:
    """`score`: one JSON object on standard output."""
    from emma.eval.benchmark import find_benchmark
    from emma.eval.report import score_report

    annotations = Path(arguments.annotations)
    if not annotations.is_dir():
        raise EmmaError(f"--annotations {annotations}: no such folder")
    settings = {}
    for word in arguments.settings:
        key, equals, value = word.partition("=")
        if not equals or key in settings:
            raise EmmaError(f"{word!r}: expected key=value, each key once")
        settings[key] = value
    benchmark = find_benchmark(arguments.benchmark)
    result = score_report(benchmark, annotations, Path(arguments.predictions), settings)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    print(text)
    _write(arguments.output, text + "\n")


def report(arguments: argparse.Namespace) -> None:
    """`report`: a markdown table on standard output."""
    from emma.eval.report import as_table, find_reports

    table = as_table(find_reports(arguments.runs))
    print(table, end="")
    _write(arguments.output, table)


def _write(path: str | None, text: str) -> None:
    if path:
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise EmmaError(f"cannot write {path}: {error.strerror}") from error


@cli
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parsed = parse(arguments)
    if parsed.command == "run":
        run(parsed.benchmark, settings_from(parsed))
    elif parsed.command == "score":
        score(parsed)
    else:
        report(parsed)


if __name__ == "__main__":
    main()
