"""An image encoded once and asked about many times: what does not depend on the instruction is kept.

With the linear alignment that is W_v V, to which W_t T' + b is added for each question, in the order in which the whole
model sums (`LinearAlignment`), so that both ways give the same bits; with the others it is V.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from emma.model.emma import EmmaForConditionalGeneration


@torch.inference_mode()
def image_part(model: "EmmaForConditionalGeneration", pixel_values: torch.Tensor) -> torch.Tensor:
    """float[I, 3, H, W] -> what is kept of each image, float32[I, N, Dv]."""
    visual = model.towers.encode_image(pixel_values).to(model.projector.dtype)
    return model.alignment.visual_part(visual) if model.config.alignment == "linear" else visual


@torch.inference_mode()
def project(
    model: "EmmaForConditionalGeneration", part: torch.Tensor, instruction_ids: torch.Tensor | None
) -> torch.Tensor:
    """X float[I, N, Dllm] of kept parts float32[I, N, Dv] and instructions int[I, M], one row each (not read with
    alignment `none`)."""
    if model.config.alignment == "none":
        return model.projector(part)
    text = model.towers.encode_text(instruction_ids).to(model.projector.dtype)
    instruction = model.instruction_projection(text)
    if model.config.alignment == "linear":
        return model.projector(part + model.alignment.text_part(instruction))
    return model.projector(model.alignment(part, instruction))
