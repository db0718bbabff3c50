"""Released EMMA folders in every layout give what plain torch and Hugging Face's CLIP and Llama compute from them."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPModel, LlamaConfig, LlamaForCausalLM
from upstream_folders import (
    CLIP_NAME,
    PARITY,
    N,
    clip_copies,
    clip_tensors,
    emma_folder,
    fusion,
    llava_tensors,
    make_assets,
    write_main,
)

import emma
from emma.checkpoints import provenance
from emma.checkpoints.importing import import_folder
from emma.checkpoints.seal import is_complete
from emma.model.clip_files import read_clip
from emma.processing.instruction import ClipTokenizer

QUESTION = "What colour is the small circle?\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def inputs():
    """(pixels float[1, 3, 56, 56], instruction ids int[1, 77]): start, words, end, then id 0."""
    ids, _ = ClipTokenizer(77).encode("What colour is the small circle?")
    assert ids[-1] == 0
    return torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(3)), torch.tensor([ids])


def reference_features(clip: CLIPModel, fused: dict, projector: dict, pixels, ids) -> torch.Tensor:
    """Projected tokens float[1, N, Dllm], written from the description of the released code, float32."""
    with torch.no_grad():
        visual = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        text = clip.text_model(ids, output_hidden_states=True).hidden_states[-2]
        text = F.gelu(text @ fused["text_projection.weight"].T + fused["text_projection.bias"])
        joined = torch.cat([visual, text], dim=1)
        tokens = fused["image_text_infusion.weight"] @ joined + fused["image_text_infusion.bias"][:, None]
        tokens = tokens + fused.get("learnable_tokens", 0)
        hidden = F.gelu(tokens @ projector["model.mm_projector.0.weight"].T + projector["model.mm_projector.0.bias"])
        return hidden @ projector["model.mm_projector.2.weight"].T + projector["model.mm_projector.2.bias"]


def reference_clip(assets, weights: dict | None = None) -> CLIPModel:
    clip = CLIPModel.from_pretrained(assets / CLIP_NAME, dtype=torch.float32, attn_implementation="eager").eval()
    if weights is not None:
        clip.load_state_dict(clip.state_dict() | {name: tensor.float() for name, tensor in weights.items()})
    return clip


def reference_logits(features: torch.Tensor, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float[1, L, V] of the recorded LLM for ids whose first N are the image."""
    llm = LlamaForCausalLM(LlamaConfig.from_pretrained(PARITY / "llm-base")).eval()
    llm.load_state_dict(
        {k: v.to(dtype).float() for k, v in llava_tensors().items() if "mm_" not in k and "tower" not in k}
    )
    with torch.no_grad():
        words = llm.get_input_embeddings()(ids[:, N:])
        return llm(inputs_embeds=torch.cat([features, words], dim=1)).logits


def check_values(target, assets, inputs, dtype=torch.bfloat16, version="v1", clip=None):
    pixels, ids = inputs
    model, processor = emma.load(target, device="cpu", dtype="float32")
    fused = {name: tensor.float() for name, tensor in fusion(dtype, version).items()}
    main = {name: tensor.to(dtype).float() for name, tensor in llava_tensors().items()}
    expected = reference_features(clip or reference_clip(assets), fused, main, pixels, ids)
    with torch.no_grad():
        projected = model.get_image_features(pixels, ids)
        torch.testing.assert_close(projected, expected, atol=1e-4, rtol=0)
        words = torch.tensor([[1, 50, 60, 70]])
        input_ids = torch.cat([torch.full((1, N), model.config.image_token_id), words], dim=1)
        logits = model(input_ids=input_ids, pixel_values=pixels, instruction_ids=ids).logits
    torch.testing.assert_close(logits, reference_logits(expected, input_ids, dtype), atol=1e-3, rtol=0)
    return model, processor


