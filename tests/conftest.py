"""What all tests share, made from scratch, nothing downloaded: tiny towers, language model, tokenizer, processor; the
assets of small training runs, and one finished run of both stages that many tests look at."""

import copy
import json
import os
from pathlib import Path

# Tests of several ranks and a busy machine: one thread each is faster than many that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ASSETS = Path(__file__).parent / "assets"


@pytest.fixture(scope="session")
def tiny_clip():
    """(ClipTowerConfig, weights): image 16, patch 8, so N = 4; widths 32 and 16; M = 77, CLIP's own vocabulary."""
    from open_clip.model import CLIP

    from emma.model import ClipTowerConfig

    config = ClipTowerConfig(
        embed_dim=16,
        quick_gelu=True,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        clip = CLIP(config.embed_dim, config.vision_cfg, config.text_cfg, quick_gelu=config.quick_gelu)
    return config, clip.state_dict()


@pytest.fixture(scope="session")
def _tiny_llm():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,  # wide enough that greedy answers differ from prompt to prompt
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return LlamaForCausalLM(config)


@pytest.fixture
def tiny_llm(_tiny_llm):
    """A fresh two-layer Llama of width 32 with the 640 ids of `tiny_tokenizer`."""
    return copy.deepcopy(_tiny_llm)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A sentencepiece BPE Llama tokenizer of 640 ids."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "parity" / "llm-base")


@pytest.fixture
def tiny_model(tiny_clip, _tiny_llm):
    """Factory `tiny_model(alignment="linear", **from_parts arguments)` of fresh models in training mode."""
    from emma.model import EmmaForConditionalGeneration

    def make(alignment="linear", llm=None, **parts):
        llm = llm if llm is not None else copy.deepcopy(_tiny_llm)
        return EmmaForConditionalGeneration.from_parts(llm, tiny_clip, alignment=alignment, **parts).train()

    return make


@pytest.fixture
def tiny_processor(tiny_tokenizer):
    """Factory `tiny_processor(model_config, **from_model_config arguments)`."""
    from emma.processing.processor import EmmaProcessor

    def make(config, **settings):
        return EmmaProcessor.from_model_config(config, copy.deepcopy(tiny_tokenizer), **settings)

    return make


RECIPE = """
name: test
output: {root}/runs/test
seed: 5
model: {{llm: {root}/llm, clip: {root}/clip}}
pretrain:
  data: [{{annotations: {root}/captions.json, images: {root}/images}}]
  batch_size: 4
  max_steps: 6
  max_length: 128
  learning_rate: 1e-3
  save_every: 2
  log_every: 2
  workers: 0
finetune:
  data: [{{annotations: {root}/chats.json, images: {root}/images}}]
  batch_size: 4
  max_steps: 6
  max_length: 256
  learning_rate: 1e-3
  save_every: 2
  log_every: 2
  workers: 0
"""


def record(name, image, turns):
    conversation = [{"from": role, "value": text} for role, text in turns]
    return {"id": name, **({"image": image} if image else {}), "conversations": conversation}


@pytest.fixture(scope="session")
def assets(tmp_path_factory, tiny_clip, _tiny_llm, tiny_tokenizer):
    """A folder with LLM, CLIP, images, annotations and a recipe."""
    root = tmp_path_factory.mktemp("assets dir")
    _tiny_llm.save_pretrained(root / "llm")
    tiny_tokenizer.save_pretrained(root / "llm")
    config, weights = tiny_clip
    (root / "clip").mkdir()
    architecture = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "vision_cfg": config.vision_cfg,
        "text_cfg": config.text_cfg,
    }
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    weights = {k: v.reshape(1) if v.ndim == 0 else v.contiguous() for k, v in weights.items()}
    save_file(weights, root / "clip" / "open_clip_model.safetensors")
    (root / "images").mkdir()
    colours = ("red", "green", "blue", "white", "black")
    for i in range(10):
        Image.new("RGB", (20 + i, 16), colours[i % 5]).save(root / "images" / f"{i}.png")
    captions, chats = [], []
    for i in range(10):
        colour = colours[i % 5]
        turns = [("human", "Describe it.\n<image>"), ("gpt", f"a {colour} picture" + " wide" * (i % 3))]
        captions.append(record(f"c{i}", f"{i}.png", turns))
        turns = [("human", "<image>\nWhat colour?"), ("gpt", colour), ("human", "How wide?"), ("gpt", str(20 + i))]
        chats.append(record(f"v{i}", f"{i}.png", turns))
    for i in range(5):
        chats.append(record(f"t{i}", None, [("human", f"Say {i}."), ("gpt", f"It is {i}.")]))
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "chats.json").write_text(json.dumps(chats))
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return root


@pytest.fixture(scope="session")
def finished(assets, tmp_path_factory):
    """An uninterrupted run of both stages; (recipe, pretrain folder, finetune folder)."""
    output = tmp_path_factory.mktemp("finished")
    from emma.train import load_recipe, run

    recipe = load_recipe(assets / "recipe.yaml", [f"output={output}"])
    pretrained = run(recipe, "pretrain")
    return recipe, pretrained.parent, run(recipe, "finetune").parent
