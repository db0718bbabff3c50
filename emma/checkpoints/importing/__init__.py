"""Imports released EMMA and LLaVA-1.5 checkpoints, and `llava-hf` folders, as model folders of this project."""

from emma.checkpoints.importing.convert import import_folder

__all__ = ["import_folder"]
