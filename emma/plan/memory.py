"""Bytes on one GPU: states, activations and logits, in closed form.

What is counted follows how `emma.train` keeps tensors: trained ones as float32 masters, frozen ones in the precision
of the computation. Not counted: the CUDA context, NCCL's buffers and fragmentation, for which `USABLE` leaves room.
"""

from typing import NamedTuple

from emma.plan.flops import Batch, Trained
from emma.plan.shapes import Shapes, lora_targets

GIB = 2**30
USABLE = 0.9  # assumption: the share of a GPU's memory that may be planned with
LIVE = 10**9  # parameters that ZeRO-3 keeps gathered at most: DeepSpeed's default stage3_max_live_parameters
ADAM = 8  # two float32 moments
NF4 = (4 + 0.127) / 8  # bytes of a 4-bit weight with doubly quantised scales (Dettmers et al. 2023, QLoRA, section 3)


class Setting(NamedTuple):
    """What one can turn to make a stage fit.

    Args:
        zero: 0 (plain data parallel), 1, 2 or 3.
        offload: weights and optimizer states in the host's memory (with ZeRO-3).
        gradient_checkpointing: keep only the inputs of decoder layers, compute the rest again.
        micro_batch: samples per GPU and forward pass.
    """

    zero: int
    offload: bool
    gradient_checkpointing: bool
    micro_batch: int


class States(NamedTuple):
    """Bytes per rank of what stays from step to step; `buffers` are those of communication and gathered weights."""

    weights: int
    masters: int
    gradients: int
    optimizer: int
    buffers: int
    host: int = 0


class Peak(NamedTuple):
    """Bytes per rank at the highest point of a step."""

    states: States
    activations: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        """On the GPU. The logits are gone when the last layer's gradients are worked out, so the larger counts."""
        return sum(self.states[:5]) + self.activations + max(self.logits, self.working)


def trained_and_frozen(shapes: Shapes, trained: Trained) -> tuple[int, int]:
    """Parameters that learn (LoRA's included), and those that do not."""
    lora = shapes.lora_parameters(trained.lora_rank, trained.lora_targets) if trained.lora_rank else 0
    learn = shapes.adapter_parameters + (shapes.parameters["llm"] if trained.llm else 0)
    return learn + lora, shapes.total_parameters - learn


def frozen_bytes(shapes: Shapes, trained: Trained, compute: int) -> int:
    """Frozen weights, in the compute precision or, where the LLM is quantised, its linear maps in 4 bits."""
    size = compute * trained_and_frozen(shapes, trained)[1]
    if trained.quantized:
        size -= int((compute - NF4) * shapes.layers * sum(m.inputs * m.outputs for m in shapes.layer))
    return size


