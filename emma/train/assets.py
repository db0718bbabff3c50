"""Where the base LLM and CLIP of a recipe are on this machine. Nothing is ever downloaded from here."""

from pathlib import Path
from typing import Any

from emma.checkpoints.fingerprint import fingerprint
from emma.errors import EmmaError
from emma.paths import resolve
from emma.train.recipe import Recipe


def find_asset(recipe: Recipe, kind: str) -> str:
    """`model.llm` or `model.clip` as a local folder, or as an open_clip `NAME:TAG` whose weights are in the local
    cache.

    Looked for in this order: a folder of this name (relative to the project root), `model.assets`/NAME, the local
    cache of the Hugging Face hub, open_clip's cache.

    Raises:
        EmmaError: not there; names the places and the command that fetches it.
    """
    name = getattr(recipe.model, kind)
    if folder := local_folder(recipe, kind):
        return str(folder)
    if cached := _hub_folder(name):
        return str(cached)
    if kind == "clip" and ":" in name and _open_clip_cached(name):
        return name
    raise EmmaError(
        f"model.{kind}: {name} is neither a folder ({resolve(name)}), nor in model.assets "
        f"({resolve(recipe.model.assets)}), nor in the local hub cache. Fetch it once, where there is a network: "
        f"python -m emma.checkpoints fetch {recipe.source} --to {recipe.model.assets}"
    )


def local_folder(recipe: Recipe, kind: str) -> Path | None:
    """The asset's folder by path or in `model.assets`, None if it is in neither place."""
    name, assets = getattr(recipe.model, kind), resolve(recipe.model.assets)
    plain = name.replace(":", "-")
    for candidate in (resolve(name), assets / plain, assets / plain.rsplit("/", 1)[-1]):
        if candidate.is_dir():
            return candidate
    return None


def asset_fingerprints(recipe: Recipe) -> dict[str, Any] | None:
    """Identities of LLM and CLIP, None when one is not a local folder (then its name alone stands for it)."""
    llm, clip = local_folder(recipe, "llm"), local_folder(recipe, "clip")
    if llm is None or clip is None:
        return None
    return {"llm": fingerprint(llm), "clip": fingerprint(clip)}


def _hub_folder(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # not a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _open_clip_cached(name: str) -> bool:
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    weights = open_clip.get_pretrained_cfg(*name.rsplit(":", 1)) or {}
    repository = weights.get("hf_hub", "").strip("/")
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return True
    downloaded = Path("~/.cache/clip").expanduser() / weights.get("url", "").rsplit("/", 1)[-1]
    return downloaded.is_file()
