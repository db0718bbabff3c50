"""AMBER's format: descriptions, and yes/no questions about what is there, how it is, and how things stand."""

import random
from pathlib import Path

from emma.world.language import absent_names, existence_text, relation
from emma.world.scenes import COLORS, PLACES, SHAPES, SIZES, Object, Scene, draw_scene
from emma.world.sets.files import make_folder, save_jpeg, write_json

ASSOCIATED = {"circle": ["disc", "ring"], "square": ["box"], "triangle": ["wedge"], "cross": ["plus"]}
SAFE_WORDS = ("image", "picture", "background", "object", "shape")
NUMBERS = ("one", "two", "three", "four")
PARTS = (
    "discriminative-attribute-state", "discriminative-attribute-number", "discriminative-attribute-action",
    "discriminative-hallucination", "discriminative-relation", "relation",
)  # fmt: skip


def write_amber(folder: Path, number: int, seed: int) -> int:
    """`image`, `data/query`, `data/annotations.json`, `data/relation.json` and `data/safe_words.txt`; returns how many
    queries: one description and up to seven questions on each of `number` held-out scenes.

    Types, order of ids and answers are AMBER's: descriptions first, then attributes (half of them yes), existence (all
    no), relations that hold and relations that do not. Objects are shapes, so a scene lacks at least one. Nothing acts
    in this world: under `action` it is asked where things are.
    """
    rng = random.Random(seed)
    images = make_folder(folder / "image")
    rows: list[tuple[str, dict, dict]] = []  # type, query and annotation, without the id
    for i in range(1, number + 1):
        scene = _scene_with_a_missing_shape(rng)
        image = f"AMBER_{i}.jpg"
        save_jpeg(scene, images / image, rng)
        present = list(dict.fromkeys(o.shape for o in scene.objects))
        absent = [shape for shape in SHAPES if shape not in present]
        described = {"truth": present, "hallu": absent}
        rows.append(("generative", {"image": image, "query": "Describe this image."}, described))
        for kind, text, truth in _asked(scene, i, rng):
            rows.append((kind, {"image": image, "query": text}, {"truth": truth}))
    rows.sort(key=lambda row: ("generative", *PARTS).index(row[0]))
    queries = [{"id": id} | query for id, (_, query, _) in enumerate(rows, 1)]
    annotations = [{"id": id, "type": kind} | truth for id, (kind, _, truth) in enumerate(rows, 1)]
    _write_queries(folder / "data" / "query", queries, [kind for kind, *_ in rows])
    write_json(folder / "data" / "annotations.json", annotations)
    write_json(folder / "data" / "relation.json", ASSOCIATED)
    (folder / "data" / "safe_words.txt").write_text("".join(f"{word}\n" for word in SAFE_WORDS))
    return len(rows)


def _write_queries(folder: Path, queries: list[dict], kinds: list[str]) -> None:
    files = {
        "all": lambda kind: True,
        "generative": lambda kind: kind == "generative",
        "discriminative": lambda kind: kind != "generative",
        "discriminative-attribute": lambda kind: "attribute" in kind,
        "discriminative-existence": lambda kind: "hallucination" in kind,
        "discriminative-relation": lambda kind: "relation" in kind,
    }
    for name, belongs in files.items():
        chosen = [query for query, kind in zip(queries, kinds, strict=True) if belongs(kind)]
        write_json(folder / f"query_{name}.json", chosen)


def _scene_with_a_missing_shape(rng: random.Random) -> Scene:
    while True:
        scene = draw_scene(rng, held_out=True)
        if len({o.shape for o in scene.objects}) < len(SHAPES):
            return scene


def _asked(scene: Scene, index: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """(type, query, answer) of the yes/no questions; attributes hold in every other scene."""
    item, holds = rng.choice(scene.objects), index % 2 == 0
    asked = [
        (f"discriminative-attribute-{kind}", text, "yes" if holds else "no")
        for kind, text in (
            ("state", _state(item, holds, rng)),
            ("number", _number(scene, item, holds, rng)),
            ("action", _place(item, holds, rng)),
        )
    ]
    asked += [
        ("discriminative-hallucination", existence_text(name), "no")
        for name in rng.sample(absent_names(scene, near=True), 2)
    ]
    found: dict[str, str] = {}
    for _ in range(20):
        if question := relation(scene, rng):
            found.setdefault(question.answer, question.text)
    kinds = {"Yes": "discriminative-relation", "No": "relation"}
    return asked + [(kinds[answer], text, answer.lower()) for answer, text in found.items()]


def _state(item: Object, holds: bool, rng: random.Random) -> str:
    size = item.size if holds else SIZES[1 - SIZES.index(item.size)]
    color = item.color if holds else rng.choice([c for c in COLORS if c != item.color])
    if rng.random() < 0.5:
        return f"Is the {item.name} {size}?"
    return f"Is the object in the {item.place} {color}?"


def _number(scene: Scene, item: Object, holds: bool, rng: random.Random) -> str:
    truth = sum(o.shape == item.shape for o in scene.objects)
    number = truth if holds else rng.choice([n for n in range(1, len(NUMBERS) + 1) if n != truth])
    noun = item.shape if number == 1 else item.shape + ("es" if item.shape.endswith("s") else "s")
    return f"{'Is' if number == 1 else 'Are'} there {NUMBERS[number - 1]} {noun} in the image?"


def _place(item: Object, holds: bool, rng: random.Random) -> str:
    others = [place for row in PLACES for place in row if place != item.place]
    return f"Is the {item.name} in the {item.place if holds else rng.choice(others)}?"
