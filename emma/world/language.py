"""What is said about a scene: captions, the scene told in words, and the questions of each type with their answers."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from emma.world.scenes import COLORS, GRID, PLACES, SHAPES, SIZES, Object, Scene

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION_REQUESTS = (
    "Describe the image.",
    "Describe the image briefly.",
    "What is in the image?",
    "Give a short description of the image.",
    "Summarize the image.",
)
COUNTS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Question:
    """A question about one scene, its answer, and wrong answers of the same kind (for multiple choice)."""

    type: str
    text: str
    answer: str
    wrong: tuple[str, ...]


def phrase(item: Object) -> str:
    return f"{item.size} {item.color} {item.shape}"


def caption(scene: Scene) -> str:
    """All objects in reading order, as an LLM says it."""
    return ", ".join(f"a {phrase(o)} in the {o.place}" for o in scene.objects) + "."


def alt_text(scene: Scene, rng: random.Random) -> str:
    """All objects in any order and few words, as CLIP's training captions have it."""
    return ", ".join(f"{phrase(o)} {o.place}" for o in rng.sample(scene.objects, len(scene.objects)))


def tell(scene: Scene) -> str:
    """The scene in words for a reader without eyes: all objects in reading order."""
    return ", ".join(f"{o.place} {phrase(o)}" for o in scene.objects)


def _yes_no(kind: str, text: str, holds: bool) -> Question:
    return Question(kind, text, "Yes" if holds else "No", ("No" if holds else "Yes",))


def _others(answer: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(v for v in values if v != answer)


def existence(scene: Scene, rng: random.Random) -> Question:
    """Half of the answers are yes; half of the absent objects share a colour and a shape with present ones."""
    if rng.random() < 0.5:
        name, holds = rng.choice(scene.objects).name, True
    else:
        name, holds = rng.choice(absent_names(scene, near=rng.random() < 0.5)), False
    return _yes_no("existence", existence_text(name), holds)


def existence_text(name: str) -> str:
    return f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the image?"


def absent_names(scene: Scene, near: bool) -> list[str]:
    """Colour-and-shape names that are not in the scene; `near`: only those that share one of the two with an object."""
    names = {o.name for o in scene.objects}
    colors = {o.color for o in scene.objects}
    shapes = {o.shape for o in scene.objects}
    return [
        f"{color} {shape}"
        for color in COLORS
        for shape in SHAPES
        if f"{color} {shape}" not in names and (not near or color in colors or shape in shapes)
    ]


def count(scene: Scene, rng: random.Random) -> Question:
    kind = rng.randrange(3)
    if kind == 0:
        what, number = "objects", len(scene.objects)
    elif kind == 1:
        shape = rng.choice(SHAPES) if rng.random() < 0.4 else rng.choice(scene.objects).shape
        plural = shape + ("es" if shape.endswith("s") else "s")
        what, number = plural, sum(o.shape == shape for o in scene.objects)
    else:
        color = rng.choice(COLORS) if rng.random() < 0.4 else rng.choice(scene.objects).color
        what, number = f"{color} objects", sum(o.color == color for o in scene.objects)
    return Question("count", f"How many {what} are there?", str(number), _others(str(number), COUNTS))


def color(scene: Scene, rng: random.Random) -> Question | None:
    """The colour of the only object of its shape, or of the object at a place."""
    item = rng.choice(scene.objects)
    if rng.random() < 0.5 and sum(o.shape == item.shape for o in scene.objects) == 1:
        text = f"What color is the {item.shape}?"
    else:
        text = f"What color is the object in the {item.place}?"
    return Question("color", text, item.color, _others(item.color, COLORS))


def shape(scene: Scene, rng: random.Random) -> Question | None:
    """The shape of the only object of its colour, or of the object at a place."""
    item = rng.choice(scene.objects)
    if rng.random() < 0.5 and sum(o.color == item.color for o in scene.objects) == 1:
        text = f"What shape is the {item.color} object?"
    else:
        text = f"What shape is the object in the {item.place}?"
    return Question("shape", text, item.shape, _others(item.shape, SHAPES))


def size(scene: Scene, rng: random.Random) -> Question:
    item = rng.choice(scene.objects)
    return Question("size", f"What size is the {item.name}?", item.size, _others(item.size, SIZES))


def place(scene: Scene, rng: random.Random) -> Question:
    item = rng.choice(scene.objects)
    places = tuple(place for row in PLACES for place in row)
    return Question("place", f"Where is the {item.name}?", item.place, _others(item.place, places))


def relation(scene: Scene, rng: random.Random) -> Question | None:
    """Left of, right of, above or below, of two objects that differ along that axis."""
    if len(scene.objects) < 2:
        return None
    a, b = rng.sample(scene.objects, 2)
    word = rng.choice(("left of", "right of", "above", "below"))
    difference = b.column - a.column if word in ("left of", "right of") else b.row - a.row
    if difference == 0:
        return None
    holds = difference > 0 if word in ("left of", "above") else difference < 0
    return _yes_no("relation", f"Is the {a.name} {word} the {b.name}?", holds)


def what_is_where(scene: Scene, rng: random.Random) -> Question:
    """The object at a place; one answer in four is `nothing`."""
    if rng.random() < 0.25:
        row, column = rng.choice([(r, c) for r in range(GRID) for c in range(GRID) if scene.at(r, c) is None])
        answer = "nothing"
    else:
        item = rng.choice(scene.objects)
        row, column, answer = item.row, item.column, item.name
    wrong = tuple(n for n in absent_names(scene, near=True))
    return Question("what is where", f"What is in the {PLACES[row][column]}?", answer, wrong)


QUESTION_TYPES: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "existence": existence,
    "count": count,
    "color": color,
    "shape": shape,
    "size": size,
    "place": place,
    "relation": relation,
    "what is where": what_is_where,
}


def questions(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """`number` different questions, the types in turn in random order, so that all are asked equally often."""
    kinds = list(QUESTION_TYPES.values())
    rng.shuffle(kinds)
    found: dict[str, Question] = {}
    for attempt in range(20 * number):
        if len(found) == number:
            break
        question = kinds[attempt % len(kinds)](scene, rng)
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


def multiple_choice(question: Question, rng: random.Random, number: int = 2) -> tuple[str, str]:
    """The question with lettered options (each on its line) and the letter of the right one."""
    options = [question.answer, *rng.sample(question.wrong, min(number - 1, len(question.wrong)))]
    rng.shuffle(options)
    letters = "ABCD"
    lines = [question.text, *(f"{letter}. {option}" for letter, option in zip(letters, options, strict=False))]
    return "\n".join(lines), letters[options.index(question.answer)]
