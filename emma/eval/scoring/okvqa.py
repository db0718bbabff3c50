"""OK-VQA: questions that need outside knowledge; five annotators, each answer twice, so ten records."""

from pathlib import Path

from emma.eval.answers import Answer
from emma.eval.scoring import vqa
from emma.eval.scoring.score import Score
from emma.eval.settings import Setting

SCORER = "VQA's evaluator (vqaEval.py)"
VERSION = 1
SPLIT = Setting("split", "val2014", ("val2014", "train2014"), ("questions", "score"), "val2014 is the test set")
SETTINGS = (SPLIT, vqa.PREDICTIONS)


def read(data: Path, split: str = "val2014") -> list[vqa.Question]:
    """Questions of a split, with their text."""
    name = f"OpenEnded_mscoco_{split}_questions.json"
    return vqa.read_questions(data, (name, f"*/{name}"), "OK-VQA")


def score(data: Path, answers: list[Answer], split: str = "val2014", predictions: str = "processed") -> Score:
    """Accuracy (primary), by answer type and by question type. Two matching records give 60 percent, four give 100."""
    name = f"mscoco_{split}_annotations.json"
    questions = vqa.read_annotations(data, (name, f"*/{name}"), "OK-VQA")
    return vqa.score_questions(questions, answers, predictions)