LAYOUTS = {
    "deepspeed, keys appended": {"keys": {"encoder_version": "v1", "num_learnable_tokens": 0,
                                          "mm_text_select_layer": -2, "mm_text_select_feature": "cls_patch"}},
    "deepspeed, as training writes it": {},
    "without deepspeed": {"tower_file": "whole", "dtype": torch.float32},
    "float16": {"dtype": torch.float16},
    "sharded safetensors": {"shards": 3},
    "sharded pickles": {"weights": "bin", "shards": 2, "tower_file": "whole"},
    "one pickle without CLIP": {"weights": "bin", "copies": False, "dtype": torch.float32},
    "fusion in the main weights only": {"tower_file": None},
    "unknown keys of older versions": {"mm_resampler_type": None, "image_grid_pinpoints": None,
                                       "unfreeze_mm_vision_tower": False, "model_type": "llava"},
    "buffers of older versions": {"buffers": True, "tower_file": "whole", "shards": 2},
    "v3": {"version": "v3", "keys": {"encoder_version": "v3", "num_learnable_tokens": N}},
    "v3, not written down": {"version": "v3", "tower_file": "whole"},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, assets, inputs, tmp_path):
    choices = {"dtype": torch.bfloat16, "version": "v1", **LAYOUTS[layout]}
    source = emma_folder(tmp_path / "source", **choices)
    target = import_folder(source, tmp_path / "target", assets=assets)
    model, _ = check_values(target, assets, inputs, choices["dtype"], choices["version"])
    assert is_complete(target)
    assert model.config.learnable_tokens == (choices["version"] == "v3")


def test_vision_tower_bin_is_what_counts(assets, inputs, tmp_path, caplog):
    """The released code drops the tower's tensors in the main weights, so it is right to; but it should be known."""
    source = emma_folder(tmp_path / "s")
    weights = load_file(source / "model.safetensors")
    weights["model.vision_tower.image_text_infusion.bias"] += 1
    write_main(source, weights)
    target = import_folder(source, tmp_path / "t", assets=assets)
    check_values(target, assets, inputs)
    assert "differ in 1 tensor(s) (model.vision_tower.image_text_infusion.bias)" in caplog.text
    assert provenance.read(target)["imported"]["notes"][0] in caplog.text


def test_scaled_positions_of_the_llm(assets, tmp_path):
    source = emma_folder(tmp_path / "s", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    model, _ = emma.load(import_folder(source, tmp_path / "t", assets=assets), device="cpu")
    rope = model.config.text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (5e5, "linear", 2.0)


def test_what_an_export_of_this_project_adds(assets, tmp_path):
    """Settings of the processor, and rows for placeholders that are taken away again."""
    processor = {"template": "plain", "image_mode": "square", "instruction": {"text": "whole", "turn": "first"}}
    record = {"processor": processor, "vocab_size": 640}
    source = emma_folder(tmp_path / "s", emma_export=record, vocab_size=704)
    weights = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.zeros(64, 64, dtype=torch.bfloat16)])
    write_main(source, weights)
    model, found = emma.load(import_folder(source, tmp_path / "t", assets=assets), device="cpu", dtype="bfloat16")
    assert torch.equal(model.llm.lm_head.weight, llava_tensors()["lm_head.weight"])
    assert model.config.image_token_id == 640
    assert (found.template, found.image_mode, found.instruction.text) == ("plain", "square", "whole")


def test_types_are_kept_and_the_adapter_is_float32(assets, tmp_path):
    target = import_folder(emma_folder(tmp_path / "s", dtype=torch.float16), tmp_path / "t", assets=assets)
    with safe_open(target / "model.safetensors", "pt") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        head = file.get_tensor("llm.lm_head.weight")
    assert {kind for name, kind in found.items() if name.startswith("llm.")} == {"F16"}
    assert {kind for name, kind in found.items() if name.startswith("towers.")} == {"BF16"}  # of the CLIP folder
    others = {kind for name, kind in found.items() if not name.startswith(("llm.", "towers."))}
    assert others == {"F32"}
    assert torch.equal(head, llava_tensors()["lm_head.weight"].half())
    assert json.loads((target / "config.json").read_text())["dtype"] == "float16"


