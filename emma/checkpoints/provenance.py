"""Where a model folder comes from: code, software, data and parent, and a hash of its weights. No torch."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import emma
from emma.checkpoints.adapter import read_adapter
from emma.errors import EmmaError

PROVENANCE = "provenance.json"
_PACKAGES = (
    "torch", "transformers", "open_clip_torch", "accelerate", "deepspeed", "peft", "bitsandbytes", "tokenizers",
    "safetensors",
)  # fmt: skip
_CHUNK = 1 << 24


def collect() -> dict[str, Any]:
    """What is known of this process: `created` (UTC), `commit`, `dirty`, `versions`, `python`, `platform`.

    `commit` and `dirty` (uncommitted changes to tracked files) are None outside a git checkout of this project.
    """
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    versions: dict[str, str | None] = {"emma": emma.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def read(folder: str | Path) -> dict[str, Any]:
    """The provenance that was saved with a model folder.

    Raises:
        EmmaError: there is none, or it is no JSON.
    """
    file = Path(folder) / PROVENANCE
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise EmmaError(f"{folder} has no {PROVENANCE}: it is no model folder of this project") from None
    except json.JSONDecodeError as error:
        raise EmmaError(f"{file} is damaged: {error}") from error


def weights_hash(folder: str | Path) -> str:
    """sha256 over names, types, shapes and bytes of all tensors in a folder's safetensors, by name.

    It does not depend on how the tensors are spread over files. Reads every byte: some seconds per 10 GB from memory.
    Of an adapter folder, it stands for the base as well, by its fingerprint and quantisation.

    Raises:
        EmmaError: no safetensors there.
    """
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with open(file, "rb") as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            tensors[name] = (file, 8 + header_bytes, entry)
    if not tensors:
        raise EmmaError(f"{folder} holds no *.safetensors")
    digest = hashlib.sha256()
    for name, (file, data_starts, entry) in sorted(tensors.items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
        start, end = entry["data_offsets"]
        with open(file, "rb") as stream:
            stream.seek(data_starts + start)
            for position in range(start, end, _CHUNK):
                digest.update(stream.read(min(_CHUNK, end - position)))
    if (adapter := read_adapter(folder)) is not None:
        digest.update(f"base {adapter.base_fingerprint} {adapter.quantization}\n".encode())
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """Output of git in this project's checkout; None if this is none, or git is not installed."""
    checkout = Path(emma.__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
