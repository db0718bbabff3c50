"""The description of a folder or file of weights: what it is, its parts, alignment, settings, origin, and its state."""

import json
from pathlib import Path
from typing import Any

from emma.checkpoints.adapter import RECORD as LORA_RECORD
from emma.checkpoints.provenance import PROVENANCE
from emma.checkpoints.seal import SEAL, defects
from emma.checkpoints.showing.inventory import Inventory, take_inventory
from emma.checkpoints.showing.kinds import alignment_names, kind_of, parts_of
from emma.checkpoints.showing.missing import missing_tensors
from emma.errors import EmmaError

# What is printed of a configuration, by whoever wrote it; --json has all of it.
_SETTINGS = (
    "model_type", "alignment", "text_layer", "projector", "learnable_tokens", "encoder_version",
    "num_learnable_tokens", "mm_text_select_layer", "mm_vision_tower", "mm_projector_type", "image_aspect_ratio",
    "template", "image_mode", "instruction", "eval_instruction", "base_model_name_or_path", "base", "lora",
    "quantization", "num_visual_tokens", "context_length", "image_size", "hidden_size", "num_hidden_layers",
    "vocab_size",
)  # fmt: skip
_CONFIGS = ("config.json", "processor_config.json", "adapter_config.json", LORA_RECORD, "open_clip_config.json")


def describe(path: Path) -> dict[str, Any]:
    """What is known of a folder or file, as JSON values: `path`, `kind`, `bytes`, `parts`, `alignment`, `settings`,
    `config`, `provenance`, `problems` (what is missing or damaged; empty if nothing is known to be).

    Raises:
        EmmaError: there is nothing at all.
    """
    if not path.exists():
        raise EmmaError(f"{path} does not exist; give a folder or file of weights")
    problems: list[str] = []
    configs = {name: _json(path / name, problems) for name in _CONFIGS} if path.is_dir() else {}
    found = take_inventory(path)
    config = configs.get("config.json") or json.loads(found.metadata.get("config", "{}"))
    kind = kind_of(path, config, found)
    problems += found.problems
    if "this project" in kind:
        problems += [f"{SEAL}: {defect}" for defect in defects(path)]
    if kind.startswith("EMMA model folder"):
        problems += missing_tensors(config, found)
    return {
        "path": str(path.absolute()),
        "kind": kind,
        "bytes": _size(path),
        "parts": _parts(config, found),
        "alignment": _alignment(found, problems),
        "settings": _settings(configs, config),
        "config": config,
        "provenance": _json(path / PROVENANCE, problems) if path.is_dir() else {},
        "problems": problems,
    }


def _json(file: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty, and a problem, if there is none in the file."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        problems.append(f"{file.name} is damaged ({error})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{file.name} holds no JSON object")
        return {}
    return value


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _parts(config: dict[str, Any], found: Inventory) -> dict[str, dict[str, Any]]:
    parts = {}
    for part, tensors in parts_of(config, found).items():
        parts[part] = {
            "tensors": len(tensors),
            "parameters": sum(tensor.parameters for tensor in tensors),
            "bytes": sum(tensor.size for tensor in tensors),
            "dtypes": sorted({tensor.dtype for tensor in tensors}),
        }
    return parts


def _alignment(found: Inventory, problems: list[str]) -> dict[str, float]:
    """Norms of the linear alignment W = [W_v | W_t], b; the only tensors whose values are read."""
    values = {}
    for ours, name in alignment_names(found).items():
        try:
            values[ours.removeprefix("alignment.")] = _value(found, name).double()
        except (EmmaError, OSError, RuntimeError, ValueError) as error:
            problems.append(f"{name} cannot be read ({' '.join(str(error).split())[:120]})")
    statistics = {}
    if "weight" in values and values["weight"].ndim == 2:
        weight = values["weight"]
        tokens = min(weight.shape)
        visual, text = weight[:, :tokens], weight[:, tokens:]
        statistics["visual_norm"] = visual.norm().item()
        statistics["text_norm"] = text.norm().item()
        visual.diagonal().sub_(1)
        statistics["distance_from_identity"] = visual.norm().item()
    if "bias" in values:
        statistics["bias_norm"] = values["bias"].norm().item()
    if "learnable_tokens" in values:
        statistics["learnable_tokens_norm"] = values["learnable_tokens"].norm().item()
    return statistics


def _value(found: Inventory, name: str) -> Any:
    from safetensors import SafetensorError

    from emma.checkpoints.importing.tensor_files import tensors_of

    tensor = found.tensors[name]
    try:
        return tensors_of(tensor.file)[tensor.stored].read().clone()
    except SafetensorError as error:
        raise EmmaError(str(error)) from error


def _settings(configs: dict[str, dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """The keys of `_SETTINGS`, from the outermost configuration that has them, and of the parts with dots."""
    sources: dict[str, dict[str, Any]] = {"": config}
    for name in ("processor_config.json", "adapter_config.json", LORA_RECORD):
        sources[""] = configs.get(name, {}) | sources[""]
    for part in ("text_config", "tower_config", "vision_config"):
        if isinstance(config.get(part), dict):
            sources[f"{part.removesuffix('_config')}."] = config[part]
    return {
        f"{prefix}{key}": values[key]
        for prefix, values in sources.items()
        for key in (("name", *_SETTINGS) if prefix == "tower." else _SETTINGS)
        if values.get(key) is not None
    }


# ------------------------------------------------------------------------------------------------------------- print


def print_description(facts: dict[str, Any]) -> None:
    """For people, on standard output."""
    print(facts["path"])
    print(f"{facts['kind']}, {_gigabytes(facts['bytes'])} on disk")
    if facts["parts"]:
        print(f"\n{'part':24}{'tensors':>8}{'parameters':>16}{'size':>12}  dtypes")
        for part, values in facts["parts"].items():
            print(
                f"{part:24}{values['tensors']:>8}{values['parameters']:>16,}{_gigabytes(values['bytes']):>12}  "
                f"{', '.join(values['dtypes'])}"
            )
        total = {
            key: sum(values[key] for values in facts["parts"].values()) for key in ("tensors", "parameters", "bytes")
        }
        print(f"{'all':24}{total['tensors']:>8}{total['parameters']:>16,}{_gigabytes(total['bytes']):>12}")
    _section("alignment W = [W_v | W_t], b (Frobenius norms)", {k: f"{v:.6g}" for k, v in facts["alignment"].items()})
    _section("settings", facts["settings"])
    _section("origin", _origin(facts["provenance"]))
    print(f"\n{'missing or damaged:' if facts['problems'] else 'nothing is missing or damaged, by names and sizes'}")
    for problem in facts["problems"]:
        print(f"  {problem}")


def _section(title: str, values: dict[str, Any]) -> None:
    if values:
        print(f"\n{title}")
        for key, value in values.items():
            print(f"  {key:24} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


def _origin(provenance: dict[str, Any]) -> dict[str, Any]:
    """The parts of a provenance that fit on a line each."""
    kept = {
        key: value for key, value in provenance.items() if not isinstance(value, (dict, list)) and value is not None
    }
    for key in ("imported", "merged"):
        if isinstance(provenance.get(key), dict):
            kept |= {f"{key} {k}": v for k, v in provenance[key].items() if isinstance(v, str)}
    return kept


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
