"""Templates: how a conversation becomes text, images and special tokens, and which of it is supervised.

A template turns a list of `Turn` into a list of `Segment`. It decides nothing about tokens (see tokens.py), except that
special tokens and images are named as such: whatever a user types is plain text, also if it reads `</s>` or `<image>`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from emma.errors import EmmaError

IMAGE = "<image>"
"""The text that stands for an image in LLaVA's annotations and in rendered prompts. It is no token."""

SYSTEM_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = ("vicuna_v1", "plain", "tokenizer")
Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Turn:
    """One message. `text` holds no image marker: the `images` of the turn come before its text."""

    role: Role
    text: str
    images: int = 0


@dataclass(frozen=True)
class Segment:
    """A piece of the prompt: plain text, one image (no text), or one special token of the LLM's tokenizer."""

    text: str
    supervised: bool = False
    kind: Literal["text", "image", "special"] = "text"


def join(segments: Sequence[Segment]) -> str:
    """The segments as readable text, with `<image>` for each image."""
    return "".join(IMAGE if segment.kind == "image" else segment.text for segment in segments)


# ---------------------------------------------------------------------------------------------------- conversations


def turns_of(sample: dict) -> list[Turn]:
    """Turns of a sample in LLaVA's format: `{"id", "image"?: str | list[str], "conversations": [{"from", "value"}]}`.

    In a sample with images, `<image>` anywhere in a human turn is taken out and the rest stripped (LLaVA's
    `preprocess_multimodal`); there must be as many as images. Without images it is ordinary text.

    Raises:
        EmmaError: malformed conversation, or placeholders and images differ in number.
    """
    name = sample.get("id", "(no id)")
    conversation = sample.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise EmmaError(f"sample {name!r}: 'conversations' must be a list with at least one turn, not {conversation!r}")
    wanted = image_count(sample)
    turns = []
    for number, message in enumerate(conversation):
        role, text = (message.get("from"), message.get("value")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(text, str):
            raise EmmaError(
                f"sample {name!r}, turn {number}: expected {{'from': one of {sorted(ROLES)}, 'value': text}}, "
                f"got {str(message)[:80]!r}"
            )
        turn = Turn(ROLES[role], text)
        if wanted and turn.role == "user" and IMAGE in text:
            turn = replace(turn, text=text.replace(IMAGE, "").strip(), images=text.count(IMAGE))
        turns.append(turn)
    found = sum(turn.images for turn in drop_leading_answer(turns))
    if wanted and found != wanted:
        raise EmmaError(
            f"sample {name!r} has {wanted} image(s) but {found} {IMAGE} placeholder(s) in its human turns; "
            f"write one {IMAGE} per image"
        )
    return turns


def image_count(sample: dict) -> int:
    """Number of images of a LLaVA sample, from `images` (opened) or else from `image` (a path or a list of paths)."""
    if "images" in sample:
        return len(sample["images"])
    image = sample.get("image") or []
    return 1 if isinstance(image, str) else len(image)


def drop_leading_answer(turns: Sequence[Turn]) -> list[Turn]:
    """Without the first assistant turn if nobody asked for it (LLaVA's rule for conversations that start with gpt)."""
    first = 1 if turns and turns[0].role == "system" else 0
    if first < len(turns) and turns[first].role == "assistant":
        return [*turns[:first], *turns[first + 1 :]]
    return list(turns)


def check_alternation(turns: Sequence[Turn], name: str) -> None:
    """Raise EmmaError unless the turns are [system,] user, assistant, user, ..."""
    roles = [turn.role for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[i % 2] for i in range(len(talk))]
    if not talk or talk != expected:
        raise EmmaError(f"{name}: turns must alternate user, assistant, ... but the roles are {roles}")


def chat_turns(messages: Sequence[dict], images: int, system: str | None = None) -> list[Turn]:
    """Checked turns of a chat that waits for an answer; its images come first in the first user turn.

    Args:
        messages: `{"role", "content": text}`; all text is plain, also if it reads `<image>`.
        images: how many images there are.
        system: replaces the system prompt.
    """
    turns = [Turn(ROLES.get(message["role"], message["role"]), message["content"]) for message in messages]
    if system is not None:
        turns = [Turn("system", system), *(turn for turn in turns if turn.role != "system")]
    check_alternation(turns, "messages")
    if turns[-1].role != "user":
        raise EmmaError("messages: the last one must be the user's")
    first = 1 if turns[0].role == "system" else 0
    turns[first] = replace(turns[first], images=images)
    return turns


# -------------------------------------------------------------------------------------------------------- templates


class Template(Protocol):
    """What every template offers."""

    @property
    def bos(self) -> bool:
        """Whether the tokenizer's own BOS goes before everything (False if the template writes it itself)."""

    def render(self, turns: Sequence[Turn], generation: bool = False) -> list[Segment]:
        """Segments of checked turns; with `generation` they end where the model is to write its answer."""

    def jinja(self) -> str | None:
        """The same template as a Hugging Face chat template, None where there is none."""


@dataclass(frozen=True)
class RoleTemplate:
    """`SYSTEM USER: question ASSISTANT: answer</s>USER: ...`, Vicuna's format, as LLaVA-1.5 is trained with.

    An empty message is written as the bare role (`USER:`), as upstream does. The space before an answer belongs to the
    answer, since the generation prompt ends in `ASSISTANT:`.
    """

    eos: str
    system: str = SYSTEM_VICUNA
    user: str = "USER:"
    assistant: str = "ASSISTANT:"
    bos: bool = True

    def render(self, turns: Sequence[Turn], generation: bool = False) -> list[Segment]:
        system, talk = (turns[0].text, turns[1:]) if turns[0].role == "system" else (self.system, turns)
        segments = [Segment(system + " ")] if system else []
        for turn in talk:
            if turn.role == "user":
                message = _images_then_text(turn)
                segments += [Segment(self.user + " "), *message, Segment(" ")] if message else [Segment(self.user)]
            else:
                answer = [Segment(" " + turn.text, supervised=True)] if turn.text else []
                segments += [Segment(self.assistant), *answer, Segment(self.eos, supervised=True, kind="special")]
        return [*segments, Segment(self.assistant)] if generation else segments

    def jinja(self) -> str:
        """Without BOS: encode the rendered text with special tokens, as processors and servers do."""
        return (
            "{%- if messages[0]['role'] == 'system' -%}"
            "{%- set system = messages[0]['content'] -%}{%- set talk = messages[1:] -%}"
            "{%- else -%}{%- set system = " + json.dumps(self.system) + " -%}{%- set talk = messages -%}{%- endif -%}"
            "{%- if system -%}{{- system + ' ' -}}{%- endif -%}"
            "{%- for message in talk -%}"
            "{%- set ns = namespace(images='', texts=[]) -%}"
            "{%- if message['content'] is string -%}{%- set ns.texts = [message['content']] -%}"
            "{%- else -%}{%- for part in message['content'] -%}"
            "{%- if part['type'] == 'image' -%}{%- set ns.images = ns.images + '" + IMAGE + "\\n' -%}"
            "{%- else -%}{%- set ns.texts = ns.texts + [part['text']] -%}{%- endif -%}"
            "{%- endfor -%}{%- endif -%}"
            "{%- set text = ns.texts | join('\\n') -%}"
            "{%- if message['role'] == 'user' -%}"
            "{%- set body = ns.images + text if text else ns.images[:-1] -%}"
            "{{- '" + self.user + "' + (' ' + body + ' ' if body else '') -}}"
            "{%- else -%}"
            "{{- '" + self.assistant + "' + (' ' + text if text else '') + " + json.dumps(self.eos) + " -}}"
            "{%- endif -%}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- '" + self.assistant + "' -}}{%- endif -%}"
        )


@dataclass(frozen=True)
class PlainTemplate:
    """`<image>caption\\n`, LLaVA's pretraining format: without the human text; caption and newline are supervised."""

    bos: bool = True

    def render(self, turns: Sequence[Turn], generation: bool = False) -> list[Segment]:
        if [turn.role for turn in turns] != ["user", "assistant"][: 1 if generation else 2] or not turns[0].images:
            raise EmmaError(
                "template 'plain' is for one request with an image and its caption, not for "
                f"{[(turn.role, turn.images) for turn in turns]}; use 'vicuna_v1' for conversations"
            )
        images = [Segment("", kind="image")] * turns[0].images
        return images if generation else [*images, Segment(turns[1].text + "\n", supervised=True)]

    def jinja(self) -> None:
        return None


class TokenizerTemplate:
    """The chat template that comes with the LLM's tokenizer.

    It is rendered with marks in place of the messages, so that what is template and what is user text stays known:
    special tokens are looked for in the former only. Messages are stripped, as most of these templates do. Supervised
    are each answer and the template's text after it up to its first special token (the end of the turn).
    """

    bos = False

    def __init__(self, tokenizer):
        if not tokenizer.chat_template:
            raise EmmaError("template 'tokenizer': this tokenizer has no chat template; use 'vicuna_v1'")
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template
        self.special = special_token_pattern(tokenizer)

    def render(self, turns: Sequence[Turn], generation: bool = False) -> list[Segment]:
        from jinja2.exceptions import TemplateError

        messages = [{"role": turn.role, "content": f"\ue000{i}\ue001"} for i, turn in enumerate(turns)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, tokenize=False, add_generation_prompt=generation
            )
        except TemplateError as error:
            raise EmmaError(
                f"the tokenizer's chat template refuses roles {[t.role for t in turns]}: {error}"
            ) from error
        head, *rest = re.split("\ue000(\\d+)\ue001", text)
        if [int(i) for i in rest[::2]] != list(range(len(turns))):
            raise EmmaError("the tokenizer's chat template drops or reorders messages; use 'vicuna_v1'")
        segments = split_special(head, self.special)
        for turn, after in zip(turns, rest[1::2], strict=True):
            turn = replace(turn, text=turn.text.strip())
            tail = split_special(after, self.special)
            if turn.role == "assistant":
                end = next((i for i, segment in enumerate(tail) if segment.kind == "special"), None)
                if end is None:
                    raise EmmaError("the tokenizer's chat template ends an answer without a special token: no stop")
                tail[: end + 1] = [replace(segment, supervised=True) for segment in tail[: end + 1]]
            segments += [Segment(turn.text, supervised=True)] if turn.role == "assistant" else _images_then_text(turn)
            segments += tail
        return segments

    def jinja(self) -> str:
        return self.chat_template


def render_sample(template: Template, turns: Sequence[Turn], name: str) -> list[Segment]:
    """Segments of a finished dialogue; raises `EmmaError` that names the sample."""
    turns = drop_leading_answer(turns)
    check_alternation(turns, name)
    try:
        return template.render(turns)
    except EmmaError as error:
        raise EmmaError(f"{name}: {error}") from error


def get_template(name: str, tokenizer) -> Template:
    """The template of this name (one of `TEMPLATES`) for a Hugging Face tokenizer."""
    if name == "vicuna_v1":
        if tokenizer.eos_token is None:
            raise EmmaError("template 'vicuna_v1' ends an answer with the EOS token, and this tokenizer has none")
        return RoleTemplate(eos=tokenizer.eos_token)
    if name == "plain":
        return PlainTemplate()
    if name == "tokenizer":
        return TokenizerTemplate(tokenizer)
    raise EmmaError(f"unknown template {name!r}; known: {', '.join(TEMPLATES)}")


def special_token_pattern(tokenizer) -> re.Pattern | None:
    """A pattern with one group that finds the tokenizer's special tokens, and the whitespace they swallow."""
    tokens = sorted((t for t in tokenizer.added_tokens_decoder.values() if t.special), key=lambda t: -len(t.content))
    if not tokens:
        return None
    strip = {True: r"\s*", False: ""}
    return re.compile("|".join(f"{strip[t.lstrip]}({re.escape(t.content)}){strip[t.rstrip]}" for t in tokens))


def split_special(text: str, special: re.Pattern | None) -> list[Segment]:
    """Text written by a template, with its special tokens as segments of their own."""
    segments, position = [], 0
    for match in special.finditer(text) if special else ():
        segments += [Segment(text[position : match.start()]), Segment(match[match.lastindex or 0], kind="special")]
        position = match.end()
    return [segment for segment in [*segments, Segment(text[position:])] if segment.text]


def _images_then_text(turn: Turn) -> list[Segment]:
    """`<image>\\n` for each image, then the text; no newline after the last image if there is no text."""
    segments = []
    for left in range(turn.images, 0, -1):
        newline = [Segment("\n")] if left > 1 or turn.text else []
        segments += [Segment("", kind="image"), *newline]
    return [*segments, Segment(turn.text)] if turn.text else segments
