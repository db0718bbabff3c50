"""All tensors of a folder by the headers of its files, whatever state it is in: what is wrong is written down."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emma.checkpoints.upstream_names import TOWER
from emma.errors import EmmaError

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "U8": "uint8", "I8": "int8"}
# PyTorch files that hold tensors; others (training_args.bin, optimizer states) hold something else.
_PICKLES = (
    "pytorch_model",
    "mm_projector",
    "vision_tower",
    "non_lora_trainables",
    "adapter_model",
    "open_clip_pytorch",
)
# Files of the released code that leave out what main weights have in front of each name.
_UNPREFIXED = {"vision_tower.bin": TOWER, "mm_projector.bin": "model."}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Tensor:
    """What a header says of one tensor; `stored` is its name in the file."""

    file: Path
    stored: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass
class Inventory:
    """Tensors by the names that main weights have; the names stored in each file; metadata; what is wrong."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def take_inventory(path: Path) -> Inventory:
    """Of a folder, or of one file; reads no values."""
    found = Inventory()
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if _holds_tensors(file))
    for file in files:
        found.files[file.name] = set()
        if file.suffix == ".safetensors":
            _add_safetensors(found, file)
        else:
            _add_pickle(found, file)
    for name in _INDEXES:
        if path.is_dir() and (path / name).is_file():
            _compare_index(found, path / name)
    return found


def _holds_tensors(file: Path) -> bool:
    if not file.is_file():
        return False
    return file.suffix == ".safetensors" or (file.suffix == ".bin" and file.name.startswith(_PICKLES))


def _add_safetensors(found: Inventory, file: Path) -> None:
    """The header is JSON after its length (uint64); the data follow: https://huggingface.co/docs/safetensors."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            found.problems.append(f"{file.name} is truncated: {size} bytes, less than its header")
            return
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            found.metadata |= header.pop("__metadata__", {})
            tensors = {
                name: Tensor(file, name, _NAMES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), end - start)
                for name, entry in header.items()
                for start, end in [entry["data_offsets"]]
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            found.problems.append(f"{file.name} is no safetensors file, or damaged ({type(error).__name__})")
            return
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        state = "truncated" if size < 8 + length + end else "damaged"
        found.problems.append(f"{file.name} is {state}: {size} bytes instead of {8 + length + end}")
    _add(found, tensors)


def _add_pickle(found: Inventory, file: Path) -> None:
    from emma.checkpoints.importing.tensor_files import tensors_of

    try:
        entries = tensors_of(file)
    except EmmaError as error:
        found.problems.append(str(error))
        return
    tensors = {}
    for name, entry in entries.items():
        size = math.prod(entry.shape) * entry.dtype.itemsize
        tensors[name] = Tensor(file, name, str(entry.dtype).removeprefix("torch."), entry.shape, size)
    _add(found, tensors)


def _add(found: Inventory, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        found.files[tensor.file.name].add(name)
        name = name.removeprefix("base_model.model.")
        for file, prefix in _UNPREFIXED.items():
            if tensor.file.name == file and not name.startswith("model."):
                name = prefix + name
        # vision_tower.bin repeats fusion tensors of the main weights, and is what counts.
        if name not in found.tensors or tensor.file.name == "vision_tower.bin":
            found.tensors[name] = tensor


def _compare_index(found: Inventory, index: Path) -> None:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = set(places.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.problems.append(f"{index.name} is damaged ({type(error).__name__})")
        return
    for shard in sorted(shards):
        if not (index.parent / shard).is_file():
            count = sum(place == shard for place in places.values())
            found.problems.append(f"{shard} is missing, with {count} tensors that {index.name} lists")
    absent = [name for name, place in places.items() if place in found.files and name not in found.files[place]]
    unlisted = [name for shard in shards & found.files.keys() for name in found.files[shard] - places.keys()]
    if absent:
        found.problems.append(f"{index.name} lists {_first(absent)}, which its shard does not hold")
    if unlisted:
        found.problems.append(f"{index.name} has no entry for {_first(unlisted)}")


def _first(names: list[str]) -> str:
    names = sorted(names)
    return f"{len(names)} tensor(s) ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
