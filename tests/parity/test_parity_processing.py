"""Ids, labels and pixels against values recorded from the released LLaVA-1.5 code on tiny random weights."""

import json

import pytest
import torch
from llava_record import ASSETS, EXPECTED, INSTRUCT, PLACEHOLDER, PRETRAIN, RECORD, SIZE, N, expand, with_images
from transformers import AutoTokenizer

from emma.processing.images import open_image, preprocess
from emma.processing.instruction import ClipTokenizer
from emma.processing.processor import EmmaProcessor
from emma.processing.template import RoleTemplate
from emma.processing.tokens import IGNORE

# The released code masks these two samples completely ("tokenization mismatch"). Here they are ordinary samples.
MASKED_UPSTREAM = {"mismatch_role_marker_in_user", "mismatch_eos_in_answer"}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "llm-base")


@pytest.fixture(scope="module")
def make(tokenizer):
    def make(**choices):
        sizes = {"image_size": SIZE, "num_visual_tokens": N, "image_token_id": PLACEHOLDER, "alignment": "none"}
        return EmmaProcessor(tokenizer, **sizes, **choices)

    return make


@pytest.mark.parametrize("sample_id", sorted(INSTRUCT))
def test_training_ids_and_labels(make, sample_id):
    encoded = make().encode_training(with_images(INSTRUCT[sample_id]), max_length=10_000)
    ids, labels = expand(EXPECTED[f"ds.{sample_id}.input_ids"], EXPECTED[f"ds.{sample_id}.labels"])
    if sample_id == "mismatch_eos_in_answer":  # `</s>` in an answer is text here, a special token there
        eos = make().tokenizer.eos_token_id
        assert ids.count(eos) == 2
        assert encoded["input_ids"].tolist().count(eos) == 1
        answer = encoded["labels"][encoded["labels"] != IGNORE]
        assert make().tokenizer.decode(answer, skip_special_tokens=False) == "It is </s> of course.</s>"
        return
    assert encoded["input_ids"].tolist() == ids
    if sample_id in MASKED_UPSTREAM:
        assert set(labels) == {IGNORE}
        answer = encoded["labels"][encoded["labels"] != IGNORE]
        assert make().tokenizer.decode(answer, skip_special_tokens=False) == "It marks a role.</s>"
    else:
        assert encoded["labels"].tolist() == labels


def test_long_sample_is_cut_where_llava_cuts_it(make):
    encoded = make().encode_training(with_images(INSTRUCT["very_long_truncated"]), max_length=2048)
    ids, _ = expand(EXPECTED["ds.very_long_truncated.input_ids"])
    assert encoded["input_ids"].tolist() == ids[:2048]
    assert encoded["truncated"] == len(ids) - 2048


@pytest.mark.parametrize("number", range(3))
def test_pretraining_ids_and_labels(make, number):
    encoded = make(template="plain").encode_training(with_images(PRETRAIN[number]), max_length=2048)
    ids, labels = expand(EXPECTED[f"plain.{number}.input_ids"], EXPECTED[f"plain.{number}.labels"])
    assert encoded["input_ids"].tolist() == ids
    assert encoded["labels"].tolist() == labels


@pytest.mark.parametrize("number", range(3))
def test_prompt_for_evaluation(make, number):
    triple = RECORD["triples"][number]
    image = open_image(ASSETS / "images" / triple["image"])
    messages = [{"role": "user", "content": triple["instruction"]}]
    assert (
        make().apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": triple["instruction"]}],
                }
            ]
        )
        == triple["eval_prompt"]
    )
    ids = make().encode_prompt(messages, [image])["input_ids"].tolist()
    assert ids == expand(EXPECTED[f"t{number}.eval_input_ids"])[0]
    assert make()(images=image, text=triple["eval_prompt"])["input_ids"][0].tolist() == ids


def test_batch(make):
    processor = make()
    rows = [processor.encode_training(with_images(INSTRUCT[i]), max_length=2048) for i in RECORD["batch_ids"]]
    batch = processor.pad(rows)
    for row, (ids, labels) in enumerate(zip(EXPECTED["batch.input_ids"], EXPECTED["batch.labels"], strict=True)):
        kept = EXPECTED["batch.attention_mask"][row].bool()
        ids, labels = expand(ids[kept], labels[kept])
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == ids
        assert batch["labels"][row][: len(ids)].tolist() == labels
        assert (batch["labels"][row][len(ids) :] == IGNORE).all()


@pytest.mark.parametrize("mode", ["pad", "square"])
@pytest.mark.parametrize("number", range(3))
def test_pixels(number, mode):
    image = open_image(ASSETS / "images" / RECORD["triples"][number]["image"])
    torch.testing.assert_close(
        preprocess(image, SIZE, mode), EXPECTED[f"t{number}.pixel_values_{mode}"], atol=2e-6, rtol=0
    )


def test_clip_ids():
    tokenizer = ClipTokenizer(77)
    for case in json.loads((ASSETS / "clip_bpe.json").read_text())["cases"]:
        ids, cut = tokenizer.encode(case["text"])
        assert ids == case["ids_without_right_padding"] + [0] * (77 - len(case["ids_without_right_padding"]))
        assert cut == max(0, case["untruncated_len"] - 77), case["text"]


# The real Llama tokenizer is not stored here, only ids that it gave. What they say about LLaVA's rules (what follows an
# image, what follows `</s>`, how many stretches are supervised) must hold for the small tokenizer of the same kind.
LLAMA = json.loads((ASSETS / "llama_tokenizer.json").read_text())
LLAMA_SPACE, LLAMA_NEWLINE, LLAMA_USER = 29871, 13, [3148, 1001]  # "▁", "\n", "▁US" "ER"


@pytest.mark.parametrize("sample_id", sorted(INSTRUCT))
@pytest.mark.parametrize("legacy", [False, True])
def test_rules_seen_in_ids_of_the_real_tokenizer(sample_id, legacy):
    rows = LLAMA["legacy_true" if legacy else "legacy_false"]["v1"]
    recorded = next(row for row in rows if row["id"] == sample_id)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "llm-base", legacy=legacy)
    processor = EmmaProcessor(tokenizer, SIZE, N, image_token_id=PLACEHOLDER, alignment="none")
    encoded = processor.encode_training(with_images(INSTRUCT[sample_id]), max_length=10_000)
    ids, labels = encoded["input_ids"].tolist(), encoded["labels"].tolist()

    def after(values, marker, count=2):
        return [values[i + 1 : i + 1 + count] for i in range(len(values) - 1) if values[i] == marker]

    if recorded["has_image"]:
        assert after(recorded["input_ids"], -200) == [[LLAMA_SPACE, LLAMA_NEWLINE]]
        assert tokenizer.convert_ids_to_tokens(after(ids, PLACEHOLDER)[-1]) == ["▁", "<0x0A>"]
    if sample_id not in MASKED_UPSTREAM:
        ends = after(recorded["input_ids"], tokenizer.eos_token_id)
        assert all((end == LLAMA_USER) == legacy for end in ends)
        assert [tokenizer.convert_ids_to_tokens(end)[0] == "▁" for end in after(ids, 2)] == [legacy] * len(ends)
        starts = sum(label != IGNORE and labels[i - 1] == IGNORE for i, label in enumerate(labels))
        assert starts == len(recorded["supervised_ranges"])


def test_system_prompt_is_the_recorded_one():
    assert RoleTemplate(eos="</s>").system == RECORD["system_prompt"]
