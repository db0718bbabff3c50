"""`generate`: padded batches, the cache, beams and prepared embeddings all answer alike."""

import pytest
import torch
from test_model_basics import IMAGE, N, batch, prompt

from emma.model.generation import repeat_images, token_ids_only

# Seven prompts of different lengths: image, text only and two images, in no order.
PROMPTS = [
    prompt(1, [5, 6, 7, 8]),
    prompt(0, [9, 10, 11]),
    prompt(2, [12, 13]),
    prompt(1, [14]),
    prompt(0, [15, 16, 17, 18, 19, 20]),
    prompt(2, [21, 22, 23]),
    prompt(1, [24, 25]),
]
NEW = 8


def alone(inputs: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """Row `row` of a left-padded batch as a batch of one, padding cut off."""
    images = [ids.count(IMAGE) // N for ids in PROMPTS]
    start = sum(images[:row])
    length = len(PROMPTS[row])
    return {
        "input_ids": inputs["input_ids"][row : row + 1, -length:],
        "attention_mask": inputs["attention_mask"][row : row + 1, -length:],
        "pixel_values": inputs["pixel_values"][start : start + images[row]],
        "instruction_ids": inputs["instruction_ids"][start : start + images[row]],
    }


@pytest.fixture
def model(tiny_model):
    """With an alignment that is no longer fresh, so that images and instructions show in the answers."""
    model = tiny_model("linear").eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        torch.nn.init.normal_(model.alignment.weight, std=0.5)
        torch.nn.init.normal_(model.projector[2].weight)
    model.generation_config.eos_token_id = None  # all answers get the same length
    return model


def test_batch_of_seven_equals_seven_batches_of_one(model):
    inputs = batch(PROMPTS, side="left")
    together = model.generate(**inputs, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :]
    assert together.shape == (7, NEW)
    for row, answer in enumerate(together):
        single = model.generate(**alone(inputs, row), max_new_tokens=NEW)[0, len(PROMPTS[row]) :]
        assert single.tolist() == answer.tolist(), row
    assert len({tuple(answer) for answer in together.tolist()}) > 4  # the prompts do matter


def test_cached_equals_uncached(model):
    inputs = batch(PROMPTS, side="left")
    cached = model.generate(**inputs, max_new_tokens=NEW)
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW, use_cache=False), cached)


def test_image_and_instruction_change_the_answer(model):
    inputs = batch(PROMPTS, side="left")
    answer = model.generate(**inputs, max_new_tokens=NEW)
    for name in ("pixel_values", "instruction_ids"):
        other = model.generate(**{**inputs, name: inputs[name].flip(0)}, max_new_tokens=NEW)
        assert not torch.equal(other, answer), name
        assert torch.equal(other[1], answer[1]), "the text-only row has neither"


def test_inputs_embeds(model):
    inputs = batch(PROMPTS, side="left")
    expected = model.generate(**inputs, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :]
    embeddings = model.embed(inputs["input_ids"], inputs["pixel_values"], inputs["instruction_ids"])
    mask = inputs["attention_mask"]
    assert torch.equal(model.generate(inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=NEW), expected)


def test_beams_keep_images_with_their_rows(model):
    inputs = batch(PROMPTS, side="left")
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": NEW}
    answers = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
    # Prepared embeddings hold the images already, so that nothing can be repeated wrongly.
    embeddings = model.embed(inputs["input_ids"], inputs["pixel_values"], inputs["instruction_ids"])
    mask = inputs["attention_mask"]
    assert torch.equal(model.generate(inputs_embeds=embeddings, attention_mask=mask, **settings), answers)


def test_repetition_penalty_with_placeholders(model):
    inputs = batch(PROMPTS, side="left")
    assert model.generate(**inputs, max_new_tokens=NEW, repetition_penalty=1.3).shape[0] == 7


def test_a_second_answer_can_continue_from_the_cache(model):
    inputs = alone(batch(PROMPTS, side="left"), 2)
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, torch.tensor([[30, 31]])], 1)
    whole = {**inputs, "input_ids": longer, "attention_mask": torch.ones_like(longer)}
    expected = model.generate(**whole, max_new_tokens=NEW)
    continued = {"input_ids": longer, "attention_mask": whole["attention_mask"]}
    cached = model.generate(**continued, past_key_values=first.past_key_values, max_new_tokens=NEW)
    assert torch.equal(cached, expected)


def test_repeat_images_goes_row_by_row():
    images = torch.tensor([10, 20, 21, 30])
    assert repeat_images(images, [1, 0, 2, 1], 2).tolist() == [10, 10, 20, 21, 20, 21, 30, 30]
    assert repeat_images(images[:0], [0, 0], 2).tolist() == []
    assert repeat_images(None, [1], 2) is None


def test_sampling_settings_of_the_llm_are_dropped(tmp_path):
    from transformers import GenerationConfig

    vicuna = GenerationConfig(bos_token_id=1, eos_token_id=2, max_length=4096, temperature=0.9, top_p=0.6)
    clean = token_ids_only(vicuna)
    clean.save_pretrained(tmp_path)  # vicuna's own would raise
    assert (clean.bos_token_id, clean.eos_token_id, clean.pad_token_id) == (1, 2, 2)
    assert not clean.do_sample
    assert clean.temperature is None or clean.temperature == 1.0
