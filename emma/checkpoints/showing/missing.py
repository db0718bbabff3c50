"""Which tensors a model folder of this project should hold, by its config.json, and does not."""

from typing import Any

from emma.checkpoints.showing.inventory import Inventory


def missing_tensors(config: dict[str, Any], found: Inventory) -> list[str]:
    """Sentences; empty if all is there."""
    import torch

    from emma.checkpoints.importing.tensor_files import counted
    from emma.model import EmmaConfig, EmmaForConditionalGeneration

    if not config:
        return ["config.json is missing or damaged, so that nobody knows which tensors there should be"]
    try:
        with torch.device("meta"):
            model = EmmaForConditionalGeneration(EmmaConfig.from_dict(config))
    except Exception as error:  # whatever a damaged configuration leads to; it is told, not raised
        return [f"config.json describes no model that can be built ({' '.join(str(error).split())[:200]})"]
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        wanted.pop("llm.lm_head.weight", None)
    here = {name: tensor.shape for name, tensor in found.tensors.items()}
    differing = [name for name, shape in wanted.items() if name in here and here[name] != shape]
    problems = {
        "missing": sorted(wanted.keys() - here.keys()),
        "of no part of the model": sorted(here.keys() - wanted.keys()),
        "of another shape than config.json asks for": sorted(differing),
    }
    return [f"{counted(names)} {what}" for what, names in problems.items() if names]
