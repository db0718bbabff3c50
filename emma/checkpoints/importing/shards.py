"""Writes safetensors files tensor by tensor, so that a model never is in memory as a whole."""

import json
import logging
from pathlib import Path

import torch

from emma.checkpoints.importing.tensor_files import DTYPES, Entry
from emma.errors import EmmaError

logger = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(folder: Path, tensors: dict[str, Entry]) -> None:
    """Write `model.safetensors`, or shards of at most `SHARD_BYTES` with their index, in the order of the dictionary.

    Raises:
        EmmaError: a tensor that is read has another size or type than its entry said.
    """
    shards: list[dict[str, Entry]] = [{}]
    filled = total = 0
    for name, entry in tensors.items():
        if shards[-1] and filled + _bytes(entry) > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += _bytes(entry)
        total += _bytes(entry)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, shard in zip(files, shards, strict=True):
        logger.info("writing %s: %d tensors, %.2f GB", file, len(shard), sum(map(_bytes, shard.values())) / 1e9)
        write_shard(folder / file, shard)


def _bytes(entry: Entry) -> int:
    return torch.Size(entry.shape).numel() * entry.dtype.itemsize


def write_shard(path: Path, shard: dict[str, Entry], metadata: dict[str, str] | None = None) -> None:
    """One safetensors file: length of the header (uint64), header (JSON: type, shape and place of each tensor), values.

    The format: https://huggingface.co/docs/safetensors. Wider types come first, so that every tensor is aligned.
    """
    ordered = sorted(shard, key=lambda name: -shard[name].dtype.itemsize)
    header: dict = {"__metadata__": {"format": "pt", **(metadata or {})}}
    position = 0
    for name in ordered:
        entry = shard[name]
        end = position + _bytes(entry)
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            tensor = shard[name].read()
            if tuple(tensor.shape) != shard[name].shape or tensor.dtype != shard[name].dtype:
                raise EmmaError(f"{shard[name].file}: {name} changed while it was read")
            # The bytes as they are; numpy has no bfloat16.
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
