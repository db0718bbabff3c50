"""QLoRA on a CPU: what is quantised, that it trains, and that its adapter loads, resumes and merges."""

import logging
import shutil

import pytest
import torch
from test_lora_train import recipe_for
from test_model_basics import ROWS, batch
from torch import nn
from train_runs import assert_same_model, log_lines, weights

import emma
from emma.checkpoints.adapter import read_adapter
from emma.checkpoints.folder import save_folder
from emma.checkpoints.merge import merge_folder
from emma.errors import EmmaError
from emma.model import EmmaForConditionalGeneration, part_of
from emma.model.lora import block_linears, merge
from emma.processing.processor import EmmaProcessor
from emma.train import run

bitsandbytes = pytest.importorskip("bitsandbytes")

KINDS = {"nf4": ("Linear4bit", 4), "int8": ("Linear8bitLt", 8)}


@pytest.fixture(scope="module")
def start(tiny_clip, tiny_tokenizer, tmp_path_factory):
    """A folder whose `model` has an LLM that is wide enough for nf4 on a CPU: scales go by 64 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=640,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(4)
    model = EmmaForConditionalGeneration.from_parts(LlamaForCausalLM(config), tiny_clip)
    folder = tmp_path_factory.mktemp("wide")
    save_folder(folder / "model", model, EmmaProcessor.from_model_config(model.config, tiny_tokenizer), {})
    return folder


@pytest.fixture(scope="module", params=KINDS)
def tuned(request, assets, start, tmp_path_factory):
    """(quantisation, base folder, finetune folder) of an uninterrupted QLoRA run."""
    output = tmp_path_factory.mktemp(request.param)
    settings = (f"finetune.quantization={request.param}", "finetune.gradient_checkpointing=true")
    recipe = recipe_for(assets, output, start, *settings)
    return request.param, start / "model", run(recipe, "finetune").parent


@pytest.mark.parametrize("quantization", KINDS)
def test_only_linear_layers_of_the_llm_s_blocks_are_quantised(start, quantization):
    kind, bits = KINDS[quantization]
    model, _ = emma.load(start / "model", device="cpu", bits=bits)
    types = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantised = {name for name, found in types.items() if found == kind}
    assert quantised == {f"llm.{name}" for name in block_linears(model.llm)}
    assert len(quantised) == 2 * 7
    others = {found for name, found in types.items() if name not in quantised}
    assert others <= {"Linear", "NonDynamicallyQuantizableLinear"}  # the second is in torch's MultiheadAttention
    assert types["llm.lm_head"] == "Linear"
    for name, parameter in model.named_parameters():
        assert parameter.is_floating_point() == (name.rsplit(".", 1)[0] not in quantised), name
    plain, _ = emma.load(start / "model", device="cpu")
    with torch.no_grad():
        for name in block_linears(plain.llm):
            layers = [m.llm.get_submodule(name) for m in (plain, model)]
            expected, found = (layer(torch.eye(layer.in_features)) for layer in layers)
            assert 1e-4 < (found - expected).norm() / expected.norm() < {4: 0.12, 8: 0.02}[bits], name
    with pytest.raises(EmmaError, match="cannot be merged into quantised weights"):
        merge(model)


def test_bits_that_there_are_not(start):
    with pytest.raises(EmmaError, match="bits 3 is not one of 4, 8, 16"):
        emma.load(start / "model", bits=3)


def test_layers_that_bitsandbytes_would_get_wrong(finished):
    with pytest.raises(EmmaError, match=r"nf4 on a CPU needs .*q_proj of the LLM has 32 and 32; use int8"):
        emma.load(finished[1] / "model", device="cpu", bits=4)
    emma.load(finished[1] / "model", device="cpu", bits=8)


def test_trains_and_saves_what_was_trained(tuned):
    quantization, _, folder = tuned
    stored = weights(folder / "model")
    assert {part_of(name) for name in stored} == {"adapter", "lora"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(bool(tensor.any()) for name, tensor in stored.items() if "lora_B" in name)
    lines = log_lines(folder)
    assert lines[-1]["step"] == 6
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert read_adapter(folder / "model").quantization == quantization
    assert "quantization_config" not in (folder / "model" / "config.json").read_text()


def test_the_table_counts_packed_weights_in_full(tuned, assets, start, tmp_path, caplog):
    quantization, base, _ = tuned
    with caplog.at_level(logging.INFO, logger="emma"):
        recipe = recipe_for(assets, tmp_path, start, f"finetune.quantization={quantization}", "finetune.max_steps=1")
        run(recipe, "finetune")
    row = next(line.split() for line in caplog.text.splitlines() if line.startswith("llm "))
    count = sum(tensor.numel() for name, tensor in weights(base).items() if part_of(name) == "llm")
    assert row[1] == "frozen"
    assert row[3] == f"{count:,}"


def test_resumed_equals_uninterrupted(tuned, assets, start, tmp_path):
    quantization, _, folder = tuned
    settings = (f"finetune.quantization={quantization}", "finetune.gradient_checkpointing=true")
    recipe = recipe_for(assets, tmp_path, start, *settings)
    shutil.copytree(folder / "checkpoint-4", tmp_path / "finetune" / "checkpoint-4")
    again = run(recipe, "finetune").parent
    assert_same_model(again / "model", folder / "model")


def test_the_adapter_gets_the_base_that_it_was_trained_on(tuned, tmp_path):
    quantization, base, folder = tuned
    kind, bits = KINDS[quantization]
    model, processor = emma.load(folder / "model", device="cpu")
    assert type(model.llm.model.layers[0].mlp.up_proj.base_layer).__name__ == kind
    inputs = batch(ROWS)
    with torch.no_grad():
        logits = model(**inputs).logits
        assert torch.equal(emma.load(folder / "model", device="cpu", bits=bits)[0](**inputs).logits, logits)
        whole = emma.load(folder / "model", device="cpu", bits=16)[0](**inputs).logits
    assert not torch.equal(whole, logits)
    again, record = tmp_path / "again", read_adapter(folder / "model")
    save_folder(again, model, processor, {}, adapter=record.of(again, base, record.lora, quantization))
    assert_same_model(again, folder / "model")


def test_merged_into_the_unquantised_base(tuned, tmp_path, caplog):
    quantization, _, folder = tuned
    with caplog.at_level(logging.WARNING, logger="emma"):
        target = merge_folder(folder / "model", tmp_path / "merged")
    assert f"trained on a base in {quantization}, merged into the unquantised one" in caplog.text
    inputs = batch(ROWS)
    with torch.no_grad():
        expected = emma.load(folder / "model", device="cpu", bits=16)[0](**inputs).logits
        merged, _ = emma.load(target, device="cpu")
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert all(parameter.is_floating_point() for parameter in merged.parameters())
