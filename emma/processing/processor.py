"""EmmaProcessor: samples and chats to the model's inputs, with every choice kept in `processor_config.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from emma.errors import EmmaError
from emma.processing.batch import group_images, pad_batch
from emma.processing.images import CLIP_MEAN, CLIP_STD, MODES, preprocess
from emma.processing.instruction import CLIP_BPE, ClipTokenizer, InstructionRule
from emma.processing.template import (
    IMAGE,
    Segment,
    Turn,
    chat_turns,
    check_alternation,
    drop_leading_answer,
    get_template,
    join,
    special_token_pattern,
    split_messages,
    split_special,
    turns_of,
)
from emma.processing.tokens import IGNORE, SegmentEncoder

OVER_LENGTH = ("truncate", "drop", "error")


class OverLengthError(EmmaError):
    """A sample does not fit into `max_length` and may not (or cannot) be cut."""


class EmmaProcessor(ProcessorMixin):
    """Tokenizer, template, image pre-processing and instruction rule of one model.

    Args:
        tokenizer: the LLM's tokenizer, with a fast backend.
        image_size: side of the towers' square input, pixels.
        num_visual_tokens: N, placeholder ids per image.
        context_length: M, positions of the CLIP text tower.
        image_token_id: placeholder id, outside the LLM's vocabulary.
        alignment: the model's alignment; with `none` there are no instructions.
        image_mode: `pad` or `square`.
        image_mean, image_std: RGB statistics, 0..1.
        template: `vicuna_v1`, `plain` or `tokenizer`.
        instruction: rule for training, see `InstructionRule`.
        eval_instruction: rule for evaluation, chat and serving; by default the same text of the current turn.
        clip_bpe: contents of the towers' own BPE file (`instruction.find_clip_bpe`), None for OpenAI's.
    """

    def __init__(
        self,
        tokenizer=None,
        image_size: int = 336,
        num_visual_tokens: int = 576,
        context_length: int = 77,
        image_token_id: int = 32000,
        alignment: str = "linear",
        image_mode: str = "pad",
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        template: str = "vicuna_v1",
        instruction: dict | InstructionRule | None = None,
        eval_instruction: dict | InstructionRule | None = None,
        clip_bpe: bytes | None = None,
        chat_template: str | None = None,
    ):
        if image_mode not in MODES:
            raise EmmaError(f"image_mode: {image_mode!r} is not one of {', '.join(MODES)}")
        if template == "tokenizer" and chat_template and not tokenizer.chat_template:
            tokenizer.chat_template = chat_template
        self._template = get_template(template, tokenizer)
        super().__init__(tokenizer, chat_template=self._template.jinja())
        self.image_size = image_size
        self.num_visual_tokens = num_visual_tokens
        self.context_length = context_length
        self.image_token_id = image_token_id
        self.alignment = alignment
        self.image_mode = image_mode
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.template = template
        self.instruction = InstructionRule.from_dict(instruction or {})
        self.eval_instruction = InstructionRule.from_dict(
            eval_instruction or {"text": self.instruction.text, "turn": "last", "over_77": self.instruction.over_77}
        )
        self.clip_bpe = clip_bpe
        self._encoder = SegmentEncoder(tokenizer, image_token_id, num_visual_tokens)
        self._clip = ClipTokenizer(context_length, clip_bpe)

    @classmethod
    def from_model_config(cls, config, tokenizer, **choices) -> "EmmaProcessor":
        """The processor for a model with this `EmmaConfig`; `choices`: template, image_mode, instruction, ..."""
        towers = config.tower_config
        processor = cls(
            tokenizer,
            image_size=towers.image_size,
            num_visual_tokens=towers.num_visual_tokens,
            context_length=towers.context_length,
            image_token_id=config.image_token_id,
            alignment=config.alignment,
            image_mean=towers.image_mean,
            image_std=towers.image_std,
            **choices,
        )
        expected = towers.text_cfg.get("vocab_size", 49408)
        if processor.instruction_aware and processor._clip.vocab_size != expected:
            raise EmmaError(
                f"the CLIP text tower has a vocabulary of {expected}, its BPE has {processor._clip.vocab_size} tokens; "
                f"put the right {CLIP_BPE} into the CLIP folder and pass it as clip_bpe"
            )
        return processor

    @property
    def instruction_aware(self) -> bool:
        return self.alignment != "none"

    # ---------------------------------------------------------------------------------------------------- training

    def encode_training(
        self, sample: dict, *, max_length: int, over_length: str = "truncate", epoch: int = 0, seed: int = 0
    ) -> dict:
        """One training sample as tensors.

        Args:
            sample: LLaVA's `{"id", "image"?, "conversations"}` with the opened pictures as `images: list[PIL.Image]`,
                or what the vision tower made of them as `vision_features: float[I, N, Dv]`.
            max_length: most tokens, visual tokens counted.
            over_length: `truncate` cuts the tail, as LLaVA does; `error` and `drop` raise (who drops samples compares
                `length(sample)` with `max_length` beforehand).
            epoch, seed: for the instruction rule `random`.

        Returns:
            `input_ids` int64[L], `labels` int64[L], `pixel_values` float32[I, 3, H, W] (or `vision_features` as given),
            `instruction_ids` int64[I, M] (absent when the model reads no instructions), and for the record `id`,
            `truncated` (tokens cut off), `instruction_cut` (CLIP tokens cut off), `instruction` (text, None without an
            image).

        Raises:
            OverLengthError: see `over_length`; also if truncating would cut into or before an image.
            EmmaError: malformed sample, or one that supervises nothing.
        """
        name = f"sample {sample.get('id', '(no id)')!r}"
        if over_length not in OVER_LENGTH:
            raise EmmaError(f"over_length: {over_length!r} is not one of {', '.join(OVER_LENGTH)}")
        turns = turns_of(sample)
        features = sample.get("vision_features")
        images = sample.get("images", []) if features is None else features
        if sum(turn.images for turn in turns) != len(images):
            raise EmmaError(f"{name} names images but brings {len(images)} opened ones in 'images'")
        ids, labels = self._encoder.encode(self._render(turns, name), bos=self._template.bos)
        if all(label == IGNORE for label in labels):
            raise EmmaError(f"{name} has no answer to learn from")
        truncated = max(0, len(ids) - max_length)
        if truncated and over_length != "truncate":
            raise OverLengthError(f"{name} has {len(ids)} tokens, more than max_length {max_length}")
        if truncated and self.image_token_id in ids[max_length:]:
            raise OverLengthError(
                f"{name} has {len(ids)} tokens, and cutting at max_length {max_length} would cut an image away; "
                "raise max_length or set over_length: drop"
            )
        encoded = {
            "id": sample.get("id"),
            "input_ids": torch.tensor(ids[:max_length]),
            "labels": torch.tensor(labels[:max_length]),
            "truncated": truncated,
            "instruction": None,
            "instruction_cut": 0,
        }
        if len(images) and self.instruction_aware:
            encoded["instruction"] = self.instruction.select(turns, sample.get("id"), epoch, seed, self._clip.count)
        visual = {"pixel_values": self.pixels(images, name)} if features is None else {"vision_features": features}
        return encoded | visual | self._encode_instruction(len(images), encoded["instruction"], self.instruction, name)

    def length(self, sample: dict) -> int:
        """Exact number of tokens of a sample, visual tokens counted, before truncation. Opens no image."""
        segments = self._render(turns_of(sample), f"sample {sample.get('id', '(no id)')!r}")
        return self._encoder.length(segments, bos=self._template.bos)

    def _render(self, turns: list[Turn], name: str) -> list[Segment]:
        turns = drop_leading_answer(turns)
        check_alternation(turns, name)
        try:
            return self._template.render(turns)
        except EmmaError as error:
            raise EmmaError(f"{name}: {error}") from error

    # ------------------------------------------------------------------------------------ chat, evaluation, serving

    def encode_prompt(
        self,
        messages: Sequence[dict],
        images: Sequence[Image.Image] = (),
        instruction: str | None = None,
        system: str | None = None,
    ) -> dict:
        """A chat up to where the model is to answer.

        Args:
            messages: `{"role": "user" | "assistant" | "system", "content": text}`, the last one from the user. Contents
                are plain text, also if they read `<image>` or `</s>`.
            images: they come first in the first user turn.
            instruction: text for the CLIP text encoder, as given; None: the evaluation rule on the last user turn.
            system: replaces the template's system prompt.

        Returns:
            `input_ids`, `pixel_values`, `instruction_ids`, `instruction`, `instruction_cut` as `encode_training`.
        """
        prompt = self.encode_chat(messages, len(images), instruction, system)
        return prompt | {"pixel_values": self.pixels(images, "messages")}

    def encode_chat(
        self, messages: Sequence[dict], images: int = 0, instruction: str | None = None, system: str | None = None
    ) -> dict:
        """As `encode_prompt`, for a number of images whose pixels come from elsewhere."""
        turns = chat_turns(messages, images, system)
        ids, _ = self._encoder.encode(self._template.render(turns, generation=True), bos=self._template.bos)
        if instruction is None and images and self.instruction_aware:
            instruction = self.eval_instruction.apply(turns[-1].text)
        encoded = {"input_ids": torch.tensor(ids), "instruction": instruction}
        return encoded | self._encode_instruction(images, instruction, self.eval_instruction, "messages")

    def pixels(self, images: Sequence[Image.Image], name: str) -> torch.Tensor:
        """float32[I, 3, H, W], normalised; `name` says whose images, for messages."""
        size = self.image_size
        try:
            pixels = [preprocess(image, size, self.image_mode, self.image_mean, self.image_std) for image in images]
        except EmmaError as error:
            raise EmmaError(f"{name}: {error}") from error
        return torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size)

    def _encode_instruction(self, images: int, instruction: str | None, rule: InstructionRule, name: str) -> dict:
        """If the model reads instructions: `instruction_ids` int64[I, M], a row an image, and `instruction_cut`."""
        if not self.instruction_aware:
            return {}
        row: list[int] = []
        cut = 0
        if images and instruction is not None:
            row, cut = self._clip.encode(instruction, rule.over_77, name)
        ids = torch.tensor([row] * images).reshape(images, self.context_length).long()
        return {"instruction_ids": ids, "instruction_cut": cut}

    def pad(self, encoded: Sequence[dict], side: str = "right") -> BatchFeature:
        """Encoded samples or prompts as one batch, see `pad_batch`; `side`: `right` to train, `left` to generate."""
        return pad_batch(encoded, self.pad_id, side)

    @property
    def pad_id(self) -> int:
        """The id that fills up rows; any will do, since masks come from lengths."""
        pad_id = self.tokenizer.pad_token_id
        return pad_id if pad_id is not None else self.tokenizer.eos_token_id or 0

    @overload
    def decode(self, ids: list[int], skip_special_tokens: bool = True, **kwargs) -> str: ...

    @overload
    def decode(self, ids, skip_special_tokens: bool = True, **kwargs) -> str | list[str]: ...

    def decode(self, ids, skip_special_tokens: bool = True, **kwargs) -> str | list[str]:
        """Text of ids; visual placeholders, which the tokenizer does not know, are left out."""
        values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if values and isinstance(values[0], list):
            return [self.decode(row, skip_special_tokens, **kwargs) for row in values]
        known = [i for i in values if i != self.image_token_id]
        return self.tokenizer.decode(known, skip_special_tokens=skip_special_tokens, **kwargs)

    batch_decode = decode

    # ------------------------------------------------------------------------------------------------ Hugging Face

    def __call__(
        self,
        images: Image.Image | Sequence | None = None,
        text: str | Sequence[str] | None = None,
        instruction: str | Sequence[str] | None = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prompts as the chat template writes them: here `<image>` is an image and `</s>` is a special token.

        Args:
            images: one, a list (for one text, or one for each text), or a list of lists.
            text: one prompt or several.
            instruction: what the CLIP text encoder reads, one for all prompts or one each. Required with images, unless
                the model reads none: a finished prompt no longer tells which part is the question.
        """
        if return_tensors != "pt":
            raise EmmaError(f"return_tensors: only 'pt' is possible, not {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            raise EmmaError("the processor needs text; an image goes where the text says <image>")
        groups = group_images(images, len(texts), isinstance(text, str))
        instructions: list[str | None] = (
            [instruction] * len(texts) if isinstance(instruction, str | None) else list(instruction)
        )
        if len(instructions) != len(texts):
            raise EmmaError(f"{len(texts)} texts but {len(instructions)} instructions")
        if self.instruction_aware and any(
            own and words is None for own, words in zip(groups, instructions, strict=True)
        ):
            raise EmmaError("this model reads the instruction with the image: pass instruction=... (the bare question)")
        special = special_token_pattern(self.tokenizer)
        rows = []
        for number, (prompt, own, words) in enumerate(zip(texts, groups, instructions, strict=True)):
            pieces = [split_special(piece, special) for piece in prompt.split(IMAGE)]
            if len(pieces) - 1 != len(own):
                raise EmmaError(f"text {number} has {len(pieces) - 1} {IMAGE} placeholder(s) for {len(own)} image(s)")
            segments = pieces[0]
            for piece in pieces[1:]:
                segments += [Segment("", kind="image"), *piece]
            written = segments[:1] == [Segment(self.tokenizer.bos_token, kind="special")]
            ids, _ = self._encoder.encode(segments, bos=not written)
            instruct = self._encode_instruction(len(own), words, self.eval_instruction, f"text {number}")
            visual = {"pixel_values": self.pixels(own, f"text {number}")}
            rows.append({"input_ids": torch.tensor(ids)} | visual | instruct)
        return self.pad(rows, padding_side)

    def apply_chat_template(
        self,
        conversation: Sequence[dict],
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        instruction: str | None = None,
        **kwargs,
    ) -> str | BatchFeature:
        """One chat as text, or with `tokenize=True` as a batch of one, with the evaluation rule's instruction.

        `conversation`: messages whose content is text or Hugging Face's list of `{"type": "text", "text"}` and
        `{"type": "image", "image": PIL.Image}` parts; images belong into the first user message.
        """
        if not add_generation_prompt:
            raise EmmaError(
                "apply_chat_template makes prompts for generation; use encode_training for finished dialogues"
            )
        messages, images = split_messages(conversation)
        if tokenize:
            return self.pad([self.encode_prompt(messages, images, instruction)], "left")
        return join(self._template.render(chat_turns(messages, len(images)), generation=True))

    @property
    def model_input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask", "pixel_values"]
        return [*names, "instruction_ids"] if self.instruction_aware else names

    # ----------------------------------------------------------------------------------------------- save and load

    def to_dict(self) -> dict:
        """What `processor_config.json` holds; `clip_bpe` there is the name of the file beside it."""
        return {
            "processor_class": type(self).__name__,
            "image_size": self.image_size,
            "num_visual_tokens": self.num_visual_tokens,
            "context_length": self.context_length,
            "image_token_id": self.image_token_id,
            "alignment": self.alignment,
            "image_mode": self.image_mode,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            "template": self.template,
            "instruction": self.instruction.to_dict(),
            "eval_instruction": self.eval_instruction.to_dict(),
            "clip_bpe": CLIP_BPE if self.clip_bpe else None,
        }

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> list[str]:
        written = super().save_pretrained(str(save_directory), **kwargs)
        if hasattr(self.tokenizer, "legacy"):  # LlamaTokenizer forgets it, and reloads with other ids after `</s>`
            file = Path(save_directory) / "tokenizer_config.json"
            settings = json.loads(file.read_text(encoding="utf-8")) | {"legacy": self.tokenizer.legacy}
            file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.clip_bpe:
            (Path(save_directory) / CLIP_BPE).write_bytes(self.clip_bpe)
        return written

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        hub = {key: kwargs[key] for key in ("cache_dir", "revision", "token", "local_files_only") if key in kwargs}
        values, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "template" not in values:
            raise EmmaError(f"{pretrained_model_name_or_path} has no processor_config.json of an EMMA model")
        if values.get("clip_bpe"):
            values["clip_bpe"] = Path(
                cached_file(pretrained_model_name_or_path, values["clip_bpe"], **hub)
            ).read_bytes()
        return values, rest
