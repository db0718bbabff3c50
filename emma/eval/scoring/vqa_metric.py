"""The VQA metric: answers normalised, then their agreement with ten annotators, each left out in turn.

After the official evaluator (GT-Vision-Lab/VQA, `vqaEval.py`), its variant for VizWiz, and the processing that LLaVA
gives answers before it uploads them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())  # noqa: SIM905
}
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32  # the script passes a flag where Python wants a count

_ONE_APOSTROPHE = """
'twas I'm I've ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
there's they'd they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()  # noqa: SIM905
_TWO_APOSTROPHES = """
I'd've couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
""".split()  # noqa: SIM905
_ODD = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "let's": "let's",
    "she's": "she's",
}


def _lacking_one(word: str) -> list[str]:
    return [word[:at] + word[at + 1 :] for at, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _ONE_APOSTROPHE},
    **{lacking: word for word in _TWO_APOSTROPHES for lacking in _lacking_one(word)},
    **_ODD,
}
"""The script's 120 entries. Keys that begin with I never match, since the text is lower case by then."""

_PLAIN_IN_VIZWIZ = {"ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've"}
VIZWIZ_CONTRACTIONS = {
    key if word in _PLAIN_IN_VIZWIZ else key.replace("'", "’"): word
    if word in _PLAIN_IN_VIZWIZ
    else word.replace("'", "’")
    for key, word in CONTRACTIONS.items()
}
"""VizWiz's script has the same map with typographic apostrophes in all but eight words."""


def tidy(text: str) -> str:
    """Newlines and tabs to spaces, outer spaces off."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_punctuation(text: str) -> str:
    """A mark with a space on one side is deleted, and so is every mark where the text has digit-comma-digit; any other
    becomes a space. Then full stops that no digit follows go."""
    result, number = text, _DIGIT_COMMA_DIGIT.search(text)
    for mark in PUNCTUATION:
        if mark in text:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if beside_space or number else " ")
    return _FULL_STOP.sub("", result, count=_MOST_FULL_STOPS)


def plain_words(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Lower case, number words to digits, articles dropped, contractions written with their apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


def normalise(text: str, contractions: Mapping[str, str] = CONTRACTIONS) -> str:
    """Both steps, as the evaluator applies them to a prediction."""
    return plain_words(without_punctuation(text), contractions)


def processed(text: str) -> str:
    """LLaVA's processing of an answer before upload (for TextVQA of both sides): `man's hat` becomes `man 's hat`."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(tidy(text))


def agreement(answer: str, others: Sequence[str]) -> float:
    """Credit against the annotators that remain when one is left out: a third for each that agrees, at most 1."""
    return min(1.0, others.count(answer) / 3)


def vqa_credit(prediction: str, records: Sequence[Mapping[str, Any]], normalise_unanimous: bool = False) -> float:
    """Credit 0..1 of a prediction for the answer records of a question, as the official evaluator gives it.

    Nothing is normalised where all annotators wrote the same string, unless `normalise_unanimous`. An annotator is left
    out by its whole record, so that records which are equal in all fields leave together.
    """
    prediction = tidy(prediction)
    answers = [tidy(str(record["answer"])) for record in records]
    if normalise_unanimous or len(set(answers)) > 1:
        prediction = normalise(prediction)
        answers = [normalise(answer) for answer in answers]
    rows = [{**record, "answer": answer} for record, answer in zip(records, answers, strict=True)]
    credits = [
        agreement(prediction, [answer for row, answer in zip(rows, answers, strict=True) if row != left_out])
        for left_out in rows
    ]
    return sum(credits) / len(credits)


def credit_by_position(prediction: str, answers: Sequence[str]) -> float:
    """Credit 0..1, each annotator left out by its place in the list; strings are compared as they are."""
    credits = [agreement(prediction, [*answers[:at], *answers[at + 1 :]]) for at in range(len(answers))]
    return sum(credits) / len(credits)
