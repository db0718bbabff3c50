"""A part of a model alone: the language model as a folder of its own, or the adapter as one file."""

import json
from pathlib import Path

from transformers import GenerationConfig

from emma.checkpoints.exporting.model_folder import ModelFolder
from emma.checkpoints.exporting.released import llava_keys
from emma.checkpoints.importing.shards import write_shard, write_weights
from emma.checkpoints.upstream_names import ADAPTER_CONFIG, RECORD
from emma.processing.save import save_tokenizer
from emma.processing.tokens import SegmentEncoder


def write_llm(model: ModelFolder, folder: Path) -> None:
    """Weights, configuration and tokenizer, as AutoModelForCausalLM and AutoTokenizer read them.

    The chat template is the model's, with the tokenizer's BOS in front: the LLM was tuned on it.
    """
    from transformers import AutoModelForCausalLM

    write_weights(folder, {name.removeprefix("llm."): entry for name, entry in model.part("llm").items()})
    config = model.config.text_config
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    GenerationConfig.from_pretrained(model.folder, local_files_only=True).save_pretrained(folder)
    tokenizer = model.processor.tokenizer
    if model.processor.chat_template and model.processor.template != "tokenizer":
        encoder = SegmentEncoder(tokenizer, 0, 0)
        begin = ["bos_token"] if encoder.prefix_ids else []
        begin += ["' '"] if begin and encoder.prefix_at_start_only else []  # the dummy space that BOS would take away
        tokenizer.chat_template = "".join(f"{{{{- {part} -}}}}" for part in begin) + model.processor.chat_template
    save_tokenizer(tokenizer, folder)


def write_adapter(model: ModelFolder, file: Path) -> None:
    """Instruction projection, alignment and projector in one safetensors file; its metadata say what they belong to.

    `architecture` is the class and `config` the model's configuration, JSON; names and shapes are the model folder's.
    With the LLM and the CLIP towers that it was trained with, an import makes the model of it again.
    """
    metadata = {
        "architecture": "EmmaForConditionalGeneration",
        "config": json.dumps(model.config.to_dict(), default=str),
        ADAPTER_CONFIG: json.dumps(llava_keys(model) | {RECORD: {"processor": model.choices}}),
    }
    write_shard(file, model.part("adapter"), metadata)
