"""From a recipe to a model that is ready for a stage: assets, the step-0 folder, freezing, dtypes, processor."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from emma.checkpoints import provenance
from emma.checkpoints.folder import check_is_model, load_folder, save_folder
from emma.checkpoints.sharded import numel
from emma.errors import EmmaError
from emma.model import EmmaConfig, EmmaForConditionalGeneration, part_of, read_clip
from emma.model.lora import inject, is_lora
from emma.model.quantization import BITS
from emma.processing.instruction import find_clip_bpe
from emma.processing.processor import EmmaProcessor
from emma.train.assets import find_asset
from emma.train.recipe import Recipe, StageRecipe, to_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)

TRAINED = {"pretrain": ("adapter",), "finetune": ("adapter", "llm"), "lora": ("adapter", "lora")}


def stage_processor(config, tokenizer, stage: StageRecipe, clip_bpe: bytes | None = None) -> EmmaProcessor:
    """The processor with a stage's template, image mode and instruction rules."""
    return EmmaProcessor.from_model_config(
        config,
        tokenizer,
        template=stage.template,
        image_mode=stage.image_mode,
        instruction=dataclasses.asdict(stage.instruction),
        eval_instruction=dataclasses.asdict(stage.eval_instruction) if stage.eval_instruction else None,
        clip_bpe=clip_bpe,
    )


def processor_for_stage(recipe: Recipe, stage: str, folder: Path) -> EmmaProcessor:
    """The processor of a stage that starts from a saved model folder; reads no weights."""
    check_is_model(folder)
    saved = EmmaProcessor.from_pretrained(folder, local_files_only=True)
    config = EmmaConfig.from_pretrained(folder, local_files_only=True)
    return stage_processor(config, saved.tokenizer, recipe.stage(stage), saved.clip_bpe)


def build_initial(recipe: Recipe, folder: Path, stamp: dict, dtype: torch.dtype) -> None:
    """Put LLM, CLIP and a fresh adapter together and save them as the self-contained step-0 folder."""
    llm_folder = find_asset(recipe, "llm")
    clip_source = find_asset(recipe, "clip")
    logger.info("building the model from %s and %s", llm_folder, clip_source)
    try:
        llm = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(llm_folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise EmmaError(f"model.llm: {llm_folder} is no language model with its tokenizer: {reason}") from error
    model = EmmaForConditionalGeneration.from_parts(
        llm,
        read_clip(clip_source),
        alignment=recipe.model.alignment,
        text_layer=recipe.model.text_layer,
        projector=recipe.model.projector,
        seed=recipe.seed,
    )
    processor = stage_processor(model.config, tokenizer, recipe.pretrain, find_clip_bpe(clip_source))
    facts = provenance.collect() | {"stage": "init", "steps": 0, "run": stamp}
    save_folder(folder, model, processor, facts, to_yaml(recipe))


def load_for_stage(
    recipe: Recipe, stage: str, folder: Path, device: torch.device | None, bf16: bool, engine_masters: bool = False
) -> EmmaForConditionalGeneration:
    """The model of a stage, frozen as it wants, in the dtypes that it wants. Under ZeRO-3 all processes load together.

    Dtypes: all float32, except that with bf16 everything frozen is stored in bfloat16, and that a frozen LLM is
    quantised where the recipe says so. Trainable tensors are float32 master weights; with bf16 their products run in
    bfloat16 under autocast.

    Args:
        device: None: ZeRO-3 says where the weights go.
        engine_masters: with bf16, everything is bfloat16, since DeepSpeed keeps the float32 masters.

    Raises:
        EmmaError: the folder holds another architecture than the recipe asks for.
    """
    settings = recipe.stage(stage)
    trained = TRAINED["lora" if settings.lora else stage]
    frozen_dtype = torch.bfloat16 if bf16 else torch.float32
    llm_dtype = torch.float32 if "llm" in trained and not engine_masters else frozen_dtype
    model, _ = load_folder(folder, dtype=llm_dtype, device=device or "cpu", bits=BITS[settings.quantization])
    for key in ("alignment", "text_layer", "projector"):
        wanted, found = getattr(recipe.model, key), getattr(model.config, key)
        if wanted != found:
            raise EmmaError(f"model.{key} is {wanted!r}, but {folder} holds a model with {found!r}")
    if settings.lora:
        dtype = frozen_dtype if engine_masters else torch.float32
        inject(model, **dataclasses.asdict(settings.lora), seed=recipe.seed, dtype=dtype)
    if not engine_masters:
        model.towers.to(frozen_dtype)
    freeze(model, trained, engine_masters)
    return model.train()


def freeze(model: EmmaForConditionalGeneration, trained: tuple[str, ...], engine_masters: bool = False) -> None:
    """Make exactly these parts trainable. After loading: transformers unfreezes what it loads."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in trained)
        if parameter.requires_grad and parameter.dtype != torch.float32 and not engine_masters:
            raise EmmaError(f"{name} is trainable but {parameter.dtype}: master weights must be float32")


def freeze_table(model: nn.Module) -> list[str]:
    """One line per part: what it is, trained or frozen, tensors, parameters, dtype."""
    rows = [("part", "state", "tensors", "parameters", "dtype")]
    everything = list(model.named_parameters())
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in everything:
        parts.setdefault("lora" if is_lora(name) else name.split(".", 1)[0], []).append(parameter)
    rows += [(part, *_summary(parameters)) for part, parameters in parts.items()]
    trained_count = sum(numel(parameter) for _, parameter in everything if parameter.requires_grad)
    total = sum(numel(parameter) for _, parameter in everything)
    rows.append(("all", *_summary([parameter for _, parameter in everything])))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    right = (2, 3)
    lines = [
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [*lines, f"trained: {trained_count:,} of {total:,} parameters ({100 * trained_count / total:.2f} %)"]


def _summary(parameters: "Iterable[nn.Parameter]") -> tuple[str, str, str, str]:
    parameters = list(parameters)
    states = {"trained" if parameter.requires_grad else "frozen" for parameter in parameters}
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    return (
        states.pop() if len(states) == 1 else "part trained",
        f"{len(parameters):,}",
        f"{sum(numel(parameter) for parameter in parameters):,}",
        "+".join(dtypes),
    )


def processor_without_weights(recipe: Recipe, stage: str, start: Path | None) -> EmmaProcessor:
    """A stage's processor from configurations and tokenizers alone; `start`: the folder to fine-tune, if any."""
    if start is not None and start.is_dir():
        return processor_for_stage(recipe, stage, start)
    llm_folder, clip_source = find_asset(recipe, "llm"), find_asset(recipe, "clip")
    config = EmmaConfig(
        tower_config=read_clip(clip_source)[0],
        text_config=AutoConfig.from_pretrained(llm_folder, local_files_only=True),
        alignment=recipe.model.alignment,
    )
    tokenizer = AutoTokenizer.from_pretrained(llm_folder, local_files_only=True)
    return stage_processor(config, tokenizer, recipe.stage(stage), find_clip_bpe(clip_source))
