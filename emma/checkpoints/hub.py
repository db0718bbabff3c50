"""Names on the Hugging Face hub in place of folders."""

import re
from pathlib import Path

from emma.errors import EmmaError

_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.gz", "*.yaml", "*.md", "*.txt"]


def source_folder(name: str | Path) -> Path:
    """The folder of a model or checkpoint: a path, or a hub name such as `saraghznfri/emma-7b`, downloaded where it is
    not in the cache. What exists is a path, and so is every `Path`; one that does not exist is returned as it is.

    Raises:
        EmmaError: a hub name that is not in the cache, offline, or that the hub does not know.
    """
    path = Path(name).expanduser()
    if isinstance(name, Path) or path.exists() or not re.fullmatch(r"[\w.-]*[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return path
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, local_files_only=constants.HF_HUB_OFFLINE))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error).strip().split("\n")[0]
        raise EmmaError(
            f"{name} is no folder here, nor in the local hub cache, and cannot be downloaded ({offline}); copy the "
            "released folder from where there is a network, and give its path"
        ) from error
