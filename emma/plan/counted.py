"""torch's own count of a step on the meta device, which the closed form must equal."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emma.model import ClipTowerConfig, EmmaConfig, EmmaForConditionalGeneration
from emma.plan.flops import Flops, Trained
from emma.plan.shapes import meta_model


def count_flops(
    config: EmmaConfig,
    length: int,
    supervised: int,
    trained: Trained,
    gradient_checkpointing: bool = False,
    images: int = 1,
    rows: int = 1,
) -> Flops:
    """Operations of one forward and backward pass as `FlopCounterMode` sees them; nothing is computed or allocated.

    Args:
        length: L, tokens of every row, visual tokens included.
        supervised: positions of every row that make logits, at least one.
        trained: the LLM's weights, or LoRA matrices that PEFT puts beside them, or neither.
        images: in all rows together; at least one, since the loss must reach the adapter.
    """
    model = meta_model(config)
    for name, parameter in model.named_parameters():
        part = name.split(".", 1)[0]
        parameter.requires_grad_(part != "towers" and (part != "llm" or trained.llm))
    if trained.lora_rank:
        _add_lora(model, trained)
    model.train()
    clip = config.tower_config
    forward, backward = _count(model, clip, length, supervised, images, rows)
    if not gradient_checkpointing:
        return Flops(forward, backward)
    if hasattr(model, "activation_checkpointing_enable"):  # its name in newer transformers
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    _, backward_with_recomputation = _count(model, clip, length, supervised, images, rows)
    return Flops(forward, backward, backward_with_recomputation - backward)


def _add_lora(model: EmmaForConditionalGeneration, trained: Trained) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    head = model.llm.get_output_embeddings()
    linear = {n.rsplit(".", 1)[-1] for n, m in model.llm.named_modules() if isinstance(m, nn.Linear) and m is not head}
    targets = linear if trained.lora_targets is None else set(trained.lora_targets)
    with torch.device("meta"):
        inject_adapter_in_model(LoraConfig(r=trained.lora_rank, target_modules=sorted(targets)), model.llm)


def _count(
    model: EmmaForConditionalGeneration, clip: ClipTowerConfig, length: int, supervised: int, images: int, rows: int
) -> tuple[int, int]:
    """(forward, backward), the latter with what it computes again."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator has no formula
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            pixels = torch.empty(images, 3, clip.image_size, clip.image_size)
            instruction = torch.empty(images, clip.context_length, dtype=torch.long)
            visual = model.encode(pixels, instruction)["projected"]
            embedded = model.get_input_embeddings()(torch.empty(rows, length, dtype=torch.long))
            # Where the visual tokens go would be read from values, which are not here; their gradient needs a path.
            embedded = embedded + 0 * visual.sum()
            output = model.llm(
                inputs_embeds=embedded,
                # Four dimensions are taken as they are; a plain mask would be looked into, which meta tensors forbid.
                attention_mask=torch.ones(rows, 1, length, length, dtype=torch.bool),
                position_ids=torch.arange(length).expand(rows, length),
                use_cache=False,
                logits_to_keep=supervised,
            )
            forward = counter.get_total_flops()
            output.logits.sum().backward()
        return forward, counter.get_total_flops() - forward
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
