"""The LLM's frozen linear layers in 4 or 8 bits through bitsandbytes; nothing else of the model is quantised."""

import importlib.util
import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from emma.errors import EmmaError
from emma.model.configuration import EmmaConfig
from emma.model.emma import ADAPTER
from emma.model.lora import block_linears

# QLoRA (Dettmers et al., 2023): 4-bit normal floats with doubly quantised scales; LLM.int8() (2022): 8 bits.
BITS = {"none": 16, "nf4": 4, "int8": 8}


def quantized_loading(
    config: EmmaConfig, quantization: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise the LLM's linear layers while they are read, on `device`.

    The output embeddings are left as they are.

    Args:
        quantization: `nf4` or `int8`.
        dtype: of the products; the weights are unpacked to it.

    Raises:
        EmmaError: bitsandbytes is not installed, or would unpack the layers' weights wrongly.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EmmaError(
            f"{quantization} needs bitsandbytes, which is not installed here: pip install -e '.[quantization]'"
        )
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.text_config)
    output = llm.get_output_embeddings()
    if quantization == "nf4" and device.type == "cpu":
        _check_widths(llm)
    heads = [f"llm.{name}" for name, module in llm.named_modules() if module is output]
    skip = ["towers", *ADAPTER, *heads]
    if quantization == "nf4":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skip,  # read for 4 bits too
        )
    else:
        # It computes in float16 and says so at every layer of every step.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return {"quantization_config": settings, "device_map": {"": device}}


def _check_widths(llm: PreTrainedModel) -> None:
    """On a CPU, bitsandbytes 0.50 takes no scale of 64 weights to reach over a row, and packs rows by 32."""
    for name in block_linears(llm):
        layer: Any = llm.get_submodule(name)
        if layer.in_features % 64 or layer.out_features % 32:
            raise EmmaError(
                f"nf4 on a CPU needs inputs in multiples of 64 and outputs in multiples of 32 (bitsandbytes unpacks "
                f"others wrongly), but {name} of the LLM has {layer.in_features} and {layer.out_features}; use int8"
            )
