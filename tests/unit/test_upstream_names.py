"""The key maps between our names, LLaVA's layout, llava-hf, and Hugging Face's CLIP are each other's inverse."""

import pytest
import torch
from upstream_folders import PARITY, TOWER, clip_tensors, llava_tensors

from emma.checkpoints.upstream_names import clip_from_llava, clip_to_llava, hf_to_llava, llava_to_hf, to_llava
from emma.model.clip_files import TRANSPOSED, from_huggingface_names, huggingface_names, read_clip


def test_every_tensor_of_a_model_has_its_place_in_llava(tiny_model):
    names = [name for name in tiny_model().state_dict() if not name.startswith("towers.")]
    there = [to_llava(name, "mlp2x_gelu") for name in names]
    assert len(set(there)) == len(names)
    assert f"{TOWER}image_text_infusion.weight" in there
    assert "lm_head.weight" in there
    assert to_llava("projector.0.weight", "linear") == "model.mm_projector.weight"


def test_llava_hf_names_and_back():
    for name in llava_tensors():
        assert hf_to_llava(llava_to_hf(name)) == name
    new = {
        "model.language_model.layers.0.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight": "lm_head.weight",
        "model.multi_modal_projector.linear_2.bias": "model.mm_projector.2.bias",
        "model.vision_tower.vision_model.post_layernorm.bias": f"{TOWER}vision_tower.vision_model.post_layernorm.bias",
        "vision_tower.post_layernorm.bias": f"{TOWER}vision_tower.vision_model.post_layernorm.bias",
    }
    assert {name: hf_to_llava(name) for name in new} == new


def test_clip_copies_and_back():
    name = "text_model.final_layer_norm.bias"
    assert clip_to_llava(name) == f"{TOWER}text_encoder.{name}"
    assert clip_from_llava(clip_to_llava(name)) == name
    assert clip_from_llava(f"{TOWER}text_projection.weight") is None


def test_open_clip_names_are_made_of_huggingface_names():
    theirs = clip_tensors()
    ours = from_huggingface_names(theirs)
    assert ours.keys() == read_clip(PARITY / "clip")[1].keys()
    for name, tensor in ours.items():
        parts = [theirs[part] for part in huggingface_names(name)]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0].T if name in TRANSPOSED else parts[0]
        assert torch.equal(joined, tensor)
    assert sorted(part for name in ours for part in huggingface_names(name)) == sorted(theirs)
    with pytest.raises(ValueError, match="is no tensor of open_clip's CLIP"):
        huggingface_names("visual.head.weight")
