"""EMMA's answers: prompts padded on the left, greedy."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.eval.answering import Answered, Question, cut_at

if TYPE_CHECKING:
    from emma import EmmaForConditionalGeneration


class EmmaAnswerer:
    """A model folder. Its weights are loaded when the first question is asked: a run that has nothing left to ask, or
    is refused, does without.

    Args:
        dtype, device: as for `emma.load`; of several processes on one machine, each takes a GPU of its own.

    Raises:
        EmmaError: no model folder, or a damaged one.
    """

    def __init__(self, folder: str | Path, dtype: str | None = None, device: str | None = None):
        from emma.checkpoints.folder import device_for, dtype_for, load_processor

        self.folder = Path(folder).expanduser()
        self.name = str(folder)
        self.processor = load_processor(self.folder)
        target = device_for(device)
        if target.type == "cuda" and target.index is None:
            target = device_for(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        self._target, self._dtype = target, dtype_for(dtype, target)
        self.device = target.type

    @cached_property
    def model(self) -> "EmmaForConditionalGeneration":
        from emma.checkpoints.folder import load_folder

        return load_folder(self.folder, self._dtype, self._target)[0]

    def fingerprint(self) -> dict[str, Any]:
        from emma.checkpoints.provenance import weights_hash

        processor = self.processor
        return {
            "weights": weights_hash(self.folder),
            "dtype": str(self._dtype).removeprefix("torch."),
            "template": processor.template,
            "instruction": processor.eval_instruction.to_dict() if processor.instruction_aware else None,
            "image_mode": processor.image_mode,
        }

    def instruction(self, question: str) -> str | None:
        return self.processor.eval_instruction.apply(question) if self.processor.instruction_aware else None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        import torch

        model, processor = self.model, self.processor
        encoded = [self._encode(question) for question in questions]
        batch = processor.pad(encoded, side="left").to(model.device)
        with torch.inference_mode():
            output = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for ids, inputs in zip(output[:, batch["input_ids"].shape[1] :].tolist(), encoded, strict=True):
            length = next((i for i, id in enumerate(ids) if id in ends), None)
            text, stopped = cut_at(processor.decode(ids[:length]), stop)
            answers.append(Answered(text, length is not None or stopped, inputs.get("instruction_cut", 0)))
        return answers

    def _encode(self, question: Question) -> dict[str, Any]:
        messages = [{"role": "user", "content": question.prompt}]
        return self.processor.encode_prompt(messages, question.open(), instruction=question.instruction)
