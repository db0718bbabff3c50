"""Where the project's own files are: the root that relative paths in configs start from."""

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout that holds this package, `EMMA_ROOT` where set, else the current directory (a plain wheel)."""
    if root := os.environ.get("EMMA_ROOT"):
        return Path(root).resolve()
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "configs").is_dir() else Path.cwd()


def resolve(path: str | os.PathLike) -> Path:
    """An absolute path as it is; a relative one (from a config) against `project_root()`."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else project_root() / path
