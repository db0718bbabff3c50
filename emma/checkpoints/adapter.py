"""The record of an adapter folder, `lora.json`: the base model that it needs, and how LoRA is put into it. No torch."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.checkpoints.fingerprint import fingerprint
from emma.errors import EmmaError

RECORD = "lora.json"
WEIGHTS = "adapter.safetensors"  # LoRA and the adapter (instruction projection, alignment, projector), float32


@dataclass(frozen=True)
class Adapter:
    """What makes a model of a base folder and the tensors in `adapter.safetensors`.

    Args:
        base: absolute path of the base folder when the adapter was trained.
        base_from_here: the same from the adapter folder, for runs that are moved as a whole.
        base_fingerprint: the base's identity, by content.
        lora: arguments of `emma.model.lora.inject`: `rank`, `alpha`, `dropout`, `targets`.
        quantization: of the base while it was trained on: `none`, `nf4` or `int8`.
    """

    base: str
    base_from_here: str
    base_fingerprint: str
    lora: dict[str, Any]
    quantization: str = "none"

    @classmethod
    def of(
        cls, folder: Path, base: Path, lora: dict[str, Any], quantization: str, base_fingerprint: str | None = None
    ) -> "Adapter":
        """The record for an adapter folder (which need not exist yet) that was trained on `base`.

        Args:
            base_fingerprint: the base's when it was loaded; None: it cannot have changed since.
        """
        base = base.absolute()
        from_here = os.path.relpath(base, folder.absolute())
        return cls(str(base), from_here, base_fingerprint or fingerprint(base), lora, quantization)

    def write(self, folder: Path) -> None:
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def find_base(self, folder: Path) -> Path:
        """The base folder of the adapter in `folder`: where it was, or at the same place relative to the adapter.

        Raises:
            EmmaError: it is in neither place, or what is there is another model.
        """
        places = list(dict.fromkeys(Path(os.path.abspath(p)) for p in (self.base, folder / self.base_from_here)))
        there = [place for place in places if place.is_dir()]
        for place in there:
            if fingerprint(place) == self.base_fingerprint:
                return place
        remedy = f"put the base back there, or write its place as base into {folder / RECORD}"
        if there:
            raise EmmaError(
                f"{folder} is a LoRA adapter of another base: {there[0]} has the fingerprint {fingerprint(there[0])}, "
                f"not {self.base_fingerprint}: it was trained again or changed; {remedy}"
            )
        raise EmmaError(
            f"{folder} is a LoRA adapter and needs its base model, which is not at "
            f"{' nor at '.join(map(str, places))}; {remedy}"
        )


def read_adapter(folder: str | Path) -> Adapter | None:
    """The record of an adapter folder; None when it is none.

    Raises:
        EmmaError: the record is damaged.
    """
    file = Path(folder) / RECORD
    try:
        return Adapter(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise EmmaError(f"{file} is damaged ({error}); copy the folder again") from error
