"""What a folder of weights is, by its files and keys, and all its tensors under the names of LLaVA's main weights."""

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from emma.checkpoints.importing.places import find_folder
from emma.checkpoints.importing.tensor_files import Entry, counted, main_weights, tensors_of
from emma.checkpoints.upstream_names import (
    ADAPTER_CONFIG,
    FUSION,
    PROJECTOR,
    TOWER,
    clip_from_llava,
    hf_to_llava,
    to_llava,
)
from emma.errors import EmmaError

_LORA = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass
class Source:
    """A folder that can be imported.

    Args:
        folder: where it is.
        kind: what it is, for people.
        config: contents of its `config.json`.
        tensors: its tensors, and those of its base, under the names of LLaVA's main weights.
        stage: `pretrain`, if the LLM was not trained in it, else `finetune`.
        llm_folder: where tokenizer and generation configuration are.
        bases: further folders that tensors come from, and what for.
        notes: what was decided on the way and should be known.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Entry]
    stage: str = "finetune"
    llm_folder: Path = Path()
    bases: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_llava_hf(self) -> bool:
        return is_llava_hf(self.config)

    @property
    def is_emma(self) -> bool:
        """By its fusion tensors, since the released code does not write EMMA's keys into config.json."""
        named = self.config.get("encoder_version") not in (None, "None", "none")
        return named or any(TOWER + name in self.tensors for name in FUSION.values())

    def clip_copies(self) -> dict[str, Entry]:
        """The CLIP tensors inside the checkpoint, under Hugging Face's names."""
        copies = {clip_from_llava(name): entry for name, entry in self.tensors.items()}
        return {name: entry for name, entry in copies.items() if name is not None}


