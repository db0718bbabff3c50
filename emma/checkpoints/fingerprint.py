"""A quick identity of a folder of weights, by content. No torch."""

import hashlib
from pathlib import Path

from emma.checkpoints.seal import SEAL

_EDGE = 1 << 20


def fingerprint(folder: Path) -> str:
    """Identity of a folder of weights without reading them whole: names, sizes, first and last MiB of each file."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".model", ".json", ".gz")):
        if path.name == SEAL:
            continue
        _add(digest, path)
    return digest.hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """The same of one file."""
    digest = hashlib.sha256()
    _add(digest, path)
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size}\n".encode())
    with open(path, "rb") as file:
        digest.update(file.read(_EDGE))
        if size > _EDGE:
            file.seek(max(_EDGE, size - _EDGE))
            digest.update(file.read(_EDGE))
