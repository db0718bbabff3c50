"""The sizes that decide about cost, read from an `EmmaConfig` on the meta device: no weights, no memory."""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

from emma.errors import EmmaError
from emma.model import EmmaConfig, EmmaForConditionalGeneration

_LAYER = re.compile(r"\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Linear:
    """A linear map of a decoder layer: `inputs` to `outputs` channels for every token."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Tower:
    """A CLIP transformer as far as EMMA computes it.

    Args:
        blocks: computed ones; those past the wanted layer are not.
        tokens: positions that pass through them, class token included.
        width: channels.
        mlp_width: channels inside the feed-forward part.
        patch_values: numbers in a patch that a convolution maps to `width`; 0 for the text tower.
    """

    blocks: int
    tokens: int
    width: int
    mlp_width: int
    patch_values: int = 0


@dataclass(frozen=True)
class Shapes:
    """Everything that `flops.py` and `memory.py` compute from.

    Args:
        vision, text: the towers; no `text` with alignment `none`.
        alignment, projector: as in the recipe.
        visual_tokens: N. instruction_tokens: M. vision_width: Dv. text_width: Dt.
        hidden, vocabulary: of the LLM.
        layers: decoder layers. layer: the linear maps of one, in the order in which they run.
        heads, kv_heads, head_width: of its attention.
        parameters: of every part, by name: vision, text, instruction_projection, alignment, projector, llm.
        embedding_parameters: those of the LLM that are looked up or make logits (embeddings and output embeddings).
    """

    vision: Tower
    text: Tower | None
    alignment: str
    projector: str
    visual_tokens: int
    instruction_tokens: int
    vision_width: int
    text_width: int
    hidden: int
    vocabulary: int
    layers: int
    layer: tuple[Linear, ...]
    heads: int
    kv_heads: int
    head_width: int
    parameters: dict[str, int]
    embedding_parameters: int

    @property
    def adapter_parameters(self) -> int:
        """Instruction projection, alignment and projector: what stage 1 trains."""
        return sum(self.parameters.get(part, 0) for part in ("instruction_projection", "alignment", "projector"))

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    def lora_parameters(self, rank: int, targets: tuple[str, ...] | None = None) -> int:
        """Parameters of LoRA matrices of this rank on the target maps of all layers (None: on every one)."""
        return self.layers * sum(rank * (m.inputs + m.outputs) for m in lora_targets(self, targets))


def lora_targets(shapes: Shapes, targets: tuple[str, ...] | None) -> list[Linear]:
    """The linear maps of a layer whose last name is among `targets`; all of them for None.

    Raises:
        EmmaError: a target that no map has.
    """
    names = {linear.name.rsplit(".", 1)[-1] for linear in shapes.layer}
    if targets is not None and (unknown := set(targets) - names):
        raise EmmaError(
            f"LoRA targets {', '.join(sorted(unknown))}: the LLM's layers have only {', '.join(sorted(names))}"
        )
    return [m for m in shapes.layer if targets is None or m.name.rsplit(".", 1)[-1] in targets]


def meta_model(config: EmmaConfig) -> EmmaForConditionalGeneration:
    """The whole model on the meta device, where tensors have shapes and no values."""
    with torch.device("meta"):
        return EmmaForConditionalGeneration(config, llm=_meta_llm(config))


def _meta_llm(config: EmmaConfig) -> PreTrainedModel:
    # The class itself: `from_config` would partition the weights when a ZeRO-3 run asks for its sizes.
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config.text_config)](config.text_config)


def read_shapes(config: EmmaConfig) -> Shapes:
    """Sizes of a model.

    Raises:
        EmmaError: an LLM whose layers are not alike, or hold more than plain linear maps (mixtures of experts).
    """
    model = meta_model(config)
    clip, text = config.tower_config, config.text_config
    layer = _one_layer(model.llm)
    return Shapes(
        vision=Tower(
            blocks=clip.vision_cfg["layers"] - 1,
            tokens=clip.num_visual_tokens + 1,
            width=clip.vision_width,
            mlp_width=int(clip.vision_width * clip.vision_cfg.get("mlp_ratio", 4.0)),
            patch_values=model.towers.visual.conv1.weight[0].numel(),
        ),
        text=None
        if config.alignment == "none"
        else Tower(
            blocks=clip.text_cfg["layers"] - (config.text_layer == "penultimate"),
            tokens=clip.context_length,
            width=clip.text_width,
            mlp_width=int(clip.text_width * clip.text_cfg.get("mlp_ratio", 4.0)),
        ),
        alignment=config.alignment,
        projector=config.projector,
        visual_tokens=clip.num_visual_tokens,
        instruction_tokens=clip.context_length,
        vision_width=clip.vision_width,
        text_width=clip.text_width,
        hidden=text.hidden_size,
        vocabulary=model.llm.get_output_embeddings().out_features,
        layers=text.num_hidden_layers,
        layer=layer,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        parameters=_parameters(model),
        embedding_parameters=_embedding_parameters(model.llm),
    )


def _one_layer(llm: PreTrainedModel) -> tuple[Linear, ...]:
    """The linear maps of a decoder layer, once it is sure that they are all there is to count."""
    head = llm.get_output_embeddings()
    layers: dict[str, list[Linear]] = {}
    for name, module in llm.named_modules():
        if isinstance(module, nn.Linear) and module is not head and (match := _LAYER.search(name)):
            layers.setdefault(match[1], []).append(Linear(match[2], module.in_features, module.out_features))
    alike = len(set(map(tuple, layers.values()))) == 1 and len(layers) == llm.config.num_hidden_layers
    matrices = sum(p.numel() for p in llm.parameters() if p.ndim > 1)
    counted = sum(m.inputs * m.outputs for maps in layers.values() for m in maps) + _embedding_parameters(llm)
    if not alike or matrices != counted:
        raise EmmaError(
            f"{type(llm).__name__} has {matrices:,} parameters in matrices, of which {counted:,} are embeddings and "
            "linear maps of equal decoder layers: the closed form of FLOPs and memory covers dense decoders only"
        )
    return tuple(next(iter(layers.values())))


def _embedding_parameters(llm: PreTrainedModel) -> int:
    tables = {id(m.weight): m.weight.numel() for m in (llm.get_input_embeddings(), llm.get_output_embeddings())}
    return sum(tables.values())


def _parameters(model: EmmaForConditionalGeneration) -> dict[str, int]:
    """Parameters by part, in the order in which data flows; the towers split into vision and text."""
    found: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        first, second = name.split(".")[:2]
        part = first if first != "towers" else "vision" if second == "visual" else "text"
        found[part] += parameter.numel()
    order = ("vision", "text", "instruction_projection", "alignment", "projector", "llm")
    return {part: found[part] for part in order if part in found}
