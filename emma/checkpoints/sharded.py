"""Parameters that may be spread over processes: their full values, this process's part, and float32 masters.

Four cases: a plain tensor (one process, DDP); DeepSpeed ZeRO-1 and -2, which keep float32 masters and optimizer states
in parts; ZeRO-3, which keeps the weights in parts too; FSDP2, whose parameters are DTensors. Functions that say
*collective* must be called by all processes, in the same order.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def has_master(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps a float32 master of it: that of every trained parameter, once its engine stands."""
    return parameter.requires_grad and (hasattr(parameter, "_hp_mapping") or hasattr(parameter, "_z3_optimizer"))


def numel(parameter: nn.Parameter) -> int:
    """Number of elements of the whole parameter; of a 4-bit one, which packs two in a byte, that of the weights."""
    packed = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_numel", parameter.numel()) if packed is None else packed.shape.numel()


def shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


@torch.no_grad()
def full_value(parameter: nn.Parameter) -> torch.Tensor:
    """The whole parameter, its float32 master where there is one. Collective."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if has_master(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


@torch.no_grad()
def set_full_value(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Overwrite the whole parameter by the same `value` on every process; with DeepSpeed, its float32 master only."""
    if isinstance(parameter, DTensor):
        parameter.copy_(distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements))
    elif hasattr(parameter, "_z3_optimizer"):
        from deepspeed.utils import safe_set_local_fp32_param

        length = parameter.ds_tensor.numel()
        start = length * torch.distributed.get_rank()
        part = value.flatten()[start : start + length]
        padded = torch.zeros(length, device=parameter.ds_tensor.device)
        padded[: part.numel()] = part.to(padded)
        safe_set_local_fp32_param(parameter, padded)
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value)
    else:
        parameter.copy_(value)


def local_part(parameter: nn.Parameter) -> torch.Tensor | None:
    """What this process keeps of a parameter (of its master, where there is one); None: nothing."""
    if isinstance(parameter, DTensor):
        return parameter.detach().to_local()
    if has_master(parameter):
        return _of_master(parameter, None)
    if hasattr(parameter, "ds_id"):
        return parameter.ds_tensor
    return parameter.detach()


def has_gradient(parameter: nn.Parameter) -> bool:
    """Whether this process's part has received a gradient that is not zero.

    Asked before the optimizer's step; DeepSpeed has stepped by then and keeps no gradient, but AdamW's running mean.
    """
    if has_master(parameter):
        mean = _of_master(parameter, "exp_avg")
        return mean is not None and bool(mean.any())
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        gradient = gradient.to_local()
    return gradient is not None and bool(gradient.any())


def _of_master(parameter: nn.Parameter, state: str | None) -> torch.Tensor | None:
    """This process's part of the float32 master (`state` None) or of an optimizer state of that name."""
    if hasattr(parameter, "_z3_optimizer"):
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        return (
            safe_get_local_fp32_param(parameter) if state is None else safe_get_local_optimizer_state(parameter, state)
        )
    fragment = parameter._hp_mapping
    return None if fragment is None else fragment.get_hp_fragment(state)
