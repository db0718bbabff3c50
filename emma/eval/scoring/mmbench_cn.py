"""MMBench in Chinese."""

from pathlib import Path

from emma.eval.answers import Answer
from emma.eval.scoring import mmbench
from emma.eval.scoring.score import Score

SCORER, VERSION, SETTINGS = mmbench.SCORER, mmbench.VERSION, mmbench.SETTINGS


def read(data: Path, file: str = "auto") -> list[mmbench.Row]:
    """Rows of the tsv."""
    return mmbench.read(data, "cn", file)


def score(data: Path, answers: list[Answer], file: str = "auto") -> Score:
    """See `mmbench.score_language`."""
    return mmbench.score_language(data, answers, "cn", file)
