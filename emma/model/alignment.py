"""Early fusion of image and instruction: the paper's linear visual alignment, and its cross-attention ablation.

V float[I, N, Dv] are the visual tokens, T float[I, M, Dt] the instruction's text tokens, T' float[I, M, Dv] the
instruction projected to the visual width. Both alignments return N tokens of width Dv, and both return V itself when
fresh, so that training starts from LLaVA-1.5.
"""

import torch
from torch import nn
from torch.nn import functional as F

from emma.model.precision import Float32Weights


class InstructionProjection(Float32Weights):
    """T' = GELU(linear(T)): text tokens of width Dt to the visual width Dv."""

    def __init__(self, text_width: int, vision_width: int):
        super().__init__()
        self.linear = nn.Linear(text_width, vision_width)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """float[I, M, Dt] -> float[I, M, Dv]."""
        return F.gelu(self.linear(text))


class LinearAlignment(Float32Weights):
    """A = W [V; T'] + b, a linear map over the *token* axis; W float[N, N + M] starts as [I | 0], b float[N] as 0.

    Every aligned token is a learned sum of all visual and all instruction tokens, the same for all channels.

    Args:
        learnable_width: Dv, to add learned tokens float[N, Dv], 0 at first, to A (the released code's
            `encoder_version` v3); None: there are none, as in the paper.
    """

    def __init__(self, num_visual_tokens: int, context_length: int, learnable_width: int | None = None):
        super().__init__()
        self.sizes = (num_visual_tokens, context_length)
        self.weight = nn.Parameter(torch.eye(num_visual_tokens, num_visual_tokens + context_length))
        self.bias = nn.Parameter(torch.zeros(num_visual_tokens))
        self.learnable_tokens = None
        if learnable_width is not None:
            self.learnable_tokens = nn.Parameter(torch.zeros(num_visual_tokens, learnable_width))

    def forward(self, visual: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """V float[I, N, Dv], T' float[I, M, Dv] -> A float[I, N, Dv].

        Always summed as W_v V + (W_t T' + b): an image encoded once and reused for many instructions gives the same.
        """
        return self.visual_part(visual) + self.text_part(instruction)

    def visual_part(self, visual: torch.Tensor) -> torch.Tensor:
        """W_v V float[I, N, Dv]: what an image gives to every instruction."""
        w_visual, _ = self.weight.split(self.sizes, dim=1)
        return w_visual @ visual

    def text_part(self, instruction: torch.Tensor) -> torch.Tensor:
        """W_t T' + b float[I, N, Dv], and the learnable tokens where there are any."""
        _, w_text = self.weight.split(self.sizes, dim=1)
        part = w_text @ instruction + self.bias[:, None]
        return part if self.learnable_tokens is None else part + self.learnable_tokens


class CrossAttentionAlignment(Float32Weights):
    """A = V + out(attention(query=V, key=T', value=T')): one multi-head layer whose output starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        # 64 channels a head as in CLIP; narrower or odd widths get fewer heads.
        self.heads = next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, visual: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """V float[I, N, Dv], T' float[I, M, Dv] -> A float[I, N, Dv]."""
        query = self._split(self.query(visual))
        key, value = self._split(self.key(instruction)), self._split(self.value(instruction))
        attended = F.scaled_dot_product_attention(query, key, value)
        return visual + self.out(attended.transpose(1, 2).flatten(2))

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """float[I, L, D] -> float[I, heads, L, D / heads]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
