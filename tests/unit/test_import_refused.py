"""What is damaged, incomplete, or computes something else is refused in one sentence that names file and reason."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file
from upstream_folders import CLIP_NAME, TOWER, M, N, emma_folder, fusion, llava_folder, make_assets, write_main

from emma.checkpoints.importing import import_folder
from emma.errors import EmmaError


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def refused(assets, tmp_path):
    """`refused(source, match)`: the import fails so, in one line, and leaves nothing behind."""

    def refused(source, match, **options):
        with pytest.raises(EmmaError, match=match) as error:
            import_folder(source, tmp_path / "target", **{"assets": assets, **options})
        assert "\n" not in str(error.value)
        assert not (tmp_path / "target").exists()

    return refused


def change(source, name, tensor=None):
    """Replace one tensor of the main weights, or take it away."""
    weights = load_file(source / "model.safetensors")
    weights.pop(name)
    write_main(source, weights | ({} if tensor is None else {name: tensor}))


def test_missing_unexpected_and_misshapen_tensors(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
    weights["lm_head.weight"] = torch.zeros(641, 64)
    write_main(source, weights)
    refused(
        source,
        r"missing: 1 tensor\(s\) \(model.layers.1.mlp.up_proj.weight\); unexpected: 1 tensor\(s\) "
        r"\(model.layers.2.mlp.up_proj.weight\); of another shape: 1 tensor\(s\) "
        r"\(lm_head.weight is \[641, 64\] instead of \[640, 64\]\)",
    )


def test_missing_fusion_tensors(refused, tmp_path):
    """The configuration says EMMA, the tensors are LLaVA's."""
    source = llava_folder(tmp_path / "s")
    config = json.loads((source / "config.json").read_text()) | {"encoder_version": "v1"}
    (source / "config.json").write_text(json.dumps(config))
    refused(source, r"missing: 4 tensor\(s\) \(model.vision_tower.text_projection.weight")


def test_alignment_of_another_image_size(refused, tmp_path):
    source = emma_folder(tmp_path / "s", tower_file=None)
    change(source, f"{TOWER}image_text_infusion.weight", torch.zeros(N + 9, N + 9 + M))
    refused(source, r"image_text_infusion.weight is \[25, 102\] instead of \[16, 93\]")


def test_unknown_tower_tensors(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    torch.save({"something.weight": torch.zeros(2)}, source / "vision_tower.bin")
    refused(source, r"unexpected: 1 tensor\(s\) \(model.vision_tower.something.weight\)")


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_truncated_shard(refused, tmp_path, weights):
    source = emma_folder(tmp_path / "s", weights=weights, shards=3)
    shard = sorted(source.glob(f"*00002-of-00003.{weights}"))[0]
    shard.write_bytes(shard.read_bytes()[:-1000])
    refused(source, rf"{shard.name} is .*truncated")


def test_missing_shard(refused, tmp_path):
    source = emma_folder(tmp_path / "s", shards=3)
    (source / "model-00003-of-00003.safetensors").unlink()
    refused(source, "model-00003-of-00003.safetensors, which model.safetensors.index.json names, is missing")


def test_index(refused, tmp_path):
    source = emma_folder(tmp_path / "s", shards=2)
    index = source / "model.safetensors.index.json"
    text = index.read_text()
    content = json.loads(text)
    shard = content["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(content))
    refused(source, rf"index.json has no entry for 1 tensor\(s\) \(model.norm.weight\), held by {shard}")
    content["weight_map"] |= {"model.norm.weight": shard, "model.norm.bias": shard}
    index.write_text(json.dumps(content))
    refused(source, rf"{shard} lacks 1 tensor\(s\) \(model.norm.bias\), which model.safetensors.index.json says")
    content["weight_map"]["model.norm.bias"] = "../s/elsewhere.safetensors"
    index.write_text(json.dumps(content))
    refused(source, "names ../s/elsewhere.safetensors, which is no file of its folder")
    index.write_text('{"weight_map": {"model.norm.weight": 3}}')
    refused(source, "3, which model.safetensors.index.json names, is missing")
    index.write_text('["model.norm.weight"]')
    refused(source, "index.json is damaged")
    index.write_text(text[:-40])
    refused(source, "index.json is damaged")
    index.unlink()
    refused(source, "holds shards .* but not their index model.safetensors.index.json")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content", [b"", b"no pickle at all", pickle.dumps({"a": Evil()}), pickle.dumps([1, 2]), b"PK\x03\x04 and no more"]
)
def test_a_pickle_that_is_no_tensor_file(refused, tmp_path, capsys, content):
    source = emma_folder(tmp_path / "s")
    (source / "vision_tower.bin").write_bytes(content)
    refused(source, r"vision_tower.bin is no file of tensors, or it is truncated")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [[torch.zeros(2)], {"weight": 3}, {"state": {"weight": torch.zeros(2)}}, Evil()])
def test_a_torch_file_that_is_no_dictionary_of_tensors(refused, tmp_path, capsys, value):
    source = emma_folder(tmp_path / "s")
    torch.save(value, source / "vision_tower.bin")
    refused(source, r"vision_tower.bin is no (dictionary|file) of tensors")
    assert "executed" not in capsys.readouterr().out


