"""GQA's format: questions with the types of their structure and meaning."""

import random
from pathlib import Path

from emma.world.language import Question, questions
from emma.world.scenes import draw_scenes
from emma.world.sets.files import make_folder, save_jpeg, write_json

QUESTIONS_PER_SCENE = 9
# (structural, semantic, detailed) as GQA names them; it does not count things.
TYPES = {
    "existence": ("verify", "obj", "exist"),
    "relation": ("verify", "rel", "relVerify"),
    "color": ("query", "attr", "directOf"),
    "shape": ("query", "attr", "directOf"),
    "size": ("query", "attr", "directOf"),
    "place": ("query", "rel", "relO"),
    "what is where": ("query", "obj", "categoryThis"),
}


def write_gqa(folder: Path, number: int, seed: int) -> int:
    """`questions1.2/testdev_balanced_questions.json` and `images`, on `number` held-out scenes; returns how many
    questions. Queries of one kind form a global group, from which the distribution figure is made."""
    rng = random.Random(seed)
    images = make_folder(folder / "images")
    rows: dict[str, dict] = {}
    for i, scene in enumerate(draw_scenes(number, seed, held_out=True)):
        save_jpeg(scene, images / f"n{i}.jpg", rng)
        for question in questions(scene, rng, QUESTIONS_PER_SCENE):
            if question.type in TYPES:
                id = f"{len(rows) + 1:08d}"
                rows[id] = _row(id, f"n{i}", question)
    write_json(folder / "questions1.2" / "testdev_balanced_questions.json", rows)
    return len(rows)


def _row(id: str, image: str, question: Question) -> dict:
    structural, semantic, detailed = TYPES[question.type]
    return {
        "question": question.text,
        "answer": question.answer.lower(),
        "fullAnswer": f"{question.answer}.",
        "imageId": image,
        "isBalanced": True,
        "types": {"structural": structural, "semantic": semantic, "detailed": detailed},
        "groups": {"global": question.type if structural == "query" else None, "local": None},
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "semanticStr": "select: scene",
        "entailed": [],
        "equivalent": [id],
        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
    }
