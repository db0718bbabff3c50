"""Reads CLIP weights from an open_clip folder, a Hugging Face CLIP folder, or open_clip's list of pretrained models."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from emma.errors import EmmaError
from emma.model.configuration import ClipTowerConfig

# Hugging Face's names on the left, open_clip's on the right; q, k and v projections are joined separately.
_TOP_LEVEL = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "visual_projection.weight": "visual.proj",  # transposed
    "text_projection.weight": "text_projection",  # transposed
    "logit_scale": "logit_scale",
}
_IN_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
# Settings of open_clip that Hugging Face's CLIP has too.
_VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"}


def read_clip(source: str | Path) -> tuple[ClipTowerConfig, dict[str, torch.Tensor]]:
    """Towers' configuration and weights, under open_clip's names.

    Args:
        source: a folder with `open_clip_config.json` and `open_clip_model.safetensors`; a Hugging Face CLIP folder
            with `config.json` and `model.safetensors` or `pytorch_model.bin`; or `NAME:PRETRAINED` as in
            `ViT-L-14-336-quickgelu:openai`, which open_clip takes from its cache or the network.

    Raises:
        EmmaError: nothing there, an unknown name, an activation or layer that open_clip would compute differently.
    """
    config, folder = read_clip_config(source), Path(source).expanduser()
    if (folder / "open_clip_config.json").is_file():
        return config, _read_weights(folder, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if (folder / "config.json").is_file():
        return config, from_huggingface_names(_read_weights(folder, "model.safetensors", "pytorch_model.bin"))
    return config, _pretrained_weights(*str(source).rsplit(":", 1))


def read_clip_config(source: str | Path) -> ClipTowerConfig:
    """The towers' configuration alone, from the same sources as `read_clip`; no weights need to be there.

    Raises:
        EmmaError: as `read_clip`.
    """
    folder = Path(source).expanduser()
    if (folder / "open_clip_config.json").is_file():
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        return _tower_config(folder.name, config.get("model_cfg", config), config.get("preprocess_cfg", {}))
    if (folder / "config.json").is_file():
        return _huggingface_config(folder)
    if not folder.exists() and ":" in str(source):
        return _pretrained_config(*str(source).rsplit(":", 1))
    raise EmmaError(
        f"no CLIP model at {source}: expected a folder with open_clip_config.json or config.json, "
        "or an open_clip name such as ViT-L-14-336-quickgelu:openai"
    )


def _tower_config(name: str | None, model: dict, preprocess: dict) -> ClipTowerConfig:
    """`model` and `preprocess` as in open_clip's configuration files."""
    if model.get("custom_text") or "embed_dim" not in model:
        raise EmmaError(f"CLIP model {name}: only open_clip's CLIP class is supported, not its custom text towers")
    statistics: dict[str, Any] = {f"image_{key}": preprocess[key] for key in ("mean", "std") if preprocess.get(key)}
    return ClipTowerConfig(
        name=name,
        embed_dim=model["embed_dim"],
        quick_gelu=model.get("quick_gelu", False),
        vision_cfg=model["vision_cfg"],
        text_cfg=model["text_cfg"],
        **statistics,
    )


def _pretrained_config(name: str, tag: str) -> ClipTowerConfig:
    import open_clip

    model_config = open_clip.get_model_config(name)
    pretrained = open_clip.get_pretrained_cfg(name, tag)
    if model_config is None or not pretrained:
        raise EmmaError(f"open_clip knows no model {name} with weights {tag}: see open_clip.list_pretrained()")
    if model_config.get("quick_gelu", False) != pretrained.get("quick_gelu", False):
        raise EmmaError(
            f"{name}:{tag} mixes activations: the architecture has quick_gelu={model_config.get('quick_gelu', False)}, "
            f"the weights were trained with quick_gelu={pretrained.get('quick_gelu', False)}; "
            f"use {name.removesuffix('-quickgelu') if name.endswith('-quickgelu') else name + '-quickgelu'}:{tag}"
        )
    return _tower_config(name, model_config, pretrained)


def _pretrained_weights(name: str, tag: str) -> dict[str, torch.Tensor]:
    import open_clip

    try:
        open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))
    except OSError as error:
        raise EmmaError(f"{name}:{tag} is neither in the cache nor to be had from the network ({error})") from error
    return open_clip.create_model(name, pretrained=tag).state_dict()


def _huggingface_config(folder: Path) -> ClipTowerConfig:
    from transformers import CLIPConfig

    preprocess_file = folder / "preprocessor_config.json"
    preprocess = json.loads(preprocess_file.read_text(encoding="utf-8")) if preprocess_file.is_file() else {}
    return from_huggingface_config(CLIPConfig.from_pretrained(folder, local_files_only=True), folder.name, preprocess)


def from_huggingface_config(config: Any, name: str | None, preprocess: dict) -> ClipTowerConfig:
    """The towers' configuration for a `CLIPConfig`; `preprocess`: the contents of its `preprocessor_config.json`.

    Raises:
        EmmaError: activations that open_clip has not, or that differ.
    """
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        raise EmmaError(
            f"CLIP {name}: activations {vision.hidden_act} (vision) and {text.hidden_act} (text); "
            f"both must be the same one of {sorted(_ACTIVATIONS)}"
        )
    model = {
        "embed_dim": config.projection_dim,
        "quick_gelu": _ACTIVATIONS[vision.hidden_act],
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
        },
    }
    return _tower_config(name, model, {"mean": preprocess.get("image_mean"), "std": preprocess.get("image_std")})


