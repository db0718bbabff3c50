"""The layout of `llava-hf`: transformers' own LlavaForConditionalGeneration and LlavaProcessor."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlavaConfig

from emma.checkpoints.exporting.clip_folder import clip_entries, preprocessor_config
from emma.checkpoints.exporting.model_folder import ModelFolder
from emma.checkpoints.importing.shards import write_shard, write_weights
from emma.checkpoints.importing.tensor_files import Entry
from emma.checkpoints.upstream_names import CLIP_REST, RECORD, clip_to_llava, llava_to_hf, to_llava
from emma.errors import EmmaError
from emma.model.clip_files import to_huggingface_config
from emma.processing.save import save_tokenizer
from emma.processing.template import IMAGE
from emma.processing.tokens import SegmentEncoder

_ROWS_OF = 64  # rows of the embeddings are filled up to a multiple of this, as llava-hf's 32064 are
_VOCABULARY = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


def write_llava_hf(model: ModelFolder, folder: Path) -> None:
    """Write a folder for LlavaForConditionalGeneration, which gives the same logits.

    There the placeholder is a token of the LLM, so the embeddings may get rows. A new row is the mean of all others:
    its logit is the mean of the logits, never above the best one, and `generate` leaves it out altogether.

    Raises:
        EmmaError: the model reads instructions, or its parts have no counterpart there.
    """
    if model.config.alignment != "none" or model.config.projector != "mlp2x_gelu":
        raise EmmaError(
            f"{model.folder}: format llava-hf has no place for alignment {model.config.alignment!r} with projector "
            f"{model.config.projector!r}, only for 'none' with 'mlp2x_gelu'; use --format emma or llava"
        )
    if any(not name.startswith(("llm.model.", "llm.lm_head.")) for name in model.part("llm")):
        raise EmmaError(f"{model.folder}: format llava-hf is for LLMs in the manner of Llama; use --format llm")
    tokenizer = model.processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    image_id, rows = tokenizer.convert_tokens_to_ids(IMAGE), model.config.text_config.vocab_size
    wanted = rows if image_id < rows else -(-(image_id + 1) // _ROWS_OF) * _ROWS_OF
    config = _config(model, image_id, wanted)
    clip = clip_entries(model)
    write_weights(folder, _tensors(model, clip, wanted))
    write_shard(folder / CLIP_REST, {name: clip[name] for name in clip if not name.startswith("vision_model.")})
    values = config.to_dict() | {RECORD: {"processor": model.choices, "vocab_size": rows}}
    config_text = json.dumps(values, indent=2, default=str)
    (folder / "config.json").write_text(config_text + "\n", encoding="utf-8")
    generation = GenerationConfig.from_pretrained(model.folder, local_files_only=True)
    generation.suppress_tokens = [image_id, *(number for number in range(rows, wanted) if number != image_id)]
    generation.save_pretrained(folder)
    _write_processor(model, folder)


def _tensors(model: ModelFolder, clip: dict[str, Entry], rows: int) -> dict[str, Entry]:
    tensors = {}
    for name, entry in model.part("llm", "adapter").items():
        if name in _VOCABULARY and entry.shape[0] < rows:
            entry = replace(entry, shape=(rows, *entry.shape[1:]), read=partial(_filled_up, entry, rows))
        tensors[llava_to_hf(to_llava(name, model.config.projector))] = entry
    vision = {name: entry for name, entry in clip.items() if name.startswith("vision_model.")}
    return tensors | {llava_to_hf(clip_to_llava(name)): entry for name, entry in vision.items()}


def _filled_up(entry: Entry, rows: int) -> torch.Tensor:
    old = entry.read()
    mean = old.float().mean(0, keepdim=True).to(old.dtype)
    return torch.cat([old, mean.expand(rows - len(old), -1)])


def _config(model: ModelFolder, image_id: int, rows: int) -> LlavaConfig:
    vision = to_huggingface_config(model.config.tower_config).vision_config
    text = model.config.text_config
    text.vocab_size = rows
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        image_seq_length=model.config.tower_config.num_visual_tokens,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=model.config.tie_word_embeddings,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = model.dtype
    return config


def _write_processor(model: ModelFolder, folder: Path) -> None:
    """Tokenizer with the placeholder, image processor, and the chat template that both are used with."""
    towers = model.config.tower_config
    images: dict[str, Any] = preprocessor_config(towers) | {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": model.processor.image_mode == "pad",
    }
    settings = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": towers.patch_size,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token, dropped again by the strategy
    }
    for name, values in (("processor_config.json", settings), ("preprocessor_config.json", images)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(model.processor.tokenizer, folder)
    if (template := model.processor.chat_template) is not None:
        if SegmentEncoder(model.processor.tokenizer, 0, 0).prefix_at_start_only:
            # LLaVA writes sentencepiece's dummy space after an image too; this tokenizer takes a space for it.
            template = template.replace(f"'{IMAGE}\\n'", f"'{IMAGE} \\n'")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
