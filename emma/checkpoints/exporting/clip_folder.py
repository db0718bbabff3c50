"""The towers under Hugging Face's names, and as a Hugging Face CLIP folder."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from emma.checkpoints.exporting.model_folder import ModelFolder
from emma.checkpoints.importing.shards import write_weights
from emma.checkpoints.importing.tensor_files import Entry
from emma.model.clip_files import TRANSPOSED, huggingface_names, to_huggingface_config
from emma.model.configuration import ClipTowerConfig
from emma.processing.instruction import CLIP_BPE


def clip_entries(model: ModelFolder) -> dict[str, Entry]:
    """The towers' tensors as Hugging Face's CLIPModel has them: query, key and value apart, projections transposed."""
    entries = {}
    for name, entry in model.part("towers").items():
        name = name.removeprefix("towers.")
        names = huggingface_names(name)
        if len(names) == 1:
            entries[names[0]] = _reshaped(name, entry)
            continue
        rows = entry.shape[0] // len(names)
        for number, theirs in enumerate(names):
            read = partial(_rows, entry, number * rows, (number + 1) * rows)
            entries[theirs] = replace(entry, shape=(rows, *entry.shape[1:]), read=read)
    return entries


def _rows(entry: Entry, start: int, end: int) -> torch.Tensor:
    return entry.read()[start:end]


def _reshaped(name: str, entry: Entry) -> Entry:
    if name in TRANSPOSED:
        return replace(entry, shape=entry.shape[::-1], read=lambda: entry.read().T)
    if name == "logit_scale":  # one dimension here, for DeepSpeed's sake
        return replace(entry, shape=(), read=lambda: entry.read().reshape(()))
    return entry


def write_clip_folder(model: ModelFolder, entries: dict[str, Entry], folder: Path) -> None:
    """`config.json`, weights and `preprocessor_config.json`, and the vocabulary where it is not OpenAI's.

    Raises:
        EmmaError: open_clip settings that Hugging Face's CLIP has not.
    """
    folder.mkdir()
    towers = model.config.tower_config
    config = to_huggingface_config(towers)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    write_weights(folder, entries)
    preprocess = json.dumps(preprocessor_config(towers), indent=2)
    (folder / "preprocessor_config.json").write_text(preprocess + "\n", encoding="utf-8")
    if model.processor.clip_bpe is not None:
        (folder / CLIP_BPE).write_bytes(model.processor.clip_bpe)


def preprocessor_config(towers: ClipTowerConfig) -> dict:
    """Of a CLIPImageProcessor: shortest edge, centre crop, normalised; bicubic is number 3."""
    size = towers.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(towers.image_mean),
        "image_std": list(towers.image_std),
    }
