"""Packing: layouts, and that a packed batch gives the loss and the gradients of the padded one."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from train_runs import log_lines, one_step

from emma.data.collate import Collator
from emma.data.packing import Packing, layout, pack_batch
from emma.errors import EmmaError

# The same examples every time, however busy the machine is.
EXAMPLES = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def cost(rows, longest, packing):
    return rows * longest * (packing.even_at + longest)


@EXAMPLES
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 100), st.sampled_from([1, 100, 10_000]))
def test_layout_holds_every_sample_once_and_never_costs_more_than_padding(lengths, capacity, even_at):
    packing = Packing(capacity, even_at)
    rows = layout(lengths, packing)
    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    longest = max(sum(lengths[i] for i in row) for row in rows)
    assert longest <= max(capacity, *lengths)
    assert cost(len(rows), longest, packing) <= cost(len(lengths), max(lengths), packing)


def test_layout_fills_rows_where_that_saves_more_than_attention_costs():
    assert sorted(map(sorted, layout([30, 10, 20], Packing(30, 10_000)))) == [[0], [1, 2]]
    assert len(layout([7, 7, 7, 7], Packing(100, 10_000))) == 4, "nothing to gain"
    assert len(layout([50, 9, 9, 9, 9], Packing(20, 10_000))) == 2, "a sample beyond the capacity"
    assert len(layout([10, 7, 7], Packing(14, even_at=10_000))) == 2, "2 x 14 positions instead of 3 x 10"
    assert len(layout([10, 7, 7], Packing(14, even_at=1))) == 3, "but longer rows, where attention is all that counts"


def test_rows_restart_positions_and_let_no_sample_predict_the_next():
    def sample(number, length):
        ids = torch.arange(number * 10, number * 10 + length)
        return {"input_ids": ids, "labels": ids, "pixel_values": torch.full((1, 3, 2, 2), float(number))}

    batch = pack_batch([sample(1, 2), sample(2, 5), sample(3, 2)], 0, Packing(5, even_at=100))
    assert batch["input_ids"].tolist() == [[20, 21, 22, 23, 24], [10, 11, 30, 31, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[-100, 21, 22, 23, 24], [-100, 11, -100, 31, -100]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [2, 1, 3], "images follow the rows' reading order"
    assert "attention_mask" not in batch
    row = pack_batch([sample(1, 2), sample(2, 5), sample(3, 2)], 0, Packing(5, even_at=100, one_row=True))
    assert row["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 4, 0, 1]]


def chat(number, images=0, turns=1, words=1):
    conversation = []
    for turn in range(turns):
        shown = "<image>\n" * images if turn == 0 else ""
        conversation.append({"from": "human", "value": f"{shown}Question {number} turn {turn}?"})
        conversation.append({"from": "gpt", "value": f"answer {turn}" + " wide" * words})
    rng = np.random.default_rng(number)
    pictures = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(images)]
    return {"id": f"s{number}", "conversations": conversation, "images": pictures, "masked": False}


BATCHES = {
    "mixed lengths": [chat(i, images=1, words=w) for i, w in enumerate((1, 40, 3, 12, 1, 7))],
    "several images": [chat(0, images=2), chat(1, images=1, turns=3), chat(2, images=3, words=20)],
    "images beside text": [chat(0, images=1), chat(1, words=30), chat(2, images=2)],
    "text only": [chat(i, words=w) for i, w in enumerate((1, 9, 30))],
    "one sample": [chat(0, images=1, turns=2)],
}


def loss_and_gradients(model, batch, divisor):
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=divisor).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", BATCHES)
def test_packed_equals_padded(tiny_model, tiny_processor, kind, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    with torch.no_grad():  # away from [I | 0], so that the instruction matters and has a gradient
        model.alignment.weight += 0.1 * torch.randn(
            model.alignment.weight.shape, generator=torch.Generator().manual_seed(3)
        )
    processor = tiny_processor(model.config)
    samples = [{**processor.encode_training(s, max_length=512), "masked": False} for s in BATCHES[kind]]
    padded = Collator(processor)(samples)
    packings = [Packing.suited_to(model.llm, capacity) for capacity in (1, 128, 512)]
    for packed in [Collator(processor, packing)(samples) for packing in (*packings, Packing(1, 1, one_row=True))]:
        assert {k: v for k, v in packed.items() if k not in ("model", "tokens")} == {
            k: v for k, v in padded.items() if k not in ("model", "tokens")
        }
        for divisor in (None, padded["supervised"] + 5):  # loss_norm microbatch, global
            loss, gradients = loss_and_gradients(model, padded["model"], divisor)
            ours, our_gradients = loss_and_gradients(model, packed["model"], divisor)
            torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
            assert our_gradients.keys() == gradients.keys()
            assert {name for name, p in model.named_parameters() if p.requires_grad} == gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_neighbours_in_a_row_do_not_see_each_other(tiny_model, tiny_processor):
    """What makes the comparison above strict: without the restarting positions the loss is another."""
    model = tiny_model()
    processor = tiny_processor(model.config)
    samples = [{**processor.encode_training(chat(i, images=1), max_length=512), "masked": False} for i in range(3)]
    packed = Collator(processor, Packing(1, 1, one_row=True))(samples)["model"]
    counting_on = torch.arange(packed["input_ids"].shape[1])[None]
    with torch.no_grad():
        apart, leaking = model(**packed).loss, model(**{**packed, "position_ids": counting_on}).loss
    assert abs(float(apart - leaking)) > 1e-3


def test_an_llm_that_would_mix_packed_samples_is_refused(tiny_llm):
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    assert Packing.suited_to(tiny_llm, 64) == Packing(64, even_at=6 * 32, one_row=False)
    tiny_llm.config._attn_implementation = "flash_attention_2"
    assert Packing.suited_to(tiny_llm, 64) == Packing(64, even_at=6 * 32, one_row=True)
    tiny_llm.config._attn_implementation = "paged"
    with pytest.raises(EmmaError, match="packing: true, but LlamaForCausalLM runs with attention 'paged'"):
        Packing.suited_to(tiny_llm, 64)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(EmmaError, match="MambaForCausalLM carries a state"):
        Packing.suited_to(mamba, 64)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(EmmaError, match=r"BloomForCausalLM takes no position_ids, .*; set packing: false"):
        Packing.suited_to(bloom, 64)


def test_a_packed_run_has_the_padded_run_s_losses(finished, assets, tmp_path):
    _, pretrained, _ = finished
    for stage, start in (("pretrain", None), ("finetune", pretrained / "model")):
        lines = []
        for packing in ("false", "true"):
            choices = (f"{stage}.packing={packing}", f"{stage}.max_steps=6", f"{stage}.log_every=1")
            lines.append(log_lines(one_step(assets, tmp_path / packing, *choices, stage=stage, pretrained=start)))
        for padded, packed in zip(*lines, strict=True):
            assert packed["supervised_tokens"] == padded["supervised_tokens"]
            assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)
            assert packed["grad_norm"] == pytest.approx(padded["grad_norm"], rel=1e-4)