def is_llava_hf(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of transformers' `LlavaForConditionalGeneration`."""
    return "vision_config" in config and "text_config" in config


def read_source(folder: Path, assets: Path | None, llm: str | None) -> Source:
    """Recognise `folder` by content and list its tensors; reads no values.

    Args:
        assets: folder in which models that the checkpoint names are looked for.
        llm: the base LLM of a folder that has none of its own: a folder, or a name in `assets`.

    Raises:
        EmmaError: says what is there instead, or what is missing or damaged.
    """
    if folder.is_file():
        return _read_adapter_file(folder, assets, llm)
    config = read_json(folder, "config.json")
    if config.get("model_type") == "emma":
        raise EmmaError(f"{folder} is a model folder of this project already: it loads as it is")
    if (folder / "adapter_config.json").is_file():
        source = _read_lora(folder, config, assets, llm)
    elif own := _whole(folder, config):
        if llm is not None and _has_tokenizer(folder):
            raise EmmaError(f"{folder} has its own LLM and tokenizer; leave --llm out")
        source = Source(folder, "", config, own, llm_folder=folder, notes=_disagreements(folder))
        if llm is not None:
            source.llm_folder = _base(llm, source, assets)
    elif (folder / "mm_projector.bin").is_file():
        source = _read_stage1(folder, config, assets, llm)
    else:
        raise EmmaError(
            f"{folder} holds neither model.safetensors nor pytorch_model.bin (or shards with their index) nor "
            "mm_projector.bin nor an adapter: no EMMA or LLaVA-1.5 checkpoint"
        )
    if not any(name.startswith(PROJECTOR) for name in source.tensors):
        raise EmmaError(f"{folder} has no projector ({PROJECTOR}*): it is a language model, not EMMA or LLaVA-1.5")
    if not source.kind:
        source.kind = "llava-hf" if source.is_llava_hf else "EMMA" if source.is_emma else "LLaVA-1.5"
    return source


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object in a folder.

    Raises:
        EmmaError: no such folder or file, or no JSON object in it.
    """
    file = folder / name
    if not file.is_file():
        state = "has no " + name if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise EmmaError(f"{folder} {state}; give the folder of a released EMMA or LLaVA-1.5 checkpoint")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmmaError(f"{file} is damaged ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise EmmaError(f"{file} holds no JSON object")
    return value


def _whole(folder: Path, config: dict[str, Any]) -> dict[str, Entry]:
    """Main weights, then what stands beside them, in the order in which the released code reads them."""
    tensors = main_weights(folder)
    if tensors and is_llava_hf(config):
        return {hf_to_llava(name): entry for name, entry in tensors.items()}
    if tensors and not any(name.startswith(PROJECTOR) for name in tensors):
        tensors |= _projector_file(folder)
    return tensors | _tower_file(folder) if tensors else {}


def _projector_file(folder: Path) -> dict[str, Entry]:
    file = folder / "mm_projector.bin"
    found = tensors_of(file) if file.is_file() else {}
    return {name if name.startswith("model.") else f"model.{name}": entry for name, entry in found.items()}


def _tower_file(folder: Path) -> dict[str, Entry]:
    """`vision_tower.bin`: the fusion tensors, or the whole tower without the prefix that main weights give it."""
    file = folder / "vision_tower.bin"
    found = tensors_of(file) if file.is_file() else {}
    return {name if name.startswith(TOWER) else TOWER + name: entry for name, entry in found.items()}


def _disagreements(folder: Path) -> list[str]:
    """A note if `vision_tower.bin` and the main weights hold different fusion tensors; the former are what is used."""
    ours, main = _tower_file(folder), main_weights(folder)
    names = [TOWER + name for name in FUSION.values() if TOWER + name in ours and TOWER + name in main]
    different = [name for name in names if ours[name].shape != main[name].shape or not _equal(ours[name], main[name])]
    if not different:
        return []
    return [
        f"{folder}: vision_tower.bin and the main weights differ in {counted(different)}; taken from vision_tower.bin, "
        "as the released code does"
    ]


def _equal(one: Entry, other: Entry) -> bool:
    return torch.equal(one.read().float(), other.read().float())


def _read_stage1(folder: Path, config: dict[str, Any], assets: Path | None, llm: str | None) -> Source:
    tensors = _projector_file(folder) | _tower_file(folder)
    source = Source(folder, "", config, tensors, stage="pretrain")
    source.kind = f"{'EMMA' if source.is_emma else 'LLaVA-1.5'}, stage 1"
    return _on_base(source, llm or config.get("_name_or_path"), assets)


def _read_adapter_file(file: Path, assets: Path | None, llm: str | None) -> Source:
    """What `export --format adapter` wrote."""
    entries = tensors_of(file) if file.suffix == ".safetensors" else {}
    with safe_open(file, framework="pt") if entries else nullcontext() as opened:
        metadata = (opened.metadata() or {}) if opened else {}
    if ADAPTER_CONFIG not in metadata:
        raise EmmaError(f"{file} is no adapter that this project exported; give a folder, or such a file")
    config = json.loads(metadata[ADAPTER_CONFIG])
    try:
        tensors = {to_llava(name, config["mm_projector_type"]): entry for name, entry in entries.items()}
    except ValueError as error:
        raise EmmaError(f"{file}: only adapters with alignment linear or none can be imported ({error})") from error
    return _on_base(Source(file, "exported adapter", config, tensors, stage="pretrain"), llm, assets)


def _on_base(source: Source, llm: str | None, assets: Path | None) -> Source:
    """With the tensors of the base LLM, of which a LLaVA folder's projector and towers are left out."""
    source.llm_folder = _base(llm, source, assets)
    source.bases["llm"] = source.llm_folder
    base = main_weights(source.llm_folder)
    if not base:
        raise EmmaError(f"base LLM {source.llm_folder} has no model.safetensors or pytorch_model.bin")
    own = source.tensors
    source.tensors = {name: entry for name, entry in base.items() if not name.startswith((PROJECTOR, TOWER))} | own
    return source


def _base(name: str | None, source: Source, assets: Path | None) -> Path:
    if name and (found := find_folder(name, assets, source.folder)):
        return found
    raise EmmaError(
        f"{source.folder} needs its base LLM, {name or 'which it does not name'}: not found here; give its folder as "
        "--llm, or the folder that holds it as --assets"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


# ------------------------------------------------------------------------------------------------------------- LoRA


def _read_lora(folder: Path, config: dict[str, Any], assets: Path | None, llm: str | None) -> Source:
    """A LoRA folder of LLaVA's code, merged into its base, which is an LLM or a whole LLaVA folder."""
    lora = read_json(folder, "adapter_config.json")
    for key in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern"):
        if lora.get(key):
            raise EmmaError(f"{folder}: LoRA with {key} cannot be merged here; merge it with peft first")
    source = Source(folder, "", config, {})
    base = _base(llm or lora.get("base_model_name_or_path") or config.get("_name_or_path"), source, assets)
    source.bases["llm"] = base
    source.llm_folder = folder if _has_tokenizer(folder) else base
    tensors = main_weights(base) | _tower_file(base)
    if not tensors:
        raise EmmaError(f"base {base} of the LoRA adapter {folder} has no model.safetensors or pytorch_model.bin")
    trained: dict[str, Entry] = {}
    for name in ("non_lora_trainables.bin", "adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            trained |= tensors_of(folder / name)
    trained = {name.removeprefix("base_model.model."): entry for name, entry in trained.items()}
    factors = {name: entry for name, entry in trained.items() if _LORA.fullmatch(name)}
    if not factors:
        raise EmmaError(f"{folder} has no LoRA tensors: adapter_model.safetensors or adapter_model.bin is missing")
    own = {name: entry for name, entry in trained.items() if name not in factors}
    source.tensors = _merged(tensors | own | _tower_file(folder), factors, lora, folder)
    source.kind = f"{'EMMA' if source.is_emma else 'LLaVA-1.5'}, LoRA"
    return source


def _merged(
    tensors: dict[str, Entry], factors: dict[str, Entry], lora: dict[str, Any], folder: Path
) -> dict[str, Entry]:
    """`tensors` with W + scale B A in place of each W that has factors; see Hu et al., 2021, section 4.1."""
    scale = lora["lora_alpha"] / (lora["r"] ** 0.5 if lora.get("use_rslora") else lora["r"])
    pairs: dict[str, dict[str, Entry]] = {}
    for name, entry in factors.items():
        layer, letter = _LORA.fullmatch(name).groups()  # type: ignore[union-attr]
        pairs.setdefault(f"{layer}.weight", {})[letter] = entry
    wrong = [
        name
        for name, pair in pairs.items()
        if name not in tensors
        or pair.keys() != {"A", "B"}
        or (pair["B"].shape[0], pair["A"].shape[1]) != tensors[name].shape
        or pair["A"].shape[0] != lora["r"]
        or pair["B"].shape[1] != lora["r"]
    ]
    if wrong:
        raise EmmaError(f"{folder}: LoRA does not fit its base: {counted(sorted(wrong))} without their part there")
    return tensors | {name: _with_lora(tensors[name], pair["A"], pair["B"], scale) for name, pair in pairs.items()}


def _with_lora(base: Entry, a: Entry, b: Entry, scale: float) -> Entry:
    def read() -> torch.Tensor:
        added = scale * (b.read().float() @ a.read().float())
        return (base.read().float() + added).to(base.dtype)  # rounded once

    return replace(base, read=read)
