"""EmmaProcessor: samples and chats to the model's inputs, with every choice kept in `processor_config.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.utils import cached_file

from emma.errors import EmmaError
from emma.processing.batch import pad_batch
from emma.processing.images import CLIP_MEAN, CLIP_STD, MODES, preprocess_all
from emma.processing.instruction import CLIP_BPE, ClipTokenizer, InstructionRule
from emma.processing.prompts import (
    chats_of,
    check_call_arguments,
    check_chat_arguments,
    finished_prompts,
    segments_of,
    split_messages,
)
from emma.processing.save import keep_legacy
from emma.processing.template import (
    chat_turns,
    get_template,
    join,
    render_sample,
    turns_of,
)
from emma.processing.tokens import IGNORE, SegmentEncoder, overhang


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
        tokenizer.padding_side = "left"  # pipelines pad prompts by these two; everything here pads by `pad`
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
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
        if processor.instruction_aware:
            processor._clip.check_vocabulary(towers.text_cfg.get("vocab_size", 49408))
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
        turns = turns_of(sample)
        features = sample.get("vision_features")
        images = sample.get("images", []) if features is None else features
        if sum(turn.images for turn in turns) != len(images):
            raise EmmaError(f"{name} names images but brings {len(images)} opened ones in 'images'")
        ids, labels = self._encoder.encode(render_sample(self._template, turns, name), bos=self._template.bos)
        if all(label == IGNORE for label in labels):
            raise EmmaError(f"{name} has no answer to learn from")
        truncated = overhang(ids, max_length, over_length, self.image_token_id, name)
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
        segments = render_sample(self._template, turns_of(sample), f"sample {sample.get('id', '(no id)')!r}")
        return self._encoder.length(segments, bos=self._template.bos)

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
        return preprocess_all(images, self.image_size, self.image_mode, self.image_mean, self.image_std, name)

    def _encode_instruction(self, images: int, instruction: str | None, rule: InstructionRule, name: str) -> dict:
        """If the model reads instructions: `instruction_ids` int64[I, M], a row an image, and `instruction_cut`."""
        return self._clip.repeated(instruction, images, rule.over_77, name) if self.instruction_aware else {}

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
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Prompts as the chat template writes them: here `<image>` is an image and `</s>` is a special token.

        Args:
            images: one, a list (for one text, or one for each text), or a list of lists.
            text: one prompt or several.
            instruction: what the CLIP text encoder reads, one for all prompts or one each. Required with images, unless
                the model reads none: a finished prompt no longer tells which part is the question.
        """
        prompts = finished_prompts(images, text, instruction, needed=self.instruction_aware)
        check_call_arguments(len(prompts), padding, return_tensors)
        rows = []
        for number, (prompt, own, words) in enumerate(prompts):
            ids, _ = self._encoder.encode(*segments_of(prompt, self.tokenizer))
            row = {"input_ids": torch.tensor(ids), "pixel_values": self.pixels(own, f"text {number}")}
            rows.append(row | self._encode_instruction(len(own), words, self.eval_instruction, f"text {number}"))
        return self.pad(rows, padding_side)

    def apply_chat_template(
        self,
        conversation: Sequence[dict] | Sequence[Sequence[dict]],
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        instruction: str | None = None,
        return_dict: bool = True,
        **kwargs,
    ) -> str | list[str] | BatchFeature | torch.Tensor:
        """One chat or several as text, or with `tokenize=True` as a batch, with the evaluation rule's instructions.

        Args:
            conversation: messages whose content is text or a list of parts, see `split_messages`; or a list of such.
            instruction: what the CLIP text encoder reads instead.
            return_dict: False gives `input_ids` alone.
            kwargs: transformers' further arguments, as far as they ask for what is done anyway.
        """
        check_chat_arguments(add_generation_prompt, kwargs)
        chats = [split_messages(chat) for chat in chats_of(conversation)]
        if tokenize:
            batch = self.pad([self.encode_prompt(*chat, instruction) for chat in chats], "left")
            return batch if return_dict else batch["input_ids"]
        turns = [chat_turns(messages, len(images)) for messages, images in chats]
        texts = [join(self._template.render(chat, generation=True)) for chat in turns]
        return texts[0] if isinstance(conversation[0], dict) else texts

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list[str]:
        """Texts of prompts and answers int[B, L]; visual placeholders are left out."""
        return [self.decode(row, skip_special_tokens, **kwargs) for row in generated_outputs]

    @property
    def image_processor(self) -> "EmmaProcessor":
        """Itself: pipelines put batches together only for processors that have one."""
        return self

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
        keep_legacy(self.tokenizer, save_directory)
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
            file = cached_file(pretrained_model_name_or_path, values["clip_bpe"], **hub)
            values["clip_bpe"] = Path(file).read_bytes()
        return values, rest
