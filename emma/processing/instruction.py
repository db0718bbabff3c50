"""The instruction: which words of a conversation the CLIP text encoder reads, and how they become its ids.

One rule, kept in the checkpoint, is used by training, evaluation, chat and serving (the released code trained on the
full text and evaluated on the first line).
"""

import gzip
import io
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import torch

from emma.errors import EmmaError
from emma.processing.template import Turn, drop_leading_answer

TEXTS = ("whole", "first_line", "question", "released")
CHOICES = ("first", "last", "shortest", "random")
OVER = ("truncate", "error")
CLIP_BPE = "bpe_simple_vocab.txt.gz"
"""File name, beside a CLIP's weights, of a BPE vocabulary of its own (absent: open_clip's, which is OpenAI's)."""

# A line that says how to answer, not what is asked. Taken from LLaVA's mix (VQAv2, GQA, OKVQA, A-OKVQA, OCR-VQA,
# VizWiz, TextVQA) and the prompts of MME, MMBench, SEED, ScienceQA, MMMU and MathVista.
_FORMAT = re.compile(
    r"\s*(?:"
    r"(?:please\s+)?(?:answer|respond|reply)\b[^?]*\b(?:words?|phrases?|letters?|options?|choices?|sentences?|numbers?|yes|no)\b[^?]*"
    r"|when the provided information is insufficient\b[^?]*"
    r"|(?:please\s+)?(?:select|choose)\b[^?]*\b(?:options?|answers?|choices?)\b[^?]*"
    r"|reference ocr tokens?:.*"
    r")\s*",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\s*\(?([A-Za-z])[.):]\s*\S.*")
_OPTIONS_HEAD = re.compile(r"\s*(?:options|choices)\s*:.*", re.IGNORECASE)
_PREAMBLE = re.compile(r"\s*(?:context|hint)\s*:", re.IGNORECASE)
_QUESTION = re.compile(r"(?:^|\s)question\s*:\s*", re.IGNORECASE)


def question_of(text: str) -> str:
    """What is asked, without how to answer it: the rule `question`.

    Taken away are leading `Context:` and `Hint:` lines (or all up to `Question:` after them), a `Question:` mark, lines
    that set the answer's format, option lines (A and B among them) and their `Options:` or `Choices:` line.
    If nothing would be left, the last step that leaves something counts; so the result is empty only for empty text.

    >>> question_of("Context: A cell.\\nWhat is it?\\nA. plant\\nB. animal\\nAnswer with the option's letter.")
    'What is it?'
    """
    for step in (_without_preamble, _without_format, _without_options):
        text = step(text).strip() or text.strip()
    return text


def _without_preamble(text: str) -> str:
    if _PREAMBLE.match(text):
        if mark := _QUESTION.search(text):
            return text[mark.end() :]
        lines = text.strip().split("\n")
        while lines and _PREAMBLE.match(lines[0]):
            lines.pop(0)
        return "\n".join(lines)
    mark = _QUESTION.match(text.strip())
    return text.strip()[mark.end() :] if mark else text


def _without_format(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not _FORMAT.fullmatch(line))


def _without_options(text: str) -> str:
    lines = [line for line in text.split("\n") if not _OPTIONS_HEAD.fullmatch(line)]
    letters = {match[1].upper() for line in lines if (match := _OPTION.fullmatch(line))}
    if {"A", "B"} <= letters:
        lines = [line for line in lines if not _OPTION.fullmatch(line)]
    return "\n".join(lines)


@dataclass(frozen=True)
class InstructionRule:
    """Which text of a conversation is the instruction. Pure and serialisable.

    `text`, applied to a human turn (without image markers):
        `whole` the full turn; `first_line` up to the first newline; `question` see `question_of`;
        `released` what the released EMMA trained on: the full turn if the sample has exactly two turns, else the piece
        between the first and second colon of a turn that has a colon (its train.py, preprocess_vision_prompt).
    `turn`, which human turn speaks for the image, since the image comes before all turns: `first`, `last`, `shortest`
        (in instruction tokens, the first of several), `random` (drawn from seed, epoch and sample id; never an empty
        one).
    `over_77`, an instruction longer than the text tower's context (77 in CLIP): `truncate` (counted) or `error`.
    """

    text: str = "question"
    turn: str = "random"
    over_77: str = "truncate"

    def __post_init__(self):
        for key, known in (("text", TEXTS), ("turn", CHOICES), ("over_77", OVER)):
            if getattr(self, key) not in known:
                raise EmmaError(f"instruction.{key}: {getattr(self, key)!r} is not one of {', '.join(known)}")

    @classmethod
    def released(cls) -> "InstructionRule":
        """The training rule of the released EMMA checkpoint (its evaluation rule is `first_line`, `last`)."""
        return cls(text="released", turn="shortest")

    @classmethod
    def from_dict(cls, values: "dict | InstructionRule") -> "InstructionRule":
        if isinstance(values, InstructionRule):
            return values
        if unknown := set(values) - {field.name for field in fields(cls)}:
            raise EmmaError(f"instruction: unknown key(s) {sorted(unknown)}; known: text, turn, over_77")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    def apply(self, text: str, turns: int = 2) -> str:
        """The instruction for one human text; `turns`: length of its conversation (matters to `released` only)."""
        if self.text == "question":
            return question_of(text)
        if self.text == "first_line":
            return text.strip().split("\n")[0].strip()
        if self.text == "released" and turns != 2:
            return text.split(":")[1] if ":" in text else text
        return text.strip()

    def select(
        self,
        turns: Sequence[Turn],
        sample_id: object,
        epoch: int = 0,
        seed: int = 0,
        measure: Callable[[str], int] = len,
    ) -> str:
        """The instruction of a whole conversation.

        Args:
            turns: all turns of the sample, also a leading answer that nobody asked for.
            sample_id, epoch, seed: what `random` draws from; the same three always give the same turn.
            measure: length of a text, for `shortest`.
        """
        humans = [turn.text for turn in drop_leading_answer(turns) if turn.role == "user"]
        if not humans:
            raise EmmaError(f"sample {sample_id!r} has no human turn to take an instruction from")
        texts = [self.apply(text, len(turns)) for text in humans]
        if self.turn == "shortest":
            return min(texts, key=measure)
        if self.turn == "random":
            return random.Random(f"{seed} {epoch} {sample_id}").choice([text for text in texts if text] or texts)
        return texts[0] if self.turn == "first" else texts[-1]


class ClipTokenizer:
    """Instructions to CLIP ids: open_clip's SimpleTokenizer, [SOT] + BPE + [EOT], padded with id 0 to the full length.

    The padding positions are read by the alignment too, so the pad id is part of the learned function (Hugging Face's
    CLIPTokenizer pads with EOT and skips ftfy). Texts that name `<start_of_text>` or `<end_of_text>` get those ids.
    """

    def __init__(self, context_length: int, bpe: bytes | None = None):
        """`bpe`: contents of a gzipped merges file (`CLIP_BPE`), None for OpenAI's vocabulary of 49408."""
        self.context_length = context_length
        self.bpe = bpe

    @cached_property
    def _tokenizer(self):
        from open_clip.tokenizer import SimpleTokenizer  # slow import, and not needed for everything

        if self.bpe is None:
            return SimpleTokenizer()
        try:
            return SimpleTokenizer(bpe_path=io.BytesIO(self.bpe))
        except (gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
            raise EmmaError(f"{CLIP_BPE} of the CLIP towers is damaged: {error}") from error

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def check_vocabulary(self, expected: int) -> None:
        """Raises `EmmaError` if the text tower has `expected` ids, and the BPE another number."""
        if self.vocab_size != expected:
            raise EmmaError(
                f"the CLIP text tower has a vocabulary of {expected}, its BPE has {self.vocab_size} tokens; "
                f"put the right {CLIP_BPE} into the CLIP folder and pass it as clip_bpe"
            )

    def count(self, text: str) -> int:
        """Number of ids that are not padding, after cutting to the context length."""
        return min(len(self._tokenizer.encode(text)) + 2, self.context_length)

    def encode(self, text: str, over: str = "truncate", name: str = "instruction") -> tuple[list[int], int]:
        """Ids (`context_length` of them) and the number of tokens that did not fit.

        Raises:
            EmmaError: the text is too long and `over` is `error`; `name` says whose text it is.
        """
        tokenizer, room = self._tokenizer, self.context_length
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        cut = max(0, len(ids) - room)
        if cut and over == "error":
            raise EmmaError(f"{name}: {len(ids)} CLIP tokens, room for {room}; shorten it or set over_77: truncate")
        if cut:
            ids = [*ids[: room - 1], tokenizer.eot_token_id]
        return ids + [0] * (room - len(ids)), cut

    def repeated(self, text: str | None, times: int, over: str, name: str) -> dict:
        """`instruction_ids` int64[times, M], the same ids in every row, and `instruction_cut`, see `encode`."""
        ids, cut = self.encode(text, over, name) if times and text is not None else ([], 0)
        rows = torch.tensor([ids] * times).reshape(times, self.context_length).long()
        return {"instruction_ids": rows, "instruction_cut": cut}


def find_clip_bpe(clip: str | Path) -> bytes | None:
    """Contents of `CLIP_BPE` in a CLIP folder; None if there is none, or if `clip` is not a folder but a name."""
    file = Path(clip).expanduser() / CLIP_BPE
    return file.read_bytes() if file.is_file() else None
