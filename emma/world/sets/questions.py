"""The world's own set: held-out questions by type."""

import random
from pathlib import Path

from emma.world.language import questions
from emma.world.render import render
from emma.world.scenes import draw_scenes
from emma.world.sets.files import make_folder, write_lines

QUESTIONS_PER_SCENE = 8


def write_questions(folder: Path, number: int, seed: int, per_scene: int = QUESTIONS_PER_SCENE) -> int:
    """`questions.jsonl`: `per_scene` questions on each of `number` held-out scenes, by type; returns how many."""
    rng = random.Random(seed)
    images = make_folder(folder / "images")
    rows: list[dict] = []
    for i, scene in enumerate(draw_scenes(number, seed, held_out=True)):
        name = f"scene_{i}.png"
        render(scene, rng).save(images / name)
        for q in questions(scene, rng, per_scene):
            rows.append({"question_id": len(rows), "image": name, "text": q.text, "answer": q.answer, "type": q.type})
    write_lines(folder / "questions.jsonl", rows)
    return len(rows)
