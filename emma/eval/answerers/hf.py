"""Any image-text-to-text model of transformers: LLaVA-1.5, BLIP-2, InstructBLIP, IDEFICS, Qwen-VL and their like."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from emma.errors import EmmaError
from emma.eval.answering import Answered, Question, Unanswerable, cut_at


class HuggingFaceAnswerer:
    """A folder or a hub id. The chat template of the processor is used where it has one, else the benchmark's prompt as
    it is; InstructBLIP's Q-Former reads the same prompt, through its processor. No remote code is run.

    Raises:
        EmmaError: not here and not to be had, or not a model of this kind.
    """

    def __init__(self, source: str, dtype: str | None = None, device: str | None = None):
        from emma.checkpoints.folder import device_for, dtype_for

        self.name = f"hf:{source}"
        self.folder = local_folder(source)
        self._target = device_for(device)
        self._dtype = dtype_for(dtype, self._target)
        self.device = self._target.type

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        processor = self._load(AutoProcessor)
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise EmmaError(f"{self.name}: its processor has no tokenizer, so it is no image-text-to-text model")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return processor

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return self._load(AutoModelForImageTextToText, dtype=self._dtype).to(self._target).eval()

    def _load(self, kind: Any, **further: Any) -> Any:
        try:
            return kind.from_pretrained(self.folder, local_files_only=True, **further)
        except (OSError, ValueError, KeyError) as error:
            raise EmmaError(
                f"{self.name}: transformers cannot load {self.folder}: {' '.join(str(error).split())}"
            ) from error

    def fingerprint(self) -> dict[str, Any]:
        from emma.checkpoints.provenance import weights_hash

        return {
            "weights": weights_hash(self.folder),
            "dtype": str(self._dtype).removeprefix("torch."),
            "template": "chat template" if self._has_template else "prompt as it is",
            "instruction": None,
            "image_mode": None,
            "processor": type(self.processor).__name__,
        }

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def instruction(self, question: str) -> str | None:
        return None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        """Questions with and without pictures are asked apart, since processors take them in different forms."""
        answers: dict[int, Answered] = {}
        for with_pictures in (True, False):
            chosen = [i for i, question in enumerate(questions) if bool(question.pictures) == with_pictures]
            if chosen:
                answers |= dict(
                    zip(chosen, self._alike([questions[i] for i in chosen], max_new_tokens, stop), strict=True)
                )
        return [answers[i] for i in range(len(questions))]

    def _alike(self, questions: list[Question], max_new_tokens: int, stop: Sequence[str]) -> list[Answered]:
        import torch

        pictures = [question.open() for question in questions]
        texts = [self._text(question) for question in questions]
        inputs: dict[str, Any] = {"text": texts, "padding": True, "return_tensors": "pt"}
        if pictures[0]:
            single = all(len(own) == 1 for own in pictures)
            inputs["images"] = [own[0] for own in pictures] if single else pictures
        try:
            batch = self.processor(**inputs).to(self._target)
        except (ValueError, TypeError, IndexError) as error:
            raise Unanswerable(questions[0].id, f"{type(self.processor).__name__}: {error}") from error
        if "pixel_values" in batch:
            batch["pixel_values"] = batch["pixel_values"].to(self._dtype)
        elif self._wants_pictures:
            raise Unanswerable(questions[0].id, f"{type(self.model).__name__} takes no question without a picture")
        with torch.inference_mode():
            output = self.model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        return [self._read(row, stop, max_new_tokens) for row in without_prompt(output, batch["input_ids"])]

    @property
    def _wants_pictures(self) -> bool:
        """Models with a Q-Former have no text-only path."""
        return hasattr(self.model, "qformer")

    def _text(self, question: Question) -> str:
        if not self._has_template:
            return question.prompt
        content: list[dict[str, str]] = [{"type": "image"} for _ in question.pictures]
        content.append({"type": "text", "text": question.prompt})
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _read(self, ids: Any, stop: Sequence[str], max_new_tokens: int) -> Answered:
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        text, stopped = cut_at(text, stop)
        return Answered(text, stopped or len(ids) < max_new_tokens or not ends.isdisjoint(ids.tolist()))


def without_prompt(output: Any, prompt: Any) -> Any:
    """New tokens int[B, L]: some models' `generate` returns the prompt in front of them, some (which make embeddings of
    it) do not."""
    length = prompt.shape[1]
    repeated = output.shape[1] >= length and bool((output[:, :length] == prompt).all())
    return output[:, length:] if repeated else output


def local_folder(source: str) -> Path:
    """The folder itself, or the hub's copy of an id, from its cache or, where that is allowed, the network.

    Raises:
        EmmaError: neither; says which folder to give.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EmmaError(
            f"hf:{source} is no folder, and the hub cannot be asked for it ({' '.join(str(error).split())[:120]}); "
            "give the folder of a downloaded model"
        ) from error
