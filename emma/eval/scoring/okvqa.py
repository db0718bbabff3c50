"""OK-VQA: questions that need outside knowledge; five annotators, each answer twice, so ten records."""

from dataclasses import replace
from pathlib import Path

from emma.eval.answers import Answer
from emma.eval.scoring import vqa
from emma.eval.scoring.score import Score
from emma.eval.settings import Setting

SCORER = "VQA's evaluator (vqaEval.py)"
VERSION = 1
SPLIT = Setting("split", "val2014", ("val2014", "train2014"), ("questions", "score"), "val2014 is the test set")
SUFFIX = Setting(
    "suffix",
    "short",
    ("short", "unanswerable"),
    ("questions",),
    "short: the form that LLaVA-1.5 was trained with; unanswerable: with VizWiz's line before it (lmms-eval)",
)
SETTINGS = (SPLIT, SUFFIX, vqa.PREDICTIONS, vqa.UNANIMOUS)


def read(data: Path, split: str = "val2014") -> list[vqa.Question]:
    """Questions of a split, with their text."""
    name = f"OpenEnded_mscoco_{split}_questions.json"
    return vqa.read_questions(data, (name, f"*/{name}"), "OK-VQA")


def score(
    data: Path,
    answers: list[Answer],
    split: str = "val2014",
    predictions: str = "processed",
    unanimous: str = "as_is",
) -> Score:
    """Accuracy (primary) and by question type. Two matching records give 60 percent, four give 100."""
    name = f"mscoco_{split}_annotations.json"
    annotated = vqa.read_annotations(data, (name, f"*/{name}"), "OK-VQA")
    # Its answer type is always `other`, and so is one of its question types: only the latter tells anything apart.
    questions = [replace(question, answer_type="") for question in annotated]
    return vqa.score_questions(questions, answers, predictions, unanimous)
