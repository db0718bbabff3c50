"""The model's forward pass: towers, alignment, splicing, loss, and what must be equal to what."""

import copy

import pytest
import torch
from torch.nn import functional as F

from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration, part_of

N = 4  # visual tokens of the tiny towers
IMAGE = 640  # the placeholder: first id outside the vocabulary


def prompt(images: int, text: list[int]) -> list[int]:
    return [1, *[IMAGE] * (N * images), *text]


def batch(rows: list[list[int]], side: str = "right", seed: int = 0) -> dict[str, torch.Tensor]:
    """A padded batch with random pixels and instructions for every image in `rows`."""
    generator = torch.Generator().manual_seed(seed)
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, span] = torch.tensor(row)
        mask[i, span] = 1
    images = sum(row.count(IMAGE) for row in rows) // N
    instruction = torch.zeros(images, 77, dtype=torch.long)
    instruction[:, :5] = torch.randint(1, 49000, (images, 5), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(images, 3, 16, 16, generator=generator),
        "instruction_ids": instruction,
    }


ROWS = [prompt(1, [5, 6, 7, 8]), prompt(0, [9, 10, 11]), prompt(2, [12, 13])]


def labels_of(inputs: dict[str, torch.Tensor], last: int = 2) -> torch.Tensor:
    """Supervise the last two real tokens of every row."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        labels[row, length - last : length] = inputs["input_ids"][row, length - last : length]
    return labels


@pytest.mark.parametrize("alignment", ["linear", "cross_attention"])
def test_fresh_alignment_equals_llava_bit_for_bit(tiny_model, tmp_path, alignment):
    inputs = batch(ROWS)
    llava, emma = tiny_model("none").eval(), tiny_model(alignment).eval()
    expected = llava(**inputs).logits
    assert torch.equal(emma(**inputs).logits, expected)
    emma.save_pretrained(tmp_path / "m")
    assert torch.equal(EmmaForConditionalGeneration.from_pretrained(tmp_path / "m")(**inputs).logits, expected)


@pytest.mark.parametrize("alignment", ["linear", "cross_attention"])
def test_training_the_alignment_makes_the_instruction_matter(tiny_model, alignment):
    inputs = batch(ROWS)
    model = tiny_model(alignment)
    optimizer = torch.optim.SGD(model.alignment.parameters(), lr=1.0)
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    optimizer.step()
    other = {**inputs, "instruction_ids": inputs["instruction_ids"].flip(0)}
    assert not torch.allclose(model(**inputs).logits, model(**other).logits)


def test_linear_alignment_is_the_papers_formula(tiny_model):
    alignment = tiny_model("linear").alignment
    torch.nn.init.normal_(alignment.weight)
    torch.nn.init.normal_(alignment.bias)
    visual, instruction = torch.randn(3, N, 32), torch.randn(3, 77, 32)
    over_tokens = torch.cat([visual, instruction], 1).transpose(1, 2)
    expected = F.linear(over_tokens, alignment.weight, alignment.bias).transpose(1, 2)
    torch.testing.assert_close(alignment(visual, instruction), expected)


def test_no_text_tower_without_alignment(tiny_model):
    names = dict(tiny_model("none").named_parameters())
    assert {part_of(name) for name in names} == {"towers", "adapter", "llm"}
    assert all(name.startswith("towers.visual.") for name in names if part_of(name) == "towers")
    assert all(name.startswith("projector.") for name in names if part_of(name) == "adapter")
    with pytest.raises(EmmaError, match="no parameter"):
        part_of("lm_head.weight")


def test_one_seed_one_projector_and_the_global_generator_is_left_alone(tiny_model):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    linear, none, other = tiny_model("linear"), tiny_model("none"), tiny_model("linear", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(linear.projector[0].weight, none.projector[0].weight)
    assert not torch.equal(linear.projector[0].weight, other.projector[0].weight)


def test_from_parts_keeps_the_llm(tiny_model, tiny_llm):
    before = {name: tensor.clone() for name, tensor in tiny_llm.state_dict().items()}
    after = tiny_model(llm=tiny_llm).llm.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("layer", ["penultimate", "final"])
def test_towers_give_clips_own_tokens(tiny_clip, tiny_model, layer):
    from open_clip.model import CLIP

    config, weights = tiny_clip
    clip = CLIP(config.embed_dim, config.vision_cfg, config.text_cfg, quick_gelu=True).eval()
    clip.load_state_dict(weights)
    clip.requires_grad_(False)  # torch picks another kernel for trainable weights, even under no_grad: last bits differ
    inputs = batch(ROWS)
    with torch.no_grad():
        expected = clip.forward_intermediates(
            inputs["pixel_values"],
            inputs["instruction_ids"],
            image_indices=[-2],
            text_indices=[-2 if layer == "penultimate" else -1],
            image_output_fmt="NLC",
            intermediates_only=True,
        )
    towers = tiny_model(text_layer=layer).towers
    assert torch.equal(towers.encode_image(inputs["pixel_values"]), expected["image_intermediates"][0])
    assert torch.equal(towers.encode_text(inputs["instruction_ids"]), expected["text_intermediates"][0])


def test_features_are_the_same_in_training_and_evaluation(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model()
    image = inputs["pixel_values"], inputs["instruction_ids"]
    training = model.get_image_features(*image)
    assert training.requires_grad
    assert not any(module.training for module in model.towers.modules())
    with torch.no_grad():
        assert torch.equal(model.eval().get_image_features(*image), training)


def test_intermediates(tiny_model):
    inputs = batch(ROWS)
    projected, steps = tiny_model().get_image_features(
        inputs["pixel_values"], inputs["instruction_ids"], return_intermediates=True
    )
    shapes = {name: tuple(value.shape) for name, value in steps.items()}
    assert shapes == {
        "vision": (3, 4, 32),
        "text": (3, 77, 16),
        "instruction": (3, 77, 32),
        "aligned": (3, 4, 32),
        "projected": (3, 4, 32),
    }
    assert steps["projected"] is projected


def test_visual_tokens_take_the_placeholders_in_reading_order(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model().eval()
    embeddings = model.embed(inputs["input_ids"], inputs["pixel_values"], inputs["instruction_ids"])
    features = model.get_image_features(inputs["pixel_values"], inputs["instruction_ids"])
    assert torch.equal(embeddings[0, 1 : 1 + N], features[0])
    assert torch.equal(embeddings[2, 1 : 1 + 2 * N], features[1:].flatten(0, 1))
    table = model.get_input_embeddings().weight
    assert torch.equal(embeddings[1, :4], table[torch.tensor(ROWS[1])])
    assert table.shape[0] == IMAGE  # not resized


def test_logits_only_where_the_next_token_is_supervised(tiny_model):
    inputs = batch(ROWS)
    labels = labels_of(inputs)
    model = tiny_model()
    output = model(**inputs, labels=labels)
    every = model(**inputs).logits
    shifted = labels[:, 1:]
    assert output.logits.shape == (6, 640)
    torch.testing.assert_close(output.logits, every[:, :-1][shifted != -100])
    expected = F.cross_entropy(every[:, :-1].flatten(0, 1), shifted.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)
    assert output.past_key_values is None


def test_loss_is_divided_by_the_number_of_items_given(tiny_model):
    inputs = batch(ROWS)
    labels = labels_of(inputs)
    model = tiny_model()
    own = model(**inputs, labels=labels).loss
    for items in (12, torch.tensor(12)):
        torch.testing.assert_close(model(**inputs, labels=labels, num_items_in_batch=items).loss, own / 2)


def test_first_label_is_never_a_target(tiny_model):
    inputs = batch(ROWS)
    labels = labels_of(inputs)
    model = tiny_model()
    expected = model(**inputs, labels=labels).loss
    labels[:, 0] = 1
    assert torch.equal(model(**inputs, labels=labels).loss, expected)


def test_transformers_counts_this_models_labels_shifted(tiny_model):
    assert tiny_model().loss_type == "ForConditionalGeneration"


def test_nothing_supervised_gives_a_zero_loss_with_gradients(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model()
    loss = model(**inputs, labels=torch.full_like(inputs["input_ids"], -100)).loss
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(model.llm.lm_head.weight.grad, torch.zeros_like(model.llm.lm_head.weight))


@pytest.mark.parametrize("pixels", ["none", "empty"])
@pytest.mark.parametrize("alignment", ["linear", "none"])
def test_text_only_batch_touches_the_adapter_with_zero_gradients(tiny_model, pixels, alignment):
    inputs = batch([prompt(0, [5, 6, 7]), prompt(0, [8, 9])])
    if pixels == "none":
        del inputs["pixel_values"], inputs["instruction_ids"]
    model = tiny_model(alignment)
    labels = labels_of(inputs, last=1)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        if part_of(name) == "adapter":
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name
    assert torch.equal(loss, model.eval()(**inputs, labels=labels).loss)


def test_gradients_reach_adapter_and_llm_but_no_tower(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model()
    torch.nn.init.normal_(model.alignment.weight)  # fresh W_t = 0 passes no gradient to the instruction projection
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    for name, parameter in model.named_parameters():
        expects_gradient = part_of(name) != "towers"
        assert (parameter.grad is not None and bool(parameter.grad.any())) == expects_gradient, name


def test_gradient_checkpointing_changes_nothing_with_a_frozen_llm(tiny_model):
    inputs = batch(ROWS)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model()
        model.llm.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        output = model(**inputs, labels=labels_of(inputs))
        output.loss.backward()
        gradients.append([parameter.grad for parameter in model.projector.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.any()
        torch.testing.assert_close(plain, checkpointed)


def test_packed_documents_do_not_see_each_other(tiny_model):
    first, second = prompt(1, [5, 6, 7, 8]), prompt(1, [9, 10, 11])
    model = tiny_model()
    apart = batch([first, second])
    packed = {
        "input_ids": torch.tensor([first + second]),
        "position_ids": torch.tensor([[*range(len(first)), *range(len(second))]]),
        "pixel_values": apart["pixel_values"],
        "instruction_ids": apart["instruction_ids"],
    }
    labels = labels_of(apart)
    packed_labels = torch.cat([labels[0, : len(first)], labels[1, : len(second)]])[None]
    expected = model(**apart, labels=labels).loss
    torch.testing.assert_close(model(**packed, labels=packed_labels).loss, expected)
    # The packing shows: the same ids as one document give another loss.
    del packed["position_ids"]
    assert not torch.allclose(model(**packed, labels=packed_labels).loss, expected)


def test_positions_are_counted_from_the_attention_mask(tiny_model):
    model = tiny_model().eval()
    right, left = batch(ROWS), batch(ROWS, side="left")
    length = len(ROWS[0])
    expected = model(**right).logits[0, :length]
    torch.testing.assert_close(model(**left).logits[0, -length:], expected, atol=1e-5, rtol=1e-5)
    # Rotary angles are relative, so equal logits alone would not show wrong positions.
    seen = []
    model.llm.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    model(**left)
    assert seen[0][0].tolist() == [0, 0, *range(length)]


def _cut(inputs):
    inputs["input_ids"][0, N] = 7  # one placeholder of row 0 is gone


def _one_image_too_few(inputs):
    inputs.update(pixel_values=inputs["pixel_values"][1:], instruction_ids=inputs["instruction_ids"][1:])


def _no_images(inputs):
    inputs.update(pixel_values=None, instruction_ids=None)


def _no_instruction(inputs):
    inputs.update(instruction_ids=None)


def _short_instruction(inputs):
    inputs.update(instruction_ids=inputs["instruction_ids"][:, :10])


def _large_image(inputs):
    inputs.update(pixel_values=torch.zeros(3, 3, 32, 32))


def _both(inputs):
    inputs.update(inputs_embeds=torch.zeros(3, 11, 32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_cut, r"row 0 has 3 image placeholders, not a multiple of 4"),
        (_one_image_too_few, r"2 images need 8 image placeholders, but the rows hold \[4, 0, 8\]"),
        (_no_images, r"0 images need 0 image placeholders"),
        (_no_instruction, r"instruction_ids has shape None, but 3 images need \[3, 77\]"),
        (_short_instruction, r"instruction_ids has shape \(3, 10\)"),
        (_large_image, r"pixel_values has shape \(3, 3, 32, 32\), but the towers take \[images, 3, 16, 16\]"),
        (_both, r"either input_ids or inputs_embeds"),
    ],
)
def test_mismatches_are_named(tiny_model, spoil, message):
    inputs = batch(ROWS)
    spoil(inputs)
    with pytest.raises(EmmaError, match=message):
        tiny_model()(**inputs)


def test_attention_implementation_reaches_the_llm(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model().eval()
    assert model.llm.config._attn_implementation == "sdpa"
    expected = model(**inputs).logits
    model.set_attn_implementation("eager")
    assert model.llm.config._attn_implementation == "eager"
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**inputs).logits[real], expected[real], atol=1e-5, rtol=1e-5)


def test_towers_of_another_size_are_refused(tiny_clip, tiny_model, tiny_llm):
    config, weights = tiny_clip
    wide = copy.deepcopy(config)
    wide.vision_cfg["mlp_ratio"] = 2.0
    with pytest.raises(EmmaError, match=r"CLIP weight visual\.transformer.* has shape"):
        EmmaForConditionalGeneration.from_parts(tiny_llm, (wide, weights))
    weights = {name: tensor for name, tensor in weights.items() if name != "ln_final.weight"}
    with pytest.raises(EmmaError, match="1 missing"):
        EmmaForConditionalGeneration.from_parts(tiny_llm, (config, weights))
