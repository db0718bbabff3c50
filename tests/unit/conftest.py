"""Assets of small training runs, and one finished run of both stages that many tests look at."""

import json

import pytest
from PIL import Image
from safetensors.torch import save_file

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
