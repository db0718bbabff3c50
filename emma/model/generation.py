"""Two details of `generate`: images of repeated prompts, and a generation configuration that can be saved."""

import torch
from transformers import GenerationConfig


def repeat_images(images: torch.Tensor | None, images_per_row: list[int], times: int) -> torch.Tensor | None:
    """Repeat the images of each row `times` times as a group: rows a|bc twice give a a|bc bc.

    Args:
        images: [I, ...] in reading order.
        images_per_row: images of each row of the batch; sums up to I.
    """
    if images is None:
        return None
    rows = torch.arange(images.shape[0], device=images.device).split(images_per_row)
    order = [row for row in rows for _ in range(times)]
    return images[torch.cat(order)] if order else images


def token_ids_only(config: GenerationConfig | None) -> GenerationConfig:
    """A greedy configuration with the special tokens of `config`, and an end token for padding if it has none.

    Published language models ship sampling settings with sampling off (Vicuna-1.5: temperature 0.9, top_p 0.6),
    which transformers refuses to save; and their default answer length has no meaning here.
    """
    config = config or GenerationConfig()
    ends = config.eos_token_id
    pad = config.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=ends, pad_token_id=pad, do_sample=False)
