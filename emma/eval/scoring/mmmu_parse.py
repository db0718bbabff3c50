"""MMMU's official reading of answers: a letter from free text, or the candidates of an open answer."""

import random
import re
from collections.abc import Mapping, Sequence

SEED = 42
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LONE = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def parse_letter(text: str, options: Mapping[str, str], rng: random.Random) -> tuple[str, bool]:
    """(the letter that an answer chooses, whether it had to be drawn at random).

    `(A)` counts before ` A `, and option texts only in answers of more than five words; of several the one that occurs
    last. With none, a letter is drawn from `rng`, one draw a failure, as the official script does.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    found = {letter: text.rfind(f"({letter})") for letter in options}
    if max(found.values(), default=-1) < 0:
        found = {letter: text.rfind(f" {letter} ") for letter in options}
    if max(found.values(), default=-1) < 0 and len(text.split()) > 5:
        found = {letter: text.lower().rfind(option.lower()) for letter, option in options.items()}
    present = {letter: at for letter, at in found.items() if at >= 0}
    if not present:
        return rng.choice(list(options)), True
    return max(present, key=lambda letter: present[letter]), False


def parse_open(text: str) -> list[str | float]:
    """Normalised candidates of an open answer: what follows the key words of each line, and all numbers in that."""
    keys = _key_parts(text)
    numbers = [number for key in keys for pattern in _NUMBERS for number in pattern.findall(key)]
    return [value for candidate in (*keys, *numbers) for value in normalise(candidate)]


def _key_parts(text: str) -> list[str]:
    text = text.strip().strip(".").lower()
    lines = re.split(r"\.\s(?=[A-Z])|\n", text)
    found = []
    for number, line in enumerate(lines):
        indicators = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        ends = [line.split(indicator)[-1].strip() for indicator in indicators if indicator in line]
        shortest = ""
        for end in ends:
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _LONE:
            found.append(shortest)
    return found or [text]


def normalise(text: str) -> list[str | float]:
    """A number (commas allowed) rounded to two decimals; else lower case, a single character with a space on one side
    and on the other, so that it is found as a word only."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        pass
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_is_right(gold: Sequence[str], text: str) -> bool:
    """Right if a number among the candidates is a gold number, or a gold string is contained in a candidate."""
    answers = [value for answer in gold for value in normalise(answer)]
    for candidate in parse_open(text):
        if isinstance(candidate, str):
            if any(isinstance(answer, str) and answer in candidate for answer in answers):
                return True
        elif candidate in answers:
            return True
    return False
