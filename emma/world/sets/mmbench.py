"""MMBench's format: one table with the pictures in it, and every question once with each rotation of its options."""

import base64
import csv
import io
import random
from pathlib import Path

from emma.world.language import Question, questions
from emma.world.render import render
from emma.world.scenes import draw_scenes
from emma.world.sets.files import make_folder

QUESTIONS_PER_SCENE = 2
SHIFT = 1_000_000
COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category", "comment",
    "split",
)  # fmt: skip
# A model of the world was trained on two options; more of them are a harder test.
NUMBERS_OF_OPTIONS = (2, 2, 3, 2, 2, 4)


def write_mmbench(folder: Path, number: int, seed: int) -> int:
    """`mmbench_dev_20230712.tsv` about `number` held-out scenes; returns the number of rows.

    Row i + k * 1000000 is row i with its options moved left by k, and the right letter with them.
    """
    rng = random.Random(seed)
    rows: list[tuple[int, dict]] = []
    asked = 0
    for scene in draw_scenes(number, seed, held_out=True):
        buffer = io.BytesIO()
        render(scene, rng).save(buffer, "JPEG", quality=95)
        image = base64.b64encode(buffer.getvalue()).decode()
        for question in questions(scene, rng, QUESTIONS_PER_SCENE):
            options = _options(question, NUMBERS_OF_OPTIONS[asked % len(NUMBERS_OF_OPTIONS)], rng)
            for shift in range(len(options)):
                rows.append((asked + shift * SHIFT, _row(question, options[shift:] + options[:shift], image)))
            asked += 1
    rows.sort(key=lambda row: row[0])
    with (make_folder(folder) / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", delimiter="\t")
        writer.writeheader()
        writer.writerows({"index": index} | row for index, row in rows)
    return len(rows)


def _options(question: Question, number: int, rng: random.Random) -> list[str]:
    """The answer among `number` options, or as many as there are."""
    options = [question.answer, *rng.sample(question.wrong, min(number - 1, len(question.wrong)))]
    rng.shuffle(options)
    return options


def _row(question: Question, options: list[str], image: str) -> dict[str, str]:
    letters = dict(zip("ABCD", options, strict=False))
    scope = "cross-instance" if question.type in ("relation", "count") else "instance-level"
    return {
        "question": question.text,
        **letters,
        "answer": next(letter for letter, option in letters.items() if option == question.answer),
        "category": question.type.replace(" ", "_"),
        "image": image,
        "source": "world",
        "l2-category": f"finegrained_perception ({scope})",
        "split": "dev",
    }
