"""The recorded LLaVA-1.5, both stages, after `python -m emma.checkpoints import`: what was recorded comes out."""

import pytest
import torch
from llava_record import ASSETS, EXPECTED, INSTRUCT, PRETRAIN, RECORD, expand, with_images
from upstream_folders import llava_folder, make_assets, stage1_folder

import emma
from emma.checkpoints.importing import import_folder
from emma.processing.images import open_image

# Largest absolute deviations allowed, float32 on a CPU.
PIXELS, FEATURES, LOGITS, LOSS = 2e-6, 1e-4, 1e-3, 2e-4
ORDINARY = sorted(set(INSTRUCT) - {"mismatch_role_marker_in_user", "mismatch_eos_in_answer", "very_long_truncated"})


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def finetuned(assets, tmp_path_factory):
    root = tmp_path_factory.mktemp("stage 2")
    return emma.load(import_folder(llava_folder(root / "source"), root / "model", assets), "float32", "cpu")


@pytest.fixture(scope="module")
def pretrained(assets, tmp_path_factory):
    root = tmp_path_factory.mktemp("stage 1")
    return emma.load(import_folder(stage1_folder(root / "source"), root / "model", assets), "float32", "cpu")


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def image_of(number):
    return open_image(ASSETS / "images" / RECORD["triples"][number]["image"])


@pytest.mark.parametrize("sample", ORDINARY)
def test_ids_and_labels(finetuned, sample):
    encoded = finetuned[1].encode_training(with_images(INSTRUCT[sample]), max_length=2048)
    ids, labels = expand(EXPECTED[f"ds.{sample}.input_ids"], EXPECTED[f"ds.{sample}.labels"])
    assert encoded["input_ids"].tolist() == ids
    assert encoded["labels"].tolist() == labels


@pytest.mark.parametrize("number", range(3))
def test_from_the_picture_to_the_answer(finetuned, number):
    model, processor = finetuned
    triple, record = RECORD["triples"][number], f"t{number}"
    prompt = processor.encode_prompt([{"role": "user", "content": triple["instruction"]}], [image_of(number)])
    assert prompt["input_ids"].tolist() == expand(EXPECTED[f"{record}.eval_input_ids"])[0]
    close(prompt["pixel_values"][0], EXPECTED[f"{record}.pixel_values_pad"], PIXELS)
    with torch.no_grad():
        projected, steps = model.get_image_features(prompt["pixel_values"], return_intermediates=True)
        close(steps["vision"][0], EXPECTED[f"{record}.vision_penultimate"], FEATURES)
        close(projected[0], EXPECTED[f"{record}.projected"], FEATURES)
        batch = processor.pad([prompt], "left")
        close(model(**batch).logits[0, -1], EXPECTED[f"{record}.eval_next_logits"], LOGITS)
        generated = model.generate(**batch, max_new_tokens=20, do_sample=False)
    assert generated[0, batch["input_ids"].shape[1] :].tolist() == EXPECTED[f"{record}.generated_ids"].tolist()


@pytest.mark.parametrize("number", range(3))
def test_logits_of_a_training_sample(finetuned, number):
    model, processor = finetuned
    record = RECORD["triples"][number]
    sample = with_images(INSTRUCT[list(INSTRUCT)[number]])
    batch = processor.pad([processor.encode_training(sample, max_length=2048)])
    with torch.no_grad():
        close(model(**batch).loss, torch.tensor(record["loss"]), LOSS)
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]
    close(logits[slice(*record["logits_rows"])], EXPECTED[f"t{number}.logits"], LOGITS)
    close(logits.logsumexp(-1), EXPECTED[f"t{number}.logits_logsumexp"], LOGITS)
    assert torch.equal(logits.argmax(-1), EXPECTED[f"t{number}.logits_argmax"])


@pytest.mark.parametrize("number", range(3))
def test_stage_1(pretrained, number):
    """Its template and image mode; its projector on the recorded visual tokens."""
    model, processor = pretrained
    encoded = processor.encode_training(with_images(PRETRAIN[number]), max_length=2048)
    ids, labels = expand(EXPECTED[f"plain.{number}.input_ids"], EXPECTED[f"plain.{number}.labels"])
    assert (encoded["input_ids"].tolist(), encoded["labels"].tolist()) == (ids, labels)
    request = [{"role": "user", "content": ""}]
    pixels = processor.encode_prompt(request, [image_of(number)])["pixel_values"]
    close(pixels[0], EXPECTED[f"t{number}.pixel_values_square"], PIXELS)
    with torch.no_grad():
        visual = model.towers.encode_image(EXPECTED[f"t{number}.pixel_values_pad"][None])
        close(visual[0], EXPECTED[f"t{number}.vision_penultimate"], FEATURES)
        weights = torch.load(ASSETS / "llava15-stage1" / "mm_projector.bin", weights_only=True)
        weights = {name.removeprefix("model.mm_projector."): tensor.float() for name, tensor in weights.items()}
        hidden = torch.nn.functional.gelu(visual @ weights["0.weight"].T + weights["0.bias"])
        close(model.projector(visual), hidden @ weights["2.weight"].T + weights["2.bias"], FEATURES)
