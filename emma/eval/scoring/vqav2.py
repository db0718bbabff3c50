"""VQAv2: open questions about COCO images, ten answers each."""

from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer
from emma.eval.scoring import vqa
from emma.eval.scoring.score import Score
from emma.eval.settings import Setting

SCORER = "VQA's evaluator (vqaEval.py)"
VERSION = 1
SPLIT = Setting(
    "split",
    "val2014",
    ("val2014", "train2014", "test-dev2015", "test2015"),
    ("questions", "score", "export"),
    "which questions; only val2014 and train2014 have published answers, the others are scored by a server",
)
SETTINGS = (SPLIT, vqa.PREDICTIONS, vqa.UNANIMOUS)


def read(data: Path, split: str = "val2014") -> list[vqa.Question]:
    """Questions of a split, with their text; where the official file is absent, from LLaVA's."""
    name = f"v2_OpenEnded_mscoco_{split}_questions.json"
    return vqa.read_questions(data, (name, f"*/{name}", f"llava_vqav2_mscoco_{split}.jsonl"), "VQAv2")


def score(
    data: Path,
    answers: list[Answer],
    split: str = "val2014",
    predictions: str = "processed",
    unanimous: str = "as_is",
) -> Score:
    """Accuracy (primary), by answer type (yes/no, number, other) and by question type."""
    if "2015" in split:
        raise EmmaError(f"VQAv2 {split} has no published answers: export a submission file for the server instead")
    name = f"v2_mscoco_{split}_annotations.json"
    questions = vqa.read_annotations(data, (name, f"*/{name}"), "VQAv2")
    return vqa.score_questions(questions, answers, predictions, unanimous)
