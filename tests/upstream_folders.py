"""Folders as the released EMMA and LLaVA-1.5 code writes them, made from the description of its files.

Sizes are those of the recorded LLaVA-1.5: CLIP of 16 visual tokens, 64 and 8 wide, context 77; a Llama 64 wide.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PARITY = Path(__file__).parent / "assets" / "parity"
N, M, DV, DT = 16, 77, 64, 8
CLIP_NAME = "openai/clip-vit-tiny-patch14-56"
TOWER = "model.vision_tower."


def make_assets(folder: Path) -> Path:
    """A folder with the CLIP and the base LLM under the names that the configurations use."""
    shutil.copytree(PARITY / "clip", folder / CLIP_NAME)
    shutil.copytree(PARITY / "llm-base", folder / "llm-base")
    llm = {name: tensor for name, tensor in llava_tensors().items() if "mm_" not in name and TOWER not in name}
    torch.save(llm, folder / "llm-base" / "pytorch_model.bin")
    return folder


def llava_tensors() -> dict[str, torch.Tensor]:
    """The main weights of the recorded LLaVA-1.5: LLM, projector, and a copy of the vision tower."""
    return load_file(PARITY / "llava15" / "model.safetensors")


def clip_tensors() -> dict[str, torch.Tensor]:
    return torch.load(PARITY / "clip" / "pytorch_model.bin", weights_only=True)


def llava_folder(folder: Path) -> Path:
    shutil.copytree(PARITY / "llava15", folder, ignore=shutil.ignore_patterns("expected.*"))
    shutil.copy(PARITY / "llm-base" / "tokenizer.model", folder)
    return folder


def stage1_folder(folder: Path) -> Path:
    shutil.copytree(PARITY / "llava15-stage1", folder)
    return folder


def fusion(dtype: torch.dtype = torch.float32, version: str = "v1") -> dict[str, torch.Tensor]:
    """Random fusion tensors, unprefixed; the alignment's weight is a transposed view, as trained in place."""
    draw = torch.Generator().manual_seed(7)

    def normal(*shape):
        return 0.3 * torch.randn(shape, generator=draw)

    tensors = {
        "text_projection.weight": normal(DV, DT),
        "text_projection.bias": normal(DV),
        "image_text_infusion.weight": normal(N + M, N).T + torch.eye(N, N + M),
        "image_text_infusion.bias": normal(N),
    }
    tensors["image_text_infusion.weight"] = tensors["image_text_infusion.weight"].T.contiguous().T
    if version == "v3":
        tensors["learnable_tokens"] = normal(N, DV)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def clip_copies(dtype: torch.dtype, with_text: bool = True) -> dict[str, torch.Tensor]:
    """The towers' copies without `model.vision_tower.`; other values than the CLIP folder, to tell them apart."""
    sides = {"vision_model.": "vision_tower.", "text_model.": "text_encoder."}
    if not with_text:
        del sides["text_model."]
    return {
        prefix + name: (tensor.float() + 0.01).to(dtype)
        for name, tensor in clip_tensors().items()
        for side, prefix in sides.items()
        if name.startswith(side)
    }


def whole_tower(dtype: torch.dtype, version: str = "v1") -> dict[str, torch.Tensor]:
    """What stage 1, and training without DeepSpeed, write as vision_tower.bin."""
    return clip_copies(dtype) | fusion(dtype, version)


def emma_folder(
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    tower_file: str | None = "prefixed",
    weights: str = "safetensors",
    shards: int = 1,
    copies: bool = True,
    keys: dict | None = None,
    version: str = "v1",
    buffers: bool = False,
    **config,
) -> Path:
    """A finished EMMA.

    Args:
        tower_file: vision_tower.bin `prefixed` (DeepSpeed), `whole` (without), or None.
        weights: `safetensors` or `bin` main weights.
        shards: of the main weights.
        copies: whether the main weights hold the CLIP copies.
        buffers: whether the files hold buffers that versions before 4.31 stored.
        keys: EMMA's keys that somebody appended to config.json.
        config: further changes to config.json.
    """
    llava_folder(folder)
    (folder / "model.safetensors").unlink()
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (keys or {}) | config))
    main = {name: tensor.to(dtype) for name, tensor in llava_tensors().items() if TOWER not in name}
    inside = {TOWER + name: tensor for name, tensor in fusion(dtype, version).items()}
    main |= inside
    if copies:
        main |= {TOWER + name: tensor for name, tensor in clip_copies(dtype).items()}
    tower = whole_tower(dtype, version) if tower_file == "whole" else inside
    if buffers:
        main["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        main[f"{TOWER}vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        tower["text_encoder.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    write_main(folder, main, weights, shards)
    if tower_file:
        torch.save(tower, folder / "vision_tower.bin")
    return folder


def write_main(folder: Path, tensors: dict[str, torch.Tensor], weights: str = "safetensors", shards: int = 1) -> None:
    """Main weights in `shards` files with an index, or in one file."""
    stem, suffix = ("model", "safetensors") if weights == "safetensors" else ("pytorch_model", "bin")
    names = list(tensors)
    if shards == 1:
        _write(folder / f"{stem}.{suffix}", tensors)
        return
    places = {}
    for number in range(shards):
        shard = f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        own = names[number::shards]
        _write(folder / shard, {name: tensors[name] for name in own})
        places |= dict.fromkeys(own, shard)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _write(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    if file.suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
