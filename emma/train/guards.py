"""Checks during training: the right launch, finite numbers, and that exactly the trainable tensors change."""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback

from emma.checkpoints.sharded import has_gradient, local_part
from emma.errors import EmmaError
from emma.train.engine import link_states
from emma.train.processes import TORCHRUN, world_size

logger = logging.getLogger(__name__)


class NonFiniteError(EmmaError):
    """Loss or gradient is not a number or infinite."""


def check_launch(args, accelerator) -> None:
    """Stop a run that would silently be something else than was asked for (no DDP, no DeepSpeed, no FSDP).

    Raises:
        EmmaError: names what was asked for and what accelerate made of it.
    """
    world = world_size()
    engine = "DEEPSPEED" if args.deepspeed else "FSDP" if args.fsdp else None
    wanted = (engine,) if engine else ("MULTI_",) if world > 1 else ("NO", "MULTI_")
    got = accelerator.distributed_type.name
    if args.n_gpu > 1:
        raise EmmaError(
            f"one process sees {args.n_gpu} GPUs, which transformers would use through slow DataParallel; start with "
            f"{TORCHRUN.replace('N', str(args.n_gpu))}, or set CUDA_VISIBLE_DEVICES=0"
        )
    if not got.startswith(wanted) or args.world_size != world:
        remedies = {"FSDP": "FSDP works on GPUs only", "DEEPSPEED": "unset ACCELERATE_USE_CPU if it is set"}
        raise EmmaError(
            f"asked for {engine or ('DDP' if world > 1 else 'a single process')} with {world} process(es), but "
            f"accelerate set up {got} with {args.world_size}, which would train something else; start with {TORCHRUN}"
            + (f"; {remedies[engine]}" if engine else "")
        )


def agree(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on one."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def _all_names(names: Sequence[str]) -> list[str]:
    if not (dist.is_available() and dist.is_initialized()):
        return list(names)
    gathered: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, list(names))
    return [name for part in gathered for name in part or []]


def _listed(names: Sequence[str], most: int = 16) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_loss(loss: torch.Tensor, ids: Sequence[str], step: int) -> None:
    """Before backward: all ranks stop together when the loss of one is not finite.

    Raises:
        NonFiniteError: names the step, the value and the samples.
    """
    finite = bool(torch.isfinite(loss).all())
    if agree(not finite, loss.device):
        value = f"{loss.detach().float().item()}" if not finite else "not finite on another rank"
        names = _all_names([] if finite else ids)
        raise NonFiniteError(
            f"step {step}: the loss is {value}; samples of the micro-batch: {_listed(names)}. Nothing was updated or "
            "saved since the last checkpoint. Look at the samples (python -m emma.data show) or lower learning_rate"
        )


def check_gradient(norm: torch.Tensor | float, ids: Sequence[str], step: int) -> None:
    """Before the optimizer's step. (With DeepSpeed, whose backward steps itself, right after; no checkpoint is
    written.)

    Raises:
        NonFiniteError: names the step, the norm and the samples of the optimizer step.
    """
    value = float(norm)
    if value != value or value in (float("inf"), float("-inf")):
        raise NonFiniteError(
            f"step {step}: the gradient norm is {value}; samples of the step: {_listed(_all_names(ids), 64)}. Nothing "
            "was saved since the last checkpoint. Look at the samples (python -m emma.data show) or lower learning_rate"
        )


def _any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is true on any rank; all ranks give flags of the same things."""
    if not (dist.is_available() and dist.is_initialized()) or not flags:
        return flags
    votes = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


@torch.no_grad()
def _checksum(parameter: nn.Parameter) -> int:
    """Sum of the bit patterns of what this rank keeps of a parameter, so that any single changed bit shows."""
    tensor = local_part(parameter)
    if tensor is None or tensor.numel() == 0:
        return 0
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(bits).sum(dtype=torch.int64))


class ChangeCheck(TrainerCallback):
    """Proves that training changes what it should: every trainable tensor that had a gradient, and no frozen one.

    A step with learning rate 0 (the first of a warm-up) changes nothing, and early warm-up steps may be smaller than
    the spacing of float32 around large weights; so a tensor has
    until the end of the warm-up. Tensors without any gradient yet are reported, not failed: with W = [I|0] the
    instruction projection's is exactly 0 at step 0. Where weights are spread over ranks, each looks at its own part
    (of the float32 masters, since bfloat16 copies stand still for many steps), and all agree.
    """

    def __init__(self, warmup_steps: int):
        self.before: dict[str, int] = {}
        self.had_gradient: set[str] = set()
        self.patience = warmup_steps + 2  # counted in steps with a learning rate
        self.steps, self.rate = 0, 0.0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # Not earlier: a resumed run loads its weights, and FSDP replaces parameters, after this callback was made.
        self.parameters = dict(model.named_parameters())
        self.waiting = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        self.frozen = self.parameters.keys() - self.waiting
        self.count = len(self.waiting)
        self.before = {name: _checksum(parameter) for name, parameter in self.parameters.items()}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if self.steps >= self.patience:
            return
        self.rate = optimizer.param_groups[0]["lr"]
        if self.rate > 0:
            link_states(optimizer)
            names = sorted(self.waiting - self.had_gradient)
            flags = _any_rank([has_gradient(self.parameters[name]) for name in names], args.device)
            self.had_gradient |= {name for name, flag in zip(names, flags, strict=True) if flag}

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.steps >= self.patience or self.rate == 0:
            return
        self.steps += 1
        names = sorted(self.had_gradient & self.waiting)
        flags = _any_rank([self._changed(name) for name in names], args.device)
        self.waiting -= {name for name, flag in zip(names, flags, strict=True) if flag}
        late = sorted(self.waiting & self.had_gradient)
        if self.steps == 1:
            self._check_frozen()
            self._report(state.global_step + 1, late)
        if late and self.steps >= self.patience:
            raise EmmaError(
                f"{len(late)} trainable tensors had a gradient but did not change in {self.steps} steps, "
                f"first {late[0]} ({self.parameters[late[0]].dtype}); is the learning rate too small for their dtype?"
            )
        if self.waiting and self.steps == self.patience:
            logger.warning("no gradient in %d steps: %s", self.steps, _listed(sorted(self.waiting), 4))

    def _check_frozen(self) -> None:
        if moved := sorted(name for name in self.frozen if self._changed(name)):
            raise EmmaError(f"{len(moved)} frozen tensors changed in training, first {moved[0]}")

    def _report(self, step: int, late: Sequence[str]) -> None:
        still = sorted(self.waiting - self.had_gradient)
        logger.info(
            "step %d: %d of %d trainable tensors changed, 0 of %d frozen ones%s%s",
            step,
            self.count - len(self.waiting),
            self.count,
            len(self.frozen),
            f"; no gradient yet: {_listed(still, 4)}" if still else "",
            f"; too small a step yet: {_listed(late, 4)}" if late else "",
        )

    def _changed(self, name: str) -> bool:
        return _checksum(self.parameters[name]) != self.before[name]
