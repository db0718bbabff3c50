"""Saving and loading: strict keys, frozen towers, float32 adapters, odd tensors, and reading CLIP from files."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_model_basics import ROWS, batch, labels_of

from emma.errors import EmmaError
from emma.model import EmmaConfig, EmmaForConditionalGeneration, part_of, read_clip


def dtypes(model: torch.nn.Module) -> dict[str, set[torch.dtype]]:
    by_part = {"towers": set(), "adapter": set(), "llm": set()}
    for name, parameter in model.named_parameters():
        by_part[part_of(name)].add(parameter.dtype)
    return by_part


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "any name, with spaces")
    return tmp_path / "any name, with spaces"


@pytest.mark.parametrize("alignment", ["linear", "cross_attention", "none"])
def test_every_tensor_survives(tiny_model, tmp_path, alignment):
    model = tiny_model(alignment, text_layer="final", projector="linear").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    inputs = batch(ROWS)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = EmmaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(loaded(**inputs).logits, expected)
    assert loaded.config.text_layer == "final"
    assert loaded.config.projector == "linear"


def test_auto_classes(folder):
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, EmmaConfig)
    assert (config.tower_config.num_visual_tokens, config.tower_config.context_length) == (4, 77)
    assert config.image_token_id == 640
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder), EmmaForConditionalGeneration)


@pytest.mark.parametrize("part", ["alignment.weight", "llm.lm_head.weight", "towers.visual.conv1.weight"])
def test_a_missing_weight_is_refused(folder, part):
    edit_weights(folder, lambda weights: weights.pop(part))
    with pytest.raises(EmmaError, match=rf"1 missing_keys: \['{part}'\]"):
        EmmaForConditionalGeneration.from_pretrained(folder)


def test_an_unexpected_weight_is_refused(folder):
    edit_weights(folder, lambda weights: weights.update(extra=torch.zeros(1)))
    with pytest.raises(EmmaError, match=r"1 unexpected_keys: \['extra'\]"):
        EmmaForConditionalGeneration.from_pretrained(folder)


def test_a_misshapen_weight_is_refused(folder):
    edit_weights(folder, lambda weights: weights.update({"alignment.bias": torch.zeros(5)}))
    with pytest.raises(EmmaError, match=r"1 mismatched_keys: .*alignment\.bias"):
        EmmaForConditionalGeneration.from_pretrained(folder)


def test_towers_stay_frozen_after_loading_and_train(folder):
    model = EmmaForConditionalGeneration.from_pretrained(folder).train()
    frozen = {part_of(name) for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert (frozen, trained) == ({"towers"}, {"adapter", "llm"})
    # Even when someone unfreezes everything, no gradient reaches a tower.
    model.requires_grad_(True)
    inputs = batch(ROWS)
    model(**inputs, labels=labels_of(inputs)).loss.backward()
    assert all(parameter.grad is None for parameter in model.towers.parameters())


def test_no_zero_dimensional_parameter(tiny_model):
    assert all(parameter.ndim > 0 for parameter in tiny_model().parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapter_is_float32_whatever_the_rest_is(folder, tiny_model, dtype):
    expected = {"towers": {dtype}, "adapter": {torch.float32}, "llm": {dtype}}
    assert dtypes(EmmaForConditionalGeneration.from_pretrained(folder, dtype=dtype)) == expected
    assert dtypes(tiny_model().to(dtype)) == expected
    assert dtypes(tiny_model().bfloat16()) == {**expected, "towers": {torch.bfloat16}, "llm": {torch.bfloat16}}


def test_a_small_change_of_the_diagonal_survives_bfloat16(tiny_model, tmp_path):
    model = tiny_model().to(torch.bfloat16)
    with torch.no_grad():
        model.alignment.weight += 1e-3 * torch.eye(*model.alignment.weight.shape)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        assert weights.get_tensor("alignment.weight").dtype == torch.float32
        assert weights.get_tensor("llm.lm_head.weight").dtype == torch.bfloat16
    for dtype in (torch.bfloat16, "auto"):
        loaded = EmmaForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).to(torch.bfloat16)
        assert torch.equal(loaded.alignment.weight, model.alignment.weight)
        assert loaded.alignment.weight[0, 0] == torch.tensor(1.0) + 1e-3
        assert dtypes(loaded)["llm"] == {torch.bfloat16}


def test_bfloat16_model_trains_and_equals_llava(tiny_model):
    inputs = batch(ROWS)
    emma, llava = (tiny_model(kind).to(torch.bfloat16) for kind in ("linear", "none"))
    assert torch.equal(emma(**inputs).logits, llava(**inputs).logits)
    loss = emma(**inputs, labels=labels_of(inputs)).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert emma.alignment.weight.grad.dtype == torch.float32


def test_autocast_keeps_float32_gradients(tiny_model):
    inputs = batch(ROWS)
    model = tiny_model()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=labels_of(inputs)).loss
    loss.backward()
    assert model.alignment.weight.grad.dtype == torch.float32
    assert model.alignment.weight.grad.any()


def test_non_contiguous_weight_is_saved(tiny_model, tmp_path):
    model = tiny_model()
    weight = torch.randn(81, 4).T
    assert not weight.is_contiguous()
    model.alignment.weight.data = weight
    model.save_pretrained(tmp_path)
    assert torch.equal(EmmaForConditionalGeneration.from_pretrained(tmp_path).alignment.weight, weight)


def test_tied_embeddings_are_saved_once_and_tied_again(tiny_model, tiny_llm, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**tiny_llm.config.to_dict(), "tie_word_embeddings": True})
    model = tiny_model(llm=LlamaForCausalLM(config)).eval()
    inputs = batch(ROWS)
    model.save_pretrained(tmp_path)
    assert "llm.lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = EmmaForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_sharded_folder(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = EmmaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_any_causal_language_model(tiny_model, tmp_path):
    """GPT-2 has learned positions and other module names; Gemma 2 caps its logits and ties its embeddings."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=640, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    gemma = Gemma2Config(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=2.0, pad_token_id=0,
    )  # fmt: skip
    inputs = batch(ROWS)
    for llm in (gpt2, Gemma2ForCausalLM(gemma)):
        model = tiny_model(llm=llm).eval()
        folder = tmp_path / type(llm).__name__
        model.save_pretrained(folder)
        expected = model(**inputs, labels=labels_of(inputs))
        loaded = EmmaForConditionalGeneration.from_pretrained(folder)
        assert torch.equal(loaded(**inputs, labels=labels_of(inputs)).logits, expected.logits)
        assert (
            loaded.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
        )


