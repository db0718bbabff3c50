"""The layout that the released code of EMMA and LLaVA-1.5 (transformers 4.37) writes and loads."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from emma.checkpoints.exporting.clip_folder import clip_entries, write_clip_folder
from emma.checkpoints.exporting.model_folder import ModelFolder
from emma.checkpoints.exporting.sentencepiece_model import write_slow_tokenizer
from emma.checkpoints.importing.shards import write_weights
from emma.checkpoints.importing.tensor_files import Entry
from emma.checkpoints.upstream_names import FUSION, RECORD, clip_to_llava, to_llava
from emma.errors import EmmaError

logger = logging.getLogger(__name__)

CLIP_FOLDER = "clip"
_ALIGNMENTS = {"emma": "linear", "llava": "none"}
_OTHER = {
    "linear": "use --format emma",
    "none": "use --format llava",
    "cross_attention": "the released code has no cross-attention; --format llm and adapter remain",
}
_TEXT_LAYERS = {"penultimate": -2, "final": -1}
# Fields of a Llama configuration that transformers 4.37 knows, rope aside.
_LLAMA = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "tie_word_embeddings", "vocab_size",
)  # fmt: skip


def write_released(model: ModelFolder, folder: Path, layout: str, vision_tower: str | None, final: Path) -> None:
    """Write the layout `emma` or `llava` into `folder`, which will be moved to `final`.

    Main weights hold the LLM, the projector, a copy of the CLIP towers and, of EMMA, the fusion tensors, which
    `vision_tower.bin` holds again (that is where the released code reads them). All types stay as they are.

    Raises:
        EmmaError: the released code cannot run this architecture.
    """
    alignment = model.config.alignment
    if alignment != _ALIGNMENTS[layout]:
        raise EmmaError(
            f"{model.folder}: format {layout} is for alignment {_ALIGNMENTS[layout]!r}, and this model's is "
            f"{alignment!r}; {_OTHER[alignment]}"
        )
    config = released_config(model, vision_tower or str(final.absolute() / CLIP_FOLDER))
    write_slow_tokenizer(model.processor.tokenizer, folder)
    tensors = {to_llava(name, model.config.projector): entry for name, entry in model.part("llm", "adapter").items()}
    clip = clip_entries(model)
    tensors |= {clip_to_llava(name): entry for name, entry in clip.items() if name.startswith(("vision_m", "text_m"))}
    write_weights(folder, tensors)
    if layout == "emma":
        _write_vision_tower(model.tensors, folder)
        _warn_of_other_clips(model)
    if vision_tower is None:
        write_clip_folder(model, clip, folder / CLIP_FOLDER)
    _write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids | {"transformers_version": "4.37.2"})


def released_config(model: ModelFolder, vision_tower: str) -> dict[str, Any]:
    """Contents of config.json: Llama's fields, LLaVA's, of EMMA its four, and what none of them can say.

    Raises:
        EmmaError: the language model is none that the released code knows.
    """
    llm = model.config.text_config
    values = {key: getattr(llm, key) for key in _LLAMA} if llm.model_type == "llama" else {}
    heads = {"head_dim": getattr(llm, "head_dim", None), "mlp_bias": getattr(llm, "mlp_bias", False)}
    if not values or heads["mlp_bias"] or heads["head_dim"] not in (None, llm.hidden_size // llm.num_attention_heads):
        raise EmmaError(
            f"{model.folder}: the LLM is {llm.model_type} {heads}, and the released code runs only Llama as it was in "
            "transformers 4.37 (no mlp_bias, head_dim = hidden_size / heads); --format llm and adapter remain"
        )
    values |= _rope(llm.rope_parameters, model.folder)
    values |= {
        "_name_or_path": "",
        "architectures": ["LlavaLlamaForCausalLM"],
        "pretraining_tp": 1,
        "tokenizer_model_max_length": min(model.processor.tokenizer.model_max_length, llm.max_position_embeddings),
        "tokenizer_padding_side": "right",
        "torch_dtype": model.dtype,
        "transformers_version": "4.37.2",
        "use_cache": True,
    }
    values |= llava_keys(model) | {"mm_vision_tower": vision_tower}
    return dict(sorted(values.items())) | {RECORD: {"processor": model.choices}}


def llava_keys(model: ModelFolder) -> dict[str, Any]:
    """What LLaVA and EMMA add to a language model's configuration; without the name of the towers."""
    config = model.config
    values = {
        "freeze_mm_mlp_adapter": False,
        "image_aspect_ratio": model.processor.image_mode,
        "mm_hidden_size": config.tower_config.vision_width,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": config.projector,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "model_type": "llava_llama",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
    }
    if config.alignment == "linear":
        values |= {
            "encoder_version": "v3" if config.learnable_tokens else "v1",
            "num_learnable_tokens": config.tower_config.num_visual_tokens if config.learnable_tokens else 0,
            "mm_text_select_layer": _TEXT_LAYERS[config.text_layer],
            "mm_text_select_feature": "cls_patch",
        }
    return values


def _rope(parameters: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, as they were called before transformers 5."""
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", "linear", "dynamic"):
        raise EmmaError(f"{folder}: the LLM's rope_type {kind!r} is not in transformers 4.37; --format llm remains")
    scaling = None if kind == "default" else {"type": kind, "factor": float(parameters["factor"])}
    return {"rope_theta": float(parameters["rope_theta"]), "rope_scaling": scaling}


def _write_vision_tower(tensors: dict[str, Entry], folder: Path) -> None:
    """`vision_tower.bin` in the form that training with DeepSpeed leaves: the fusion tensors with their full names."""
    fusion = {to_llava(name, ""): tensors[name].read().contiguous() for name in FUSION if name in tensors}
    torch.save(fusion, folder / "vision_tower.bin")


def _warn_of_other_clips(model: ModelFolder) -> None:
    towers = model.config.tower_config
    facts = {
        f"a text tower of width {towers.text_width} (it has 768 hard-coded)": towers.text_width != 768,
        f"{towers.context_length} text positions (it pads to 77)": towers.context_length != 77,
        "a CLIP vocabulary of its own (it has OpenAI's)": model.processor.clip_bpe is not None,
    }
    if odd := [fact for fact, found in facts.items() if found]:
        logger.warning("the released code will not run this model as it is: it has %s", " and ".join(odd))


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
