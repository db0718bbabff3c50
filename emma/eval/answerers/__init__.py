"""The models that the runner can ask, one file a kind; `find_answerer` reads what `--model` says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answering import Answerer

KINDS = ("emma", "hf", "openai", "constant")


@dataclass(frozen=True)
class Found:
    """A model to ask, the folder that its runs are kept under by default, and the provenance of its training."""

    answerer: Answerer
    runs: Path
    provenance: dict[str, Any]


def find_answerer(model: str, dtype: str | None = None, device: str | None = None) -> Found:
    """`FOLDER` or `emma:FOLDER`: a model of this project; `hf:ID_OR_FOLDER`: an image-text-to-text model of
    transformers; `openai:URL#MODEL`: an OpenAI-compatible endpoint; `constant:TEXT`: the same answer to all.

    Raises:
        EmmaError: no such kind, or no such model.
    """
    kind, colon, rest = model.partition(":")
    if not colon or kind not in KINDS:
        if colon and not Path(model).expanduser().exists() and kind.isalpha() and len(kind) > 1:
            raise EmmaError(f"--model {model}: {kind!r} is not one of {', '.join(KINDS)}, and there is no such folder")
        kind, rest = "emma", model
    if kind == "emma":
        from emma.checkpoints import provenance
        from emma.eval.answerers.emma import EmmaAnswerer

        folder = Path(rest).expanduser()
        return Found(EmmaAnswerer(folder, dtype, device), folder / "eval", provenance.read(folder))
    if kind == "hf":
        from emma.eval.answerers.hf import HuggingFaceAnswerer

        return Found(HuggingFaceAnswerer(rest, dtype, device), _runs(model), {})
    if kind == "openai":
        from emma.eval.answerers.openai import OpenAIAnswerer

        return Found(OpenAIAnswerer(rest), _runs(model), {})
    from emma.eval.answerers.constant import ConstantAnswerer

    return Found(ConstantAnswerer(rest), _runs(model), {})


def _runs(model: str) -> Path:
    """`runs/eval/NAME` in the project; the name keeps letters, digits and a few signs."""
    from emma.paths import resolve

    name = "".join(letter if letter.isalnum() or letter in ".-_" else "-" for letter in model).strip("-")
    return resolve("runs/eval") / name[-100:]
