"""Stage 1, LoRA and llava-hf folders, and LLaVA-1.5 itself, come in with the values of their own code."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from upstream_folders import (
    PARITY,
    TOWER,
    emma_folder,
    fusion,
    llava_folder,
    llava_tensors,
    make_assets,
    stage1_folder,
    whole_tower,
    write_main,
)

import emma
from emma.checkpoints import provenance
from emma.checkpoints.__main__ import main
from emma.checkpoints.importing import import_folder
from emma.errors import EmmaError


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets"))


def imported(source, target, **options) -> dict[str, torch.Tensor]:
    return load_file(import_folder(source, target, **options) / "model.safetensors")


def test_stage_1_of_emma(assets, tmp_path):
    source = stage1_folder(tmp_path / "s")
    torch.save(whole_tower(torch.bfloat16), source / "vision_tower.bin")
    weights = imported(source, tmp_path / "t", assets=assets)
    projector = torch.load(source / "mm_projector.bin", weights_only=True)
    assert torch.equal(weights["projector.2.bias"], projector["model.mm_projector.2.bias"].float())
    assert torch.equal(weights["alignment.weight"], fusion(torch.bfloat16)["image_text_infusion.weight"].float())
    assert torch.equal(weights["llm.lm_head.weight"], llava_tensors()["lm_head.weight"])
    _, processor = emma.load(tmp_path / "t", device="cpu")
    assert (processor.template, processor.image_mode, processor.instruction.text) == ("plain", "square", "released")
    assert processor.tokenizer.pad_token_id == 0
    facts = provenance.read(tmp_path / "t")
    assert (facts["stage"], facts["imported"]["kind"]) == ("pretrain", "EMMA, stage 1")
    assert facts["imported"]["bases"] == {"llm": str(assets / "llm-base")}


def test_stage_1_needs_its_llm(assets, tmp_path):
    source = stage1_folder(tmp_path / "s")
    clip = str(assets / "openai" / "clip-vit-tiny-patch14-56")
    with pytest.raises(EmmaError, match="needs its base LLM, llm-base: not found here; give its folder as --llm"):
        import_folder(source, tmp_path / "t", clip=clip)
    weights = imported(source, tmp_path / "t", clip=clip, llm=str(assets / "llm-base"))
    assert "alignment.weight" not in weights
    assert provenance.read(tmp_path / "t")["imported"]["kind"] == "LLaVA-1.5, stage 1"


def lora_folder(folder, base, fused: bool, **changes):
    """What LLaVA's finetune_lora writes; returns the factors of one layer and the scale."""
    folder.mkdir()
    (folder / "config.json").write_text((PARITY / "llava15" / "config.json").read_text())
    settings = {"base_model_name_or_path": base, "r": 4, "lora_alpha": 8, "use_rslora": False, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    draw = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in llava_tensors().items():
        if "_proj.weight" in name and "layers" in name and TOWER not in name:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_A.weight"] = 0.1 * torch.randn(4, tensor.shape[1], generator=draw)
            tensors[f"{key}.lora_B.weight"] = 0.1 * torch.randn(tensor.shape[0], 4, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors")
    trained = {f"base_model.model.{k}": v + 1 for k, v in llava_tensors().items() if "mm_projector" in k}
    if fused:
        trained |= {f"base_model.model.{TOWER}{name}": tensor for name, tensor in fusion().items()}
    torch.save(trained, folder / "non_lora_trainables.bin")
    return tensors


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_is_merged_into_its_base(assets, tmp_path, fused, rslora):
    factors = lora_folder(tmp_path / "s", "llm-base", fused, use_rslora=rslora)
    weights = imported(tmp_path / "s", tmp_path / "t", assets=assets)
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = (factors[f"base_model.model.{layer}.lora_{letter}.weight"] for letter in "AB")
        merged = llava_tensors()[f"{layer}.weight"].float() + (4.0 if rslora else 2.0) * b @ a
        assert torch.equal(weights[f"llm.{layer}.weight"], merged.to(torch.bfloat16))
    assert torch.equal(weights["llm.model.norm.weight"], llava_tensors()["model.norm.weight"])
    projector = (llava_tensors()["model.mm_projector.0.weight"] + 1).float()
    assert torch.equal(weights["projector.0.weight"], projector)
    assert ("alignment.weight" in weights) == fused
    assert provenance.read(tmp_path / "t")["imported"]["kind"] == ("EMMA, LoRA" if fused else "LLaVA-1.5, LoRA")
    emma.load(tmp_path / "t", device="cpu")


def test_lora_on_a_whole_folder(assets, tmp_path):
    """The base may be a finished LLaVA: its projector is replaced by the one that was trained along."""
    base = llava_folder(tmp_path / "base")
    lora_folder(tmp_path / "s", "somewhere/else", fused=False)
    weights = imported(tmp_path / "s", tmp_path / "t", assets=assets, llm=str(base))
    assert torch.equal(weights["projector.0.bias"], (llava_tensors()["model.mm_projector.0.bias"] + 1).float())


def test_lora_in_a_pickle_with_the_adapters_name_in_its_keys(assets, tmp_path):
    lora_folder(tmp_path / "s", "llm-base", fused=False)
    expected = imported(tmp_path / "s", tmp_path / "t", assets=assets)
    file = tmp_path / "s" / "adapter_model.safetensors"
    factors = {
        name.replace("_A.", "_A.default.").replace("_B.", "_B.default."): t for name, t in load_file(file).items()
    }
    torch.save(factors, file.with_suffix(".bin"))
    file.unlink()
    found = imported(tmp_path / "s", tmp_path / "u", assets=assets)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (tmp_path / "s" / "adapter_model.bin").unlink()
    with pytest.raises(EmmaError, match="has no LoRA tensors"):
        import_folder(tmp_path / "s", tmp_path / "v", assets=assets)


def test_lora_that_does_not_fit(assets, tmp_path):
    lora_folder(tmp_path / "s", "llm-base", fused=False, r=8)
    with pytest.raises(EmmaError, match=r"LoRA does not fit its base: 14 tensor\(s\)"):
        import_folder(tmp_path / "s", tmp_path / "t", assets=assets)
    lora_folder(tmp_path / "d", "llm-base", fused=False, use_dora=True)
    with pytest.raises(EmmaError, match="LoRA with use_dora cannot be merged here"):
        import_folder(tmp_path / "d", tmp_path / "t", assets=assets)


@pytest.fixture(scope="module")
def llava_hf(tmp_path_factory):
    """(folder, model) of transformers' own LLaVA, with a tokenizer, its vision tower inside."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=656,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        pad_token_id=0,
    )
    torch.manual_seed(3)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=640, image_seq_length=4)
    ).eval()
    folder = tmp_path_factory.mktemp("llava-hf")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(PARITY / "llm-base").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder, model


@pytest.mark.parametrize("naming", ["as saved", "old", "new"])
def test_llava_hf(llava_hf, tmp_path, naming):
    """Old names have `vision_model` inside the vision tower, new ones start with `model`."""
    folder, theirs = llava_hf
    source = tmp_path / "s"
    source.mkdir()
    for file in folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["vocab_size"] = 32000  # published folders hold it
    (source / "config.json").write_text(json.dumps(config))
    if naming == "old":
        saved = load_file(source / "model.safetensors")
        saved = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in saved.items()}
        write_main(source, saved, shards=1)
    elif naming == "new":
        write_main(source, dict(theirs.state_dict()))
    import_folder(source, tmp_path / "t")
    model, processor = emma.load(tmp_path / "t", device="cpu")
    assert (model.config.alignment, processor.image_mode, processor.template) == ("none", "square", "vicuna_v1")
    pixels = torch.randn(1, 3, 28, 28)
    words = torch.tensor([[1, 40, 50]])
    ours = torch.cat([torch.full((1, 4), model.config.image_token_id), words], dim=1)
    with torch.no_grad():
        expected = theirs(input_ids=ours.masked_fill(ours == model.config.image_token_id, 640), pixel_values=pixels)
        torch.testing.assert_close(
            model(input_ids=ours, pixel_values=pixels).logits, expected.logits, atol=1e-4, rtol=0
        )
    processor.encode_prompt([{"role": "user", "content": "Hi"}], [Image.new("RGB", (9, 9))])


def test_linear_projector(assets, tmp_path):
    source = llava_folder(tmp_path / "s")
    tensors = {name: tensor for name, tensor in llava_tensors().items() if "mm_projector" not in name}
    tensors |= {"model.mm_projector.weight": torch.randn(64, 64), "model.mm_projector.bias": torch.randn(64)}
    write_main(source, tensors)
    config = json.loads((source / "config.json").read_text()) | {"mm_projector_type": "linear"}
    (source / "config.json").write_text(json.dumps(config))
    weights = imported(source, tmp_path / "t", assets=assets)
    assert torch.equal(weights["projector.0.weight"], tensors["model.mm_projector.weight"])


def test_command(assets, tmp_path, capsys):
    source = emma_folder(tmp_path / "s")
    with pytest.raises(SystemExit) as end:
        main(["import", str(source), str(tmp_path / "t"), "--assets", str(assets)])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "t")
    with pytest.raises(SystemExit) as end:
        main(["import", str(source), str(tmp_path / "t"), "--assets", str(assets)])
    assert end.value.code == 1
    assert "exists already" in capsys.readouterr().err


def test_a_foreign_folder_names_the_command(tmp_path):
    source = llava_folder(tmp_path / "s")
    with pytest.raises(EmmaError, match=r"python -m emma.checkpoints import SOURCE TARGET"):
        emma.load(source)