# -------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("alignment", "cross", "alignment is 'cross'"),
        ("text_layer", "last", "text_layer is 'last'"),
        ("projector", "mlp", "projector is 'mlp'"),
        ("image_token_id", 639, "image_token_id 639 is a token of the LLM's vocabulary"),
    ],
)
def test_bad_choices_are_named(tiny_clip, tiny_llm, field, value, message):
    with pytest.raises(EmmaError, match=message):
        EmmaConfig(tower_config=tiny_clip[0], text_config=tiny_llm.config, **{field: value})


def test_default_configuration_is_the_papers_7b():
    config = EmmaConfig()
    towers = config.tower_config
    assert (towers.num_visual_tokens, towers.context_length) == (576, 77)
    assert (towers.vision_width, towers.text_width) == (1024, 768)
    assert config.image_token_id == 32000


def test_the_papers_parameter_counts():
    with torch.device("meta"):
        model = EmmaForConditionalGeneration(EmmaConfig())
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts == {
        "towers": 427_944_193,
        "instruction_projection": 787_456,
        "alignment": 376_704,
        "projector": 20_979_712,
        "llm": 6_738_415_616,
    }


# ------------------------------------------------------------------------------------------------------ CLIP files


def test_open_clip_folder(tiny_clip, tmp_path):
    config, weights = tiny_clip
    clip = {name: getattr(config, name) for name in ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    text = json.dumps({"model_cfg": clip, "preprocess_cfg": preprocess})
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(EmmaError, match=r"neither open_clip_model\.safetensors"):
        read_clip(tmp_path)
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    read_config, read_weights = read_clip(tmp_path)
    assert (read_config.quick_gelu, read_config.vision_cfg) == (True, config.vision_cfg)
    assert (list(read_config.image_mean), list(read_config.image_std)) == (preprocess["mean"], preprocess["std"])
    assert all(torch.equal(read_weights[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hugging_face_folder_gives_hugging_faces_features(tiny_llm, tmp_path, activation):
    from transformers import CLIPConfig, CLIPModel

    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3,
        "image_size": 16, "patch_size": 8, "hidden_act": activation,
    }  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 3,
        "vocab_size": 49408, "hidden_act": activation,
    }  # fmt: skip
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24, initializer_factor=20.0))
    clip = clip.eval()
    clip.save_pretrained(tmp_path)
    model = EmmaForConditionalGeneration.from_parts(tiny_llm, read_clip(tmp_path))
    inputs = batch(ROWS)
    with torch.no_grad():
        seen = clip.vision_model(pixel_values=inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
        read = clip.text_model(input_ids=inputs["instruction_ids"], output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model.towers.encode_image(inputs["pixel_values"]), seen[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.towers.encode_text(inputs["instruction_ids"]), read, atol=1e-4, rtol=1e-4)


def test_hugging_face_activation_that_open_clip_lacks(tmp_path):
    text = {"model_type": "clip", "vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}}
    (tmp_path / "config.json").write_text(json.dumps(text))
    with pytest.raises(EmmaError, match="activations relu"):
        read_clip(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/clip", "no CLIP model at /nowhere/clip"),
        ("ViT-L-14-336:openai", "mixes activations.*use ViT-L-14-336-quickgelu:openai"),
        ("ViT-L-15:openai", "open_clip knows no model ViT-L-15"),
        ("ViT-L-14-336-quickgelu:openai", "neither in the cache nor to be had from the network"),
    ],
)
def test_unreadable_clip_sources(source, message, monkeypatch, tmp_path):
    import open_clip

    def offline(*_args, **_kwargs):
        raise FileNotFoundError("offline")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(EmmaError, match=message):
        read_clip(source)
