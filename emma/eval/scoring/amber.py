"""AMBER: hallucinated objects in descriptions, and yes/no questions on existence, attributes and relations."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emma.errors import EmmaError
from emma.eval.answers import Answer, match
from emma.eval.scoring.nouns import has_nltk, has_spacy, nltk_nouns, spacy_similarity, vocabulary_words
from emma.eval.scoring.score import Figure, Floats, Score, figure
from emma.eval.settings import Setting
from emma.eval.tables import find_files, read_json

SCORER = "AMBER's evaluator (inference.py)"
VERSION = 1
NOUNS = Setting(
    "nouns",
    "auto",
    ("auto", "nltk", "words"),
    ("score",),
    "nltk: the official extractor; words: every word of the vocabulary; auto: nltk where its data is installed",
)
SIMILARITY = Setting(
    "similarity",
    "auto",
    ("auto", "spacy", "none"),
    ("score",),
    "spacy: en_core_web_lg above 0.8, as officially; none: exact words and associations; auto: spacy where installed",
)
MAPPING = Setting(
    "mapping",
    "first_word",
    ("first_word", "exact"),
    ("score",),
    "first_word: an answer is Yes or No by its first word; exact: it must be that and no more, as officially",
)
PART = Setting("part", "all", ("all", "generative", "discriminative"), ("questions",), "which questions are asked")
SETTINGS = (PART, NOUNS, SIMILARITY, MAPPING)
TINY = 0.001  # every denominator of the script starts here
DIMENSIONS = {
    "existence": ("discriminative-hallucination",),
    "attribute": (
        "discriminative-attribute-state",
        "discriminative-attribute-number",
        "discriminative-attribute-action",
    ),
    "state": ("discriminative-attribute-state",),
    "number": ("discriminative-attribute-number",),
    "action": ("discriminative-attribute-action",),
    "relation": ("discriminative-relation", "relation"),
}
_FIRST_WORD = re.compile(r"\W*(\w+)")


@dataclass(frozen=True)
class Row:
    """An annotation; `truth` is a list of objects (generative) or `yes` / `no`."""

    id: int
    type: str
    truth: tuple[str, ...] | str
    hallu: tuple[str, ...]

    @property
    def generative(self) -> bool:
        return self.type == "generative"


@dataclass(frozen=True)
class Query:
    """What is asked."""

    id: int
    image: str
    text: str


def read(data: Path) -> list[Row]:
    """Rows of `annotations.json`. The entry of id n is at place n - 1, which is checked: the released EMMA read one
    place too far.

    Raises:
        EmmaError: missing file or field, or ids out of order.
    """
    file = find_files(data, ("data/annotations.json", "annotations.json"), "AMBER annotations")[0]
    content = read_json(file, "AMBER")
    try:
        rows = [
            Row(
                int(row["id"]),
                str(row["type"]),
                str(row["truth"]) if isinstance(row["truth"], str) else tuple(row["truth"]),
                tuple(row.get("hallu") or ()),
            )
            for row in content
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise EmmaError(f"{file}: expected id, type and truth in every entry ({error!r})") from error
    if len({row.id for row in rows}) != len(rows):
        raise EmmaError(f"{file}: an id occurs twice")
    return rows


def read_queries(data: Path) -> list[Query]:
    """Rows of `query_all.json`, or of the generative and discriminative files together."""
    names = ("query_all.json", "query_generative.json", "query_discriminative.json")
    for folder in ("data/query", "query", "."):
        files = [path for name in names if (path := Path(data) / folder / name).is_file()]
        if files:
            files = files[:1] if files[0].name == names[0] else files
            rows = [row for file in files for row in read_json(file, "AMBER")]
            return [Query(int(row["id"]), str(row["image"]), str(row["query"])) for row in rows]
    raise EmmaError(f"no AMBER queries in {data}: expected data/query/query_all.json")


@dataclass(frozen=True)
class Words:
    """Associations of objects, and words that are always fine."""

    associated: Mapping[str, list[str]]
    safe: frozenset[str]

    @classmethod
    def read(cls, data: Path) -> "Words":
        """`relation.json` and `safe_words.txt`, beside the annotations."""
        relation = find_files(data, ("data/relation.json", "relation.json"), "AMBER associations")[0]
        safe = find_files(data, ("data/safe_words.txt", "safe_words.txt"), "AMBER safe words")[0]
        lines = safe.read_text(encoding="utf-8").split("\n")
        return cls(read_json(relation, "AMBER"), frozenset(line.strip() for line in lines if line.strip()))

    @property
    def vocabulary(self) -> set[str]:
        return set(self.associated) | {word for words in self.associated.values() for word in words}


@dataclass
class _Objects:
    """The objects of a list with their associated words in front, and which objects were mentioned."""

    words: list[str]
    owner: list[int]
    hit: list[bool]

    @classmethod
    def of(cls, objects: Sequence[str], associated: Mapping[str, list[str]]) -> "_Objects":
        words, owner = [], []
        for number, name in enumerate(objects):
            words += associated.get(name, [])
            owner += [number] * len(associated.get(name, []))
        return cls(words + list(objects), owner + list(range(len(objects))), [False] * len(objects))

    def mention(self, noun: str, same: Callable[[str, str], bool]) -> bool:
        """Mark the object of the first word that is the same as the noun; whether there is one."""
        for word, number in zip(self.words, self.owner, strict=True):
            if same(noun, word):
                self.hit[number] = True
                return True
        return False


def judge_caption(
    nouns: Sequence[str], row: Row, words: Words, similar: Callable[[str, str], bool] | None
) -> tuple[int, int, int, int, int, int]:
    """(hallucinated mentions, mentions, truth objects covered, truth objects, hallu objects hit, hallu objects).

    Args:
        nouns: of the vocabulary, in order, repeated ones too.
        similar: None compares exact words only.
    """
    truth = _Objects.of(tuple(row.truth), words.associated)
    hallu = _Objects.of(row.hallu, words.associated)
    hallucinated = 0
    for noun in nouns:
        if noun in words.safe or truth.mention(noun, str.__eq__):
            continue
        hallu.mention(noun, str.__eq__)
        if similar is not None:
            hallu.mention(noun, similar)
            if truth.mention(noun, similar):
                continue
        hallucinated += 1
    return hallucinated, len(nouns), sum(truth.hit), len(truth.hit), sum(hallu.hit), len(hallu.hit)


def as_yes_no(text: str, mapping: str) -> str:
    """`Yes` or `No` where the first word is that in any case; else the text, which is then wrong and not a no."""
    if mapping == "exact":
        return text
    found = _FIRST_WORD.match(text)
    word = found[1].capitalize() if found else ""
    return word if word in ("Yes", "No") else text


def _rounded(value: Figure) -> Figure:
    return replace(value, value=round(value.value, 1))


def _share(column: int, of: int) -> Callable[[Floats], Floats]:
    return lambda sums: sums[:, column] / (sums[:, of] + TINY)


def generative_figures(counts: np.ndarray) -> dict[str, Figure]:
    """CHAIR, Cover, Hal and Cog, one decimal, as ratios of totals over the captions; `counts` float[n, 7] as
    `judge_caption`, and whether the caption is free of hallucination."""
    n = len(counts)

    def hal(sums: Floats) -> Floats:
        return 1 - sums[:, 6] / (len(counts) + TINY)

    rules = {"chair": _share(0, 1), "cover": _share(2, 3), "hal": hal, "cog": _share(4, 5)}
    return {name: _rounded(figure(counts, rule, n, "captions")) for name, rule in rules.items()}


def discriminative_figures(outcomes: np.ndarray, prefix: str, epsilon: float) -> dict[str, Figure]:
    """Accuracy, precision, recall and F1 with *no* as the positive class; F1 from the rounded other two.

    `outcomes` float[n, 4]: right, answered no, labelled no, rightly no.
    """
    n = len(outcomes)

    def accuracy(sums: Floats) -> Floats:
        return sums[:, 0] / (n + TINY)

    precision, recall = _share(3, 1), _share(3, 2)

    def f1(sums: Floats) -> Floats:
        p, r = precision(sums), recall(sums)
        return 2 * p * r / (p + r + epsilon)

    rules = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
    found = {name: _rounded(figure(outcomes, rule, n, "questions")) for name, rule in rules.items()}
    p, r = found["precision"].value / 100, found["recall"].value / 100
    found["f1"] = replace(found["f1"], value=round(2 * p * r / (p + r + epsilon) * 100, 1))
    return {f"{prefix}{name}": value for name, value in found.items()}


def score(
    data: Path,
    answers: list[Answer],
    nouns: str = "auto",
    similarity: str = "auto",
    mapping: str = "first_word",
    extractor: Callable[[str], list[str]] | None = None,
    similar: Callable[[str, str], bool] | None = None,
) -> Score:
    """The AMBER score (primary) = (100 - CHAIR + F1) / 2 where both kinds of question are answered; else F1, or CHAIR.

    As in the official script only answered questions count. `extractor` (text to nouns) and `similar` (two words)
    replace the built-in ones.
    """
    rows = {str(row.id): row for row in read(data)}
    matched = match(rows, answers)
    captions = {id: text for id, text in matched.texts.items() if rows[id].generative}
    yes_no = {id: text for id, text in matched.texts.items() if not rows[id].generative}
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    if captions:
        words = Words.read(data)
        extract, same = _tools(words, nouns, similarity, extractor, similar, notes)
        counts = []
        for id, text in captions.items():
            kept = [noun for noun in extract(text) if noun in words.vocabulary]
            outcome = judge_caption(kept, rows[id], words, same)
            counts.append((*outcome, outcome[0] == 0))
        figures |= generative_figures(np.array(counts, dtype=np.float64))
    said: dict[str, str] = {}
    if yes_no:
        said = {id: as_yes_no(text, mapping) for id, text in yes_no.items()}
        if mapping == "first_word":
            notes.append("answers were mapped to Yes and No by their first word before scoring")
        figures |= discriminative_figures(_outcomes(rows, said), "", 0.0001)
        for name, kinds in DIMENSIONS.items():
            of_kind = {id: text for id, text in said.items() if rows[id].type in kinds}
            if of_kind:
                epsilon = 0.001 if name == "existence" else 0.0001
                figures |= discriminative_figures(_outcomes(rows, of_kind), f"{name}/", epsilon)
    if not figures:
        raise EmmaError("none of the answers is to a question of annotations.json; are these AMBER's ids, 1 to 15220?")
    primary = "f1" if yes_no else "chair"
    if captions and yes_no:
        value = (100 - figures["chair"].value + figures["f1"].value) / 2
        figures["amber_score"] = Figure(value, len(matched.texts), "captions and questions", None, "points")
        primary = "amber_score"
    expected = {id: "no" if rows[id].truth == "no" else "yes" for id in said}
    credits = {id: float(text == expected[id].capitalize()) for id, text in said.items()}
    return Score(
        primary,
        figures,
        "captions, questions",
        matched.counts,
        tuple(notes),
        credits=credits,
        expected=expected,
    )


def _outcomes(rows: Mapping[str, Row], said: Mapping[str, str]) -> np.ndarray:
    """float[n, 4]: right, answered no, labelled no, rightly no."""
    outcomes = []
    for id, text in said.items():
        no = rows[id].truth == "no"
        outcomes.append((text == ("No" if no else "Yes"), text == "No", no, no and text == "No"))
    return np.array(outcomes, dtype=np.float64)


def _tools(
    words: Words,
    nouns: str,
    similarity: str,
    extractor: Callable[[str], list[str]] | None,
    similar: Callable[[str, str], bool] | None,
    notes: list[str],
) -> tuple[Callable[[str], list[str]], Any]:
    """The extractor and the similarity to use; what is not the official one is noted."""
    if extractor is not None:
        notes.append("nouns were found by a replaced extractor")
    elif nouns == "nltk" or (nouns == "auto" and has_nltk()):
        extractor = nltk_nouns
    else:
        vocabulary = words.vocabulary
        extractor = lambda text: vocabulary_words(text, vocabulary)  # noqa: E731
        notes.append(
            "nouns=words: every vocabulary word counts, without NLTK's tagger; not comparable with official ones"
        )
    if similar is not None:
        notes.append("similarity was replaced")
    elif similarity == "spacy" or (similarity == "auto" and has_spacy()):
        similar = spacy_similarity()
    else:
        notes.append("similarity=none: exact words and associations only; official figures use spaCy's en_core_web_lg")
    return extractor, similar
