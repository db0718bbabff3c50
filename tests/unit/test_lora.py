"""LoRA in the model: where it goes, what it computes, and that a merged model computes the same."""

import pytest
import torch
from test_model_basics import ROWS, batch, labels_of, prompt

from emma.errors import EmmaError
from emma.model import part_of
from emma.model.lora import block_linears, inject, is_lora, merge
from emma.train.stages import TRAINED, freeze, freeze_table

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


@torch.no_grad()
def disturb(model, seed=3):
    """Give LoRA and the adapter values as training would, so that B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if part_of(name) in ("lora", "adapter"):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_lora_changes_no_bit_of_the_logits(tiny_model, dtype):
    model = tiny_model().eval().to(dtype)
    inputs = batch(ROWS)
    with torch.no_grad():
        before = model(**inputs).logits
        inject(model, **LORA)
        assert torch.equal(model.eval()(**inputs).logits, before)
        disturb(model)
        assert not torch.equal(model(**inputs).logits, before)


def test_lora_stands_beside_every_linear_layer_of_the_blocks_and_nowhere_else(tiny_model):
    model = tiny_model().to(torch.bfloat16)
    linears = block_linears(model.llm)
    assert len(linears) == 2 * 7
    inject(model, **LORA)
    found = {name for name, _ in model.named_parameters() if is_lora(name)}
    assert found == {f"llm.{name}.lora_{side}.default.weight" for name in linears for side in "AB"}
    assert {p.dtype for name, p in model.named_parameters() if is_lora(name)} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if part_of(name) == "llm"} == {torch.bfloat16}


def test_targets(tiny_model):
    model = tiny_model()
    inject(model, **LORA, targets=["q_proj", "layers.1.mlp.down_proj"])
    assert {name.split(".lora_")[0] for name, _ in model.named_parameters() if is_lora(name)} == {
        "llm.model.layers.0.self_attn.q_proj",
        "llm.model.layers.1.self_attn.q_proj",
        "llm.model.layers.1.mlp.down_proj",
    }
    for wrong in ("query", "lm_head", "proj"):
        with pytest.raises(EmmaError, match=rf"{wrong} is no linear layer of this LLM's blocks; .*down_proj.*q_proj"):
            inject(tiny_model(), **LORA, targets=[wrong])
    with pytest.raises(EmmaError, match="has LoRA already; merge it first"):
        inject(model, **LORA)


def test_the_seed_alone_decides_about_a(tiny_model):
    drawn = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        model = tiny_model()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        inject(model, **LORA, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(model.llm.model.layers[0].mlp.up_proj.lora_A.default.weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_merged_computes_the_same(tiny_model):
    model = tiny_model().eval()
    before = [name for name, _ in model.named_parameters()]
    inject(model, **LORA)
    disturb(model)
    inputs = batch(ROWS)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        merge(model)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert [name for name, _ in model.named_parameters()] == before


def test_table_shows_lora_as_its_own_part(tiny_model):
    model = tiny_model().to(torch.bfloat16)
    inject(model, **LORA)
    freeze(model, TRAINED["lora"])
    rows = {line.split()[0]: line.split() for line in freeze_table(model)}
    count = sum(p.numel() for name, p in model.named_parameters() if is_lora(name))
    assert rows["lora"] == ["lora", "trained", "28", f"{count:,}", "float32"]
    assert rows["llm"][1] == "frozen"
    assert rows["llm"][-1] == "bfloat16"
    assert rows["projector"][1] == "trained"
    assert rows["towers"][1] == "frozen"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient_even_without_an_image(tiny_model, reentrant):
    """Reentrant checkpointing gives no gradient at all to a block whose inputs need none, as text alone would."""
    inputs = batch([prompt(0, [9, 10, 11]), prompt(0, [12, 13, 14, 15])])
    gradients = []
    for on in (False, True):
        model = tiny_model()
        inject(model, **LORA)
        disturb(model)
        freeze(model, TRAINED["lora"])
        if on:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        model(**inputs, labels=labels_of(inputs)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(bool(gradients[0][name].any()) for name in gradients[0] if is_lora(name))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
