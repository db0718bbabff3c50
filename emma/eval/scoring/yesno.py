"""Yes or no as POPE's script reads it, and the figures of a yes/no set."""

import numpy as np

from emma.eval.scoring.score import Floats, ratio


def is_no(answer: str) -> bool:
    """POPE's rule: text before the first full stop, commas deleted, cut at single spaces; no if one of the words is
    exactly `No`, `no` or `not`, else yes. So `NO`, `None`, the empty string and `1. No` are yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"}.isdisjoint(words)


def outcome(said_no: bool, label_no: bool) -> tuple[int, int, int, int]:
    """(true positive, false positive, true negative, false negative), yes being the positive class."""
    return (
        int(not said_no and not label_no),
        int(not said_no and label_no),
        int(said_no and label_no),
        int(said_no and not label_no),
    )


def accuracy(sums: Floats) -> Floats:
    """Share of right answers; `sums` float[R, 4] as in `outcome`, here and below."""
    return ratio(sums[:, 0] + sums[:, 2], sums.sum(axis=1))


def precision(sums: Floats) -> Floats:
    """Right yes / answered yes."""
    return ratio(sums[:, 0], sums[:, 0] + sums[:, 1])


def recall(sums: Floats) -> Floats:
    """Right yes / labelled yes."""
    return ratio(sums[:, 0], sums[:, 0] + sums[:, 3])


def f1(sums: Floats) -> Floats:
    """Harmonic mean of precision and recall: 2 tp / (2 tp + fp + fn)."""
    return ratio(2 * sums[:, 0], 2 * sums[:, 0] + sums[:, 1] + sums[:, 3])


def yes_ratio(sums: Floats) -> Floats:
    """Share of yes answers."""
    return ratio(sums[:, 0] + sums[:, 1], np.asarray(sums.sum(axis=1)))


FIGURES = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1, "yes_ratio": yes_ratio}
