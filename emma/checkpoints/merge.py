"""Writes an adapter folder and its base as one self-contained model folder."""

import dataclasses
import logging
import shutil
from pathlib import Path

import torch

from emma.checkpoints import provenance
from emma.checkpoints.adapter import RECORD, read_adapter
from emma.checkpoints.folder import load_folder, save_folder
from emma.errors import EmmaError
from emma.model import EmmaConfig
from emma.model.lora import merge

logger = logging.getLogger(__name__)


def merge_folder(source: str | Path, target: str | Path, dtype: str | None = None) -> Path:
    """Fold the LoRA of the adapter folder `source` into its base and save the whole model as `target`; returns it.

    An adapter that was trained on a quantised base is merged into the unquantised one: its answers then differ
    from the adapter's by what quantising the base had cost.

    Args:
        dtype: of towers and LLM, `float32` or `bfloat16`; None: as the base stores them.

    Raises:
        EmmaError: `source` is no adapter folder or its base is not found, `target` exists or cannot be written.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    adapter = read_adapter(source)
    if adapter is None:
        raise EmmaError(
            f"{source} is no adapter folder (it has no {RECORD}); give the finished model of a run with finetune.lora"
        )
    if target.exists():
        raise EmmaError(f"{target} exists already; move it away, or choose another target")
    stored = EmmaConfig.from_pretrained(source, local_files_only=True).dtype
    model, processor = load_folder(source, dtype=dtype or stored or torch.float32, device="cpu", bits=16)
    merge(model)
    facts = provenance.read(source) | provenance.collect()
    facts |= {"parent": str(source.absolute()), "merged": dataclasses.asdict(adapter)}
    train_file = source / "train.yaml"
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    save_folder(
        partial, model, processor, facts, train_file.read_text(encoding="utf-8") if train_file.is_file() else None
    )
    partial.rename(target)
    if adapter.quantization != "none":
        logger.warning(
            "trained on a base in %s, merged into the unquantised one: answers can differ a little from the adapter's",
            adapter.quantization,
        )
    return target
