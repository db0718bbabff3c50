"""VQAv2: open questions about COCO images, ten answers each."""

from pathlib import Path

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
    ("questions", "score"),
    "which questions; only val2014 and train2014 have published answers, the others are scored by a server",
)
SETTINGS = (SPLIT, vqa.PREDICTIONS)


def read(data: Path, split: str = "val2014") -> list[vqa.Question]:
    """Questions of a split, with their text."""
    name = f"v2_OpenEnded_mscoco_{split}_questions.json"
    return vqa.read_questions(data, (name, f"*/{name}"), "VQAv2")


def score(data: Path, answers: list[Answer], split: str = "val2014", predictions: str = "processed") -> Score:
    """Accuracy (primary), by answer type (yes/no, number, other) and by question type."""
    name = f"v2_mscoco_{split}_annotations.json"
    questions = vqa.read_annotations(data, (name, f"*/{name}"), "VQAv2")
    return vqa.score_questions(questions, answers, predictions)
