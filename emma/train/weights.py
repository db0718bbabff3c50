"""The trainable tensors of a model, to and from one safetensors file, with the frozen ones accounted for by name.

Where weights are spread over processes (`emma.checkpoints.sharded`), every function here is collective.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from emma.checkpoints.sharded import full_value, set_full_value, shape
from emma.errors import EmmaError
from emma.model import part_of

FILE = "trainable.safetensors"


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that receive gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gather_trainable(model: nn.Module, main: bool) -> dict[str, torch.Tensor]:
    """The trainable tensors in float32 (master weights), for the process with `main`; empty for others.

    Raises:
        EmmaError: an empty tensor, as a partitioned parameter that was not gathered would be.
    """
    tensors = {}
    for name, parameter in trainable(model).items():
        value = full_value(parameter)
        if value.numel() == 0:
            raise EmmaError(f"trainable tensor {name} is empty and cannot be saved")
        if main:
            tensors[name] = value.cpu().contiguous()
    return tensors


def write_trainable(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Save what `gather_trainable` gave."""
    save_file(tensors, folder / FILE, metadata={"format": "pt"})


def check_names(model: nn.Module, folder: Path) -> None:
    """Refuse a checkpoint unless what it lacks is exactly what is frozen, and all shapes fit. Reads no tensor.

    Raises:
        EmmaError: names the file, the tensors and the shapes.
    """
    wanted = trainable(model)
    with safe_open(folder / FILE, framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    if missing or extra:
        raise EmmaError(
            f"{folder / FILE} does not hold exactly the trainable tensors: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} that are frozen or unknown here {extra[:3]}"
        )
    for name, found in stored.items():
        if found != tuple(shape(wanted[name])):
            raise EmmaError(f"{folder / FILE}: {name} has shape {found}, the model {tuple(shape(wanted[name]))}")


def read_trainable(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's tensors into the model; what is missing must be exactly the frozen names."""
    check_names(model, folder)
    stored = load_file(folder / FILE)
    for name, parameter in trainable(model).items():
        set_full_value(parameter, stored[name])


def check_saved(model: nn.Module, folder: Path, main: bool) -> None:
    """Read a checkpoint back and compare it with the model, bit for bit; the process with `main` compares.

    Raises:
        EmmaError: names the first tensor that came back differently.
    """
    check_names(model, folder)
    stored = load_file(folder / FILE) if main else {}
    for name, value in gather_trainable(model, main).items():
        if not torch.equal(stored[name], value):
            raise EmmaError(f"{folder / FILE}: {name} is not what was saved; the disk or file system is not reliable")


def set_masters(model: nn.Module, folder: Path) -> None:
    """Give DeepSpeed's float32 masters all the digits that a model folder stores.

    They are made from working copies in bfloat16, whose steps of 0.004 to 0.008 near 1.0 would undo what pretraining
    did to the alignment's diagonal. Tensors that are stored in bfloat16 themselves lose nothing and are left.
    """
    parameters = trainable(model)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if name in parameters and stored.get_slice(name).get_dtype() == "F32":
                    set_full_value(parameters[name], stored.get_tensor(name))


def whole_state(model: nn.Module, bf16: bool, main: bool) -> dict[str, torch.Tensor]:
    """All weights as a finished model stores them, for the process with `main`; empty for others.

    The adapter is stored in float32; with `bf16` all else that is floating point in bfloat16.
    """
    names: dict[int, list[str]] = {}  # tied weights have several names and stay one tensor
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    state: dict[str, torch.Tensor] = {}
    for first, *others in names.values():
        tensor = tensors[first]
        value = full_value(tensor) if isinstance(tensor, nn.Parameter) else tensor
        if value.is_floating_point():
            value = value.to(torch.bfloat16 if bf16 and part_of(first) != "adapter" else torch.float32)
        if main:
            value = value.cpu().contiguous()
            state |= dict.fromkeys([first, *others], value)
    return state
