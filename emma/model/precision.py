"""Keeps the adapter's weights in float32 whatever the rest of the model is cast to."""

from torch import nn


class Float32Weights(nn.Module):
    """A module whose floating-point parameters ignore `.to(bfloat16)`, `.half()` and the like, but follow devices.

    The alignment starts as the identity, and bfloat16 steps of 0.004 to 0.008 near 1.0 would swallow its updates.
    Casting there and back is no remedy, since the first cast loses the digits; so the cast itself is skipped.
    `from_pretrained(dtype=...)` does not pass here: there `_keep_in_fp32_modules_strict` has the same effect.
    """

    def _apply(self, fn, recurse=True):
        def move_only(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)