def states(shapes: Shapes, trained: Trained, setting: Setting, gpus: int, compute: int = 2) -> States:
    """Weights, masters, gradients and AdamW's moments.

    Plain data parallel: float32 masters are the weights, autocast keeps a copy of them in the compute precision, and
    gradients are float32, once in `.grad` and once in the buckets that are reduced.
    ZeRO (Rajbhandari et al. 2020): weights and gradients in the compute precision beside float32 masters; stage 2
    partitions masters, moments and gradients over the GPUs (stage 1 no gradients), stage 3 also the weights, frozen
    ones included.

    Args:
        compute: bytes of a number in the computation, 2 (bfloat16) or 4 (float32).
    """
    learn, still = trained_and_frozen(shapes, trained)[0], frozen_bytes(shapes, trained, compute)
    if setting.zero == 0:
        copy = compute * learn if compute < 4 else 0
        return States(still + copy, 4 * learn, 4 * learn, ADAM * learn, 4 * learn if gpus > 1 else 0)
    buckets = 2 * compute * shapes.hidden**2  # "auto" buckets of hidden^2 numbers, one filled while one is reduced
    gradients = compute * learn // (gpus if setting.zero >= 2 else 1)
    partitioned = (4 * learn // gpus, gradients, ADAM * learn // gpus)
    if setting.zero < 3:
        return States(still + compute * learn, *partitioned, buckets)
    weights = (still + compute * learn) // gpus
    gathered = min(compute * LIVE, still + compute * learn)
    if setting.offload:
        return States(0, 0, 0, 0, buckets + gathered, host=weights + sum(partitioned))
    return States(weights, *partitioned, buckets + gathered)


def peak(shapes: Shapes, batch: Batch, trained: Trained, setting: Setting, gpus: int, compute: int = 2) -> Peak:
    """The highest point of a step: at the end of the forward pass, or in a layer's backward pass.

    Args:
        batch: one micro-batch of one GPU, its tokens with padding.
    """
    # Under autocast on float32 masters the residual stream stays float32; else it has the compute precision.
    stream = 4 if setting.zero == 0 and trained.llm else compute
    one_layer = batch.tokens * layer_bytes(shapes, trained, stream, compute)
    kept = batch.tokens * stream * shapes.hidden if setting.gradient_checkpointing else one_layer
    norm = batch.tokens * norm_bytes(shapes.hidden, trained.llm, stream)
    head = batch.supervised * compute * shapes.hidden if trained.llm else 0
    # Gradients of gate, up and their product, and of the stream before and after; the layer itself if made again.
    gradients = batch.tokens * (3 * compute * shapes.layer[-1].inputs + 2 * stream * shapes.hidden)
    return Peak(
        states=states(shapes, trained, setting, gpus, compute),
        activations=shapes.layers * kept + norm + head + batch.images * adapter_bytes(shapes, compute),
        logits=logit_bytes(shapes, batch.supervised, compute),
        working=gradients + (one_layer if setting.gradient_checkpointing else 0),
    )


def norm_bytes(hidden: int, trained: bool, stream: int) -> int:
    """Saved for an RMSNorm's backward pass, a token: its float32 input and scale; if it learns, the normalised one."""
    return 4 * hidden + 4 + (stream * hidden if trained else 0)


def layer_bytes(shapes: Shapes, trained: Trained, stream: int, compute: int) -> int:
    """Saved by one decoder layer of the Llama family for its backward pass, in bytes a token.

    Two norms; query, key, value, output and log-sum-exp of memory-efficient attention (no L x L scores); gate, its
    activation and up of the gated MLP. Inputs of linear maps are saved only where the map's weight learns: those of
    query, key and value are one tensor, those of gate and up another; the output map's is attention's own. LoRA saves
    its target's input after dropout with the mask, and its thin activation.
    """
    attention = shapes.heads * shapes.head_width
    mlp = shapes.layer[-1].inputs
    saved = 2 * norm_bytes(shapes.hidden, trained.llm, stream)
    saved += compute * (2 * attention + 2 * shapes.kv_heads * shapes.head_width) + 4 * shapes.heads
    saved += 3 * compute * mlp
    if trained.llm:
        # Autocast makes a copy for each map that reads the float32 stream: all but the output map and the last.
        copies = len(shapes.layer) - 2 if stream > compute else 2
        saved += compute * (copies * shapes.hidden + mlp)
    elif trained.lora_rank:
        for target in lora_targets(shapes, trained.lora_targets):
            saved += (compute + 1) * target.inputs + compute * trained.lora_rank
    return saved


def adapter_bytes(shapes: Shapes, compute: int) -> int:
    """Saved for the backward pass of instruction projection, alignment and projector, per image.

    T, its projection before and after GELU, V, A, and the projector's hidden layer before and after GELU.
    """
    n, m = shapes.visual_tokens, shapes.instruction_tokens
    numbers = n * shapes.vision_width
    if shapes.projector == "mlp2x_gelu":
        numbers += 2 * n * shapes.hidden
    if shapes.alignment != "none":
        numbers += n * shapes.vision_width + m * (shapes.text_width + 2 * shapes.vision_width)
    if shapes.alignment == "cross_attention":
        numbers += 2 * n * shapes.vision_width + 2 * m * shapes.vision_width  # query and result, key and value
    return compute * numbers


def logit_bytes(shapes: Shapes, supervised: int, compute: int) -> int:
    """Logits when the loss is differentiated: as computed, float32 log-probabilities, and two float32 gradients.

    Only supervised positions make logits.
    """
    return supervised * shapes.vocabulary * (compute + 4 + 4 + 4)
