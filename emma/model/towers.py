"""The frozen CLIP towers: visual tokens of an image, text tokens of an instruction."""

import torch
from open_clip.model import CLIP
from torch import nn

from emma.errors import EmmaError
from emma.model.clip_files import read_clip
from emma.model.configuration import ClipTowerConfig
from emma.model.text_cache import TextCache

__all__ = ["ClipTowers", "read_clip"]

_BLOCK = {"penultimate": -2, "final": -1}


class ClipTowers(nn.Module):
    """open_clip's vision and text transformers under open_clip's own parameter names, frozen and in eval mode for good.

    Both encoders run without gradients and always in eval mode, so the values in training and evaluation are equal
    (this includes the fast path that `nn.MultiheadAttention` takes without gradients). All blocks and norms are kept,
    those past the wanted one are not computed. `text_cache`, None at first, may be set to remember repeated
    instructions.

    Args:
        config: sizes and activation.
        with_text: False leaves the text tower out (alignment `none`).
        text_layer: `penultimate` or `final` block of the text tower, before the last norm.
    """

    def __init__(self, config: ClipTowerConfig, with_text: bool = True, text_layer: str = "penultimate"):
        super().__init__()
        for side, cfg in (("vision", config.vision_cfg), ("text", config.text_cfg)):
            if cfg["layers"] < 2:
                raise EmmaError(f"CLIP {side} tower has {cfg['layers']} block: the penultimate layer needs at least 2")
        clip = CLIP(
            config.embed_dim,
            dict(config.vision_cfg),
            dict(config.text_cfg),
            quick_gelu=config.quick_gelu,
            nonscalar_logit_scale=True,  # DeepSpeed cannot flatten 0-dim parameters
        )
        self.text_cache: TextCache | None = None
        self.visual = clip.visual
        self.with_text = with_text
        if with_text:
            self.text_block = _BLOCK[text_layer]
            self.causal = not config.text_cfg.get("no_causal_mask", False)
            self.token_embedding = clip.token_embedding
            self.positional_embedding = clip.positional_embedding
            self.transformer = clip.transformer
            self.ln_final = clip.ln_final
            self.text_projection = clip.text_projection
            self.logit_scale = clip.logit_scale
        self.freeze()

    def freeze(self) -> None:
        """No gradients, eval mode. `from_pretrained` makes every parameter trainable again and calls this after."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "ClipTowers":
        """Stays in eval mode: a frozen tower has no training mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        instruction_ids: torch.Tensor | None,
        vision_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(V float[I, N, Dv], T float[I, M, Dt] or None without a text tower) of images and their instructions.

        `vision_features` are V of these images from before, in place of `pixel_values`.

        Training enters here and not through the two functions below: what partitions weights over ranks (ZeRO-3, FSDP)
        collects them when a module is called, and both towers reach into open_clip's modules without calling these.
        """
        visual = self.encode_image(pixel_values) if vision_features is None else vision_features  # type: ignore[arg-type]
        return visual, self.encode_text(instruction_ids) if self.with_text else None  # type: ignore[arg-type]

    @torch.no_grad()
    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[I, 3, H, W], normalised -> V float[I, N, Dv] from the last but one block, class token dropped."""
        output = self.visual.forward_intermediates(
            pixel_values.to(self.dtype), indices=[-2], stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        return output["image_intermediates"][0]

    @torch.no_grad()
    def encode_text(self, instruction_ids: torch.Tensor) -> torch.Tensor:
        """int[I, M] -> T float[I, M, Dt]: all positions, padding (id 0) included, since the alignment weighs each."""
        if self.text_cache is not None and len(instruction_ids) > 0:
            return self.text_cache.features(self._run_text, instruction_ids)
        return self._run_text(instruction_ids)

    def _run_text(self, instruction_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.token_embedding(instruction_ids) + self.positional_embedding
        # Made here and not kept as a buffer: from_pretrained leaves non-persistent buffers uninitialised.
        length = embedded.shape[1]
        mask = embedded.new_full((length, length), float("-inf")).triu_(1) if self.causal else None
        _, tokens = self.transformer.forward_intermediates(
            embedded, attn_mask=mask, indices=[self.text_block], stop_early=True
        )
        return tokens[0]

    def _apply(self, fn, recurse=True):
        """Moves and casts; what the cache holds is then of another device or dtype."""
        if self.text_cache is not None:
            self.text_cache.clear()
        return super()._apply(fn, recurse)

    def load_clip(self, weights: dict[str, torch.Tensor]) -> None:
        """Copy open_clip weights in; every key must fit, except that text keys are left out without a text tower."""
        wanted = self.state_dict().keys()
        missing = sorted(wanted - weights.keys())
        unexpected = sorted(weights.keys() - wanted) if self.with_text else []
        if missing or unexpected:
            raise EmmaError(
                f"CLIP weights do not fit the tower's configuration: {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}"
            )
        for name, tensor in self.state_dict().items():
            source = weights[name].reshape(tensor.shape) if weights[name].ndim == 0 else weights[name]
            if source.shape != tensor.shape:
                raise EmmaError(
                    f"CLIP weight {name} has shape {tuple(source.shape)}, but the tower's configuration "
                    f"asks for {tuple(tensor.shape)}"
                )
            tensor.copy_(source)
