"""A benchmark's own choices, where harnesses differ: `key=value` words of `run` and `score`, named in every report."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from emma.errors import EmmaError

Part = Literal["questions", "score", "export"]


@dataclass(frozen=True)
class Setting:
    """One choice. `choices` None takes any text (a path, a URL). `affects` says which of the benchmark's functions,
    `items` (`questions`), `score` and that in `export.py`, take it as a keyword argument; what affects questions enters
    the fingerprint."""

    name: str
    default: str
    choices: tuple[str, ...] | None
    affects: tuple[Part, ...]
    help: str


def choose(settings: Sequence[Setting], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Every setting with its given or default value.

    Raises:
        EmmaError: a name that is none of the settings, or a value that is none of its choices; `where` names whose.
    """
    known = {setting.name: setting for setting in settings}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; its settings: {', '.join(known) or 'none'}"
            raise EmmaError(f"{where} has no setting {name!r}{hint}")
        choices = known[name].choices
        if choices is not None and value not in choices:
            raise EmmaError(f"{where}: {name}={value!r} is not one of {', '.join(choices)}")
    return {name: given.get(name, setting.default) for name, setting in known.items()}


def for_part(settings: Sequence[Setting], chosen: Mapping[str, str], part: Part) -> dict[str, str]:
    """The chosen values that one of the functions takes."""
    return {setting.name: chosen[setting.name] for setting in settings if part in setting.affects}