def test_the_folder_is_what_saving_the_loaded_model_writes(assets, tmp_path):
    from emma.checkpoints.folder import save_folder

    source = emma_folder(tmp_path / "s", dtype=torch.bfloat16)
    target = import_folder(source, tmp_path / "t", assets=assets)
    model, processor = emma.load(target, device="cpu", dtype="bfloat16")
    save_folder(tmp_path / "again", model, processor, {})
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in target.iterdir()}
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json",
                 "tokenizer_config.json", "chat_template.jinja"):  # fmt: skip
        assert (tmp_path / "again" / name).read_text() == (target / name).read_text(), name
    assert provenance.weights_hash(tmp_path / "again") == provenance.weights_hash(target)


def test_the_copy_inside_the_checkpoint_when_asked(assets, inputs, tmp_path):
    source = emma_folder(tmp_path / "s", dtype=torch.float32)
    target = import_folder(source, tmp_path / "t", assets=assets, clip="checkpoint")
    copies = {name.split(".", 1)[1]: tensor for name, tensor in clip_copies(torch.float32).items()}
    check_values(target, assets, inputs, torch.float32, clip=reference_clip(assets, copies))
    origin = provenance.read(target)["imported"]
    assert set(origin["zeros_never_computed"]) == {"visual.proj", "text_projection", "logit_scale"}
    assert origin["clip"] == "checkpoint"


def test_a_tower_that_was_trained_comes_from_the_checkpoint(assets, tmp_path):
    source = emma_folder(tmp_path / "s", unfreeze_mm_vision_tower=True)
    target = import_folder(source, tmp_path / "t", assets=assets)
    assert provenance.read(target)["imported"]["clip"] == "checkpoint"


def test_tied_embeddings(assets, tmp_path):
    source = emma_folder(tmp_path / "s", tie_word_embeddings=True)
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    write_main(source, weights)
    model, _ = emma.load(import_folder(source, tmp_path / "t", assets=assets), device="cpu")
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(model.llm.lm_head.weight, weights["model.embed_tokens.weight"].float())


def test_another_clip_folder(assets, inputs, tmp_path):
    """A local CLIP folder, in safetensors, with the buffers that old versions stored."""
    folder = tmp_path / "my clip"
    folder.mkdir()
    (folder / "config.json").write_text((assets / CLIP_NAME / "config.json").read_text())
    weights = {name: tensor.float() * 1.01 for name, tensor in clip_tensors().items()}
    buffers = {f"{side}_model.embeddings.position_ids": torch.arange(5)[None] for side in ("vision", "text")}
    save_file(weights | buffers, folder / "model.safetensors")
    target = import_folder(emma_folder(tmp_path / "s"), tmp_path / "t", clip=str(folder))
    check_values(target, assets, inputs, clip=reference_clip(assets, weights))


def test_open_clip_weights(assets, inputs, tmp_path, monkeypatch):
    """A folder in open_clip's format; and a name, whose weights open_clip has in memory."""
    from emma.checkpoints.importing import clip

    config, weights = read_clip(assets / CLIP_NAME)
    folder = tmp_path / "open clip"
    folder.mkdir()
    keys = ("embed_dim", "quick_gelu", "vision_cfg", "text_cfg")
    architecture = {"model_cfg": {key: getattr(config, key) for key in keys}}
    (folder / "open_clip_config.json").write_text(json.dumps(architecture))
    save_file({name: t.float().contiguous() for name, t in weights.items()}, folder / "open_clip_model.safetensors")
    source = emma_folder(tmp_path / "s")
    check_values(import_folder(source, tmp_path / "t", clip=str(folder)), assets, inputs)
    monkeypatch.setattr(clip, "read_clip", lambda name: (config, weights))
    target = import_folder(source, tmp_path / "u", clip="some-model:some-weights")
    check_values(target, assets, inputs)
    assert provenance.read(target)["imported"]["clip"] == "some-model:some-weights"


