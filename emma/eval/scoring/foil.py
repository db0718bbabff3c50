"""FOIL-COCO: a caption and its foil, in which one noun is replaced; which of the two fits the image?"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.letters import infer_letter
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json

SCORER = "FOIL pair accuracy"
VERSION = 1
SUBSET = Setting("subset", "all", None, ("questions", "score"), "all pairs, or a file with one pair id a line")
RULE = Setting(
    "rule",
    "equality",
    ("equality", "inference"),
    ("score",),
    "equality: the text is the letter in any case, as the released EMMA; inference: a letter from free text",
)
SETTINGS = (SUBSET, RULE)
BIAS = (
    "a subset of FOIL chosen by a model's errors (as the paper's 6,775 hard pairs) has no chance level of 50 percent "
    "for that model and favours every other one: compare figures on all pairs"
)


@dataclass(frozen=True)
class Pair:
    """A caption and its foil; `first_is_original` is the seeded order in which they are shown."""

    id: str
    image_id: int
    original: str
    foil: str

    @property
    def first_is_original(self) -> bool:
        return random.Random(f"foil order {self.id}").random() < 0.5

    @property
    def shown(self) -> tuple[str, str]:
        """Option A and option B."""
        return (self.original, self.foil) if self.first_is_original else (self.foil, self.original)


def read(data: Path, subset: str = "all") -> list[Pair]:
    """Pairs of `foilv1.0_test_2017.json`, told apart by their `foil` field, in order of first occurrence.

    Raises:
        EmmaError: missing file or field, a pair without its other half, or an id of `subset` that is no pair's.
    """
    names = ("foilv1.0_test_2017.json", "*/foilv1.0_test_2017.json", "foil*test*.json")
    file = find_files(data, names, "FOIL annotations")[0]
    content = read_json(file, "FOIL")
    halves: dict[str, dict[bool, dict]] = {}
    try:
        for row in content["annotations"] if isinstance(content, dict) else content:
            halves.setdefault(str(row["id"]), {})[_is_foil(row["foil"])] = row
        pairs = [
            Pair(
                id,
                int(both[False]["image_id"]),
                str(both[False]["caption"]).strip(),
                str(both[True]["caption"]).strip(),
            )
            for id, both in halves.items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(
            f"{file}: expected pairs with id, image_id, caption and foil true and false ({error!r})"
        ) from error
    return pairs if subset == "all" else _chosen(pairs, Path(subset).expanduser())


def _is_foil(value: object) -> bool:
    return value is True or str(value).lower() == "true"


def _chosen(pairs: Iterable[Pair], file: Path) -> list[Pair]:
    if not file.is_file():
        raise EmmaError(f"subset={file}: no such file; give `all`, or a file with one pair id a line")
    ids = file.read_text(encoding="utf-8").split()
    known = {pair.id: pair for pair in pairs}
    if unknown := [id for id in ids if id not in known]:
        raise EmmaError(f"{file}: {len(unknown)} ids are no pair's, first {unknown[0]}")
    return [known[id] for id in dict.fromkeys(ids)]


def score(data: Path, answers: list[Answer], subset: str = "all", rule: str = "equality") -> Score:
    """Pair accuracy: the letter of the original caption was chosen. A missing answer is wrong.

    The order that was shown is read from `option_a` and `option_b` of the answer's line; lines without them are taken
    in this project's seeded order.
    """
    pairs = read(data, subset)
    matched = match((pair.id for pair in pairs), answers)
    fields = {answer.id: answer.fields for answer in answers}

    def is_right(pair: Pair) -> bool:
        text = matched.texts.get(pair.id)
        if text is None:
            return False
        a = str(fields[pair.id].get("option_a", pair.shown[0])).strip()
        b = str(fields[pair.id].get("option_b", pair.shown[1])).strip()
        if pair.original not in (a, b):
            raise EmmaError(f"FOIL pair {pair.id}: neither option_a nor option_b is its original caption")
        letter = text.strip().upper() if rule == "equality" else infer_letter(text, {"A": a, "B": b})
        return letter == ("A" if a == pair.original else "B")

    right = [is_right(pair) for pair in pairs]
    figures = {"pair_accuracy": accuracy(right, [pair.image_id for pair in pairs], unit="pairs")}
    credits = dict(zip([pair.id for pair in pairs], map(float, right), strict=True))
    expected = {pair.id: pair.original for pair in pairs}
    return Score(
        "pair_accuracy",
        figures,
        "images",
        matched.counts,
        () if subset == "all" else (BIAS,),
        credits=credits,
        expected=expected,
    )
