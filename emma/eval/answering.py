"""What the runner asks of a model: questions in, texts out; one interface for EMMA, other models and controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from emma.errors import EmmaError
from emma.eval.pictures import Picture, open_picture

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Question:
    """One question as a model gets it, all controls and the rule for several images applied.

    `prompt` is the whole user turn without an image token; `pictures` come before it, in order. `instruction` is what
    the CLIP text tower is to read: None without a picture, or for a model that reads no instruction.
    """

    id: str
    prompt: str
    pictures: tuple[Picture, ...] = ()
    instruction: str | None = None

    def open(self) -> "list[Image.Image]":
        """The decoded RGB pictures.

        Raises:
            Unanswerable: one is damaged.
        """
        try:
            return [open_picture(picture) for picture in self.pictures]
        except EmmaError as error:
            raise Unanswerable(self.id, str(error)) from error


@dataclass(frozen=True)
class Answered:
    """`text` without outer whitespace, cut at the first stop string. `finished`: the model ended by itself (or at a
    stop string) and not because `max_new_tokens` were used up. `instruction_cut`: CLIP tokens that did not fit."""

    text: str
    finished: bool
    instruction_cut: int = 0


class Unanswerable(EmmaError):
    """One question cannot be asked, others can: the runner goes on without it and names it at the end. Any other
    error ends the run."""

    def __init__(self, id: str, reason: str):
        super().__init__(f"question {id}: {reason}")
        self.id = id


class Answerer(Protocol):
    """A model, or a control in place of one. Decoding is greedy; an answer depends on its question alone, never on the
    batch that it came in."""

    name: str
    """What reports call it: a folder, an id, a URL, the name of a control."""

    device: str
    """Where it runs, for the record: `cpu`, `cuda`, `remote`."""

    def fingerprint(self) -> dict[str, Any]:
        """All that its answers depend on, besides the questions and the length of an answer.

        Required keys, None where one means nothing: `weights` (a hash, or what identifies the model best), `dtype`,
        `template`, `instruction` (the rule), `image_mode`. More may be added.
        """
        ...

    def instruction(self, question: str) -> str | None:
        """What its instruction rule makes of a benchmark's question field; None: it reads no instruction."""
        ...

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        """One answer a question, in order.

        Raises:
            Unanswerable: for one of the questions; the runner asks again without it.
            torch.OutOfMemoryError: the runner asks again in smaller batches.
        """
        ...


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first stop string, without outer whitespace, and whether there was one."""
    end = min((at for word in stop if (at := text.find(word)) >= 0), default=None)
    return text[:end].strip(), end is not None
