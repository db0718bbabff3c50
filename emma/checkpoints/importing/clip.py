"""Where an imported model's CLIP towers come from: their configuration, and their tensors one at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from emma.checkpoints.importing.places import OPENAI_CLIP, find_folder
from emma.checkpoints.importing.source import Source, read_json
from emma.checkpoints.importing.tensor_files import Entry, counted, main_weights, tensors_of
from emma.checkpoints.upstream_names import CLIP_REST
from emma.errors import EmmaError
from emma.model.clip_files import (
    TRANSPOSED,
    from_huggingface_config,
    huggingface_names,
    read_clip,
    read_clip_config,
)
from emma.model.configuration import ClipTowerConfig
from emma.processing.instruction import find_clip_bpe

CHECKPOINT = "checkpoint"
"""Value of `--clip` for the copy of CLIP inside the checkpoint."""
# Parts of CLIP that no visual or text token passes through, and that the copies in checkpoints do not hold.
_NEVER_COMPUTED = ("visual.proj", "text_projection", "logit_scale")


@dataclass
class Clip:
    """CLIP towers that can be read.

    Args:
        config: of the towers.
        tensors: by the names of Hugging Face's CLIPModel, or of open_clip.
        huggingface: which of the two.
        origin: the folder or name that they come from, for the record.
        bpe: contents of a BPE file of their own.
    """

    config: ClipTowerConfig
    tensors: dict[str, Entry]
    huggingface: bool
    origin: str
    bpe: bytes | None = None

    def entries(self, wanted: dict[str, tuple[int, ...]], with_text: bool) -> tuple[dict[str, Entry], list[str]]:
        """Entries under open_clip's names for the `wanted` names and shapes, as far as they are there.

        Also the names of those that are filled with zeros: a copy inside a checkpoint lacks what is never computed.

        Raises:
            EmmaError: there are tensors that no tower has.
        """
        found: dict[str, Entry] = {}
        zeros: list[str] = []
        unused = set(self.tensors)
        for name, shape in wanted.items():
            sources = huggingface_names(name) if self.huggingface else [name]
            parts = [self.tensors[part] for part in sources if part in self.tensors]
            unused -= set(sources)
            if not parts and name in _NEVER_COMPUTED and self.origin == CHECKPOINT:
                dtype = next(iter(self.tensors.values())).dtype
                found[name] = Entry(Path(), shape, dtype, partial(torch.zeros, shape, dtype=dtype))
                zeros.append(name)
            elif len(parts) == len(sources):
                found[name] = _assembled(name, parts, self.huggingface)
        if not with_text:
            unused = {name for name in unused if name.startswith(("visual.", "vision_model."))}
        if unused:
            raise EmmaError(
                f"CLIP from {self.origin}: {counted(sorted(unused))} belong to no tower of its configuration"
            )
        return found, zeros


def _assembled(name: str, parts: list[Entry], huggingface: bool) -> Entry:
    """An open_clip tensor from Hugging Face's: joined, transposed, or as it is; scalars get one dimension."""
    first = parts[0]
    if len(parts) > 1:
        rows = sum(part.shape[0] for part in parts)
        return replace(first, shape=(rows, *first.shape[1:]), read=lambda: torch.cat([part.read() for part in parts]))
    if huggingface and name in TRANSPOSED:
        return replace(first, shape=first.shape[::-1], read=lambda: first.read().T)
    if not first.shape:
        return replace(first, shape=(1,), read=lambda: first.read().reshape(1))
    return first


def find_clip(source: Source, wanted: str | None, assets: Path | None) -> Clip:
    """The towers of a checkpoint.

    Args:
        wanted: a CLIP folder, an open_clip `NAME:TAG`, or `checkpoint` for the copy inside; None: those that the
            checkpoint names, but its own copy where it names none (`llava-hf`) or where they were trained too.

    Raises:
        EmmaError: they are not here; says what can be done.
    """
    if wanted is None and (source.is_llava_hf or source.config.get("unfreeze_mm_vision_tower")):
        wanted = CHECKPOINT
    if wanted == CHECKPOINT:
        return _copy_inside(source, assets)
    name = wanted or _named(source)
    if (folder := find_folder(name, assets, source.folder)) is not None:
        return _from_folder(folder)
    for alias in (OPENAI_CLIP.get(name), name if ":" in name else None):
        if alias and (folder := find_folder(alias, assets, source.folder)):
            return _from_folder(folder)
        if alias and (wanted or _in_cache(alias)):
            return _from_open_clip(alias)
    copy = f", --clip {CHECKPOINT} for the copy inside the checkpoint" if source.clip_copies() else ""
    raise EmmaError(
        f"the CLIP towers {name} are not here; give the folder that holds them as --assets, or their folder or an "
        f"open_clip name as --clip{copy}"
    )


