"""The world's evaluation sets on held-out scenes: questions by type, MMVP's pairs, and POPE's three files."""

import csv
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from emma.world.language import absent_names, existence_text, questions
from emma.world.render import render
from emma.world.scenes import COLORS, GRID, SHAPES, SIZES, Object, Scene, draw_scene, draw_scenes

QUESTIONS_PER_SCENE = 8
POPE_PER_IMAGE = 3  # present and as many absent objects a picture


def write_questions(folder: Path, number: int, seed: int) -> int:
    """`questions.jsonl`: eight questions on each of `number` held-out scenes, with their types; returns how many."""
    rng = random.Random(seed)
    images = _folder(folder / "images")
    rows: list[dict] = []
    for i, scene in enumerate(draw_scenes(number, seed, held_out=True)):
        name = f"scene_{i}.png"
        render(scene, rng).save(images / name)
        for q in questions(scene, rng, QUESTIONS_PER_SCENE):
            rows.append({"question_id": len(rows), "image": name, "text": q.text, "answer": q.answer, "type": q.type})
    _write_lines(folder / "questions.jsonl", rows)
    return len(rows)


def write_pope(folder: Path, number: int, seed: int) -> int:
    """POPE's own three files: existence of colour-and-shape names, asked half of the time about absent ones.

    As in POPE, the absent names are drawn at random, from those most frequent in the set, or (adversarial) from those
    most like the picture's own: here, sharing a colour or a shape with an object that is there. Scenes hold three or
    four objects, as POPE asks about pictures with at least three. Returns the number of questions.
    """
    rng = random.Random(seed)
    images = _folder(folder / "images")
    scenes = [_scene_of_at_least(POPE_PER_IMAGE, rng) for _ in range(number)]
    frequent = [name for name, _ in Counter(o.name for s in scenes for o in s.objects).most_common()]
    for i, scene in enumerate(scenes):
        render(scene, rng).save(images / pope_image(i), quality=95)
    total = 0
    for category in ("random", "popular", "adversarial"):
        rows: list[dict] = []
        for i, scene in enumerate(scenes):
            absent = absent_names(scene, near=category == "adversarial")
            if category == "popular":
                chosen = [name for name in frequent if name in absent][:POPE_PER_IMAGE]
            else:
                chosen = rng.sample(absent, POPE_PER_IMAGE)
            present = rng.sample([o.name for o in scene.objects], POPE_PER_IMAGE)
            for yes, no in zip(present, chosen, strict=True):
                for name, label in ((yes, "yes"), (no, "no")):
                    row = {"question_id": len(rows) + 1, "image": pope_image(i)}
                    rows.append({**row, "text": existence_text(name), "label": label})
        _write_lines(folder / f"coco_pope_{category}.json", rows)
        total += len(rows)
    return total


def pope_image(index: int) -> str:
    return f"COCO_val2014_{index:012d}.jpg"


def _scene_of_at_least(objects: int, rng: random.Random) -> Scene:
    while len((scene := draw_scene(rng, held_out=True)).objects) < objects:
        pass
    return scene


def write_mmvp(folder: Path, pairs: int, seed: int) -> int:
    """MMVP's layout: pairs of pictures that differ in one trait, one question for both, two options, opposite answers.

    Returns the number of questions, twice the number of pairs.
    """
    rng = random.Random(seed)
    images = _folder(folder / "MMVP Images")
    rows: list[tuple[int, str, str, str]] = []
    for i in range(pairs):
        kind = ("color", "shape", "size", "column", "row", "relation")[i % 6]
        first, second, question, options = _pair(kind, rng)
        look = rng.getrandbits(32)  # the two pictures share background, shades and shifts
        for scene, letter in ((first, "(a)"), (second, "(b)")):
            render(scene, random.Random(look)).save(images / f"{len(rows) + 1}.jpg", quality=95)
            rows.append((len(rows) + 1, question, f"(a) {options[0]} (b) {options[1]}", letter))
    for i in range(0, len(rows), 2):  # the right letter of a pair's first row is (a) in one pair of two
        if rng.random() < 0.5:
            (n1, q, both, _), (n2, *_) = rows[i], rows[i + 1]
            a, b = both.removeprefix("(a) ").split(" (b) ")
            rows[i], rows[i + 1] = (n1, q, f"(a) {b} (b) {a}", "(b)"), (n2, q, f"(a) {b} (b) {a}", "(a)")
    with (folder / "Questions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("Index", "Question", "Options", "Correct Answer"))
        writer.writerows(rows)
    return len(rows)


def _pair(kind: str, rng: random.Random) -> tuple[Scene, Scene, str, tuple[str, str]]:
    """Two held-out scenes, a question, and the answers for the first and for the second scene."""
    while True:
        scene = draw_scene(rng, held_out=True)
        made = _relation_pair(scene, rng) if kind == "relation" else _trait_pair(scene, kind, rng)
        if made is None:
            continue
        other, question, options = made
        if other.held_out and _valid(other):
            return scene, other, question, options


def _trait_pair(scene: Scene, kind: str, rng: random.Random) -> tuple[Scene, str, tuple[str, str]] | None:
    item = rng.choice(scene.objects)
    if kind == "color":
        changed = replace(item, color=rng.choice([c for c in COLORS if c != item.color]))
        question, options = f"What color is the object in the {item.place}?", (item.color, changed.color)
    elif kind == "shape":
        changed = replace(item, shape=rng.choice([s for s in SHAPES if s != item.shape]))
        question, options = f"What shape is the object in the {item.place}?", (item.shape, changed.shape)
    elif kind == "size":
        changed = replace(item, size=SIZES[1 - SIZES.index(item.size)])
        question, options = f"What size is the {item.name}?", (item.size, changed.size)
    elif kind == "column":
        changed = replace(item, column=rng.choice([c for c in range(GRID) if c != item.column]))
        question, options = f"Where is the {item.name}?", (item.place, changed.place)
    else:
        changed = replace(item, row=rng.choice([r for r in range(GRID) if r != item.row]))
        question, options = f"Where is the {item.name}?", (item.place, changed.place)
    return _with(scene, {item: changed}), question, options


def _relation_pair(scene: Scene, rng: random.Random) -> tuple[Scene, str, tuple[str, str]] | None:
    """The two objects of the question change places."""
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    swapped = {a: replace(a, row=b.row, column=b.column), b: replace(b, row=a.row, column=a.column)}
    if a.column != b.column:
        word, holds = "left of", a.column < b.column
    else:
        word, holds = "above", a.row < b.row
    return (
        _with(scene, swapped),
        f"Is the {a.name} {word} the {b.name}?",
        ("Yes", "No") if holds else ("No", "Yes"),
    )


def _with(scene: Scene, changes: dict[Object, Object]) -> Scene:
    return Scene(tuple(sorted(changes.get(o, o) for o in scene.objects)))


def _valid(scene: Scene) -> bool:
    cells = {(o.row, o.column) for o in scene.objects}
    return len(cells) == len(scene.objects) == len({o.name for o in scene.objects})


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
