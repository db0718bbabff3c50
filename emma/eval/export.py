"""Files for evaluation servers, which hold the answers that are not published."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.benchmark import Benchmark
from emma.eval.scoring import mmbench, mmmu, seed_bench, vizwiz, vqav2
from emma.eval.scoring.mmmu_parse import SEED, parse_letter
from emma.eval.scoring.vqa_metric import processed
from emma.eval.settings import choose

SERVER_SPLITS = {"mmmu": "test", "vizwiz": "test", "vqav2": "test2015"}


def export(
    benchmark: Benchmark, data: Path, answers: list[Answer], output: Path, settings: Mapping[str, str]
) -> dict[str, int]:
    """Write the submission file of a benchmark; returns the counts of `answers.match`.

    `settings` are those given; without a split it is the one that the server scores.

    Raises:
        EmmaError: a benchmark without a server, a setting that the file does not depend on, a missing answer where the
            server wants all, a file that cannot be written.
    """
    name = benchmark.name
    if name not in EXPORTS:
        raise EmmaError(f"{name} has no submission file; these have: {', '.join(sorted(EXPORTS))}")
    own = [setting for setting in benchmark.settings if "export" in setting.affects]
    split = {"split": SERVER_SPLITS[name]} if name in SERVER_SPLITS else {}
    chosen = choose(own, split | dict(settings), f"export of {benchmark.title}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return EXPORTS[name](data, answers, output, **chosen)
    except OSError as error:
        raise EmmaError(f"cannot write {output}: {error.strerror}") from error


def _json(output: Path, content: Any) -> None:
    output.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def export_vqav2(data: Path, answers: list[Answer], output: Path, split: str, predictions: str) -> dict[str, int]:
    """EvalAI: every question of the split's list in its order, processed as LLaVA does; "" where there is no answer.

    The server wants the whole test2015 list, also for answers to test-dev2015.
    """
    whole = "test2015" if split == "test-dev2015" else split
    questions = vqav2.read(data, whole)
    matched = match((question.id for question in questions), answers)
    change = processed if predictions == "processed" else str
    rows = [{"question_id": int(q.id), "answer": change(matched.texts.get(q.id, ""))} for q in questions]
    _json(output, rows)
    return matched.counts


def export_vizwiz(data: Path, answers: list[Answer], output: Path, split: str, predictions: str) -> dict[str, int]:
    """EvalAI: image and processed answer in the order of the questions; every question must be answered."""
    rows = vizwiz.read(data, split)
    matched = match((row.image for row in rows), vizwiz.name_answers(rows, answers))
    if missing := [row.image for row in rows if row.image not in matched.texts]:
        raise EmmaError(f"VizWiz wants an answer to every question: {len(missing)} are missing, first {missing[0]}")
    change = processed if predictions == "processed" else str
    _json(output, [{"image": row.image, "answer": change(matched.texts[row.image])} for row in rows])
    return matched.counts


def _mmbench(language: str) -> Callable[..., dict[str, int]]:
    def write(data: Path, answers: list[Answer], output: Path, file: str) -> dict[str, int]:
        """OpenCompass: an Excel sheet, one row for each row of the file, with the raw text as prediction."""
        try:
            from openpyxl import Workbook
            from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
        except ImportError as error:
            raise EmmaError("MMBench's server takes an Excel sheet: pip install 'emma-vlm[eval]' (openpyxl)") from error
        rows = mmbench.read(data, language, file)
        matched = match((str(row.index) for row in rows), answers)
        book = Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"])
        for row in rows:
            text = ILLEGAL_CHARACTERS_RE.sub("", matched.texts.get(str(row.index), ""))
            options = [row.options.get(letter, "") for letter in "ABCD"]
            sheet.append([row.index, row.question, *options, text, row.answer, row.split])
        book.save(output)
        return matched.counts

    return write


def export_mmmu(data: Path, answers: list[Answer], output: Path, split: str) -> dict[str, int]:
    """EvalAI: an object id -> answer; the letter read from the text by the official rule, or an open one's text."""
    rows = mmmu.read(data, split)
    matched = match((row.id for row in rows), answers)
    rng = random.Random(SEED)
    content = {}
    for row in rows:
        if row.id in matched.texts:
            text = matched.texts[row.id]
            content[row.id] = parse_letter(text, row.options, rng)[0] if row.options else text
    _json(output, content)
    return matched.counts


def export_seed_bench(data: Path, answers: list[Answer], output: Path) -> dict[str, int]:
    """JSON lines of question_id and prediction."""
    rows = seed_bench.read(data)
    matched = match((row.id for row in rows), answers)
    lines = [
        json.dumps({"question_id": row.id, "prediction": matched.texts[row.id]}) + "\n"
        for row in rows
        if row.id in matched.texts
    ]
    output.write_text("".join(lines), encoding="utf-8")
    return matched.counts


EXPORTS: dict[str, Callable[..., dict[str, int]]] = {
    "mmbench_cn": _mmbench("cn"),
    "mmbench_en": _mmbench("en"),
    "mmmu": export_mmmu,
    "seed_bench": export_seed_bench,
    "vizwiz": export_vizwiz,
    "vqav2": export_vqav2,
}
