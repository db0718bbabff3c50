"""EMMA's answers: an image encoded once for all questions about it, prompts padded on the left, greedy."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.errors import EmmaError
from emma.eval.answering import Answered, Question, Unanswerable, cut_at
from emma.eval.pictures import Picture, open_picture

if TYPE_CHECKING:
    import torch

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
        self._kept: dict[Picture, torch.Tensor] = {}

    @cached_property
    def model(self) -> "EmmaForConditionalGeneration":
        from emma.checkpoints.folder import load_folder

        return load_folder(self.folder, self._dtype, self._target)[0]

    @cached_property
    def _weights_hash(self) -> str:
        """Once for all benchmarks: it reads every byte."""
        from emma.checkpoints.provenance import weights_hash

        return weights_hash(self.folder)

    def fingerprint(self) -> dict[str, Any]:
        processor = self.processor
        return {
            "weights": self._weights_hash,
            "dtype": str(self._dtype).removeprefix("torch."),
            "template": processor.template,
            "instruction": processor.eval_instruction.to_dict() if processor.instruction_aware else None,
            "image_mode": processor.image_mode,
        }

    def instruction(self, question: str) -> str | None:
        return self.processor.eval_instruction.apply(question) if self.processor.instruction_aware else None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        import torch

        from emma.model.image_part import project

        model = self.model
        prompts = [self._prompt(question) for question in questions]
        batch = self.processor.pad(prompts, side="left").to(model.device)
        parts = self._parts(questions)
        rows = [parts[picture] for question in questions for picture in question.pictures]
        with torch.inference_mode():
            projected = project(model, torch.stack(rows), batch.get("instruction_ids")) if rows else None
            output = model.generate(
                inputs_embeds=model.splice(batch["input_ids"], projected),
                attention_mask=batch["attention_mask"],
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
            )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for ids, prompt in zip(output.tolist(), prompts, strict=True):
            length = next((i for i, id in enumerate(ids) if id in ends), None)
            text, stopped = cut_at(self.processor.decode(ids[:length]), stop)
            answers.append(Answered(text, length is not None or stopped, prompt.get("instruction_cut", 0)))
        return answers

    def _prompt(self, question: Question) -> dict[str, Any]:
        """`input_ids` and `instruction_ids`.

        Raises:
            Unanswerable: it does not fit into the LLM's context, or the instruction is too long and may not be cut.
        """
        messages = [{"role": "user", "content": question.prompt}]
        try:
            prompt = self.processor.encode_chat(messages, len(question.pictures), question.instruction)
        except EmmaError as error:
            raise Unanswerable(question.id, str(error)) from error
        tokens, room = len(prompt["input_ids"]), self.model.config.text_config.max_position_embeddings
        if tokens >= room:
            raise Unanswerable(question.id, f"its prompt has {tokens} tokens, the model's context {room}")
        return prompt

    def _parts(self, questions: Sequence[Question]) -> "dict[Picture, torch.Tensor]":
        """What is kept of each picture of these questions, float32[N, Dv].

        The runner asks all about one picture in a row, so only the pictures of the last batch can come again.
        """
        import torch

        from emma.model.image_part import image_part

        owners = {picture: question for question in questions for picture in question.pictures}
        pixels = {picture: self._pixels(picture, owners[picture]) for picture in owners if picture not in self._kept}
        self._kept = {picture: self._kept[picture] for picture in owners if picture in self._kept}
        if pixels:
            made = image_part(self.model, torch.cat(list(pixels.values())).to(self.model.device))
            self._kept |= dict(zip(pixels, made, strict=True))
        return self._kept

    def _pixels(self, picture: Picture, question: Question) -> "torch.Tensor":
        """float32[1, 3, H, W]."""
        try:
            return self.processor.pixels([open_picture(picture)], "its picture")
        except EmmaError as error:
            raise Unanswerable(question.id, str(error)) from error
