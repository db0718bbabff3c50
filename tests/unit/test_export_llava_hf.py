"""The llava-hf export: transformers' own Llava gives the same ids, pixels and logits, and it comes back bit-equal."""

import json

import pytest
import torch
from PIL import Image
from test_export import assert_same_processor, weights
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

import emma
from emma.checkpoints.exporting import export_folder
from emma.checkpoints.folder import save_folder
from emma.checkpoints.importing import import_folder

QUESTION = "What colour is it?\nAnswer briefly."


@pytest.fixture
def exported(tiny_model, tiny_processor, tmp_path):
    """(model folder, export) in float32."""
    torch.manual_seed(3)
    model = tiny_model("none")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_folder(tmp_path / "model", model, tiny_processor(model.config), {})
    return tmp_path / "model", export_folder(tmp_path / "model", tmp_path / "hf", "llava-hf")


@pytest.fixture
def chat():
    picture = Image.new("RGB", (24, 16), "red")
    picture.putpixel((3, 3), (0, 0, 255))
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]


def test_transformers_llava_gives_the_same(exported, chat):
    folder, out = exported
    ours, our_processor = emma.load(folder, device="cpu")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    their_processor = AutoProcessor.from_pretrained(out)
    assert isinstance(their_processor, LlavaProcessor)
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    expected = our_processor.apply_chat_template(chat, **arguments)
    found = their_processor.apply_chat_template(chat, **arguments)
    assert found["input_ids"].tolist() == expected["input_ids"].tolist()
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=0.03, rtol=0)  # torchvision
    inputs = expected | {"pixel_values": expected["pixel_values"]}
    with torch.no_grad():
        logits = theirs.eval()(**inputs).logits
        torch.testing.assert_close(logits[..., :640], ours(**inputs).logits, atol=1e-5, rtol=0)
    assert logits.shape[-1] == 704
    assert torch.all(logits[..., 640:].amax(-1) < logits[..., :640].amax(-1)), "no new token can be the best"
    length = expected["input_ids"].shape[1]
    generate = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(
        theirs.generate(**inputs, **generate)[:, length:], ours.generate(**inputs, **generate)[:, length:]
    )


def test_new_tokens_are_never_sampled(exported):
    _, out = exported
    settings = json.loads((out / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == list(range(640, 704))


def test_comes_back_bit_equal(exported, tmp_path):
    folder, out = exported
    back = import_folder(out, tmp_path / "back")
    ours, found = weights(folder), weights(back)
    assert found.keys() == ours.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, found[name])] == []
    assert_same_processor(folder, back)
