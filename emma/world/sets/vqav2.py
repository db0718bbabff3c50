"""VQAv2's format: questions with ten people's answers, not all of one mind."""

import random
from pathlib import Path

from emma.world.language import Question, questions
from emma.world.scenes import draw_scenes
from emma.world.sets.files import coco_name, make_folder, save_jpeg, write_json

QUESTIONS_PER_SCENE = 8
PEOPLE = 10
MOST_ASTRAY = 3  # of the ten, at most so many give another answer
OPENINGS = (
    "is there an", "is there a", "is the", "how many", "what color is the", "what shape is the", "what size is the",
    "where is the", "what is in the",
)  # fmt: skip
HEAD = {
    "info": {"description": "questions about the tiny world", "version": "1.0"},
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "license": {"name": "as the project"},
}


def write_vqav2(folder: Path, number: int, seed: int) -> int:
    """The two files of VQAv2's validation part and `val2014`, on `number` held-out scenes; returns how many questions.

    For half of the questions all ten agree, for the others up to three say something else of the same kind.
    """
    rng = random.Random(seed)
    images = make_folder(folder / "val2014")
    asked, answered = [], []
    for i, scene in enumerate(draw_scenes(number, seed, held_out=True), 1):
        save_jpeg(scene, images / coco_name(i), rng)
        for k, question in enumerate(questions(scene, rng, QUESTIONS_PER_SCENE)):
            key = {"image_id": i, "question_id": 1000 * i + k}
            asked.append(key | {"question": question.text})
            answered.append(key | _annotation(question, rng))
    write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", HEAD | {"task_type": "Open-Ended", "questions": asked}
    )
    write_json(folder / "v2_mscoco_val2014_annotations.json", HEAD | {"annotations": answered})
    return len(asked)


def _annotation(question: Question, rng: random.Random) -> dict:
    truth = question.answer.lower()
    astray = rng.randint(1, MOST_ASTRAY) if rng.random() < 0.5 else 0
    said = [truth] * (PEOPLE - astray) + [rng.choice(question.wrong).lower() for _ in range(astray)]
    rng.shuffle(said)
    answer_type = "yes/no" if truth in ("yes", "no") else "number" if truth.isdigit() else "other"
    opening = next(o for o in OPENINGS if question.text.lower().startswith(f"{o} "))
    return {
        "question_type": opening,
        "answer_type": answer_type,
        "multiple_choice_answer": truth,
        "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(said, 1)],
    }