def test_where_clip_is_looked_for(assets, inputs, tmp_path):
    """A path of another machine: its last part in --assets, or in the checkpoint's own folder."""
    source = emma_folder(tmp_path / "s", mm_vision_tower="/scratch/someone/clip-vit-tiny-patch14-56")
    check_values(import_folder(source, tmp_path / "t", assets=assets / "openai"), assets, inputs)
    shutil.copytree(assets / CLIP_NAME, source / "clip-vit-tiny-patch14-56")
    check_values(import_folder(source, tmp_path / "u"), assets, inputs)


def test_processor_of_a_released_emma(assets, tmp_path):
    target = import_folder(emma_folder(tmp_path / "s"), tmp_path / "t", assets=assets)
    _, processor = emma.load(target, device="cpu")
    assert (processor.template, processor.image_mode) == ("vicuna_v1", "pad")
    assert (processor.instruction.text, processor.instruction.turn) == ("released", "shortest")
    image = Image.new("RGB", (40, 20), "red")
    prompt = processor.encode_prompt([{"role": "user", "content": QUESTION}], [image])
    assert prompt["instruction"] == "What colour is the small circle?"
    sample = {"id": "a", "image": "a.png", "images": [image], "conversations": [
        {"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "Red"}]}  # fmt: skip
    assert processor.encode_training(sample, max_length=200)["instruction"] == QUESTION
    tokenizer = processor.tokenizer
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_max_length) == ("left", 0, 2048)
    assert prompt["input_ids"][0] == tokenizer.bos_token_id


@pytest.mark.parametrize("legacy", [True, False, None])
def test_tokenizer_without_the_old_defaults(assets, tmp_path, legacy):
    """A folder that leaves out BOS, pad token and class; `legacy` not given is true, as it was for who wrote it."""
    source = emma_folder(tmp_path / "s")
    given = {} if legacy is None else {"legacy": legacy}
    (source / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", **given}))
    _, processor = emma.load(import_folder(source, tmp_path / "t", assets=assets), device="cpu")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "U"},
    ]
    ids = processor.encode_prompt(turns)["input_ids"].tolist()
    after_eos = processor.tokenizer.convert_ids_to_tokens(ids[ids.index(2) + 1])
    assert ids[0] == 1
    assert after_eos.startswith("▁") == (legacy is not False)
    assert (processor.tokenizer.pad_token_id, processor.tokenizer.padding_side) == (0, "left")


def test_provenance_says_what_came_from_where(assets, tmp_path):
    source = emma_folder(tmp_path / "s", shards=2)
    facts = provenance.read(import_folder(source, tmp_path / "t", assets=assets))
    assert facts["stage"] == "finetune"
    origin = facts["imported"]
    assert (origin["kind"], origin["source"]) == ("EMMA", str(source))
    taken = {file["file"].rsplit("/", 1)[-1]: file["tensors"] for file in origin["files"]}
    assert taken["vision_tower.bin"] == {"instruction_projection": 2, "alignment": 2}
    assert sum(parts.get("llm", 0) for parts in taken.values()) == 21
    copies = sum(name.startswith(("vision_model", "text_model")) for name in clip_tensors())
    assert origin["left_out"] == f"{copies} tensors: the checkpoint's own copy of CLIP"
    assert all(len(file["fingerprint"]) == 16 for file in origin["files"])


def test_it_answers_in_a_chat(assets, tmp_path, capfd):
    from emma.serve.cli import main

    target = import_folder(emma_folder(tmp_path / "s"), tmp_path / "t", assets=assets)
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    question = ["--question", "What colour is it?", "--max-new-tokens", "4"]
    with pytest.raises(SystemExit) as end:
        main(["--model", str(target), "--image", str(tmp_path / "a.png"), *question])
    assert end.value.code == 0
    assert capfd.readouterr().out.strip()


def test_nothing_depends_on_the_folders_name(assets, inputs, tmp_path):
    target = import_folder(emma_folder(tmp_path / "llava lora mpt"), tmp_path / "x, y" / "z", assets=assets)
    check_values(target, assets, inputs)
