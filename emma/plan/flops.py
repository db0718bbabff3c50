"""The closed form of a step's floating-point operations, term by term.

A product of matrices [m, k] and [k, n] counts 2 m k n (a multiplication and an addition); everything that is not a
product of matrices (norms, activations, softmax, rotary positions, optimizer) counts nothing, as in torch's
`FlopCounterMode`. `counted.py` has torch count the same step; tests ask for equality.

Causal attention is counted as torch counts it, and as PaLM (Chowdhery et al. 2022, appendix B) defines model FLOPs:
the full L x L square, although a kernel may skip the masked half; and its backward pass without the scores that a
fused kernel computes again.
"""

from typing import NamedTuple

from emma.plan.shapes import Shapes, Tower, lora_targets


class Batch(NamedTuple):
    """What a forward pass works on, without padding.

    Args:
        images: rows of pixels. 0: a batch of text only, in which nothing before the LLM has work to do.
        tokens: sum of the samples' lengths L, visual tokens included.
        squared: sum of L^2: every sample attends to itself alone.
        supervised: positions that make logits.
    """

    images: int
    tokens: int
    squared: int
    supervised: int


class Trained(NamedTuple):
    """What of the model learns. The adapter always does, the towers never.

    Args:
        llm: all weights of the LLM.
        lora_rank: rank of LoRA matrices on the LLM's linear maps; 0: none.
        lora_targets: last names of the maps that carry them; None: every linear map of the layers.
        quantized: the LLM's linear maps are stored in 4 bits (QLoRA). It computes as before, in fewer bytes.
    """

    llm: bool
    lora_rank: int = 0
    lora_targets: tuple[str, ...] | None = None
    quantized: bool = False


class Flops(NamedTuple):
    """Operations of a pass forward, backward, and once more forward for activations that were not kept."""

    forward: int
    backward: int
    recomputed: int = 0

    @property
    def model(self) -> int:
        """What the mathematics asks for: without recomputation. Model FLOPs utilisation (MFU) is based on it."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """What is executed."""
        return self.forward + self.backward + self.recomputed


def step_flops(
    shapes: Shapes, batch: Batch, trained: Trained, gradient_checkpointing: bool = False
) -> dict[str, Flops]:
    """Operations by part: vision, text, instruction_projection, alignment, projector, llm."""
    images = batch.images
    parts = {"vision": Flops(images * tower_flops(shapes.vision), 0)}
    if shapes.text is not None:
        parts["text"] = Flops(images * tower_flops(shapes.text), 0)
        parts["instruction_projection"] = _instruction_projection(shapes, images)
        parts["alignment"] = _alignment(shapes, images)
    parts["projector"] = _projector(shapes, images)
    parts["llm"] = _llm(shapes, batch, trained, gradient_checkpointing)
    return parts


def total(parts: dict[str, Flops]) -> Flops:
    """The sum of all parts."""
    return Flops(*(sum(column) for column in zip(*parts.values(), strict=True)))


def model_flops(shapes: Shapes, batch: Batch, trained: Trained) -> int:
    """Forward and backward operations of all parts, without recomputation."""
    return total(step_flops(shapes, batch, trained)).model


def tower_flops(tower: Tower) -> int:
    """One image or instruction through the blocks that are computed; frozen, so there is no pass backward."""
    tokens, width = tower.tokens, tower.width
    patches = 2 * (tokens - 1) * tower.patch_values * width if tower.patch_values else 0  # a strided convolution
    query_key_value = 2 * tokens * width * 3 * width
    attention = 2 * (2 * tokens * tokens * width)  # Q K^T, and the weighted sum of V
    output = 2 * tokens * width * width
    mlp = 2 * (2 * tokens * width * tower.mlp_width)  # out and back
    return patches + tower.blocks * (query_key_value + attention + output + mlp)


def _instruction_projection(shapes: Shapes, images: int) -> Flops:
    """T' = GELU(linear(T)). Backward: the weight's gradient; T comes from a frozen tower and has none."""
    once = 2 * images * shapes.instruction_tokens * shapes.text_width * shapes.vision_width
    return Flops(once, once)


def _alignment(shapes: Shapes, images: int) -> Flops:
    n, m, width = shapes.visual_tokens, shapes.instruction_tokens, shapes.vision_width
    if shapes.alignment == "linear":
        # A = W_v V + (W_t T' + b). Backward: both weights and T'; V comes from a frozen tower.
        visual, text = 2 * images * n * n * width, 2 * images * n * m * width
        return Flops(visual + text, visual + 2 * text)
    # A = V + out(attention(V, T', T')). Backward: the query's weight alone, of everything else also the input.
    query, key_value = 2 * images * n * width * width, 2 * (2 * images * m * width * width)
    attention, output = 2 * (2 * images * n * m * width), 2 * images * n * width * width
    return Flops(query + key_value + attention + output, query + 2 * (key_value + attention + output))


def _projector(shapes: Shapes, images: int) -> Flops:
    """Backward: weights, and inputs where something before them learns (with alignment `none` nothing does)."""
    first = 2 * images * shapes.visual_tokens * shapes.vision_width * shapes.hidden
    second = 2 * images * shapes.visual_tokens * shapes.hidden**2 if shapes.projector == "mlp2x_gelu" else 0
    return Flops(first + second, (1 if shapes.alignment == "none" else 2) * first + 2 * second)


def _llm(shapes: Shapes, batch: Batch, trained: Trained, gradient_checkpointing: bool) -> Flops:
    """Layers over all tokens, logits at supervised positions only.

    Backward: the gradient of every input, which leads to the projector, costs what the pass forward does; that of
    every trained weight costs the same again; attention has two inputs for each product, hence twice.
    Recomputed under (non-reentrant) checkpointing: the layers, except the last map of each, whose output no one saved.
    LoRA adds two thin maps to each target, trained. A frozen LLM needs nothing backward when no image came in.
    """
    linear = 2 * batch.tokens * shapes.layers * sum(m.inputs * m.outputs for m in shapes.layer)
    attention = shapes.layers * 2 * (2 * batch.squared * shapes.heads * shapes.head_width)
    logits = 2 * batch.supervised * shapes.hidden * shapes.vocabulary
    rank = trained.lora_rank
    lora = 2 * batch.tokens * shapes.lora_parameters(rank, trained.lora_targets) if rank else 0
    forward = linear + attention + logits + lora
    if not (batch.images or trained.llm or rank):
        return Flops(forward, 0)
    backward = (2 if trained.llm else 1) * (linear + logits) + 2 * attention + 2 * lora
    if not gradient_checkpointing:
        return Flops(forward, backward)
    last = shapes.layer[-1]
    skipped = 2 * batch.tokens * shapes.layers * last.inputs * last.outputs
    if rank and last in lora_targets(shapes, trained.lora_targets):
        # The base map runs before the adapter whose input is saved, so that only the adapter's own last map is spared.
        skipped = 2 * batch.tokens * shapes.layers * rank * last.outputs
    return Flops(forward, backward, linear + attention + lora - skipped)
