"""Configurations: of the frozen CLIP towers, and of EMMA as towers + alignment + projector + LLM."""

from dataclasses import field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from emma.errors import EmmaError

ALIGNMENTS = ("linear", "cross_attention", "none")
TEXT_LAYERS = ("penultimate", "final")
PROJECTORS = ("mlp2x_gelu", "linear")

# Fields of open_clip's vision_cfg / text_cfg that select towers without the token grid or the blocks that EMMA reads.
_UNSUPPORTED = ("timm_model_name", "attentional_pool", "hf_model_name", "embed_cls")


class ClipTowerConfig(PreTrainedConfig):
    """A CLIP model in open_clip's own terms; the defaults are `ViT-L-14-336-quickgelu`, the paper's towers.

    Args:
        name: open_clip architecture name, for information only.
        embed_dim: width of the joint embedding.
        quick_gelu: activation x * sigmoid(1.702 x) as in OpenAI's weights, else GELU.
        vision_cfg, text_cfg: open_clip's dictionaries of the same names.
        image_mean, image_std: RGB statistics of the pixels, on the 0..1 scale.
    """

    model_type = "emma_clip"
    base_config_key = "tower_config"

    name: str | None = None
    embed_dim: int = 768
    quick_gelu: bool = True
    vision_cfg: dict = field(default_factory=lambda: {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14})
    text_cfg: dict = field(
        default_factory=lambda: {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    )
    image_mean: list[float] | tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: list[float] | tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for key in _UNSUPPORTED:
            if self.vision_cfg.get(key) or self.text_cfg.get(key):
                raise EmmaError(
                    f"CLIP tower {self.name or ''} sets {key}: only open_clip's own transformer towers "
                    "(such as ViT-L-14-336-quickgelu) give the visual and text tokens that EMMA needs"
                )

    @property
    def image_size(self) -> int:
        """Side of the square input image, in pixels."""
        size = self.vision_cfg["image_size"]
        return _square(size, "image_size")

    @property
    def patch_size(self) -> int:
        """Side of a square patch, in pixels."""
        return _square(self.vision_cfg["patch_size"], "patch_size")

    @property
    def num_visual_tokens(self) -> int:
        """N: one token a patch, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def vision_width(self) -> int:
        """Dv: channels of a visual token."""
        return self.vision_cfg["width"]

    @property
    def context_length(self) -> int:
        """M: positions of the text tower, padding included."""
        return self.text_cfg.get("context_length", 77)

    @property
    def text_width(self) -> int:
        """Dt: channels of a text token."""
        return self.text_cfg["width"]


def _square(size: int | list | tuple, key: str) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise EmmaError(f"CLIP tower: {key} is {tuple(size)}, but EMMA needs a square one")
    return size[0]


class EmmaConfig(PreTrainedConfig):
    """EMMA: CLIP towers, an instruction-aware alignment of the visual tokens, a projector and a language model.

    Args:
        tower_config: the frozen towers.
        text_config: the LLM, any configuration that `AutoModelForCausalLM` knows.
        alignment: `linear` (the paper), `cross_attention` (its ablation) or `none` (LLaVA-1.5: no text tower at all).
        text_layer: text tokens from the last but one (`penultimate`) or the last (`final`) block, before the last norm.
        projector: `mlp2x_gelu` or `linear`.
        learnable_tokens: whether the `linear` alignment adds learned tokens to its result, which a checkpoint of the
            released code may hold (`encoder_version` v3); not in the paper.
        image_token_id: placeholder that visual tokens replace, outside the LLM's vocabulary. None: the first such id.
    """

    model_type = "emma"
    sub_configs_defaults = {  # noqa: RUF012
        "tower_config": SubConfigSpec(config_class=ClipTowerConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    tower_config: Any = None  # given as a dictionary, an instance or None; a ClipTowerConfig from then on
    text_config: Any = None
    alignment: str = "linear"
    text_layer: str = "penultimate"
    projector: str = "mlp2x_gelu"
    learnable_tokens: bool = False
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for key, known in (("alignment", ALIGNMENTS), ("text_layer", TEXT_LAYERS), ("projector", PROJECTORS)):
            if getattr(self, key) not in known:
                raise EmmaError(f"model config: {key} is {getattr(self, key)!r}, but must be one of {known}")
        if self.learnable_tokens and self.alignment != "linear":
            raise EmmaError(f"model config: learnable_tokens belong to alignment 'linear', not {self.alignment!r}")
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size
        if self.image_token_id < self.text_config.vocab_size:
            raise EmmaError(
                f"model config: image_token_id {self.image_token_id} is a token of the LLM's vocabulary "
                f"({self.text_config.vocab_size} ids); it must lie outside, so that no text can make it"
            )
        # transformers reads this switch on the outermost configuration only.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(self.text_config.tie_word_embeddings)
