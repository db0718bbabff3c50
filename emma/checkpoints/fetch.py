"""Gets the LLM and the CLIP towers that a config names, once, where there is a network; training itself never does."""

import hashlib
import logging
from pathlib import Path

from emma.errors import EmmaError
from emma.paths import resolve

logger = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
_LLM_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]
_CLIP_FILES = ["open_clip_config.json", "open_clip_model.safetensors"]


def fetch(config: str | Path, to: str | Path) -> list[Path]:
    """Download what `model.llm` and `model.clip` name into `to`/NAME; returns the folders.

    What is a local folder, or was fetched and still has its checksums, is left as it is. The checksums of all files are
    written to `SHA256SUMS` in each folder, in the form of `sha256sum --check`.

    Raises:
        EmmaError: no such repository, no network, or a file that no longer has its checksum.
    """
    from emma.train import load_recipe

    recipe = load_recipe(config)
    clip_files = _CLIP_FILES if ":" in recipe.model.clip else _LLM_FILES
    assets = (
        (recipe.model.llm, recipe.model.llm, _LLM_FILES),
        (recipe.model.clip, _clip_repository(recipe.model.clip), clip_files),
    )
    folders = []
    for name, repository, files in assets:
        if resolve(name).is_dir():
            logger.info("%s is a local folder", name)
            folders.append(resolve(name))
            continue
        folder = resolve(to) / name.replace(":", "-").rsplit("/", 1)[-1]
        if (folder / SUMS).is_file():
            check_sums(folder)
            logger.info("%s is complete in %s", name, folder)
        else:
            _download(repository, folder, files)
            write_sums(folder)
            logger.info("fetched %s into %s", name, folder)
        folders.append(folder)
    return folders


def _clip_repository(name: str) -> str:
    """The hub repository of an open_clip `NAME:PRETRAINED`; a name without colon is a repository already."""
    if ":" not in name:
        return name
    import open_clip

    repository = (open_clip.get_pretrained_cfg(*name.rsplit(":", 1)) or {}).get("hf_hub", "").strip("/")
    if not repository:
        raise EmmaError(f"model.clip: open_clip knows no hub repository for {name}; see open_clip.list_pretrained()")
    return repository


def _download(repository: str, folder: Path, files: list[str]) -> None:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise EmmaError(f"cannot fetch {repository}: HF_HUB_OFFLINE is set; unset it where there is a network")
    try:
        snapshot_download(repository, local_dir=folder, allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EmmaError(
            f"cannot fetch {repository}: {reason}; without a network, copy the folder to {folder} from elsewhere"
        ) from error


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` for all files of a folder."""
    lines = [f"{_sha256(path)}  {path.relative_to(folder)}\n" for path in _files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Raises `EmmaError` that names the files of `folder` which are missing or differ from `SHA256SUMS`."""
    wanted = [line.split("  ", 1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
    wrong = [name for sha256, name in wanted if not (folder / name).is_file() or _sha256(folder / name) != sha256]
    if wrong:
        raise EmmaError(f"{folder}: {', '.join(wrong)} differ(s) from {SUMS}; delete the folder and fetch it again")


def _files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return sorted(path for path in paths if ".cache" not in path.relative_to(folder).parts)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
