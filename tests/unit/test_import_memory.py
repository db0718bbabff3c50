"""Importing never holds more than one tensor: peak memory against the size of the largest shard, at 7B width."""

import json
import subprocess
import sys

import pytest
import torch
from upstream_folders import PARITY, TOWER, llava_folder, make_assets

MIB = 1 << 20

# Peak resident memory, mapped pages of files included, after the import of a tiny checkpoint, when all code is loaded,
# and after that of the large one. VmHWM, since getrusage's ru_maxrss survives exec and would be the test's own.
MEASURE = """
import re, sys
from emma.checkpoints.importing import import_folder
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
tiny, large, assets, target = sys.argv[1:]
import_folder(tiny, target + "/tiny", assets)
before = peak()
import_folder(large, target + "/large", assets)
print(before, peak())
"""


def write_sparse(file, shapes, dtype):
    """A safetensors file of zeros that takes no disk space; returns its size in bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        kind = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return 8 + len(text) + end


def meta_shapes(kind, config):
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in kind(config).state_dict().items()}


def large_folder(folder, assets, weights):
    """EMMA-7B's widths with two LLM layers, in two shards, and its CLIP in float32; returns the largest file's size."""
    from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM

    llava_folder(folder)
    (folder / "model.safetensors").unlink()
    llm = LlamaConfig(num_hidden_layers=2)
    shared = {"num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    clip = CLIPConfig(
        projection_dim=768,
        vision_config={"hidden_size": 1024, "intermediate_size": 4096, **shared},
        text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    )
    clip_folder = assets / "clip-large"
    clip_folder.mkdir()
    clip.save_pretrained(clip_folder)
    clip_shapes = meta_shapes(CLIPModel, clip)
    sizes = [write_sparse(clip_folder / "model.safetensors", clip_shapes, torch.float32)]
    config = json.loads((PARITY / "llava15" / "config.json").read_text())
    config |= {**{key: value for key, value in llm.to_dict().items() if key in config and "token" not in key}}
    config |= {
        "model_type": "llava_llama",
        "mm_vision_tower": "clip-large",
        "mm_hidden_size": 1024,
        "vocab_size": 32000,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = meta_shapes(LlamaForCausalLM, llm)
    shapes |= {f"model.mm_projector.{i}.weight": (4096, width) for i, width in ((0, 1024), (2, 4096))}
    shapes |= {f"model.mm_projector.{i}.bias": (4096,) for i in (0, 2)}
    fusion = {"text_projection.weight": (1024, 768), "text_projection.bias": (1024,)}
    fusion |= {"image_text_infusion.weight": (576, 653), "image_text_infusion.bias": (576,)}
    shapes |= {TOWER + name: shape for name, shape in fusion.items()}
    torch.save({TOWER + k: torch.zeros(shape) for k, shape in fusion.items()}, folder / "vision_tower.bin")
    stem, suffix = ("model", "safetensors") if weights == "safetensors" else ("pytorch_model", "bin")
    places, names = {}, list(shapes)
    for number, own in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = folder / f"{stem}-{number:05d}-of-00002.{suffix}"
        if weights == "safetensors":
            write_sparse(file, {name: shapes[name] for name in own}, torch.bfloat16)
        else:
            torch.save({name: torch.zeros(shapes[name], dtype=torch.bfloat16) for name in own}, file)
        sizes.append(file.stat().st_size)
        places |= dict.fromkeys(own, file.name)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return max(sizes[1:])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_peak_memory_at_7b_width(tmp_path, weights):
    """The bound is twice the largest shard of the main weights; the CLIP folder's file is larger and counts nothing."""
    assets = make_assets(tmp_path / "assets")
    tiny = llava_folder(tmp_path / "tiny")
    largest = large_folder(tmp_path / "large", assets, weights)
    command = [sys.executable, "-c", MEASURE, tiny, tmp_path / "large", assets, tmp_path / "targets"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    written = sum(file.stat().st_size for file in (tmp_path / "targets" / "large").glob("*.safetensors"))
    print(
        f"\n{weights}: largest shard {largest / MIB:.0f} MiB, written {written / MIB:.0f} MiB; peak {before / MIB:.0f} "
        f"MiB with a tiny checkpoint, {after / MIB:.0f} MiB with the large one: {(after - before) / MIB:.0f} MiB more"
    )
    assert written > 3 * largest
    assert after - before < 2 * largest
