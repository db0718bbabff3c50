"""Saves and loads one model folder: weights, processor, training configuration, provenance, card.

It is self-contained, or, after LoRA training, an adapter folder: what was trained, and a record of its base folder.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from emma.checkpoints.adapter import RECORD, WEIGHTS, Adapter, read_adapter
from emma.checkpoints.card import model_card
from emma.checkpoints.hub import source_folder
from emma.checkpoints.provenance import PROVENANCE, collect
from emma.checkpoints.seal import break_seal, defects, seal
from emma.errors import EmmaError, describe_os_error
from emma.model import EmmaConfig, EmmaForConditionalGeneration, part_of
from emma.model.generation import token_ids_only
from emma.model.lora import inject
from emma.model.quantization import BITS, quantized_loading

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
    adapter: Adapter | None = None,
) -> None:
    """Write a folder that `load_folder`, or transformers' `from_pretrained`, needs nothing else for.

    With `adapter`, write an adapter folder instead: LoRA and adapter tensors only, for `load_folder` and the base.

    Adapter tensors are stored in float32, all others as they are. Sampling settings are left out of the generation
    configuration. `complete.json` comes last, so that an interrupted save is never taken for a model. One process
    writes; where weights are partitioned, it passes the gathered ones.

    Args:
        folder: made if it does not exist; an older model there is overwritten.
        provenance: what the caller knows (stage, data, parent, ...), added to `provenance.collect()`.
        train_yaml: the resolved configuration of the run.
        state_dict: weights to save instead of the model's own.
        adapter: the base of a model with LoRA, and its settings.

    Raises:
        EmmaError: the folder cannot be written, the disk is full; a model with LoRA comes without `adapter`.
    """
    folder = Path(folder)
    if adapter is None and any(part_of(name) == "lora" for name, _ in model.named_parameters()):
        raise EmmaError(f"{folder}: a model with LoRA is saved with the record of its base, or merged first")
    try:
        _write_folder(folder, model, processor, provenance, train_yaml, state_dict, adapter)
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
    adapter: Adapter | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    break_seal(folder)
    if adapter is not None:
        _write_adapter(folder, model, state_dict, adapter)
    else:
        if state_dict is not None:
            fused = {name for name in state_dict if part_of(name) == "adapter"}
            state_dict = {name: tensor.float() if name in fused else tensor for name, tensor in state_dict.items()}
        model.generation_config = token_ids_only(model.generation_config)
        model.save_pretrained(folder, state_dict=state_dict)
    write_beside_weights(folder, model, processor, provenance, train_yaml, adapter)


def write_beside_weights(
    folder: Path,
    model: EmmaForConditionalGeneration,
    processor: "EmmaProcessor",
    provenance: dict[str, Any],
    train_yaml: str | None = None,
    adapter: Adapter | None = None,
) -> None:
    """What a folder holds besides weights and configurations; `complete.json` comes last. Arguments: `save_folder`.

    The model's weights are not read: they may be on the meta device.
    """
    processor.save_pretrained(folder)
    provenance = {**collect(), **provenance}
    (folder / PROVENANCE).write_text(
        json.dumps(provenance, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )
    train_file = folder / "train.yaml"
    train_file.unlink(missing_ok=True)
    if train_yaml is not None:
        train_file.write_text(train_yaml, encoding="utf-8")
    (folder / "README.md").write_text(model_card(model, processor, provenance, adapter), encoding="utf-8")
    seal(folder)


def _write_adapter(
    folder: Path, model: EmmaForConditionalGeneration, state_dict: dict[str, torch.Tensor] | None, adapter: Adapter
) -> None:
    tensors = dict(model.named_parameters()) if state_dict is None else state_dict
    trained = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in tensors.items()
        if part_of(name) in ("adapter", "lora")
    }
    save_file(trained, folder / WEIGHTS, metadata={"format": "pt"})
    base = adapter.find_base(folder)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(base / name, folder / name)  # the model's own may say how it is quantised at the moment
    adapter.write(folder)


def load_folder(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    bits: int | None = None,
) -> tuple[EmmaForConditionalGeneration, "EmmaProcessor"]:
    """(model in eval mode, processor) of a saved folder; needs no network, and every key of the weights must fit.

    Of an adapter folder, the base is loaded, LoRA put into it, and both trained parts read.

    Args:
        folder: what `save_folder` wrote, under any name; or a hub name, which is downloaded where there is a network.
        dtype: of towers and LLM, also by name (`"bfloat16"`); None: bfloat16 on CUDA, float32 elsewhere. The adapter
            and LoRA are float32 in any case.
        device: None: CUDA where there is one, else the CPU.
        bits: of the LLM's linear layers: 4 (nf4) or 8 (int8) through bitsandbytes, 16: not quantised. None: not
            quantised, but an adapter that was trained on a quantised base gets it as it was.

    Raises:
        EmmaError: no such folder, not complete, damaged, not an EMMA model, or no such device; the base of an adapter
            is missing or another one; bitsandbytes is needed and not installed.
    """
    folder = source_folder(folder)
    processor = load_processor(folder)
    target = device_for(device)
    adapter = read_adapter(folder)
    base = folder
    if adapter is not None:
        base = adapter.find_base(folder)
        check_is_model(base)
    quantization = _quantization(bits, adapter)
    try:
        model = _load_weights(base, dtype_for(dtype, target), target, quantization)
        if adapter is not None:
            inject(model, **adapter.lora)
            _read_adapter_weights(model, folder / WEIGHTS)
    except (OSError, SafetensorError) as error:  # a file that cannot be parsed comes as either
        raise _damaged(folder, error) from error
    return model.to(target).eval(), processor


def load_processor(folder: str | Path) -> "EmmaProcessor":
    """The processor of a saved folder, without the weights.

    Raises:
        EmmaError: no such folder, not complete, damaged, or not an EMMA model.
    """
    from emma.processing.processor import EmmaProcessor

    folder = source_folder(folder)
    check_is_model(folder)
    try:
        return EmmaProcessor.from_pretrained(folder, local_files_only=True)
    except OSError as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> EmmaError:
    reason = " ".join(str(error).split())
    return EmmaError(f"model folder {folder} is damaged: {reason}; copy it again, or train it again")


def _load_weights(
    folder: Path, dtype: torch.dtype, device: torch.device, quantization: str
) -> EmmaForConditionalGeneration:
    further = {}
    if quantization != "none":
        config = EmmaConfig.from_pretrained(folder, local_files_only=True)
        further = quantized_loading(config, quantization, dtype, device)
    return EmmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True, **further)


@torch.no_grad()
def _read_adapter_weights(model: EmmaForConditionalGeneration, file: Path) -> None:
    """Copy LoRA and adapter tensors into a model that LoRA was put into; every name and shape must fit."""
    stored = load_file(file)
    wanted = {name: tensor for name, tensor in model.named_parameters() if part_of(name) in ("adapter", "lora")}
    missing, extra = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    misshapen = sorted(name for name in wanted.keys() & stored.keys() if wanted[name].shape != stored[name].shape)
    if missing or extra or misshapen:
        raise EmmaError(
            f"{file} does not fit its base and {RECORD}: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unknown {extra[:3]}, {len(misshapen)} of another shape {misshapen[:3]}"
        )
    for name, parameter in wanted.items():
        parameter.copy_(stored[name])


def _quantization(bits: int | None, adapter: Adapter | None) -> str:
    if bits is None:
        return adapter.quantization if adapter is not None else "none"
    for quantization, width in BITS.items():
        if bits == width:
            return quantization
    raise EmmaError(f"bits {bits!r} is not one of {', '.join(map(str, sorted(BITS.values())))}")


def dtype_for(wanted: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """What `load_folder` takes for `wanted` on this device."""
    if wanted is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(wanted, torch.dtype):
        return wanted
    known = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    if wanted not in known:
        raise EmmaError(f"dtype {wanted!r} is not one of {', '.join(known)}")
    return known[wanted]


def device_for(wanted: torch.device | str | None) -> torch.device:
    """What `load_folder` takes for `wanted` on this machine."""
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
            f"{folder} holds a model of type {config.get('model_type')!r}, not 'emma'; import a released EMMA, "
            "LLaVA-1.5 or llava-hf folder first: python -m emma.checkpoints import SOURCE TARGET"
        )
    if found := defects(folder):
        raise EmmaError(
            f"model folder {folder} is not complete, its saving or copying was interrupted: {'; '.join(found[:3])}"
        )
