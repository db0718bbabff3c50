"""A benchmark's items as the questions of one run, and the order they are asked in."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence

from emma.errors import EmmaError
from emma.eval.answering import Answerer, Question
from emma.eval.benchmark import Benchmark, Item
from emma.eval.controls import Controls
from emma.eval.pictures import Pasted, Picture, describe


def make_questions(
    benchmark: Benchmark, items: Sequence[Item], answerer: Answerer, controls: Controls
) -> list[Question]:
    """One question an item, in the items' order: the instruction is what the model's rule makes of the question field,
    several pictures are laid out as the benchmark declares, and controls are applied."""
    questions = []
    for item in items:
        pictures: tuple[Picture, ...] = item.images
        if len(item.images) > 1 and benchmark.several_images == "side_by_side":
            pictures = (Pasted(item.images),)
        instruction = answerer.instruction(item.question) if pictures else None
        questions.append(Question(item.id, item.prompt, pictures, instruction))
    return controls.apply(questions)


def groups_by_picture(questions: Sequence[Question]) -> list[list[Question]]:
    """The order of asking: questions about the same pictures together, so that these are encoded once; those with most
    pictures, then with the longest prompts, first, so that a batch is alike in length and the largest comes first."""
    groups: dict[object, list[Question]] = defaultdict(list)
    for question in questions:
        groups[question.pictures or question.id].append(question)
    for group in groups.values():
        group.sort(key=lambda question: (-len(question.prompt), question.id))
    return sorted(groups.values(), key=lambda g: (-len(g[0].pictures), -len(g[0].prompt), g[0].id))


def questions_hash(benchmark: Benchmark, items: Sequence[Item]) -> str:
    """sha256 over ids, prompts, question fields, and names and sizes of images, in an order of its own.

    Raises:
        EmmaError: images are missing, or two questions have one id; nothing has been asked by then.
    """
    id, times = Counter(item.id for item in items).most_common(1)[0] if items else ("", 1)
    if times > 1:
        raise EmmaError(f"{benchmark.title}: {times} questions have the id {id!r}; answers could not be told apart")
    rows, missing = [], []
    for item in sorted(items, key=lambda item: item.id):
        pictures = []
        for picture in item.images:
            try:
                pictures.append(describe(picture))
            except FileNotFoundError:
                missing.append(f"{picture} (question {item.id})")
        rows.append((item.id, item.prompt, item.question, pictures))
    if missing:
        raise EmmaError(f"{benchmark.title}: {len(missing)} images are missing, the first is {missing[0]}")
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