def test_quantised_weights(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    change(source, "lm_head.weight", torch.zeros(640, 64, dtype=torch.int8))
    refused(source, "lm_head.weight is I8; weights must be float32, float16 or bfloat16")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("encoder_version", "v2", "the released code itself cannot run it"),
        ("encoder_version", "v9", "encoder_version 'v9' is not known"),
        ("num_learnable_tokens", 5, "num_learnable_tokens is 5, but encoder_version v1 has none"),
        ("mm_text_select_layer", -3, "mm_text_select_layer -3 cannot be imported"),
        ("mm_text_select_feature", "patch", "the alignment weighs all positions"),
        ("mm_vision_select_layer", -1, "mm_vision_select_layer -1 cannot be imported"),
        ("mm_vision_select_feature", "cls_patch", "the class token is dropped"),
        ("mm_projector_type", "identity", "mm_projector_type 'identity' cannot be imported"),
        ("mm_projector_type", "mlp3x_gelu", "this model's projectors are mlp2x_gelu and linear"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio 'anyres' cannot be imported"),
        ("mm_use_im_start_end", True, "there are no tokens around an image"),
        ("mm_patch_merge_type", "spatial_unpad", "an image is one square of patches"),
        ("model_type", "llava_mpt", "model_type 'llava_mpt' cannot be imported"),
    ],
)
def test_settings_that_mean_another_model(refused, tmp_path, key, value, reason):
    refused(emma_folder(tmp_path / "s", **{key: value}), reason)


def test_final_text_layer_is_honoured(assets, tmp_path):
    target = import_folder(emma_folder(tmp_path / "s", mm_text_select_layer=-1), tmp_path / "t", assets=assets)
    assert json.loads((target / "config.json").read_text())["text_layer"] == "final"


def test_learnable_tokens_instead_of_the_instruction(refused, tmp_path):
    """v2 that is not written down: the alignment is square."""
    source = emma_folder(tmp_path / "s", version="v3", tower_file=None)
    change(source, f"{TOWER}image_text_infusion.weight", torch.eye(N))
    refused(source, "encoder_version v2")


def test_clip_that_is_not_here(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    message = f"the CLIP towers {CLIP_NAME} are not here.*--clip checkpoint for the copy inside"
    refused(source, message, assets=None)
    refused(source, "holds its config.json as --assets", assets=None, clip="checkpoint")
    refused(source, "--assets .*nowhere is no folder", assets=tmp_path / "nowhere")
    without = emma_folder(tmp_path / "w", copies=False)
    refused(without, "holds no copy of its CLIP towers", clip="checkpoint")


def test_no_checkpoint(refused, tmp_path, assets):
    refused(tmp_path / "nothing", "nothing does not exist")
    refused(assets, "has no config.json")
    refused(assets / "llm-base", "has no projector.*it is a language model")
    source = llava_folder(tmp_path / "s")
    (source / "model.safetensors").unlink()
    refused(source, "holds neither model.safetensors nor")
    (source / "config.json").write_text("{")
    refused(source, "config.json is damaged")
    (source / "config.json").write_text('{"model_type": "emma"}')
    refused(source, "is a model folder of this project already")


def test_hub_names_offline(refused):
    refused("saraghznfri/emma-7b", r"cannot be downloaded \(HF_HUB_OFFLINE is set\); copy the released folder")
    refused("./no/such/folder", "no/such/folder does not exist")


def test_open_clip_names_offline(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    refused(source, "open_clip knows no model ViT-X with weights openai", clip="ViT-X:openai")
    refused(source, "mixes activations", clip="ViT-L-14-336:openai")
    source = emma_folder(tmp_path / "n", mm_vision_tower="openai/clip-vit-large-patch14-336")
    refused(source, "the CLIP towers openai/clip-vit-large-patch14-336 are not here")
    refused(source, r"does not fit its config.json; missing: \d+ tensor\(s\) \(CLIP visual", clip="checkpoint")


def test_no_tokenizer(refused, tmp_path, assets):
    source = llava_folder(tmp_path / "s")
    (source / "tokenizer.model").unlink()
    refused(source, "has no tokenizer .*give one's folder as --llm")
    assert import_folder(source, tmp_path / "t", assets=assets, llm="llm-base").is_dir()


def test_a_damaged_tokenizer(refused, tmp_path):
    source = llava_folder(tmp_path / "s")
    (source / "tokenizer.model").write_bytes(b"nothing")
    refused(source, "the tokenizer in .* (knows no words|cannot be read)")
    (source / "tokenizer_config.json").write_text("{")
    refused(source, "tokenizer_config.json is damaged")


def test_a_tokenizer_of_another_model(refused, tmp_path):
    source = llava_folder(tmp_path / "s")
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": 320}
    (source / "config.json").write_text(json.dumps(config))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        change(source, name, torch.zeros(320, 64))
    refused(source, "has 640 tokens, more than the LLM's vocabulary of 320")


@pytest.mark.parametrize(
    "settings", [{"hidden_size": "wide"}, {"num_attention_heads": 3}, {"rope_scaling": {"type": "unheard of"}}]
)
def test_a_configuration_of_no_model(refused, tmp_path, settings):
    refused(emma_folder(tmp_path / "s", **settings), "config.json describes no model that can be built")


def test_a_damaged_clip_folder(refused, tmp_path, assets):
    clip = tmp_path / "clip"
    shutil.copytree(assets / CLIP_NAME, clip)
    source = emma_folder(tmp_path / "s")
    (clip / "config.json").write_text("{")
    refused(source, "CLIP folder .* has a damaged configuration", clip=str(clip))
    (clip / "pytorch_model.bin").unlink()
    refused(source, "has no weights", clip=str(clip))


def test_empty_tensors_as_partitioned_training_saves_them(refused, tmp_path):
    source = emma_folder(tmp_path / "s")
    torch.save({name: torch.zeros(0) for name in fusion()}, source / "vision_tower.bin")
    refused(source, r"of another shape: 4 tensor\(s\) \(model.vision_tower.text_projection.weight is \[0\]")


def test_an_llm_that_is_not_needed(refused, tmp_path):
    refused(llava_folder(tmp_path / "s"), "leave --llm out", llm="llm-base")
