"""What users of Hugging Face's interface give to a processor: finished prompts, and chats with pictures in them."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers.image_utils import load_image

from emma.errors import EmmaError
from emma.processing.batch import group_images
from emma.processing.images import open_image
from emma.processing.template import IMAGE, Segment, special_token_pattern, split_special

Prompt = tuple[str, list, str | None]
"""Text with `<image>` marks, its pictures, and the instruction that CLIP reads with them."""


def finished_prompts(
    images: Any, text: str | Sequence[str] | None, instruction: str | Sequence[str | None] | None, needed: bool
) -> list[Prompt]:
    """Texts with their pictures and instructions, from one or several of each.

    Args:
        needed: whether the model reads an instruction with a picture.

    Raises:
        EmmaError: nothing to do, numbers that do not fit each other, or an instruction is missing.
    """
    texts = [text] if isinstance(text, str) else list(text or [])
    if not texts:
        raise EmmaError("the processor needs text; an image goes where the text says <image>")
    groups = group_images(images, len(texts), isinstance(text, str))
    instructions = [instruction] * len(texts) if isinstance(instruction, str | None) else list(instruction)
    if len(instructions) != len(texts):
        raise EmmaError(f"{len(texts)} texts but {len(instructions)} instructions")
    prompts = list(zip(texts, groups, instructions, strict=True))
    if needed and any(own and words is None for _, own, words in prompts):
        raise EmmaError("this model reads the instruction with the image: pass instruction=... (the bare question)")
    for number, (prompt, own, _) in enumerate(prompts):
        if prompt.count(IMAGE) != len(own):
            raise EmmaError(f"text {number} has {prompt.count(IMAGE)} {IMAGE} placeholder(s) for {len(own)} image(s)")
    return prompts


def check_call_arguments(count: int, padding: Any, return_tensors: str | None) -> None:
    """Refuse what a processor of transformers can be asked to return for `count` texts, and this one cannot."""
    if return_tensors not in ("pt", None):
        raise EmmaError(f"return_tensors: only 'pt' is possible, not {return_tensors!r}")
    if not padding and count > 1:
        raise EmmaError(f"{count} texts make one batch, so they are padded; padding=False is for one text")


def segments_of(prompt: str, tokenizer: Any) -> tuple[list[Segment], bool]:
    """A finished prompt, in which `<image>` is an image and `</s>` a special token; and whether it still needs BOS."""
    special = special_token_pattern(tokenizer)
    first, *rest = (split_special(piece, special) for piece in prompt.split(IMAGE))
    segments = first
    for piece in rest:
        segments += [Segment("", kind="image"), *piece]
    return segments, segments[:1] != [Segment(tokenizer.bos_token, kind="special")]


def chats_of(conversation: Any) -> list[Sequence[dict]]:
    """The chats in `conversation`, which is one list of messages, or a list of such lists."""
    if conversation and isinstance(conversation[0], dict):
        return [conversation]
    return [getattr(chat, "messages", chat) for chat in conversation]  # pipelines wrap chats


def check_chat_arguments(add_generation_prompt: bool, further: dict[str, Any]) -> None:
    """Refuse what `apply_chat_template` of transformers can be asked for, and a processor here does not do.

    Raises:
        EmmaError: names the argument.
    """
    further = further | (further.get("processor_kwargs") or {})
    if not add_generation_prompt or further.get("continue_final_message"):
        raise EmmaError(
            "apply_chat_template makes prompts that wait for an answer: the last message is the user's, and "
            "add_generation_prompt stays true; use encode_training for finished dialogues"
        )
    harmless = {"return_tensors": ("pt", "auto", None), "padding": (True, "longest"), "padding_side": ("left",)}
    for key, value in further.items():
        if key == "processor_kwargs" or (key not in harmless and not value):
            continue
        if value not in harmless.get(key, ()):
            known = ", ".join(f"{name}={values[0]!r}" for name, values in harmless.items())
            raise EmmaError(f"apply_chat_template: {key}={value!r} is not possible; there are instruction, {known}")


def split_messages(conversation: Sequence[dict]) -> tuple[list[dict], list]:
    """Hugging Face messages to text messages and pictures.

    A content is text, or a list of `{"type": "text", "text"}` and `{"type": "image"}` parts, which hold a picture as
    `image`, `path`, `url` or `base64`; images belong into the first user message.
    """
    messages: list[dict] = []
    images: list = []
    for number, message in enumerate(conversation):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        pictures = [_picture(part, number) for part in parts if part["type"] == "image"]
        if other := sorted({part["type"] for part in parts} - {"image", "text"}):
            raise EmmaError(f"message {number} has content of type {', '.join(other)}; there are text and image")
        if pictures and (message["role"] != "user" or any(m["role"] == "user" for m in messages)):
            raise EmmaError(f"message {number} has an image; images belong into the first user message")
        images += pictures
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        messages.append({"role": message["role"], "content": text})
    return messages, images


def _picture(part: dict, number: int) -> Image.Image:
    """The picture of an image part; a file is opened as everywhere else here, other sources by transformers."""
    given = next((part[key] for key in ("image", "path", "url", "base64") if part.get(key) is not None), None)
    if given is None:
        raise EmmaError(f"message {number} has an image part without image, path, url or base64")
    if isinstance(given, Image.Image):
        return given
    if "base64" in part or str(given).startswith(("http://", "https://", "data:")):
        try:
            return load_image(given)
        except Exception as error:  # of the network or of what came; transformers lets all kinds through
            raise EmmaError(f"message {number}: its image cannot be read ({str(error)[:200]})") from error
    return open_image(given)
