"""Says what a folder or file of weights is, whatever its state."""

from emma.checkpoints.showing.show import describe, print_description

__all__ = ["describe", "print_description"]
