"""What a folder of weights is, by its files, config.json and names of tensors; and which part a tensor belongs to."""

from pathlib import Path
from typing import Any

from emma.checkpoints.adapter import RECORD as LORA_RECORD
from emma.checkpoints.importing.source import is_llava_hf
from emma.checkpoints.showing.inventory import Inventory, Tensor
from emma.checkpoints.upstream_names import FUSION, PROJECTOR, TOWER, clip_from_llava, hf_to_llava

_CLIP_TYPES = ("clip", "clip_vision_model")
_OURS = ("towers.", "instruction_projection.", "alignment.", "projector.", "llm.")
_CLIP_TEXT = (
    "text_model.",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "text_projection",
    "logit_scale",
)
_CLIP_VISION = ("vision_model.", "visual.", "visual_projection.")
PARTS = (
    "vision tower", "text tower", "instruction projection", "visual alignment", "projector", "LLM", "LoRA", "other",
)  # fmt: skip


def kind_of(path: Path, config: dict[str, Any], found: Inventory) -> str:
    """In words; never raises."""
    names = found.tensors.keys()
    if path.is_file():
        architecture = found.metadata.get("architecture")
        kind = f"adapter of {architecture}, exported" if architecture else "one file of tensors"
        return kind if names else "file without tensors that can be read"
    if (path / LORA_RECORD).is_file():
        return "LoRA adapter folder of this project: trained tensors and the record of their base"
    if (path / "trainer_state.json").is_file() and any(name.startswith(_OURS) for name in names):
        return "training checkpoint of this project: trained tensors, optimizer and schedule, to resume from"
    if config.get("model_type") == "emma" or any(name.startswith(("towers.", "llm.")) for name in names):
        return "EMMA model folder of this project, self-contained"
    if (path / "open_clip_config.json").is_file():
        return "CLIP model, open_clip's"
    if config.get("model_type") in _CLIP_TYPES:
        return "CLIP model, Hugging Face's"
    if is_llava_hf(config):
        return "llava-hf folder (LLaVA-1.5 for transformers' LlavaForConditionalGeneration)"
    family = "EMMA" if any(TOWER + name in names for name in FUSION.values()) else "LLaVA-1.5"
    if (path / "adapter_config.json").is_file():
        return f"LoRA folder of {family}'s code" if (path / "non_lora_trainables.bin").is_file() else "peft LoRA folder"
    if any(name.startswith(PROJECTOR) for name in names):
        whole = any(name.startswith("model.embed_tokens.") for name in names)
        return f"released {family} checkpoint" if whole else f"stage-1 output of {family}'s code"
    if any(name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")) for name in names):
        return f"language model ({config.get('model_type', 'of unknown type')})"
    if names:
        return f"weights of another kind ({config.get('model_type', 'no config.json')})"
    return f"folder without weights{_models_inside(path)}"


def _models_inside(path: Path) -> str:
    inside = sorted(entry.name for entry in path.iterdir() if (entry / "config.json").is_file())
    return f"; its folders {', '.join(inside[:5])} look like models" if inside else ""


def parts_of(config: dict[str, Any], found: Inventory) -> dict[str, list[Tensor]]:
    """The tensors of each of `PARTS` that is there."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in found.tensors.items():
        parts.setdefault(part_of_name(name, config), []).append(tensor)
    return {part: parts[part] for part in PARTS if part in parts}


def part_of_name(name: str, config: dict[str, Any]) -> str:
    """One of `PARTS`, for a tensor's name in any of the layouts."""
    if "lora_" in name:
        return "LoRA"
    if name.startswith(_OURS):
        return _own_part(name)
    name = hf_to_llava(name) if is_llava_hf(config) and config.get("model_type") not in _CLIP_TYPES else name
    if (ours := _fusion(name)) is not None:
        return _own_part(ours)
    if name.startswith(PROJECTOR):
        return "projector"
    clip = clip_from_llava(name) or name
    if clip.startswith(_CLIP_VISION):
        return "vision tower"
    if clip.startswith(_CLIP_TEXT):
        return "text tower"
    return "LLM" if name.startswith(("model.", "lm_head.", "transformer.", "gpt_neox.")) else "other"


def alignment_names(found: Inventory) -> dict[str, str]:
    """Our names (`alignment.weight`, `alignment.bias`) to those in the files, for what there is of them."""
    names: dict[str, str] = {}
    for name in found.tensors:
        ours = name if name.startswith("alignment.") else _fusion(name)
        if ours in ("alignment.weight", "alignment.bias", "alignment.learnable_tokens"):
            names.setdefault(ours, name)
    return names


def _own_part(name: str) -> str:
    first, _, rest = name.partition(".")
    if first == "towers":
        return "vision tower" if rest.startswith("visual.") else "text tower"
    names = {"instruction_projection": "instruction projection", "alignment": "visual alignment", "llm": "LLM"}
    return names.get(first, first)


def _fusion(name: str) -> str | None:
    ours = {TOWER + theirs: mine for mine, theirs in FUSION.items()}
    return ours.get(name)
