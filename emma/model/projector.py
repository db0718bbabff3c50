"""The projector of LLaVA-1.5: aligned visual tokens to the width of the LLM's input embeddings."""

import torch
from torch import nn

from emma.model.precision import Float32Weights


class Projector(Float32Weights, nn.Sequential):
    """float[I, N, Dv] -> float[I, N, Dllm]: `mlp2x_gelu` is linear, GELU, linear; `linear` one linear layer."""

    def __init__(self, kind: str, vision_width: int, llm_width: int):
        layers: list[nn.Module] = [nn.Linear(vision_width, llm_width)]
        if kind == "mlp2x_gelu":
            layers += [nn.GELU(), nn.Linear(llm_width, llm_width)]
        super().__init__(*layers)

    @property
    def dtype(self) -> torch.dtype:
        """float32, unless a back end that keeps the float32 weights itself (DeepSpeed) put working copies here."""
        return next(self.parameters()).dtype
