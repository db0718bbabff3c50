"""Where the models are that a checkpoint names: as a path, in `--assets`, or in the local cache."""

from pathlib import Path

# The CLIP models that LLaVA and EMMA name, under open_clip's names; the weights are the same.
OPENAI_CLIP = {
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu:openai",
    "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu:openai",
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu:openai",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu:openai",
}


def find_folder(name: str, assets: Path | None, inside: Path) -> Path | None:
    """The folder of a model's path or hub name, such as `openai/clip-vit-large-patch14-336`; None if it is not here.
    Never downloads.

    Looked for in this order: the path itself where it is absolute; `assets`/NAME; `assets`/ and the last part of NAME;
    the same two in `inside`; NAME in the current directory; the local cache of the Hugging Face hub.
    """
    path = Path(name).expanduser()
    plain = name.replace(":", "-").lstrip("/")  # as `fetch` calls open_clip's models
    places = [path] if path.is_absolute() else []
    for folder in (assets, inside):
        if folder is not None:
            places += [folder / plain, folder / plain.rsplit("/", 1)[-1]]
    places.append(path)
    for place in places:
        if place.is_dir():
            return place
    return _hub_folder(name)


def _hub_folder(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # not a hub name
        return None
    return Path(cached).parent if isinstance(cached, str) else None
