"""LoRA (Hu et al., 2021) on the language model: W x + alpha / rank * B A x, W frozen, A and B trained in float32."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from emma.errors import EmmaError

if TYPE_CHECKING:
    from emma.model.emma import EmmaForConditionalGeneration


def is_lora(parameter_name: str) -> bool:
    """Whether a parameter is one of LoRA's A and B, by the module names that peft gives them."""
    return not {"lora_A", "lora_B"}.isdisjoint(parameter_name.split("."))


def inject(
    model: "EmmaForConditionalGeneration",
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: list[str] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put LoRA beside linear layers of the LLM's blocks, in place; a fresh one (B = 0) changes no logit.

    Args:
        targets: last parts of layer names, such as `q_proj`; None: all linear layers but the output embeddings.
        seed: draws A; torch's global generator is left alone.
        dtype: of A and B; another one than float32 only where a training engine keeps float32 masters.

    Raises:
        EmmaError: a target that is no linear layer of the blocks, or a model that has LoRA already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any(is_lora(name) for name, _ in model.named_parameters()):
        raise EmmaError("this model has LoRA already; merge it first: python -m emma.checkpoints merge ADAPTER TARGET")
    linears = block_linears(model.llm)
    chosen = linears if targets is None else _matching(linears, targets)
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(settings, model.llm)
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parameter.data = parameter.data.to(dtype)  # peft takes that of the frozen layer
    if _is_quantized(model.llm):
        model._hf_peft_config_loaded = True  # transformers' own mark: its Trainer refuses a quantised model without it


def _is_quantized(llm: nn.Module) -> bool:
    """Whether some weights are packed into integers."""
    return any(not parameter.is_floating_point() for parameter in llm.parameters())


def _matching(linears: list[str], targets: list[str]) -> list[str]:
    chosen = []
    for target in targets:
        found = [name for name in linears if name == target or name.endswith(f".{target}")]
        if not found:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
            raise EmmaError(
                f"lora.targets: {target} is no linear layer of this LLM's blocks; there are {', '.join(kinds)}"
            )
        chosen += found
    return chosen


def block_linears(llm: nn.Module) -> list[str]:
    """Names of the LLM's linear layers, quantised ones too, without the output embeddings."""
    output = llm.get_output_embeddings()
    return [name for name, module in llm.named_modules() if isinstance(module, nn.Linear) and module is not output]


def merge(model: "EmmaForConditionalGeneration") -> None:
    """Add alpha / rank * B A to the frozen weights, each sum in float32 and rounded once, and take LoRA out again.

    Raises:
        EmmaError: the weights are quantised: the sum would be rounded to 4 or 8 bits.
    """
    from peft.tuners.lora import LoraLayer

    if _is_quantized(model.llm):
        raise EmmaError("LoRA cannot be merged into quantised weights; load the base unquantised (bits=16)")
    for name, layer in list(model.llm.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge(safe_merge=True)
            model.llm.set_submodule(name, layer.get_base_layer())
    del model.llm.peft_config
