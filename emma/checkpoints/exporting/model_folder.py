"""A model folder that is to be exported: configuration, processor, and its tensors, read one at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emma.checkpoints.adapter import read_adapter
from emma.checkpoints.folder import check_is_model
from emma.checkpoints.importing.tensor_files import Entry, counted, main_weights
from emma.errors import EmmaError
from emma.model import EmmaConfig, EmmaForConditionalGeneration, part_of
from emma.processing.processor import EmmaProcessor


@dataclass(frozen=True)
class ModelFolder:
    """`tensors` carry the model's own names."""

    folder: Path
    config: EmmaConfig
    processor: EmmaProcessor
    tensors: dict[str, Entry]

    def part(self, *parts: str) -> dict[str, Entry]:
        """The tensors of `towers`, `adapter` or `llm`."""
        return {name: entry for name, entry in self.tensors.items() if part_of(name) in parts}

    @property
    def choices(self) -> dict[str, Any]:
        """What the processor was set to, as far as the layouts of others cannot say it."""
        kept = ("template", "image_mode", "instruction", "eval_instruction")
        return {key: value for key, value in self.processor.to_dict().items() if key in kept}

    @property
    def dtype(self) -> str:
        """Of the LLM, as `bfloat16`."""
        return str(self.tensors["llm.model.embed_tokens.weight"].dtype).removeprefix("torch.")


def read_model_folder(folder: Path) -> ModelFolder:
    """Open a self-contained model folder; no tensor is read yet.

    Raises:
        EmmaError: it is an adapter folder, or no complete model folder of this project, or its tensors do not fit.
    """
    check_is_model(folder)
    if read_adapter(folder) is not None:
        raise EmmaError(
            f"{folder} is a LoRA adapter folder; merge it into its base first: python -m emma.checkpoints merge "
            f"{folder} MERGED, then export MERGED"
        )
    config = EmmaConfig.from_pretrained(folder, local_files_only=True)
    tensors = main_weights(folder)
    with torch.device("meta"):
        model = EmmaForConditionalGeneration(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        wanted.pop("llm.lm_head.weight", None)
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape]
    if wrong:
        raise EmmaError(f"{folder}: its weights do not fit its config.json: {counted(wrong)}; copy the folder again")
    processor = EmmaProcessor.from_pretrained(folder, local_files_only=True)
    return ModelFolder(folder, config, processor, tensors)
