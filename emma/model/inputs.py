"""Shapes and counts of the model's inputs, checked before they are used, with the numbers in the message."""

import torch

from emma.errors import EmmaError
from emma.model.configuration import EmmaConfig


def check_images(
    config: EmmaConfig,
    pixel_values: torch.Tensor | None,
    instruction_ids: torch.Tensor | None,
    vision_features: torch.Tensor | None,
) -> None:
    """Refuse pixels (or vision features in their place) and instructions of another size than the towers have.

    Raises:
        EmmaError: names the tensor, its shape and the wanted one.
    """
    clip = config.tower_config
    if vision_features is not None:
        name, given = "vision_features", vision_features
        row: tuple[int, ...] = (clip.num_visual_tokens, clip.vision_width)
    elif pixel_values is not None:
        name, given, row = "pixel_values", pixel_values, (3, clip.image_size, clip.image_size)
    else:
        raise EmmaError("no images: give pixel_values or vision_features")
    if tuple(given.shape[1:]) != row:
        verb = "give" if vision_features is not None else "take"
        raise EmmaError(
            f"{name} has shape {tuple(given.shape)}, but the towers {verb} [images, {', '.join(map(str, row))}]: "
            "preprocess with this model's processor"
        )
    images = given.shape[0]
    if config.alignment != "none":
        shape = None if instruction_ids is None else tuple(instruction_ids.shape)
        if shape != (images, clip.context_length):
            raise EmmaError(
                f"instruction_ids has shape {shape}, but {images} images need "
                f"[{images}, {clip.context_length}]: one instruction row for every image"
            )


def check_placeholders(config: EmmaConfig, is_image: torch.Tensor, images: int) -> None:
    """Refuse rows whose placeholders are no whole images, or not as many as there are images.

    Args:
        is_image: bool[B, L], true at placeholders.

    Raises:
        EmmaError: names the row and both numbers.
    """
    tokens = config.tower_config.num_visual_tokens
    placeholders = is_image.sum(1).tolist()
    for row, count in enumerate(placeholders):
        if count % tokens:
            raise EmmaError(
                f"row {row} has {count} image placeholders, not a multiple of {tokens} (one image): "
                "was the prompt cut or made by another model's processor?"
            )
    if sum(placeholders) != images * tokens:
        raise EmmaError(f"{images} images need {images * tokens} image placeholders, but the rows hold {placeholders}")
