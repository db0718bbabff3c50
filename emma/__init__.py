"""EMMA: an instruction-aware vision-language model with early fusion of image and prompt."""

import importlib
import logging
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emma.checkpoints.folder import load_folder as load
    from emma.model import EmmaConfig, EmmaForConditionalGeneration
    from emma.processing.processor import EmmaProcessor

__all__ = ["EmmaConfig", "EmmaForConditionalGeneration", "EmmaProcessor", "load"]

# Says at every import on a CPU that it has no fast 4-bit kernel, to whoever has it installed for something else.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# Where the public names live; they are imported on first use, so that `--help` need not wait for torch.
_HOMES = {
    "EmmaConfig": ("emma.model", "EmmaConfig"),
    "EmmaForConditionalGeneration": ("emma.model", "EmmaForConditionalGeneration"),
    "EmmaProcessor": ("emma.processing.processor", "EmmaProcessor"),
    "load": ("emma.checkpoints.folder", "load_folder"),
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'emma' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
