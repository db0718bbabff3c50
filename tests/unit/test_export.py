"""Exports: the layouts of the released code, the LLM and the adapter alone, and that they come back bit-equal."""

import json

import pytest
import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_model_basics import ROWS, batch

import emma
from emma.checkpoints.exporting import export_folder
from emma.checkpoints.folder import save_folder
from emma.checkpoints.importing import import_folder
from emma.errors import EmmaError
from emma.model import part_of
from emma.model.lora import inject

PROMPT = [{"role": "user", "content": "What colour is the naïve circle?</s>"}]


@pytest.fixture
def make(tiny_model, tiny_processor, tmp_path):
    """Factory of (folder, model) with weights that are nothing special: bfloat16 towers and LLM, float32 adapter."""

    def make(alignment="linear", dtype=torch.bfloat16, choices=None, **parts):
        torch.manual_seed(7)
        model = tiny_model(alignment, **parts).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.to(dtype)
        folder = tmp_path / f"model of {alignment}"
        save_folder(folder, model, tiny_processor(model.config, **(choices or {})), {"stage": "finetune"})
        return folder, model

    return make


def weights(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype, name
        assert torch.equal(other[name], tensor), name


def assert_same_processor(one, other):
    """But for the name of the towers, which a CLIP folder does not keep."""
    (_, first), (_, second) = emma.load(one, device="cpu"), emma.load(other, device="cpu")
    assert second.to_dict() == first.to_dict()
    assert torch.equal(second.encode_prompt(PROMPT)["input_ids"], first.encode_prompt(PROMPT)["input_ids"])


# --------------------------------------------------------------------------------------- released EMMA and LLaVA-1.5


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
@pytest.mark.parametrize(("layout", "alignment"), [("emma", "linear"), ("llava", "none")])
def test_released_layouts_come_back_bit_equal(make, tmp_path, layout, alignment, projector):
    settings = {"instruction": {"text": "whole", "turn": "first", "over_77": "error"}, "image_mode": "square"}
    folder, _ = make(alignment, projector=projector, text_layer="final", choices=settings)
    export_folder(folder, tmp_path / "out", layout)
    back = import_folder(tmp_path / "out", tmp_path / "back")
    assert_same_weights(folder, back)
    assert_same_processor(folder, back)
    loaded, original = (emma.load(place, dtype="bfloat16", device="cpu")[0] for place in (back, folder))
    assert loaded.config.text_layer == ("final" if layout == "emma" else "penultimate")
    inputs = batch(ROWS)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, original(**inputs).logits)


