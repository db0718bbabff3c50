"""One model folder to one layout of others: which there are, and what is checked before anything is written."""

import logging
import shutil
from pathlib import Path

from emma.checkpoints.exporting.llava_hf import write_llava_hf
from emma.checkpoints.exporting.model_folder import read_model_folder
from emma.checkpoints.exporting.parts import write_adapter, write_llm
from emma.checkpoints.exporting.released import write_released
from emma.checkpoints.hub import source_folder
from emma.errors import EmmaError, describe_os_error

logger = logging.getLogger(__name__)

FORMATS = ("emma", "llava", "llava-hf", "llm", "adapter")


def export_folder(source: str | Path, target: str | Path, layout: str, vision_tower: str | None = None) -> Path:
    """Write the model folder `source` as `target`; returns `target`. One tensor is in memory at a time.

    Args:
        source: folder, or hub name.
        target: must not exist, or be an empty folder. With `adapter` it is a file, `.safetensors` is added if missing.
        layout: `emma` or `llava`, what the released code of EMMA or LLaVA-1.5 loads; `llava-hf`, what transformers'
            LlavaForConditionalGeneration does; `llm`, the language model alone; `adapter`, one file with instruction
            projection, alignment and projector.
        vision_tower: with `emma` and `llava`, what their config.json names as CLIP, a hub name or a folder. None: the
            towers are written beside it as a CLIP folder, and its absolute path is named.

    Raises:
        EmmaError: `source` is no complete, self-contained model folder; the layout has no place for its architecture;
            `target` is in the way or cannot be written.
    """
    target = Path(target).expanduser()
    if layout not in FORMATS:
        raise EmmaError(f"format {layout!r} is not one of {', '.join(FORMATS)}")
    if vision_tower is not None and layout not in ("emma", "llava"):
        raise EmmaError(f"format {layout} names no CLIP model; leave --vision-tower out")
    if layout == "adapter" and target.suffix != ".safetensors":
        target = target.with_name(target.name + ".safetensors")
    if target.exists() and not (target.is_dir() and layout != "adapter" and not any(target.iterdir())):
        raise EmmaError(f"{target} exists already; move it away, or choose another target")
    model = read_model_folder(source_folder(source))
    partial = target.with_name(target.name + ".partial")
    try:
        _remove(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        if layout == "adapter":
            write_adapter(model, partial)
        else:
            partial.mkdir()
            if layout == "llm":
                write_llm(model, partial)
            elif layout == "llava-hf":
                write_llava_hf(model, partial)
            else:
                write_released(model, partial, layout, vision_tower, target)
        partial.rename(target)
    except OSError as error:
        raise EmmaError(f"cannot export to {target}: {describe_os_error(error)}") from error
    except EmmaError:
        _remove(partial)
        raise
    logger.info("wrote %s", target)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