def _named(source: Source) -> str:
    name = source.config.get("mm_vision_tower") or source.config.get("vision_tower")
    if not name:
        raise EmmaError(f"{source.folder}/config.json names no mm_vision_tower; give the CLIP folder as --clip")
    return name


def _config_in(folder: Path) -> ClipTowerConfig:
    try:
        return read_clip_config(folder)
    except EmmaError:
        raise
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise EmmaError(f"CLIP folder {folder} has a damaged configuration: {' '.join(str(error).split())}") from error


def _from_folder(folder: Path) -> Clip:
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        if (folder / "open_clip_config.json").is_file() and (folder / name).is_file():
            return Clip(_config_in(folder), tensors_of(folder / name), False, str(folder), find_clip_bpe(folder))
    tensors = main_weights(folder)
    if not tensors:
        raise EmmaError(f"CLIP folder {folder} has no weights: model.safetensors or pytorch_model.bin")
    return Clip(_config_in(folder), tensors, True, str(folder), find_clip_bpe(folder))


def _in_cache(name: str) -> bool:
    """Whether open_clip has the weights of `NAME:TAG` already."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    known = open_clip.get_pretrained_cfg(*name.rsplit(":", 1)) or {}
    repository = known.get("hf_hub", "").strip("/")
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if repository and any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return True
    return (Path("~/.cache/clip").expanduser() / known.get("url", "?").rsplit("/", 1)[-1]).is_file()


def _from_open_clip(name: str) -> Clip:
    config, weights = read_clip(name)
    readers: dict[str, Callable[[], torch.Tensor]] = {key: tensor.detach for key, tensor in weights.items()}
    tensors = {
        key: Entry(Path(), tuple(tensor.shape), tensor.dtype, readers[key])
        for key, tensor in weights.items()
        if tensor.is_floating_point()
    }
    return Clip(config, tensors, False, name)


def _copy_inside(source: Source, assets: Path | None) -> Clip:
    copies = source.clip_copies()
    if not copies:
        raise EmmaError(f"{source.folder} holds no copy of its CLIP towers; leave out --clip {CHECKPOINT}")
    rest = source.folder / CLIP_REST
    return Clip(
        _config_of_copy(source, assets), copies | (tensors_of(rest) if rest.is_file() else {}), True, CHECKPOINT
    )


def _config_of_copy(source: Source, assets: Path | None) -> ClipTowerConfig:
    """A copy has no configuration (number of heads, activation): that of the model that it is a copy of."""
    if source.is_llava_hf:
        return _llava_hf_config(source)
    name = _named(source)
    folder = find_folder(name, assets, source.folder)
    if folder is None and name not in OPENAI_CLIP:
        raise EmmaError(
            f"the checkpoint's copy of CLIP has no configuration of its own, and {name} is not here; give a folder "
            "that holds its config.json as --assets"
        )
    return _config_in(folder) if folder else read_clip_config(OPENAI_CLIP[name])


def _llava_hf_config(source: Source) -> ClipTowerConfig:
    from transformers import CLIPConfig

    vision = source.config["vision_config"]
    if vision.get("model_type") != "clip_vision_model":
        raise EmmaError(f"{source.folder}: vision tower {vision.get('model_type')!r} is no CLIP (clip_vision_model)")
    config = CLIPConfig(
        vision_config=vision,
        text_config={"hidden_act": vision.get("hidden_act", "quick_gelu")},
        projection_dim=vision.get("projection_dim", 512),
    )
    preprocess: dict = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (source.folder / name).is_file():
            settings = read_json(source.folder, name)
            preprocess = settings.get("image_processor") or settings
            break
    return from_huggingface_config(config, None, preprocess)