def test_the_emma_layout_is_the_released_one(make, tmp_path):
    folder, model = make()
    out = export_folder(folder, tmp_path / "out", "emma")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "clip", "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json",
        "tokenizer.model", "tokenizer_config.json", "vision_tower.bin",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    expected = {
        "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "mm_vision_tower": str(out / "clip"),
        "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat", "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False, "image_aspect_ratio": "pad", "torch_dtype": "bfloat16", "vocab_size": 640,
        "rope_theta": 10000.0, "rope_scaling": None, "num_key_value_heads": 2, "encoder_version": "v1",
        "num_learnable_tokens": 0, "mm_text_select_layer": -2, "mm_text_select_feature": "cls_patch",
    }  # fmt: skip
    assert {key: config.get(key) for key in expected} == expected
    fusion = torch.load(out / "vision_tower.bin", weights_only=True)
    tower = "model.vision_tower."
    assert {name: tuple(tensor.shape) for name, tensor in fusion.items()} == {
        f"{tower}text_projection.weight": (32, 16),
        f"{tower}text_projection.bias": (32,),
        f"{tower}image_text_infusion.weight": (4, 4 + 77),
        f"{tower}image_text_infusion.bias": (4,),
    }
    assert torch.equal(fusion[f"{tower}image_text_infusion.weight"], model.alignment.weight)
    main = load_file(out / "model.safetensors")
    copies = [name for name in main if name.startswith((f"{tower}vision_tower.", f"{tower}text_encoder."))]
    llm = [name for name in main if not name.startswith((tower, "model.mm_projector."))]
    assert {name for name in main if name.startswith("model.mm_projector.")} == {
        f"model.mm_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    # Of an L-layer tower 16 L and 7 (vision) or 4 (text) more; upstream's 391 and 196 at 24 and 12 layers.
    assert len(copies) == 16 * 3 + 7 + 16 * 3 + 4
    assert set(llm) == set(model.llm.state_dict())


def test_clip_folder_is_the_towers(make, tmp_path):
    """Hugging Face's CLIP reads it, and computes the model's visual and text tokens."""
    from transformers import CLIPImageProcessor, CLIPModel

    folder, model = make(dtype=torch.float32)
    out = export_folder(folder, tmp_path / "out", "emma")
    clip, info = CLIPModel.from_pretrained(out / "clip", output_loading_info=True, attn_implementation="eager")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = batch([ROWS[0]])
    with torch.no_grad():
        visual = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        text = clip.text_model(inputs["instruction_ids"], output_hidden_states=True).hidden_states[-2]
        steps = model.encode(inputs["pixel_values"], inputs["instruction_ids"])
    torch.testing.assert_close(steps["vision"], visual, atol=1e-5, rtol=0)
    torch.testing.assert_close(steps["text"], text, atol=1e-5, rtol=0)
    assert CLIPImageProcessor.from_pretrained(out / "clip").crop_size["height"] == 16


def test_another_vision_tower_is_only_named(make, tmp_path):
    folder, _ = make()
    out = export_folder(folder, tmp_path / "out", "emma", vision_tower="openai/clip-vit-large-patch14-336")
    assert not (out / "clip").exists()
    assert json.loads((out / "config.json").read_text())["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"


def test_rebuilt_sentencepiece_model(make, tiny_tokenizer, tmp_path):
    """tokenizer.model, which the folder no longer has, gives the ids that the original file gives."""
    folder, _ = make()
    assert not (folder / "tokenizer.model").exists()
    out = export_folder(folder, tmp_path / "out", "emma")
    original = sentencepiece.SentencePieceProcessor(model_file=tiny_tokenizer.vocab_file)
    rebuilt = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    texts = ["What's  in the   image?", " leading", "", "日本語 😀\n\n\t", "1234567", "ASSISTANT: the the", "<s> </s>"]
    assert [rebuilt.encode(text) for text in texts] == [original.encode(text) for text in texts]
    pieces = range(original.get_piece_size())
    for ask in ("id_to_piece", "is_control", "is_unknown", "is_byte"):
        assert [getattr(rebuilt, ask)(i) for i in pieces] == [getattr(original, ask)(i) for i in pieces]
    assert (rebuilt.bos_id(), rebuilt.eos_id(), rebuilt.unk_id(), rebuilt.pad_id()) == (1, 2, 0, -1)


def test_learnable_tokens_are_version_3(make, tiny_model, tiny_processor, tiny_clip, tiny_llm, tmp_path):
    from emma.model import EmmaConfig, EmmaForConditionalGeneration

    config = EmmaConfig(tower_config=tiny_clip[0], text_config=tiny_llm.config, learnable_tokens=True)
    model = EmmaForConditionalGeneration(config, llm=tiny_llm)
    torch.nn.init.normal_(model.alignment.learnable_tokens)
    model.towers.load_clip(tiny_clip[1])
    save_folder(tmp_path / "model", model, tiny_processor(config), {})
    out = export_folder(tmp_path / "model", tmp_path / "out", "emma")
    written = json.loads((out / "config.json").read_text())
    assert (written["encoder_version"], written["num_learnable_tokens"]) == ("v3", 4)
    assert_same_weights(tmp_path / "model", import_folder(out, tmp_path / "back"))


# ------------------------------------------------------------------------------------------------------------ others


def test_adapter_is_one_file_that_says_what_it_is(make, tmp_path):
    folder, _ = make()
    file = export_folder(folder, tmp_path / "adapter", "adapter")
    assert file == tmp_path / "adapter.safetensors"
    expected = {name: tensor for name, tensor in weights(folder).items() if part_of(name) == "adapter"}
    found = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["architecture"] == "EmmaForConditionalGeneration"
    assert json.loads(metadata["config"])["alignment"] == "linear"


@pytest.mark.parametrize("alignment", ["linear", "none"])
def test_adapter_llm_and_clip_are_the_model_again(make, tmp_path, alignment):
    settings = {"instruction": {"text": "whole", "turn": "first"}, "image_mode": "square"}
    folder, _ = make(alignment, dtype=torch.float32, choices=settings)
    file = export_folder(folder, tmp_path / "adapter.safetensors", "adapter")
    llm = export_folder(folder, tmp_path / "llm", "llm")
    clip = export_folder(folder, tmp_path / "all", "emma" if alignment == "linear" else "llava") / "clip"
    back = import_folder(file, tmp_path / "back", clip=str(clip), llm=str(llm))
    assert_same_weights(folder, back)
    assert_same_processor(folder, back)
    with pytest.raises(EmmaError, match="needs its base LLM"):
        import_folder(file, tmp_path / "again", clip=str(clip))
    with pytest.raises(EmmaError, match="give the CLIP folder as --clip"):
        import_folder(file, tmp_path / "again", llm=str(llm))


def test_files_that_are_no_adapter_to_import(make, tmp_path):
    folder, _ = make("cross_attention")
    file = export_folder(folder, tmp_path / "adapter", "adapter")
    with pytest.raises(EmmaError, match="only adapters with alignment linear or none"):
        import_folder(file, tmp_path / "back")
    for other in (folder / "model.safetensors", folder / "config.json"):
        with pytest.raises(EmmaError, match="is no adapter that this project exported"):
            import_folder(other, tmp_path / "back")


def test_llm_alone_is_a_language_model(make, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, model = make(dtype=torch.float32)
    out = export_folder(folder, tmp_path / "llm", "llm")
    llm, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, llm.state_dict()[name]) for name, tensor in model.llm.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(out)
    _, processor = emma.load(folder, device="cpu")
    chat = [{"role": "user", "content": "What colour?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == processor.encode_prompt(chat)["input_ids"].tolist()
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_lora_is_merged_first(tiny_model, tiny_processor, tmp_path):
    from emma.checkpoints.adapter import Adapter

    model = tiny_model()
    processor = tiny_processor(model.config)
    save_folder(tmp_path / "base", model, processor, {})
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": None}
    inject(model, **lora)
    record = Adapter.of(tmp_path / "lora", tmp_path / "base", lora, "none")
    save_folder(tmp_path / "lora", model, processor, {}, adapter=record)
    with pytest.raises(EmmaError, match=r"LoRA adapter folder; merge it .* python -m emma.checkpoints merge"):
        export_folder(tmp_path / "lora", tmp_path / "out", "emma")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("alignment", "layout", "message"),
    [
        ("none", "emma", "use --format llava"),
        ("linear", "llava", "use --format emma"),
        ("linear", "llava-hf", "only for 'none' with 'mlp2x_gelu'"),
        ("cross_attention", "emma", "has no cross-attention"),
        ("linear", "gguf", "is not one of emma, llava, llava-hf, llm, adapter"),
    ],
)
def test_layouts_that_have_no_place_for_it(make, tmp_path, alignment, layout, message):
    folder, _ = make(alignment)
    with pytest.raises(EmmaError, match=message):
        export_folder(folder, tmp_path / "out", layout)
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}, "nothing is left behind"


def test_an_llm_that_the_released_code_cannot_run(tiny_model, tiny_processor, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 640, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, head_dim=16, bos_token_id=1, eos_token_id=2)
    model = tiny_model(llm=LlamaForCausalLM(config))
    save_folder(tmp_path / "model", model, tiny_processor(model.config), {})
    with pytest.raises(EmmaError, match=r"'head_dim': 16.*runs only Llama"):
        export_folder(tmp_path / "model", tmp_path / "out", "emma")
    export_folder(tmp_path / "model", tmp_path / "llm", "llm")


def test_targets_in_the_way_and_sources_that_are_none(make, tmp_path):
    folder, _ = make()
    with pytest.raises(EmmaError, match="exists already"):
        export_folder(folder, folder, "llm")
    with pytest.raises(EmmaError, match="does not exist"):
        export_folder(tmp_path / "nowhere", tmp_path / "out", "llm")
    (tmp_path / "a file").write_text("")
    with pytest.raises(EmmaError, match="cannot export to"):
        export_folder(folder, tmp_path / "a file" / "out", "llm")
    with pytest.raises(EmmaError, match="leave --vision-tower out"):
        export_folder(folder, tmp_path / "out", "llm", vision_tower="x")
    (folder / "complete.json").unlink()
    with pytest.raises(EmmaError, match="not complete"):
        export_folder(folder, tmp_path / "out", "llm")
