"""The trainable tensors of a model, to and from one safetensors file, with the frozen ones accounted for by name."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from emma.errors import EmmaError

FILE = "trainable.safetensors"


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_trainable(model: nn.Module, folder: Path) -> None:
    """Save the trainable tensors in their own dtype (float32: master weights).

    Raises:
        EmmaError: an empty tensor, as a partitioned parameter that was not gathered would be.
    """
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trainable(model).items()}
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise EmmaError(f"{len(empty)} trainable tensors are empty and cannot be saved, first {empty[0]}")
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def _stored(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, if what it lacks is exactly what is frozen."""
    stored, wanted = load_file(folder / FILE), trainable(model)
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or extra:
        raise EmmaError(
            f"{folder / FILE} does not hold exactly the trainable tensors: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} that are frozen or unknown here {extra[:3]}"
        )
    for name, tensor in stored.items():
        if tensor.shape != wanted[name].shape:
            raise EmmaError(
                f"{folder / FILE}: {name} has shape {tuple(tensor.shape)}, the model {tuple(wanted[name].shape)}"
            )
    return stored


@torch.no_grad()
def read_trainable(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's tensors into the model; what is missing must be exactly the frozen names."""
    parameters = trainable(model)
    for name, tensor in _stored(model, folder).items():
        parameters[name].copy_(tensor)


def check_saved(model: nn.Module, folder: Path) -> None:
    """Read a checkpoint back and compare it with the model, bit for bit.

    Raises:
        EmmaError: names the first tensor that came back differently.
    """
    parameters = trainable(model)
    for name, tensor in _stored(model, folder).items():
        if not torch.equal(tensor, parameters[name].detach().cpu()):
            raise EmmaError(f"{folder / FILE}: {name} is not what was saved; the disk or file system is not reliable")
