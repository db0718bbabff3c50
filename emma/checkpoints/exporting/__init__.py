"""Exports a model folder: as released EMMA or LLaVA-1.5, as `llava-hf`, the language model or the adapter alone."""

from emma.checkpoints.exporting.export import FORMATS, export_folder

__all__ = ["FORMATS", "export_folder"]
