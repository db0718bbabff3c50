"""Saves and loads one self-contained model folder: weights, processor, training configuration, provenance, card."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from emma.checkpoints.card import model_card
from emma.checkpoints.provenance import PROVENANCE, collect
from emma.checkpoints.seal import break_seal, defects, seal
from emma.errors import EmmaError, describe_os_error
from emma.model import EmmaForConditionalGeneration, part_of
from emma.model.generation import token_ids_only

if TYPE_CHECKING:
    from emma.processing.processor import EmmaProcessor

logger = logging.getLogger(__name__)


def save_folder(
    folder: str | Path,
    model: EmmaForConditionalGeneration,
    processor: "EmmaProcessor",
    provenance: dict[str, Any],
    train_yaml: str | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `load_folder`, or transformers' `from_pretrained`, needs nothing else for.

    Adapter tensors are stored in float32, all others as they are. Sampling settings are left out of the generation
    configuration. `complete.json` comes last, so that an interrupted save is never taken for a model. One process
    writes; where weights are partitioned, it passes the gathered ones.

    Args:
        folder: made if it does not exist; an older model there is overwritten.
        provenance: what the caller knows (stage, data, parent, ...), added to `provenance.collect()`.
        train_yaml: the resolved configuration of the run.
        state_dict: weights to save instead of the model's own.

    Raises:
        EmmaError: the folder cannot be written, the disk is full.
    """
    folder = Path(folder)
    try:
        _write_folder(folder, model, processor, provenance, train_yaml, state_dict)
    except OSError as error:
        raise EmmaError(f"cannot save the model to {folder}: {describe_os_error(error)}") from error
    except SafetensorError as error:  # a full disk comes as this
        raise EmmaError(f"cannot save the model to {folder}: {error}; free some space and start again") from error
    logger.info("saved %s", folder)


def _write_folder(
    folder: Path,
    model: EmmaForConditionalGeneration,
    processor: "EmmaProcessor",
    provenance: dict[str, Any],
    train_yaml: str | None,
    state_dict: dict[str, torch.Tensor] | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    break_seal(folder)
    if state_dict is not None:
        adapter = {name for name in state_dict if part_of(name) == "adapter"}
        state_dict = {name: tensor.float() if name in adapter else tensor for name, tensor in state_dict.items()}
    model.generation_config = token_ids_only(model.generation_config)
    model.save_pretrained(folder, state_dict=state_dict)
    processor.save_pretrained(folder)
    provenance = {**collect(), **provenance}
    (folder / PROVENANCE).write_text(
        json.dumps(provenance, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    train_file = folder / "train.yaml"
    train_file.unlink(missing_ok=True)
    if train_yaml is not None:
        train_file.write_text(train_yaml, encoding="utf-8")
    (folder / "README.md").write_text(model_card(model, processor, provenance), encoding="utf-8")
    seal(folder)


def load_folder(
    folder: str | Path, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> tuple[EmmaForConditionalGeneration, "EmmaProcessor"]:
    """(model in eval mode, processor) of a saved folder; needs no network, and every key of the weights must fit.

    Args:
        folder: what `save_folder` wrote, under any name.
        dtype: of towers and LLM, also by name (`"bfloat16"`); None: bfloat16 on CUDA, float32 elsewhere. The adapter
            is float32 in any case.
        device: None: CUDA where there is one, else the CPU.

    Raises:
        EmmaError: no such folder, not complete, damaged, not an EMMA model, or no such device.
    """
    from emma.processing.processor import EmmaProcessor

    folder = Path(folder).expanduser()
    check_is_model(folder)
    target = _device(device)
    if dtype is None:
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    elif isinstance(dtype, str):
        known = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
        if dtype not in known:
            raise EmmaError(f"dtype {dtype!r} is not one of {', '.join(known)}")
        dtype = known[dtype]
    try:
        model = EmmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
        processor = EmmaProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, SafetensorError) as error:  # a file that cannot be parsed comes as either
        raise EmmaError(
            f"model folder {folder} is damaged: {' '.join(str(error).split())}; copy it again, or train it again"
        ) from error
    return model.to(target).eval(), processor


def _device(wanted: torch.device | str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise EmmaError(f"device {wanted!r} is none that torch knows; give cpu, cuda, cuda:1 ...") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EmmaError(f"device {wanted!r}: torch sees {torch.cuda.device_count()} CUDA devices here; give cpu")
    return device


def check_is_model(folder: Path) -> None:
    """Refuse what is no complete model folder of this project.

    Raises:
        EmmaError: says what it is instead.
    """
    if not (folder / "config.json").is_file():
        state = "has no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise EmmaError(
            f"model folder {folder} {state}; give the folder of a trained model, such as runs/NAME/finetune/model"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise EmmaError(f"{folder}/config.json is damaged ({error}); copy the folder again") from error
    if config.get("model_type") != "emma":
        raise EmmaError(
            f"{folder} holds a model of type {config.get('model_type')!r}, not 'emma'; released EMMA and "
            "LLaVA-1.5 folders cannot be read yet: give a model folder that this project's training wrote"
        )
    if found := defects(folder):
        raise EmmaError(
            f"model folder {folder} is not complete, its saving or copying was interrupted: {'; '.join(found[:3])}"
        )
