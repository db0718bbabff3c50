"""Features, logits, losses, gradients, four training steps and greedy answers against recorded LLaVA-1.5 values.

LLaVA-1.5 is EMMA with alignment `none`: the same parts, other names. `pytest -s` prints the largest deviations.
"""

from collections import defaultdict

import pytest
import torch
from llava_record import ASSETS, EXPECTED, INSTRUCT, PRETRAIN, RECORD, expand, with_images
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

from emma.model import EmmaForConditionalGeneration
from emma.model.emma import part_of
from emma.model.towers import read_clip
from emma.processing.images import open_image
from emma.processing.processor import EmmaProcessor

# Largest absolute deviations allowed, float32 on a CPU.
FEATURES, LOGITS, LOSS, GRADIENT, AFTER_STEPS = 1e-4, 1e-3, 2e-4, 2e-5, 5e-5
DEVIATION = defaultdict(float)


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    print("\nlargest deviations:", {kind: f"{value:.1e}" for kind, value in DEVIATION.items()})


def close(kind: str, actual, expected, tolerance: float) -> None:
    actual, expected = torch.as_tensor(actual, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, kind
    difference = float((actual - expected).abs().max())
    DEVIATION[kind] = max(DEVIATION[kind], difference)
    assert difference <= tolerance, f"{kind}: {difference:.2e} > {tolerance}"


def our_name(llava_name: str) -> str:
    if llava_name.startswith("model.mm_projector."):
        return llava_name.removeprefix("model.mm_")
    return "llm." + llava_name


def load_llava() -> EmmaForConditionalGeneration:
    weights = load_file(ASSETS / "llava15" / "model.safetensors")
    adapter_and_llm = {name: tensor.float() for name, tensor in weights.items() if "vision_tower" not in name}
    llm = LlamaForCausalLM(LlamaConfig.from_pretrained(ASSETS / "llm-base", dtype="float32"))
    model = EmmaForConditionalGeneration.from_parts(llm, read_clip(ASSETS / "clip"), alignment="none")
    state = model.state_dict()
    assert {our_name(name) for name in adapter_and_llm} == {name for name in state if part_of(name) != "towers"}
    model.load_state_dict(state | {our_name(name): tensor for name, tensor in adapter_and_llm.items()})
    return model.eval()


@pytest.fixture(scope="module")
def llava():
    return load_llava()


@pytest.fixture(scope="module")
def make(llava):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llm-base")

    def make(**choices):
        return EmmaProcessor.from_model_config(llava.config, tokenizer, **choices)

    return make


def instruct_batch(processor, ids):
    return processor.pad([processor.encode_training(with_images(INSTRUCT[i]), max_length=2048) for i in ids])


def pretrain_batch(make):
    processor = make(template="plain", image_mode="square")
    return processor.pad([processor.encode_training(with_images(row), max_length=2048) for row in PRETRAIN])


@pytest.mark.parametrize("number", range(3))
def test_features(llava, make, number):
    image = open_image(ASSETS / "images" / RECORD["triples"][number]["image"])
    pixels = make().encode_prompt([{"role": "user", "content": "Q"}], [image])["pixel_values"]
    close("pixels", pixels[0], EXPECTED[f"t{number}.pixel_values_pad"], 2e-6)
    with torch.no_grad():
        projected, steps = llava.get_image_features(pixels, return_intermediates=True)
    close("vision features", steps["vision"][0], EXPECTED[f"t{number}.vision_penultimate"], FEATURES)
    close("projected features", projected[0], EXPECTED[f"t{number}.projected"], FEATURES)


@pytest.mark.parametrize("number", range(3))
def test_logits_and_loss(llava, make, number):
    record, sample = RECORD["triples"][number], list(INSTRUCT)[number]
    batch = instruct_batch(make(), [sample])
    assert batch["labels"][0].tolist() == EXPECTED[f"t{number}.merged_labels"].tolist()
    with torch.no_grad():
        output = llava(**batch)
        logits = llava(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]
    close("loss", output.loss, record["loss"], LOSS)
    close("logits", logits[slice(*record["logits_rows"])], EXPECTED[f"t{number}.logits"], LOGITS)
    close("logsumexp", logits.logsumexp(-1), EXPECTED[f"t{number}.logits_logsumexp"], LOGITS)
    assert torch.equal(logits.argmax(-1), EXPECTED[f"t{number}.logits_argmax"])
    supervised = batch["labels"][0, 1:] != -100
    close("logits at supervised positions", output.logits, logits[:-1][supervised], LOGITS)


def test_losses_of_mixed_and_pretraining_batches(llava, make):
    batch = instruct_batch(make(), RECORD["batch_ids"])
    with torch.no_grad():
        close("loss", llava(**batch).loss, RECORD["batch_loss"], LOSS)
        logits = llava(**{key: value for key, value in batch.items() if key != "labels"}).logits
        close("logits", logits[2, :40], EXPECTED["batch.logits_lastsample_first40"], LOGITS)
        close("loss", llava(**pretrain_batch(make)).loss, RECORD["plain_batch_loss_with_finetuned_weights"], LOSS)


@pytest.mark.parametrize("number", range(3))
def test_next_token_and_greedy_answer(llava, make, number):
    triple, processor = RECORD["triples"][number], make()
    image = open_image(ASSETS / "images" / triple["image"])
    prompt = processor.encode_prompt([{"role": "user", "content": triple["instruction"]}], [image])
    assert prompt["input_ids"].tolist() == expand(EXPECTED[f"t{number}.eval_input_ids"])[0]
    batch = processor.pad([prompt], "left")
    with torch.no_grad():
        close("logits", llava(**batch).logits[0, -1], EXPECTED[f"t{number}.eval_next_logits"], LOGITS)
        generated = llava.generate(**batch, max_new_tokens=20, do_sample=False)
    answer = generated[0, batch["input_ids"].shape[1] :]
    assert answer.tolist() == EXPECTED[f"t{number}.generated_ids"].tolist()
    if number == 1:  # the other two hold bytes that are no UTF-8, which today's decoder writes differently
        assert processor.decode(answer) == triple["generated_text"]


@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_and_four_steps(make, stage):
    """AdamW on one batch as recorded: clip at 1.0, cosine after one warm-up step, so that the first lr is 0."""
    record = RECORD[f"train_stage{stage}"]
    model = load_llava().train()
    batch = pretrain_batch(make) if stage == 1 else instruct_batch(make(), list(INSTRUCT)[:3])
    trained = {"adapter"} if stage == 1 else {"adapter", "llm"}
    parameters = {name: p for name, p in model.named_parameters() if part_of(name) in trained}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in parameters)
    assert set(parameters) == {our_name(name) for name in record["trainable"]}

    optimizer = torch.optim.AdamW(
        parameters.values(), lr=record["lr"], betas=record["betas"], eps=record["eps"], weight_decay=0.0
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=record["steps"])
    for step in range(record["steps"]):
        loss = model(**batch).loss
        close(f"stage {stage} losses", loss.detach(), record["losses"][step], LOSS)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name, norm in record["grad_norms"].items():
                gradient = parameters[our_name(name)].grad
                close(f"stage {stage} gradient norms", gradient.norm(), norm, LOSS)
                if (key := f"grad.stage{stage}.{name}") in EXPECTED:
                    close(f"stage {stage} gradients", gradient, EXPECTED[key], GRADIENT)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), record["max_grad_norm"])
        if step == 0:
            close(f"stage {stage} gradient norms", norm, record["grad_norm0"], LOSS)
        optimizer.step()
        schedule.step()
        close("learning rate", schedule.get_last_lr()[0], record["lrs_logged_after_step"][step], 1e-12)
    prefix = f"after.stage{stage}."
    after = {key.removeprefix(prefix): value for key, value in EXPECTED.items() if key.startswith(prefix)}
    head = after.pop("lm_head_rows0_8", None)
    if head is not None:
        close("stage 2 parameters after 4 steps", model.llm.lm_head.weight[:8].detach(), head, AFTER_STEPS)
    for name, value in after.items():
        trained_value = parameters[our_name(name)].detach()
        close(f"stage {stage} parameters after 4 steps", trained_value, value, AFTER_STEPS)
    assert len(after) == {1: 4, 2: 5}[stage]
