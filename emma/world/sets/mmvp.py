"""MMVP's format: pairs of pictures that differ in one trait, with one question for both."""

import csv
import random
from dataclasses import replace
from pathlib import Path

from emma.world.scenes import COLORS, GRID, SHAPES, SIZES, Object, Scene, draw_scene
from emma.world.sets.files import make_folder, save_jpeg


def write_mmvp(folder: Path, pairs: int, seed: int) -> int:
    """MMVP's layout: pairs of pictures that differ in one trait, one question for both, two options, opposite answers.

    Returns the number of questions, twice the number of pairs.
    """
    rng = random.Random(seed)
    images = make_folder(folder / "MMVP Images")
    rows: list[tuple[int, str, str, str]] = []
    for i in range(pairs):
        kind = ("color", "shape", "size", "column", "row", "relation")[i % 6]
        first, second, question, options = _pair(kind, rng)
        look = rng.getrandbits(32)  # the two pictures share background, shades and shifts
        for scene, letter in ((first, "(a)"), (second, "(b)")):
            save_jpeg(scene, images / f"{len(rows) + 1}.jpg", random.Random(look))
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
