"""The plan's closed forms: equal to what torch counts, builds and saves on models of several kinds."""

import pytest
import torch

from emma.errors import EmmaError
from emma.model import ClipTowerConfig, EmmaConfig
from emma.plan.counted import count_flops
from emma.plan.fit import candidates
from emma.plan.flops import Batch, Trained, step_flops, total
from emma.plan.memory import Setting, layer_bytes, logit_bytes, norm_bytes, peak, states, trained_and_frozen
from emma.plan.shapes import meta_model, read_shapes

FROZEN, WHOLE = Trained(llm=False), Trained(llm=True)
MIXED = {"alignment": "cross_attention", "projector": "linear", "text_layer": "final"}


@pytest.fixture
def tiny_config(tiny_clip, tiny_llm):
    def make(**choices):
        return EmmaConfig(tower_config=tiny_clip[0], text_config=tiny_llm.config, **choices)

    return make


@pytest.fixture(scope="module")
def seven_b():
    from transformers import LlamaConfig

    return EmmaConfig(tower_config=ClipTowerConfig(), text_config=LlamaConfig(vocab_size=32000))


@pytest.mark.parametrize("trained", [FROZEN, WHOLE], ids=["llm frozen", "llm trained"])
@pytest.mark.parametrize("choices", [{}, {"alignment": "none"}, MIXED], ids=["linear", "none", "cross"])
def test_closed_form_equals_torch_s_counter(tiny_config, choices, trained):
    config = tiny_config(**choices)
    shapes, length = read_shapes(config), 34
    counted = count_flops(config, length, 7, trained, gradient_checkpointing=True, images=2, rows=3)
    batch = Batch(images=2, tokens=3 * length, squared=3 * length**2, supervised=21)
    parts = step_flops(shapes, batch, trained, gradient_checkpointing=True)
    assert total(parts) == counted
    assert set(parts) == set(shapes.parameters)


@pytest.mark.parametrize("targets", [None, ("q_proj", "v_proj")])
def test_closed_form_of_lora_equals_torch_s_counter(tiny_config, targets):
    config, trained = tiny_config(), Trained(llm=False, lora_rank=4, lora_targets=targets)
    counted = count_flops(config, 34, 7, trained, gradient_checkpointing=True)
    batch = Batch(images=1, tokens=34, squared=34**2, supervised=7)
    assert total(step_flops(read_shapes(config), batch, trained, gradient_checkpointing=True)) == counted


def test_closed_form_equals_torch_s_counter_at_7b(seven_b):
    counted = count_flops(seven_b, 676, 100, WHOLE, gradient_checkpointing=True)
    parts = step_flops(read_shapes(seven_b), Batch(1, 676, 676**2, 100), WHOLE, gradient_checkpointing=True)
    assert total(parts) == counted
    # LLM forward: twice its 32 x 202,375,168 weights in linear maps for each token, attention, 100 rows of logits.
    assert parts["llm"].forward == 2 * 676 * 32 * 202_375_168 + 32 * 4 * 676**2 * 4096 + 2 * 100 * 4096 * 32000


def test_text_without_image_costs_nothing_before_the_llm_and_nothing_backward_if_that_is_frozen(tiny_config):
    shapes, text = read_shapes(tiny_config()), Batch(images=0, tokens=20, squared=400, supervised=5)
    frozen, trained = step_flops(shapes, text, FROZEN, True), step_flops(shapes, text, WHOLE, True)
    assert all(flops.hardware == 0 for part, flops in frozen.items() if part != "llm")
    assert frozen["llm"].forward == trained["llm"].forward > 0
    assert (frozen["llm"].backward, frozen["llm"].recomputed) == (0, 0)
    assert trained["llm"].backward == 2 * trained["llm"].forward


def test_parameters_at_7b_are_the_closed_form(seven_b):
    shapes = read_shapes(seven_b)
    assert shapes.parameters == {
        "vision": 304_293_888,
        "text": 123_650_305,
        "instruction_projection": 768 * 1024 + 1024,
        "alignment": 576 * (576 + 77) + 576,
        "projector": 1024 * 4096 + 4096 + 4096 * 4096 + 4096,
        "llm": 6_738_415_616,
    }
    assert shapes.adapter_parameters == 22_143_872
    assert trained_and_frozen(shapes, FROZEN) == (22_143_872, 7_166_359_809)
    assert trained_and_frozen(shapes, WHOLE) == (6_760_559_488, 427_944_193)


