"""`complete.json`: written last into a folder, it says which files belong there and how large they are. No torch."""

import json
import os
from pathlib import Path

SEAL = "complete.json"


def seal(folder: str | Path) -> None:
    """Declare a folder complete: flush its files to disk, then write the seal with every file and its size."""
    folder = Path(folder)
    files = {}
    # Reports of evaluations (eval/) stand in the folder but are no part of the model: they come and go.
    members = (path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in (SEAL, "eval"))
    for path in sorted(path for path in members if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = path.stat().st_size
    temporary = folder / f".{SEAL}"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SEAL)


def break_seal(folder: str | Path) -> None:
    """Before anything in a folder changes: what is then interrupted does not look complete."""
    (Path(folder) / SEAL).unlink(missing_ok=True)


def defects(folder: str | Path) -> list[str]:
    """What keeps a folder from being complete, empty if nothing does.

    Sizes are compared for weights only: a model card may be edited.
    """
    folder = Path(folder)
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, NotADirectoryError):
        return [f"{SEAL} is missing"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return [f"{SEAL} is damaged"]
    found = []
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.suffix == ".safetensors" and path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return found


def is_complete(folder: str | Path) -> bool:
    """Whether a folder is sealed and nothing is missing from it."""
    return not defects(folder)
