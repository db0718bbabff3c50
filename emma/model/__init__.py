"""The EMMA model; importing this package makes it known to transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from emma.model.configuration import ClipTowerConfig, EmmaConfig
from emma.model.emma import EmmaForConditionalGeneration, part_of
from emma.model.towers import ClipTowers, read_clip
from emma.processing.processor import EmmaProcessor

AutoConfig.register("emma_clip", ClipTowerConfig, exist_ok=True)
AutoConfig.register("emma", EmmaConfig, exist_ok=True)
AutoModelForImageTextToText.register(EmmaConfig, EmmaForConditionalGeneration, exist_ok=True)
AutoProcessor.register(EmmaConfig, EmmaProcessor, exist_ok=True)

__all__ = ["ClipTowerConfig", "ClipTowers", "EmmaConfig", "EmmaForConditionalGeneration", "part_of", "read_clip"]
