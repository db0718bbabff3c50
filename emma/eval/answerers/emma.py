"""EMMA's answers: prompts padded on the left, greedy."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.eval.answering import Answered, Question, cut_at

if TYPE_CHECKING:
    from emma import EmmaForConditionalGeneration, EmmaProcessor


class EmmaAnswerer:
    """A loaded checkpoint.

    Args:
        folder: where it was loaded from; its weights are hashed.
    """

    def __init__(self, model: "EmmaForConditionalGeneration", processor: "EmmaProcessor", folder: str | Path):
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.name = str(folder)
        self.device = model.device.type
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])

    def fingerprint(self) -> dict[str, Any]:
        from emma.checkpoints.provenance import weights_hash

        processor = self.processor
        return {
            "weights": weights_hash(self.folder),
            "dtype": str(self.model.llm.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "template": processor.template,
            "instruction": processor.eval_instruction.to_dict() if processor.instruction_aware else None,
            "image_mode": processor.image_mode,
        }

    def instruction(self, question: str) -> str | None:
        return self.processor.eval_instruction.apply(question) if self.processor.instruction_aware else None

    def answer(self, questions: Sequence[Question], max_new_tokens: int, stop: Sequence[str] = ()) -> list[Answered]:
        import torch

        encoded = [self._encode(question) for question in questions]
        batch = self.processor.pad(encoded, side="left").to(self.model.device)
        with torch.inference_mode():
            output = self.model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        answers = []
        for ids, inputs in zip(output[:, batch["input_ids"].shape[1] :].tolist(), encoded, strict=True):
            length = next((i for i, id in enumerate(ids) if id in self._ends), None)
            text, stopped = cut_at(self.processor.decode(ids[:length]), stop)
            answers.append(Answered(text, length is not None or stopped, inputs.get("instruction_cut", 0)))
        return answers

    def _encode(self, question: Question) -> dict[str, Any]:
        messages = [{"role": "user", "content": question.prompt}]
        return self.processor.encode_prompt(messages, question.open(), instruction=question.instruction)