def test_lora_parameters_are_what_peft_makes(tiny_config):
    from peft import LoraConfig, inject_adapter_in_model

    config = tiny_config()
    model, shapes = meta_model(config), read_shapes(config)
    before = sum(p.numel() for p in model.llm.parameters())
    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "down_proj"]), model.llm)
    made = sum(p.numel() for p in model.llm.parameters()) - before
    assert shapes.lora_parameters(4, ("q_proj", "down_proj")) == made
    with pytest.raises(EmmaError, match="LoRA targets nose_proj: the LLM's layers have only down_proj"):
        shapes.lora_parameters(4, ("nose_proj",))


def test_a_mixture_of_experts_is_refused(tiny_config):
    from transformers import MixtralConfig

    experts = MixtralConfig(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    config = EmmaConfig(tower_config=tiny_config().tower_config, text_config=experts)
    with pytest.raises(EmmaError, match=r"MixtralForCausalLM has .* covers dense decoders only"):
        read_shapes(config)


@pytest.mark.parametrize(
    ("trained", "stream", "compute"), [(FROZEN, 4, 4), (FROZEN, 2, 2), (WHOLE, 4, 4), (WHOLE, 2, 2), (WHOLE, 4, 2)]
)
def test_activations_are_what_autograd_saves(tiny_llm, tiny_config, trained, stream, compute):
    config = tiny_config()
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads
    dtype = torch.float32 if stream == 4 else torch.bfloat16
    llm = type(tiny_llm)(config.text_config).to(dtype).train().requires_grad_(trained.llm)
    saved: dict[int, torch.Tensor] = {}

    def remember(tensor):
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    rows, length = 2, 29  # 29 is in the shape of every activation and of no weight
    inputs = torch.randn(rows, length, llm.config.hidden_size, dtype=dtype, requires_grad=True)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=compute < stream)
    with autocast, torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        output = llm.model(inputs_embeds=inputs, use_cache=False)
    assert output.last_hidden_state.requires_grad
    activations = [t for t in saved.values() if length in t.shape or rows * length in t.shape]
    found = sum(t.untyped_storage().nbytes() for t in activations)
    rotary = 2 * length * llm.config.head_dim * stream  # cosines and sines, once for all layers and rows
    shapes = read_shapes(config)
    per_token = shapes.layers * layer_bytes(shapes, trained, stream, compute)
    per_token += norm_bytes(shapes.hidden, trained.llm, stream)
    assert found == rows * length * per_token + rotary


def test_zero_states_of_7b(seven_b):
    shapes = read_shapes(seven_b)
    learn, rest = trained_and_frozen(shapes, WHOLE)
    plain, two, three, off = (
        states(shapes, WHOLE, Setting(zero, offload, True, 1), gpus=8)
        for zero, offload in ((0, False), (2, False), (3, False), (3, True))
    )
    assert plain[:4] == (2 * rest + 2 * learn, 4 * learn, 4 * learn, 8 * learn)
    assert two[:4] == (2 * rest + 2 * learn, 4 * learn // 8, 2 * learn // 8, learn)
    assert three[:4] == ((2 * rest + 2 * learn) // 8, *two[1:4])
    assert off[:4] == (0, 0, 0, 0)
    assert off.host == sum(three[:4])
    quantized = states(shapes, Trained(False, lora_rank=64, quantized=True), Setting(0, False, True, 1), gpus=1)
    assert 4 < quantized.weights / 2**30 < 5, "7 B in 4 bits is 3.2 GiB, and the embeddings and towers stay bfloat16"


def test_peak_with_checkpointing_keeps_one_stream_a_layer(seven_b):
    shapes, batch = read_shapes(seven_b), Batch(images=0, tokens=1000, squared=1000**2, supervised=0)
    saving, keeping = (peak(shapes, batch, WHOLE, Setting(3, False, on, 1), 8) for on in (True, False))
    final_norm = 1000 * norm_bytes(4096, True, 2)
    assert saving.activations == 32 * 1000 * 2 * 4096 + final_norm
    assert keeping.activations == 32 * 1000 * layer_bytes(shapes, WHOLE, 2, 2) + final_norm
    assert saving.working - keeping.working == 1000 * layer_bytes(shapes, WHOLE, 2, 2)
    assert logit_bytes(shapes, 10, 2) == 10 * 32000 * 14


def test_candidates_go_from_the_fastest_to_the_slowest():
    tried = list(candidates(12))
    assert tried[:4] == [Setting(0, False, False, 12), Setting(2, False, False, 12), Setting(3, False, False, 12),
                         Setting(0, False, True, 12)]  # fmt: skip
    assert [s.micro_batch for s in tried if s.offload] == [12, 6, 3, 1]
    assert tried[-1] == Setting(3, True, True, 1)
    assert len(set(tried)) == len(tried)
