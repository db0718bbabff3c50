"""What a config.json of others means here: the architecture, and how images and text are prepared."""

from dataclasses import dataclass
from typing import Any

from emma.checkpoints.importing.source import Source
from emma.checkpoints.upstream_names import FUSION, TOWER
from emma.errors import EmmaError
from emma.model import ClipTowerConfig, EmmaConfig
from emma.model.configuration import PROJECTORS
from emma.processing.images import MODES

_LLAVA_TYPES = ("llava_llama", "llava", "llama")
# (key, values that mean what this model computes, why no other does); absent counts as None.
_REQUIRED = (
    ("mm_vision_select_layer", (-2,), "the visual tokens are those of the last but one CLIP block"),
    ("mm_vision_select_feature", ("patch", None), "the class token is dropped"),
    ("mm_use_im_start_end", (False, None), "there are no tokens around an image"),
    ("mm_patch_merge_type", ("flat", None), "an image is one square of patches"),
    ("mm_resampler_type", (None, "null"), "there is no resampler"),
    ("s2", (False, None), "an image is read at one scale"),
)
_LLAVA_HF_REQUIRED = (
    ("vision_feature_layer", (-2, None), "the visual tokens are those of the last but one CLIP block"),
    ("vision_feature_select_strategy", ("default", None), "the class token is dropped"),
    ("projector_hidden_act", ("gelu", None), "the projector's activation is GELU"),
    ("multimodal_projector_bias", (True, None), "the projector has biases"),
    ("model_type", ("llava",), "other types prepare images in another way"),
)
# The four keys that only EMMA has and its training does not write; see save_config.py of the released code.
_EMMA_DEFAULTS = {
    "encoder_version": "v1",
    "num_learnable_tokens": 0,
    "mm_text_select_layer": -2,
    "mm_text_select_feature": "cls_patch",
}
_TEXT_LAYERS = {-2: "penultimate", -1: "final"}


@dataclass(frozen=True)
class Settings:
    """The choices of an `EmmaConfig` without its parts, and the processor's image mode."""

    alignment: str
    text_layer: str
    projector: str
    learnable_tokens: bool
    image_mode: str

    def model_config(self, towers: ClipTowerConfig, llm: Any) -> EmmaConfig:
        return EmmaConfig(
            tower_config=towers,
            text_config=llm,
            alignment=self.alignment,
            text_layer=self.text_layer,
            projector=self.projector,
            learnable_tokens=self.learnable_tokens,
        )


def read_settings(source: Source) -> Settings:
    """The settings of a checkpoint.

    Raises:
        EmmaError: it asks for something that this model does not compute; names key, value and reason.
    """
    config = source.config
    if source.is_llava_hf:
        _check(source, _LLAVA_HF_REQUIRED)
        return Settings("none", "penultimate", "mlp2x_gelu", False, _llava_hf_image_mode(source))
    if config.get("model_type") not in _LLAVA_TYPES:
        raise EmmaError(
            f"{source.folder}: model_type {config.get('model_type')!r} cannot be imported: EMMA and LLaVA-1.5 "
            "checkpoints are llava_llama"
        )
    _check(source, _REQUIRED)
    projector = config.get("mm_projector_type", "linear")  # LLaVA's own default
    if projector not in PROJECTORS:
        raise EmmaError(
            f"{source.folder}: mm_projector_type {projector!r} cannot be imported; this model's projectors are "
            f"{' and '.join(PROJECTORS)}"
        )
    image_mode = config.get("image_aspect_ratio") or "square"  # LLaVA's own default
    if image_mode not in MODES:
        raise EmmaError(
            f"{source.folder}: image_aspect_ratio {image_mode!r} cannot be imported: an image is one square, "
            f"by {' or '.join(MODES)}"
        )
    if not source.is_emma:
        return Settings("none", "penultimate", projector, False, image_mode)
    text_layer, learnable = _emma_keys(source)
    return Settings("linear", text_layer, projector, learnable, image_mode)


def _check(source: Source, required: tuple) -> None:
    for key, values, reason in required:
        if source.config.get(key) not in values:
            raise EmmaError(
                f"{source.folder}: {key} {source.config.get(key)!r} cannot be imported: {reason} ({key} {values[0]!r})"
            )


def _emma_keys(source: Source) -> tuple[str, bool]:
    """(text layer, whether there are learnable tokens) of the four EMMA keys, each with its default."""
    keys = {key: source.config.get(key) for key in _EMMA_DEFAULTS}
    tokens = source.tensors.get(TOWER + FUSION["alignment.learnable_tokens"])
    weight = source.tensors.get(TOWER + FUSION["alignment.weight"])
    if keys["encoder_version"] in (None, "None", "none") and tokens is not None:
        keys["encoder_version"] = "v3"
    keys = {key: _EMMA_DEFAULTS[key] if value is None else value for key, value in keys.items()}
    version, count = keys["encoder_version"], keys["num_learnable_tokens"]
    square = weight is not None and len(weight.shape) == 2 and weight.shape[0] == weight.shape[1]
    if version == "v2" or square:
        raise EmmaError(
            f"{source.folder}: encoder_version v2 (learnable tokens in place of the instruction) cannot be imported: "
            "the released code itself cannot run it, so nobody knows what it computes"
        )
    if version not in ("v1", "v3"):
        raise EmmaError(f"{source.folder}: encoder_version {version!r} is not known; there are v1 and v3")
    if version == "v1" and count:
        raise EmmaError(f"{source.folder}: num_learnable_tokens is {count!r}, but encoder_version v1 has none")
    if version == "v3" and tokens is not None and count not in (0, tokens.shape[0]):
        raise EmmaError(f"{source.folder}: num_learnable_tokens is {count!r}, but there are {tokens.shape[0]}")
    if keys["mm_text_select_layer"] not in _TEXT_LAYERS:
        raise EmmaError(
            f"{source.folder}: mm_text_select_layer {keys['mm_text_select_layer']!r} cannot be imported; there are "
            "-2 (penultimate) and -1 (final)"
        )
    if keys["mm_text_select_feature"] != "cls_patch":
        raise EmmaError(
            f"{source.folder}: mm_text_select_feature {keys['mm_text_select_feature']!r} cannot be imported: the "
            "alignment weighs all positions of the text tower (cls_patch)"
        )
    return _TEXT_LAYERS[keys["mm_text_select_layer"]], version == "v3"


def _llava_hf_image_mode(source: Source) -> str:
    """`pad` where the folder's image processor pads to a square, else `square`, its centre crop."""
    from emma.checkpoints.importing.source import read_json

    for name in ("preprocessor_config.json", "processor_config.json"):
        if (source.folder / name).is_file():
            settings = read_json(source.folder, name)
            if (settings.get("image_processor") or settings).get("do_pad"):
                return "pad"
    return "square"


def llm_config(source: Source) -> Any:
    """The configuration of the language model.

    Raises:
        EmmaError: there is none, or transformers does not know it.
    """
    from transformers import AutoConfig, LlamaConfig

    if source.is_llava_hf:
        text = dict(source.config["text_config"])
        return AutoConfig.for_model(text.pop("model_type", "llama"), **text)
    if source.stage == "pretrain":
        try:
            return AutoConfig.from_pretrained(source.llm_folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise EmmaError(f"base LLM {source.llm_folder}: {' '.join(str(error).split())}") from error
    not_architecture = {"architectures", "dtype", "model_type", "transformers_version", "_name_or_path"}
    known = {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling"} - not_architecture
    return LlamaConfig.from_dict({key: value for key, value in source.config.items() if key in known})
