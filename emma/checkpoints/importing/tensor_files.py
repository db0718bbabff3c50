"""Tensors in safetensors and PyTorch files, known by name, type and shape, and read one at a time."""

import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from emma.errors import EmmaError

MAIN_WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(single file, index of shards) in the order of preference."""
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors' names of the types that weights come in."""
_BUFFERS = (".position_ids", ".inv_freq")  # saved by older versions, computed by newer ones
_ZIP = b"PK\x03\x04"
# What damaged or foreign bytes make of torch's restricted unpickler; it says it in as many ways as they can be wrong.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Entry:
    """One tensor: `file` it comes from (the first one, if several), and `read()`, which brings it into memory."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def _unpickle(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors of a PyTorch file, and whether they are memory-mapped, so that values are read when they are used.

    Nothing in the pickle is executed. Files of PyTorch before 1.6 are no zip archives and cannot be mapped.
    """
    with open(path, "rb") as file:
        mapped = file.read(len(_ZIP)) == _ZIP
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0][:120] or type(error).__name__
        raise EmmaError(
            f"{path} is no file of tensors, or it is truncated ({reason}); nothing else is read from a pickle: "
            "copy it again"
        ) from error
    if not isinstance(loaded, dict):
        raise EmmaError(f"{path} is no dictionary of tensors, but {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise EmmaError(
                f"{path} is no dictionary of tensors: it holds {type(value).__name__} as {str(name)[:80]!r}"
            )
    return loaded, mapped


def tensors_of(path: Path) -> dict[str, Entry]:
    """The tensors of one file, buffers that are computed today left out. Reads no values.

    Raises:
        EmmaError: the file is damaged or truncated, or holds something else than floating-point tensors.
    """
    entries = _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)
    return {name: entry for name, entry in entries.items() if not name.endswith(_BUFFERS)}


def _of_safetensors(path: Path) -> dict[str, Entry]:
    entries = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                kind, shape = file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())
                if kind not in DTYPES and not name.endswith(_BUFFERS):
                    raise _bad_dtype(path, name, kind)
                entries[name] = Entry(
                    path, shape, DTYPES.get(kind, torch.int64), partial(_read_safetensors, path, name)
                )
    except SafetensorError as error:
        raise EmmaError(f"{path} is truncated or damaged ({error}); copy it again") from error
    return entries


def _read_safetensors(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:  # opened anew for each tensor, so that no page stays mapped
        return file.get_tensor(name)


def _of_pickle(path: Path) -> dict[str, Entry]:
    entries = {}
    tensors, mapped = _unpickle(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values() and not name.endswith(_BUFFERS):
            raise _bad_dtype(path, name, str(tensor.dtype))
        # Mapped files are opened anew for each tensor, so that no page stays mapped; others stay in memory.
        read = partial(_read_mapped, path, name) if mapped else partial(torch.Tensor.detach, tensor)
        entries[name] = Entry(path, tuple(tensor.shape), tensor.dtype, read)
    return entries


def _read_mapped(path: Path, name: str) -> torch.Tensor:
    return _unpickle(path)[0][name]


def _bad_dtype(path: Path, name: str, kind: str) -> EmmaError:
    return EmmaError(f"{path}: {name} is {kind}; weights must be float32, float16 or bfloat16, and not quantised")


def main_weights(folder: Path) -> dict[str, Entry]:
    """All tensors of a folder's `model.safetensors` or `pytorch_model.bin`, or of their shards; empty if none.

    Raises:
        EmmaError: index and shards do not say the same, a shard is missing or damaged.
    """
    for single, index in MAIN_WEIGHTS:
        if (folder / single).is_file():
            return tensors_of(folder / single)
        if (folder / index).is_file():
            return _of_shards(folder / index)
        stem, suffix = single.split(".")
        if shards := sorted(path.name for path in folder.glob(f"{stem}-*-of-*.{suffix}")):
            raise EmmaError(f"{folder} holds shards ({shards[0]}, ...) but not their index {index}; copy it too")
    return {}


def _of_shards(index: Path) -> dict[str, Entry]:
    try:
        places = {str(name): str(file) for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
        shards = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EmmaError(f"{index} is damaged ({type(error).__name__}: {error}); copy it again") from error
    entries: dict[str, Entry] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise EmmaError(f"{index} names {shard}, which is no file of its folder")
        if not (index.parent / shard).is_file():
            raise EmmaError(f"{index.parent} is incomplete: {shard}, which {index.name} names, is missing")
        found = tensors_of(index.parent / shard)
        listed = {name for name, place in places.items() if place == shard and not name.endswith(_BUFFERS)}
        if absent := sorted(listed - found.keys()):
            raise EmmaError(f"{index.parent / shard} lacks {counted(absent)}, which {index.name} says it holds")
        if unlisted := sorted(found.keys() - listed):
            raise EmmaError(f"{index} has no entry for {counted(unlisted)}, held by {shard}; copy the index again")
        entries |= found
    return entries


def counted(names: Iterable[str]) -> str:
    """`N tensor(s) (first, second, third, ...)`, for messages."""
    names = list(names)
    return f"{len(names)} tensor(s) ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