def to_huggingface_config(towers: ClipTowerConfig) -> Any:
    """The `CLIPConfig` for towers in open_clip's terms, the way back from `from_huggingface_config`.

    Raises:
        EmmaError: a setting of open_clip that Hugging Face's CLIP has not.
    """
    from transformers import CLIPConfig

    sides = {"vision_cfg": _VISION_KEYS, "text_cfg": _TEXT_KEYS}
    for side, keys in sides.items():
        if foreign := sorted(key for key, value in getattr(towers, side).items() if value and key not in keys):
            raise EmmaError(f"CLIP {towers.name or ''}: Hugging Face's CLIP has no {', '.join(foreign)} ({side})")
    vision, text = towers.vision_cfg, towers.text_cfg
    activation = next(name for name, quick in _ACTIVATIONS.items() if quick == towers.quick_gelu)
    return CLIPConfig(
        projection_dim=towers.embed_dim,
        vision_config=_huggingface_side(vision, towers.embed_dim, activation)
        | {
            "image_size": towers.image_size,
            "patch_size": towers.patch_size,
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        },
        text_config=_huggingface_side(text, towers.embed_dim, activation)
        | {
            "max_position_embeddings": towers.context_length,
            "vocab_size": text.get("vocab_size", 49408),
            "num_attention_heads": text.get("heads", 8),
            # CLIP's vocabularies end in the tokens that start and end a text.
            "bos_token_id": text.get("vocab_size", 49408) - 2,
            "eos_token_id": text.get("vocab_size", 49408) - 1,
        },
    )


def _huggingface_side(side: dict, embed_dim: int, activation: str) -> dict[str, Any]:
    return {
        "hidden_size": side["width"],
        "intermediate_size": int(side["width"] * side.get("mlp_ratio", 4.0)),
        "num_hidden_layers": side["layers"],
        "layer_norm_eps": side.get("norm_kwargs", {}).get("eps", 1e-5),
        "hidden_act": activation,
        "projection_dim": embed_dim,
    }


def from_huggingface_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename Hugging Face `CLIPModel` weights to open_clip's names.

    Raises:
        EmmaError: a key without a counterpart.
    """
    converted = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # a buffer that old files contain
            continue
        if name in _TOP_LEVEL:
            converted[_TOP_LEVEL[name]] = tensor.T if name.endswith("_projection.weight") else tensor
            continue
        match = _LAYER.fullmatch(name)
        if match is None:
            raise EmmaError(f"not a weight of a Hugging Face CLIPModel: {name}")
        side, layer, part, kind = match.groups()
        prefix = f"{'visual.' if side == 'vision' else ''}transformer.resblocks.{layer}."
        if part in _IN_LAYER:
            converted[f"{prefix}{_IN_LAYER[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            query_key_value = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            converted[f"{prefix}attn.in_proj_{kind}"] = torch.cat(query_key_value)
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            raise EmmaError(f"not a weight of a Hugging Face CLIPModel: {name}")
    return converted


_OURS_TOP_LEVEL = {ours: theirs for theirs, ours in _TOP_LEVEL.items()}
_OURS_IN_LAYER = {ours: theirs for theirs, ours in _IN_LAYER.items()}
_OURS_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
TRANSPOSED = ("visual.proj", "text_projection")
"""Tensors of open_clip that Hugging Face stores transposed."""


def huggingface_names(name: str) -> list[str]:
    """Names of the Hugging Face `CLIPModel` tensors that make one of open_clip: one, or query, key and value to join.

    Those of `TRANSPOSED` are transposed. The inverse of `from_huggingface_names`, name by name.

    >>> huggingface_names("transformer.resblocks.3.attn.in_proj_bias")[1]
    'text_model.encoder.layers.3.self_attn.k_proj.bias'
    """
    if name in _OURS_TOP_LEVEL:
        return [_OURS_TOP_LEVEL[name]]
    match = _OURS_LAYER.fullmatch(name)
    if match is None:
        raise EmmaError(f"{name} is no tensor of open_clip's CLIP with a counterpart in Hugging Face's")
    visual, layer, part, kind = match.groups()
    prefix = f"{'vision' if visual else 'text'}_model.encoder.layers.{layer}."
    if part == "attn.in_proj":
        return [f"{prefix}self_attn.{letter}_proj.{kind}" for letter in "qkv"]
    return [f"{prefix}{_OURS_IN_LAYER[part]}.{kind}"]


def _read_weights(folder: Path, safe: str, pickled: str) -> dict[str, torch.Tensor]:
    if (folder / safe).is_file():
        from safetensors.torch import load_file

        return load_file(folder / safe)
    if (folder / pickled).is_file():
        return torch.load(folder / pickled, map_location="cpu", weights_only=True)
    raise EmmaError(f"CLIP folder {folder} has neither {safe} nor {pickled}")
