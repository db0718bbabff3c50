"""Stream one answer of a loaded model, piece by piece."""

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import TextIteratorStreamer

from emma.errors import EmmaError
from emma.serve.chat import Request

if TYPE_CHECKING:
    from emma import EmmaForConditionalGeneration, EmmaProcessor


def stream_answer(
    model: "EmmaForConditionalGeneration",
    processor: "EmmaProcessor",
    request: Request,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
) -> Iterator[str]:
    """Yield the answer to `request` as it is generated; temperature 0 is greedy.

    The instruction is what the checkpoint's rule makes of the current turn. Closing the iterator stops the generation.
    Raises `EmmaError` when the conversation does not fit into the LLM's context.
    """
    inputs = processor.pad(
        [processor.encode_prompt(request.messages, request.images, system=request.system)], side="left"
    )
    used, room = inputs["input_ids"].shape[1], model.config.text_config.max_position_embeddings
    if used >= room:
        raise EmmaError(
            f"the conversation has {used} tokens, the model's context {room}; begin anew with /reset, or ask less"
        )
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stopped, failures = threading.Event(), []

    def stop(input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return torch.full((len(input_ids),), stopped.is_set(), dtype=torch.bool, device=input_ids.device)

    def generate() -> None:
        try:
            with torch.inference_mode():
                model.generate(
                    **inputs.to(model.device),
                    **sampling,
                    max_new_tokens=min(max_new_tokens, room - used),
                    streamer=streamer,
                    stopping_criteria=[stop],
                )
        except Exception as error:  # carried to the reader's thread and raised there
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stopped.set()
        thread.join()
    if failures:
        raise failures[0]
