"""A letter from free text without a judge: the exact-matching rule of VLMEvalKit ("option inference")."""

import re
from collections.abc import Mapping

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer is \**([A-D])", re.IGNORECASE)


def infer_letter(answer: str, choices: Mapping[str, str]) -> str | None:
    """The letter that `answer` chooses among `choices` (letter -> option text).

    "Z" for a refusal (wrong, and not open to a judge), None when nothing can be inferred. Letters are case-sensitive.
    What follows the letter of "answer is X" is not looked at, so "the answer is blue" gives B, as in the original.
    """
    if any(refusal in answer for refusal in REFUSALS):
        return "Z"
    words = answer.translate(_SEPARATORS).split()
    present = [letter for letter in choices if letter in words]
    if len(present) == 1 and words.index(present[0]) > len(words) - 5:
        return present[0]
    if not present and "Z" in words:
        return "Z"
    stated = _ANSWER_IS.search(answer)
    if stated and stated[1].upper() in choices:
        return stated[1].upper()
    return _by_text(answer.lower(), choices)


def _by_text(answer: str, choices: Mapping[str, str]) -> str | None:
    if len(answer) > 2 * sum(map(len, choices.values())):
        return None
    contained = [letter for letter, text in choices.items() if text.lower() in answer]
    return contained[0] if len(contained) == 1 else None
