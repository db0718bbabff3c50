"""MME: two yes/no questions an image in fourteen tasks, scored in points."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.score import Figure, Floats, Score, figure, ratio

SCORER = "MME's calculation: accuracy + accuracy-plus of each task"
VERSION = 1
SETTINGS = ()
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUFFIX = "Please answer yes or no."
IMAGES = (".jpg", ".png", ".jpeg")


@dataclass(frozen=True)
class Row:
    """A question; `picture` is the image's path inside the data, which both questions about it share."""

    id: str
    task: str
    picture: str
    question: str
    yes: bool


def read(data: Path) -> list[Row]:
    """Questions of every task folder, in order of task, name and line; `task/name.jpg/line` is a question's own id.

    Raises:
        EmmaError: no task folder, or a line that is no question and answer.
    """
    root = next((f for f in (Path(data) / "MME_Benchmark_release_version", Path(data)) if f.is_dir()), Path(data))
    rows = []
    for task in (*PERCEPTION, *COGNITION):
        for folder in (root / task / "questions_answers_YN", root / task):
            if files := sorted(folder.glob("*.txt")):
                rows += [row for file in files for row in _file(root, task, file)]
                break
    if not rows:
        raise EmmaError(f"no MME questions in {data}: expected folders such as existence/ with a .txt for every image")
    return rows


def _file(root: Path, task: str, file: Path) -> list[Row]:
    folder = root / task / "images" if (root / task / "images").is_dir() else file.parent
    picture = next((folder / f"{file.stem}{end}" for end in IMAGES if (folder / f"{file.stem}{end}").is_file()), None)
    name = picture or folder / f"{file.stem}.jpg"
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n")):
        if not line.strip():
            continue
        question, tab, answer = line.partition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise EmmaError(f"{file} line {number + 1}: expected question, tab, Yes or No; got {line[:60]!r}")
        id = f"{task}/{name.name}/{number}"
        rows.append(Row(id, task, str(name.relative_to(root)), question.strip(), answer.strip().lower() == "yes"))
    return rows


def bare(question: str) -> str:
    """The question without MME's own suffix."""
    return question.replace(SUFFIX, "").strip()


def name_answers(rows: list[Row], answers: list[Answer]) -> list[Answer]:
    """Answers under their question's own id. LLaVA's ids are `task/name.jpg` for both questions of an image: these are
    told apart by `question` (or `prompt`), else taken in file order."""
    waiting: dict[str, deque[Row]] = {}
    for row in rows:
        waiting.setdefault(row.id.rsplit("/", 1)[0], deque()).append(row)
    by_text = {(key, bare(row.question).lower()): row.id for key, queue in waiting.items() for row in queue}

    def name(answer: Answer) -> str | None:
        text = answer.fields.get("question", answer.fields.get("prompt"))
        if isinstance(text, str) and answer.id is not None:
            asked = bare(text.split("\n")[0]).lower()
            if (found := by_text.get((answer.id, asked))) is not None:
                return found
        if answer.id is not None and waiting.get(answer.id):
            return waiting[answer.id].popleft().id
        return answer.id

    return [replace(answer, id=name(answer)) for answer in answers]


def says_yes(text: str) -> bool | None:
    """True for yes, False for no, None for anything else: the text itself, or its first four characters."""
    text = text.lower()
    if text in ("yes", "no"):
        return text == "yes"
    head = text[:4]
    return True if "yes" in head else False if "no" in head else None


def _points(*starts: int) -> Callable[[Floats], Floats]:
    """Accuracy + accuracy-plus, summed over tasks, in hundreds of points: `figure` multiplies by 100."""

    def points(sums: Floats) -> Floats:
        parts = [ratio(sums[:, s], sums[:, s + 1]) + ratio(sums[:, s + 2], sums[:, s + 3]) for s in starts]
        return np.sum(parts, axis=0)

    return points


def score(data: Path, answers: list[Answer]) -> Score:
    """Perception (primary, at most 2000 points) and cognition (at most 800), and every task (at most 200).

    A task: accuracy x 100 + accuracy-plus x 100, the latter the share of images with both answers right. A missing
    answer is wrong.
    """
    rows = read(data)
    matched = match((row.id for row in rows), name_answers(rows, answers))
    right = {row.id: row.id in matched.texts and says_yes(matched.texts[row.id]) is row.yes for row in rows}
    tasks = list(dict.fromkeys(row.task for row in rows))
    pictures = list(dict.fromkeys((row.task, row.picture) for row in rows))
    counts = np.zeros((len(pictures), 4 * len(tasks)))
    for number, (task, picture) in enumerate(pictures):
        own = [right[row.id] for row in rows if (row.task, row.picture) == (task, picture)]
        start = 4 * tasks.index(task)
        counts[number, start : start + 4] = (sum(own), len(own), all(own), 1)

    figures: dict[str, Figure] = {}
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [4 * tasks.index(task) for task in members if task in tasks]
        if present:
            n = sum(row.task in members for row in rows)
            value = figure(counts, _points(*present), n, "questions")
            figures[name] = replace(value, scale="points")
    for task in tasks:
        start = 4 * tasks.index(task)
        of_task = counts[:, start : start + 4]
        n, of_images = int(of_task[:, 1].sum()), int(of_task[:, 3].sum())
        figures[task] = replace(figure(of_task, _points(0), n, "questions"), scale="points")
        figures[f"{task}/accuracy"] = figure(of_task, lambda s: ratio(s[:, 0], s[:, 1]), n, "questions")
        figures[f"{task}/accuracy_plus"] = figure(of_task, lambda s: ratio(s[:, 2], s[:, 3]), of_images, "images")
    primary = "perception" if "perception" in figures else "cognition"
    credits = {id: float(ok) for id, ok in right.items()}
    expected = {row.id: "yes" if row.yes else "no" for row in rows}
    return Score(primary, figures, "images", matched.counts, credits=credits, expected=expected)
