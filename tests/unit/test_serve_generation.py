"""Streaming an answer of a tiny model: the same text as without streaming, stopped when nobody reads on."""

import pytest
import torch
from PIL import Image

from emma.errors import EmmaError
from emma.serve.chat import Request
from emma.serve.generation import stream_answer


@pytest.fixture
def loaded(tiny_model, tiny_processor):
    model = tiny_model().eval()
    return model, tiny_processor(model.config)


def request(question="What is it?", images=True, system=None):
    images = [Image.new("RGB", (16, 16), "red")] if images else []
    return Request([{"role": "user", "content": question}], images, system)


def unstreamed(model, processor, asked, tokens):
    prompt = processor.encode_prompt(asked.messages, asked.images, system=asked.system)
    inputs = processor.pad([prompt], side="left")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("images", [True, False])
def test_pieces_are_the_greedy_answer(loaded, images):
    asked = request(images=images, system="Be brief.")
    pieces = list(stream_answer(*loaded, asked, max_new_tokens=12))
    assert len(pieces) > 1
    assert "".join(pieces) == unstreamed(*loaded, asked, 12)


def test_temperature_samples(loaded):
    torch.manual_seed(0)
    texts = {"".join(stream_answer(*loaded, request(), temperature=2.0, max_new_tokens=8)) for _ in range(4)}
    assert len(texts) > 1


def test_closing_stops_the_model(loaded):
    model, processor = loaded
    steps = []
    model.llm.register_forward_hook(lambda *_: steps.append(1))
    model.generation_config.eos_token_id = None  # never ends by itself
    pieces = stream_answer(model, processor, request(), max_new_tokens=400)
    next(pieces)
    pieces.close()  # returns when the model's thread has ended
    assert 0 < len(steps) < 300


def test_too_long_a_conversation(loaded):
    with pytest.raises(EmmaError, match=r"context 512; begin anew with /reset"):
        list(stream_answer(*loaded, request("word " * 600)))


def test_a_failure_of_the_model_is_not_swallowed(loaded, monkeypatch):
    def fails(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(loaded[0], "generate", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream_answer(*loaded, request()))
