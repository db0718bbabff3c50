"""EMMA: CLIP towers, early fusion of image and instruction, projector and language model in one module."""

import copy
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from emma.errors import EmmaError
from emma.model.alignment import CrossAttentionAlignment, InstructionProjection, LinearAlignment
from emma.model.configuration import ClipTowerConfig, EmmaConfig
from emma.model.generation import repeat_images, token_ids_only
from emma.model.inputs import check_images, check_placeholders
from emma.model.lora import is_lora
from emma.model.projector import Projector
from emma.model.towers import ClipTowers

IGNORED = -100
ADAPTER = ["instruction_projection", "alignment", "projector"]


def part_of(parameter_name: str) -> str:
    """Which part a parameter belongs to: `towers`, `adapter` (instruction, alignment, projector), `llm` or `lora`."""
    first = parameter_name.split(".", 1)[0]
    if first not in ("towers", *ADAPTER, "llm"):
        raise EmmaError(f"{parameter_name} is no parameter of an EMMA model")
    if is_lora(parameter_name):
        return "lora"
    return "adapter" if first in ADAPTER else first


class EmmaForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The model. Trained in stage 1: the adapter; in stage 2: adapter and LLM. The towers stay frozen.

    Precision: adapter weights are float32 whatever the rest is. `encode` casts the tokens of the towers to the
    adapter's dtype, `embed` casts the projected tokens to that of the LLM's embeddings; there are no other casts.
    Under autocast the adapter's products run in the lower precision, on float32 master weights.

    Args:
        config: the architecture.
        llm: a language model to take over instead of making one from `config.text_config`.
    """

    config_class = EmmaConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ADAPTER

    def __init__(self, config: EmmaConfig, llm: PreTrainedModel | None = None):
        super().__init__(config)
        clip: ClipTowerConfig = config.tower_config
        instructed = config.alignment != "none"
        self.towers = ClipTowers(clip, with_text=instructed, text_layer=config.text_layer)
        # Before the alignment, so that one seed draws the same projector for every kind of alignment.
        self.projector = Projector(config.projector, clip.vision_width, config.text_config.hidden_size)
        if instructed:
            self.instruction_projection = InstructionProjection(clip.text_width, clip.vision_width)
        if config.alignment == "linear":
            self.alignment: LinearAlignment | CrossAttentionAlignment = LinearAlignment(
                clip.num_visual_tokens, clip.context_length, clip.vision_width if config.learnable_tokens else None
            )
        elif config.alignment == "cross_attention":
            self.alignment = CrossAttentionAlignment(clip.vision_width)
        self.llm = llm if llm is not None else AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: every module outside the LLM initialises itself, and a loaded folder must hold every weight."""

    @classmethod
    def from_parts(
        cls,
        llm: PreTrainedModel,
        clip: tuple[ClipTowerConfig, dict[str, torch.Tensor]],
        alignment: str = "linear",
        text_layer: str = "penultimate",
        projector: str = "mlp2x_gelu",
        seed: int = 0,
    ) -> "EmmaForConditionalGeneration":
        """A fresh EMMA around a language model (taken over, not copied) and CLIP weights from `read_clip`.

        The adapter is drawn from `seed`, torch's global generator is left alone; the projector does not depend on
        `alignment`. A fresh `linear` or `cross_attention` model computes exactly what `none`, LLaVA-1.5, computes.
        """
        tower_config, tower_weights = clip
        config = EmmaConfig(
            tower_config=copy.deepcopy(tower_config),
            text_config=llm.config,
            alignment=alignment,
            text_layer=text_layer,
            projector=projector,
            # else the LLM's own choice is erased
            attn_implementation=llm.config._attn_implementation,  # type: ignore[call-arg]
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = cls(config, llm=llm)
        model.towers.load_clip(tower_weights)
        model.towers.to(llm.dtype)
        model.generation_config = token_ids_only(llm.generation_config)
        return model

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """As in transformers, but strict: a missing, unexpected or misshapen weight is an error.

        transformers makes every loaded parameter trainable; the towers are frozen again here.
        """
        # Tensors of other shapes are left to the check below, which says which ones.
        kwargs["ignore_mismatched_sizes"] = True
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        wrong = [f"{len(info[kind])} {kind}: {sorted(map(str, info[kind]))[:3]}" for kind in _STRICT if info[kind]]
        if wrong:
            raise EmmaError(f"the weights do not fit this EMMA's config.json: {'; '.join(wrong)}")
        model.towers.freeze()
        return (model, info) if output_loading_info else model

    # ---------------------------------------------------------------------------------------------- the method

    def encode(
        self,
        pixel_values: torch.Tensor | None,
        instruction_ids: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Image and instruction to LLM inputs, with every step by name.

        Args:
            pixel_values: float[I, 3, H, W], one row an image.
            instruction_ids: int[I, M], one row an image; not read with alignment `none`.
            vision_features: V float[I, N, Dv], what the vision tower made of the images before, in place of
                `pixel_values`.

        Returns:
            `vision` V float[I, N, Dv], `text` T float[I, M, Dt], `instruction` T' float[I, M, Dv],
            `aligned` A float[I, N, Dv], `projected` X float[I, N, Dllm]; T and T' are None with alignment `none`.

        Raises:
            EmmaError: pixels or instructions of another size than the towers take.
        """
        check_images(self.config, pixel_values, instruction_ids, vision_features)
        visual, text = self.towers(pixel_values, instruction_ids, vision_features)
        visual = visual.to(self.projector.dtype)
        if text is None:
            instruction, aligned = None, visual
        else:
            text = text.to(self.projector.dtype)
            instruction = self.instruction_projection(text)
            aligned = self.alignment(visual, instruction)
        projected = self.projector(aligned)
        return {"vision": visual, "text": text, "instruction": instruction, "aligned": aligned, "projected": projected}

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        instruction_ids: torch.Tensor | None = None,
        return_intermediates: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """Projected visual tokens float[I, N, Dllm]; on request also the dictionary of `encode`."""
        steps = self.encode(pixel_values, instruction_ids)
        return (steps["projected"], steps) if return_intermediates else steps["projected"]

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        instruction_ids: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The LLM's input float[B, L, Dllm]: token embeddings, with visual tokens at the placeholders.

        Images are taken in reading order over the batch, N placeholders each.

        Raises:
            EmmaError: placeholders of a row are not a multiple of N, or do not add up to the number of images.
        """
        given = pixel_values if vision_features is None else vision_features
        images = 0 if given is None else given.shape[0]
        if images:
            return self.splice(input_ids, self.encode(pixel_values, instruction_ids, vision_features)["projected"])
        if not self.training:
            return self.splice(input_ids)
        # Towers and adapter before the token embeddings, as with images: ZeRO-3 ranks gather in one order.
        zero = self._zero_through_adapter()
        embeddings = self.splice(input_ids)
        return embeddings + zero.to(embeddings.dtype)

    def splice(self, input_ids: torch.Tensor, projected: torch.Tensor | None = None) -> torch.Tensor:
        """Token embeddings float[B, L, Dllm] with the visual tokens X float[I, N, Dllm] at the placeholders.

        Raises:
            EmmaError: as `embed`.
        """
        is_image = input_ids == self.config.image_token_id
        check_placeholders(self.config, is_image, 0 if projected is None else projected.shape[0])
        # The placeholder id has no row in the embedding table; any valid id will do for the look-up.
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if projected is None:
            return embeddings
        return embeddings.masked_scatter(is_image[..., None], projected.to(embeddings.dtype))

    # ------------------------------------------------------------------------------------------ the interface

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        instruction_ids: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss when `labels` are given.

        Args:
            input_ids: int[B, L] with `config.image_token_id` at the placeholders; or `inputs_embeds` float[B, L, D].
            attention_mask: int[B, L + cached], 0 at padding. Positions are counted from it unless given.
            position_ids: int[B, L]. Packed rows restart it per document and give no `attention_mask`.
            pixel_values, instruction_ids: float[I, 3, H, W] and int[I, M], one row an image, reading order.
            vision_features: float[I, N, Dv] in place of `pixel_values`, see `encode`.
            labels: int[B, L], -100 where not supervised. The label at t is compared with the logits at t - 1.
            num_items_in_batch: what the summed loss is divided by; None: the supervised tokens of this call.
            logits_to_keep: as in transformers; only without labels.
            kwargs: handed to the LLM.

        Returns:
            Without labels, `logits` float[B, L, V]. With labels, `loss` and `logits` float[n, V] of the n positions
            whose next label is supervised, in reading order: no others are computed.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise EmmaError("give either input_ids or inputs_embeds")
        images = sum(len(given) for given in (pixel_values, vision_features) if given is not None)
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values, instruction_ids, vision_features)  # type: ignore[arg-type]
        elif images > 0:
            raise EmmaError("inputs_embeds already hold the images: give pixel_values only with input_ids")
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = counted[:, -inputs_embeds.shape[1] :]
        inputs = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            **kwargs,
        }
        if labels is None:
            return self.llm(**inputs, use_cache=use_cache, logits_to_keep=logits_to_keep)

        predicts_supervised = F.pad(labels[:, 1:] != IGNORED, (0, 1), value=False)
        # Without a cache: packed documents are kept apart only then, and training needs none.
        # As a boolean `logits_to_keep` does in the newest transformers, but for any version and any language model.
        select = self.llm.get_output_embeddings().register_forward_pre_hook(
            lambda _, hidden: (hidden[0][predicts_supervised],)
        )
        try:
            output = self.llm(**inputs, use_cache=False)
        finally:
            select.remove()
        targets = labels[:, 1:][predicts_supervised[:, :-1]]
        if output.logits.shape[:-1] != targets.shape:
            raise EmmaError(
                f"{type(self.llm).__name__} made logits {tuple(output.logits.shape)} for {targets.numel()} supervised "
                "tokens: it does not get them from its output embeddings, and cannot be trained here"
            )
        loss = F.cross_entropy(output.logits.float(), targets, reduction="sum")
        loss = loss / (max(targets.numel(), 1) if num_items_in_batch is None else num_items_in_batch)
        output.loss = loss
        return output

    def _zero_through_adapter(self) -> torch.Tensor:
        """0 times the features of a blank image: text-only batches use the same parameters as all others.

        Ranks that wait for each other's gradients, or collect partitioned weights together, need this, and always in
        the same place: towers, alignment and projector are called once in a forward pass, before the LLM.
        """
        clip = self.config.tower_config
        pixels = torch.zeros(1, 3, clip.image_size, clip.image_size, device=self.device)
        instruction = torch.zeros(1, clip.context_length, dtype=torch.long, device=self.device)
        return 0 * self.encode(pixels, instruction)["projected"].float().sum()

    # ------------------------------------------------------------------------------- what transformers asks for

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.llm.set_output_embeddings(new_embeddings)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids, inputs_embeds=None, is_first_iteration=False, pixel_values=None, instruction_ids=None, **kwargs
    ) -> dict[str, Any]:
        """Images go in with the prompt; with a cache, later steps hold only the new token."""
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs.update(pixel_values=pixel_values, instruction_ids=instruction_ids)
        return inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeats rows for beams or several answers; transformers would repeat image by image, not row by row."""
        if expand_size > 1 and input_ids is not None:
            placeholders = (input_ids == self.config.image_token_id).sum(1)
            images_per_row = (placeholders // self.config.tower_config.num_visual_tokens).tolist()
        else:
            images_per_row = []
        visual = {name: model_kwargs.pop(name, None) for name in ("pixel_values", "instruction_ids")}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if expand_size > 1:
            visual = {name: repeat_images(rows, images_per_row, expand_size) for name, rows in visual.items()}
        return input_ids, {**model_kwargs, **visual}


_STRICT = ("missing_keys", "unexpected_keys", "mismatched_keys")
