"""A checkpoint of others as a model folder of this project: every tensor accounted for, never all in memory at once."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, PreTrainedConfig

from emma.checkpoints.fingerprint import file_fingerprint
from emma.checkpoints.folder import write_beside_weights
from emma.checkpoints.hub import source_folder
from emma.checkpoints.importing.clip import CHECKPOINT, Clip, find_clip
from emma.checkpoints.importing.settings import Settings, llm_config, read_settings
from emma.checkpoints.importing.shards import write_weights
from emma.checkpoints.importing.source import Source, read_source
from emma.checkpoints.importing.tensor_files import Entry, counted
from emma.checkpoints.importing.tokenizer import read_tokenizer
from emma.checkpoints.upstream_names import RECORD, clip_from_llava, to_llava
from emma.errors import EmmaError, describe_os_error
from emma.model import EmmaConfig, EmmaForConditionalGeneration, part_of
from emma.model.generation import token_ids_only
from emma.processing.instruction import InstructionRule
from emma.processing.processor import EmmaProcessor

logger = logging.getLogger(__name__)

_VOCABULARY = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


def import_folder(
    source: str | Path,
    target: str | Path,
    assets: str | Path | None = None,
    clip: str | None = None,
    llm: str | None = None,
) -> Path:
    """Write the checkpoint `source` as the model folder `target`; returns `target`.

    What `source` is, is recognised by its files and keys: a released EMMA or LLaVA-1.5 folder, what stage 1 of either
    wrote, a LoRA folder of their code, or a `llava-hf` folder. Tensors keep their type, but the adapter (instruction
    projection, alignment, projector) becomes float32. One tensor is in memory at a time.

    Args:
        source: a folder, or a hub name such as `saraghznfri/emma-7b`, which is downloaded where there is a network.
        target: must not exist, or be empty.
        assets: folder that holds the CLIP and the base LLM which `source` names.
        clip: a CLIP folder, an open_clip `NAME:TAG`, or `checkpoint` for the copy inside `source`.
        llm: base LLM of a stage-1 or LoRA folder, or tokenizer of a folder without one: a folder, or name in `assets`.

    Raises:
        EmmaError: `source` is none of these, or damaged, or holds other tensors than it should; CLIP or LLM are not
            here; `target` is not empty or cannot be written.
    """
    target = Path(target).expanduser()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise EmmaError(f"{target} exists already; move it away, or choose another target")
    assets = None if assets is None else Path(assets).expanduser()
    if assets is not None and not assets.is_dir():
        raise EmmaError(f"--assets {assets} is no folder")
    found = read_source(source_folder(source), assets, llm)
    settings = read_settings(found)
    towers = find_clip(found, clip, assets)
    logger.info("%s is %s; CLIP from %s", found.folder, found.kind, towers.origin)
    partial = target.with_name(target.name + ".partial")
    try:
        if partial.exists():  # of a process that was killed
            shutil.rmtree(partial)
        _convert(found, settings, towers, partial)
        partial.rename(target)
    except OSError as error:
        raise EmmaError(f"cannot import to {target}: {describe_os_error(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for note in found.notes:
        logger.warning("%s", note)
    return target


def _convert(source: Source, settings: Settings, clip: Clip, folder: Path) -> None:
    model = _without_weights(source, settings, clip)
    tensors, facts = _match(source, clip, model)
    processor = _processor(source, settings, model.config, clip)
    dtypes = {part_of(name): entry.dtype for name, entry in tensors.items()}
    model.config.dtype = model.config.text_config.dtype = dtypes["llm"]
    model.config.tower_config.dtype = dtypes["towers"]
    model.config.architectures = [type(model).__name__]
    model.generation_config = token_ids_only(_generation_config(source, model.config.text_config))
    folder.mkdir(parents=True)
    write_weights(folder, tensors)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    origin = _origin(source, clip, tensors) | facts
    write_beside_weights(folder, model, processor, {"stage": source.stage, "imported": origin})


def _without_weights(source: Source, settings: Settings, clip: Clip) -> EmmaForConditionalGeneration:
    """The model on the meta device, which says which tensors there must be."""
    try:
        config = settings.model_config(clip.config, _llm_config(source))
        with torch.device("meta"):
            return EmmaForConditionalGeneration(config)
    except EmmaError:
        raise
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise EmmaError(f"{source.folder}/config.json describes no model that can be built: {reason}") from error


# ----------------------------------------------------------------------------------------------------------- tensors


def _match(source: Source, clip: Clip, model: EmmaForConditionalGeneration) -> tuple[dict[str, Entry], dict[str, Any]]:
    """The entry for each tensor of the model, and for the record what was left out or made up.

    Raises:
        EmmaError: missing, unexpected or misshapen tensors, by their names in the source.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {"llm.lm_head.weight"} if model.config.tie_word_embeddings else set()
    shapes = {name: shape for name, shape in shapes.items() if name not in tied}
    towers = {name.removeprefix("towers."): shape for name, shape in shapes.items() if part_of(name) == "towers"}
    clip_tensors, zeros = clip.entries(towers, model.towers.with_text)
    theirs = {name: to_llava(name, model.config.projector) for name in shapes if part_of(name) != "towers"}
    called = {f"towers.{name}": f"CLIP {name}" for name in towers} | theirs
    entries = {name: source.tensors[there] for name, there in theirs.items() if there in source.tensors}
    entries |= {f"towers.{name}": entry for name, entry in clip_tensors.items()}
    entries = _without_placeholders(source, entries)

    missing = [called[name] for name in shapes if name not in entries]
    left_out = {name for name in source.tensors if clip_from_llava(name)}
    known = {*theirs.values(), *left_out, *(name.removeprefix("llm.") for name in tied)}
    unexpected = sorted(source.tensors.keys() - known)
    misshapen = [
        f"{called[name]} is {list(entry.shape)} instead of {list(shapes[name])}"
        for name, entry in entries.items()
        if entry.shape != shapes[name]
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(wrong.values()):
        problems = "; ".join(f"{kind}: {counted(names)}" for kind, names in wrong.items() if names)
        raise EmmaError(f"{source.folder} ({source.kind}) does not fit its config.json; {problems}")
    ordered = {name: _stored(name, entries[name]) for name in shapes}
    facts: dict[str, Any] = {"zeros_never_computed": zeros} if zeros else {}
    if left_out and clip.origin != CHECKPOINT:
        facts["left_out"] = f"{len(left_out)} tensors: the checkpoint's own copy of CLIP"
    return ordered, facts


def _stored(name: str, entry: Entry) -> Entry:
    """The adapter in float32, all else as it is."""
    if part_of(name) != "adapter":
        return entry
    return replace(entry, dtype=torch.float32, read=lambda: entry.read().float())


def _without_placeholders(source: Source, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Embeddings without the rows that an export of this project added for placeholder tokens."""
    rows = source.config.get(RECORD, {}).get("vocab_size")
    if rows is None:
        return entries

    def cut(entry: Entry) -> Entry:
        return replace(entry, shape=(rows, *entry.shape[1:]), read=lambda: entry.read()[:rows])

    return {name: cut(entry) if name in _VOCABULARY else entry for name, entry in entries.items()}


# ------------------------------------------------------------------------------------------------- everything else


def _llm_config(source: Source) -> PreTrainedConfig:
    config = llm_config(source)
    config.vocab_size = source.config.get(RECORD, {}).get("vocab_size", config.vocab_size)
    return config


def _processor(source: Source, settings: Settings, config: EmmaConfig, clip: Clip) -> EmmaProcessor:
    """The released code's choices: its template, image mode, and which text CLIP reads in training and evaluation."""
    choices: dict[str, Any] = {
        "template": "plain" if source.stage == "pretrain" else "vicuna_v1",
        "image_mode": settings.image_mode,
    }
    if settings.alignment != "none":
        choices["instruction"] = InstructionRule.released()
        choices["eval_instruction"] = InstructionRule(text="first_line", turn="last")
    choices |= source.config.get(RECORD, {}).get("processor", {})
    tokenizer = read_tokenizer(source.llm_folder, source.config.get("tokenizer_model_max_length"))
    if len(tokenizer) > config.text_config.vocab_size and RECORD not in source.config:
        raise EmmaError(
            f"the tokenizer in {source.llm_folder} has {len(tokenizer)} tokens, more than the LLM's vocabulary of "
            f"{config.text_config.vocab_size}: it belongs to another model"
        )
    return EmmaProcessor.from_model_config(config, tokenizer, clip_bpe=clip.bpe, **choices)


def _generation_config(source: Source, llm: PreTrainedConfig) -> GenerationConfig:
    """That of the LLM, whose special tokens may differ from its configuration's."""
    if (source.llm_folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(source.llm_folder, local_files_only=True)
    return GenerationConfig.from_model_config(llm)


def _origin(source: Source, clip: Clip, tensors: dict[str, Entry]) -> dict[str, Any]:
    """Source, bases and CLIP, and which parts of the model came from which files."""
    files: dict[Path, dict[str, int]] = {}
    for name, entry in tensors.items():
        if entry.file.name:
            part = name.split(".", 1)[0]
            taken = files.setdefault(entry.file, {})
            taken[part] = taken.get(part, 0) + 1
    return {
        "source": str(source.folder.absolute()),
        "kind": source.kind,
        "bases": {what: str(folder.absolute()) for what, folder in source.bases.items()},
        "clip": clip.origin,
        "notes": source.notes,
        "tokenizer": str(source.llm_folder.absolute()),
        "files": [
            {"file": str(file.absolute()), "fingerprint": file_fingerprint(file), "tensors": taken}
            for file, taken in files.items()
        ],
    }
