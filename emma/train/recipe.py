"""The typed, strict configuration of a run: dataclasses that a YAML file and `key=value` overrides must fit."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from emma.errors import EmmaError

STAGES = ("pretrain", "finetune")


def choice(default: str, *options: str) -> Any:
    """A string field with a closed set of values."""
    return field(default=default, metadata={"choices": (default, *options)})


@dataclass
class ModelRecipe:
    """What the model is made of. `llm` and `clip` are folders, or names for `assets.find_asset` to look up."""

    llm: str = MISSING
    clip: str = MISSING
    assets: str = "playground/models"
    alignment: str = choice("linear", "cross_attention", "none")
    text_layer: str = choice("penultimate", "final")
    projector: str = choice("mlp2x_gelu", "linear")


@dataclass
class DataSource:
    """One annotation file in LLaVA's format; `images` is the folder that its image paths start from."""

    annotations: str = MISSING
    images: str = MISSING
    repeat: int = 1


@dataclass
class InstructionRecipe:
    """Which words of the conversation the CLIP text encoder reads."""

    text: str = choice("question", "whole", "first_line", "released")
    turn: str = choice("random", "first", "last", "shortest")
    over_77: str = choice("truncate", "error")


@dataclass
class EvalInstructionRecipe(InstructionRecipe):
    """The same for evaluation, chat and serving, where the current turn is what is asked."""

    turn: str = choice("last", "first", "shortest", "random")


@dataclass
class LoraRecipe:
    """Low-rank matrices that are trained in place of the LLM; the defaults are LLaVA-1.5's."""

    rank: int = 128
    alpha: int = 256  # the product is scaled by alpha / rank
    dropout: float = 0.05
    targets: list[str] | None = None  # names of linear layers, such as q_proj; default: all of the LLM's blocks


@dataclass
class StageRecipe:
    """One training stage. Batch sizes count samples; lengths count tokens, visual tokens included."""

    data: list[DataSource] = field(default_factory=list)
    template: str = choice("vicuna_v1", "plain", "tokenizer")
    image_mode: str = choice("pad", "square")
    instruction: InstructionRecipe = field(default_factory=InstructionRecipe)
    eval_instruction: EvalInstructionRecipe | None = None  # default: the training text of the current turn
    lora: LoraRecipe | None = None  # finetune: instead of the whole LLM
    quantization: str = choice("none", "nf4", "int8")  # of the frozen LLM under LoRA
    learning_rate: float = 2e-5
    adapter_learning_rate: float | None = None  # finetune: of instruction projection, alignment and projector
    batch_size: int = 128  # samples per optimizer step, over all processes
    micro_batch: int | None = None  # samples per process and forward; default: the whole share of the process
    epochs: float = 1.0
    max_steps: int | None = None  # instead of epochs
    max_length: int = 2048
    over_length: str = choice("truncate", "drop", "error")
    warmup: float = 0.03  # share of all steps below 1, else steps
    schedule: str = choice("cosine", "linear", "constant", "constant_with_warmup")
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # 0: no clipping
    loss_norm: str = choice("global", "microbatch")
    precision: str = choice("auto", "fp32", "bf16")
    packing: bool = False  # several samples in one row; same losses
    text_cache: bool = False  # remember the text features of repeated instructions
    feature_cache: str | None = None  # folder of vision features that are encoded once; same losses
    gradient_checkpointing: bool = False
    save_every: int = 500
    keep: int = 2  # newest complete checkpoints that stay
    log_every: int = 10
    report_to: list[str] = field(default_factory=list)  # wandb, tensorboard, trackio
    deepspeed: str | None = None  # JSON file, such as configs/deepspeed/zero2.json
    fsdp: str | None = None  # JSON file, configs/fsdp2.json, as an alternative to deepspeed
    workers: int = 4
    init: str | None = None  # finetune: model folder to start from; default: the output of this recipe's pretraining
    trainer: dict[str, Any] = field(default_factory=dict)  # further transformers.TrainingArguments


@dataclass
class PretrainRecipe(StageRecipe):
    """Stage 1, with LLaVA-1.5's settings as defaults."""

    template: str = choice("plain", "vicuna_v1", "tokenizer")
    image_mode: str = choice("square", "pad")
    instruction: InstructionRecipe = field(default_factory=lambda: InstructionRecipe(text="whole", turn="first"))
    learning_rate: float = 1e-3
    batch_size: int = 256
    text_cache: bool = True  # captions are asked for in a handful of phrases


@dataclass
class Recipe:
    """A run of two stages; outputs go to OUTPUT/pretrain and OUTPUT/finetune."""

    source: ClassVar[str] = "CONFIG"  # file that it was read from, for messages
    name: str = MISSING
    output: str = "runs/${name}"
    seed: int = 42
    model: ModelRecipe = field(default_factory=ModelRecipe)
    pretrain: PretrainRecipe = field(default_factory=PretrainRecipe)
    finetune: StageRecipe = field(default_factory=StageRecipe)

    def stage(self, name: str) -> StageRecipe:
        """The settings of `pretrain` or `finetune`."""
        if name not in STAGES:
            raise EmmaError(f"stage {name!r} is not one of {', '.join(STAGES)}")
        return getattr(self, name)


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a YAML recipe and apply `key=value` overrides.

    Raises:
        EmmaError: missing file, unknown key (names the nearest valid one), wrong type or value, missing required key.
    """
    path = Path(path)
    if not path.is_file():
        raise EmmaError(f"config {path} {'is a directory' if path.is_dir() else 'does not exist'}")
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise EmmaError(f"config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, DictConfig):
        raise EmmaError(f"config {path} must be a mapping with the keys {', '.join(_fields(Recipe))}")
    recipe = OmegaConf.structured(Recipe)
    _check_keys(OmegaConf.to_container(loaded), Recipe, str(path))
    try:
        recipe = OmegaConf.merge(recipe, loaded)
        for override in overrides:
            _apply(recipe, override)
        if OmegaConf.is_missing(recipe, "name"):
            raise EmmaError(f"config {path}: name is required but not set; it says where the run goes, runs/NAME")
        OmegaConf.resolve(recipe)
        result = OmegaConf.to_object(recipe)
    except OmegaConfBaseException as error:
        raise EmmaError(f"config {path}: {_sentence(error)}") from None
    _check_values(result)
    result.source = str(path)
    _check_pretrain(result.pretrain)
    return result


def _apply(recipe: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise EmmaError(f"override {override!r} is not of the form key=value")
    key = key.strip()
    parsed = OmegaConf.create({"value": None})
    try:
        parsed = OmegaConf.create(f"value: {value}" if value.strip() else "value: ''")
    except YAMLError:
        parsed = OmegaConf.create({"value": value})
    node: Any = OmegaConf.to_container(parsed)["value"]
    tree: Any = node
    names = key.replace("[", ".").replace("]", "").split(".")
    for name in reversed(names):
        tree = [tree] if name.isdigit() else {name: tree}
    _check_keys(tree, Recipe, "command line")
    numbers = [at for at, name in enumerate(names) if name.isdigit()]
    if numbers:
        entries = OmegaConf.select(recipe, ".".join(names[: numbers[0]]))
        if int(names[numbers[0]]) >= len(entries or []):
            raise EmmaError(f"override {override!r}: {'.'.join(names[: numbers[0]])} has {len(entries or [])} entries")
        OmegaConf.update(recipe, key, node, merge=True)
    else:
        recipe.merge_with(tree)


def _fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _inner(hint: Any) -> tuple[Any, bool]:
    """(dataclass inside an annotation or None, whether it stands in a list)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is list:
        return _inner(typing.get_args(hint)[0])[0], True
    return (hint, False) if dataclasses.is_dataclass(hint) else (None, False)


def _paths(kind: type, prefix: str = "") -> list[str]:
    """All dotted keys of a recipe."""
    found = []
    for name, hint in _fields(kind).items():
        found.append(prefix + name)
        inner, _ = _inner(hint)
        if inner is not None:
            found += _paths(inner, f"{prefix}{name}.")
    return found


def _check_keys(tree: Any, kind: type, where: str, prefix: str = "") -> None:
    if not isinstance(tree, dict):
        return
    known = _fields(kind)
    for key, value in tree.items():
        if key not in known:
            raise EmmaError(f"{where}: unknown key {prefix}{key}; {_nearest(str(key), prefix, kind)}")
        inner, many = _inner(known[key])
        if inner is None:
            continue
        for item in value if many and isinstance(value, list) else [value]:
            _check_keys(item, inner, where, f"{prefix}{key}.")


def _nearest(key: str, prefix: str, kind: type) -> str:
    leaves = [path for path in _paths(Recipe) if path.rsplit(".", 1)[-1] == key]
    near = difflib.get_close_matches(key, _fields(kind), n=1, cutoff=0.6)
    if near and not leaves:
        return f"did you mean {prefix}{near[0]}?"
    if not leaves:
        close = difflib.get_close_matches(key, {p.rsplit(".", 1)[-1] for p in _paths(Recipe)}, n=1, cutoff=0.7)
        leaves = [path for path in _paths(Recipe) if close and path.rsplit(".", 1)[-1] == close[0]]
    if leaves:
        return f"did you mean {' or '.join(leaves)}?"
    further = "; further transformers arguments go under trainer:" if kind in (StageRecipe, PretrainRecipe) else ""
    return f"known keys here: {', '.join(_fields(kind))}{further}"


def _sentence(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None)
    text = (getattr(error, "msg", None) or str(error)).split("\n")[0]
    return f"{key}: {text}" if key and key not in text else text


def _check_values(node: Any, prefix: str = "") -> None:
    """Closed sets of values, positive numbers, and required keys."""
    for item in dataclasses.fields(node):
        value, name = getattr(node, item.name), f"{prefix}{item.name}"
        options = item.metadata.get("choices")
        if options and value not in options:
            near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise EmmaError(f"{name}: {value!r} is not one of {', '.join(options)}{hint}")
        if isinstance(value, str) and value == MISSING:
            raise EmmaError(f"{name} is required but not set")
        if dataclasses.is_dataclass(value):
            _check_values(value, f"{name}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for number, entry in enumerate(value):
                _check_values(entry, f"{name}[{number}].")
    if isinstance(node, StageRecipe):
        _check_stage(node, prefix)
    if isinstance(node, DataSource) and node.repeat < 1:
        raise EmmaError(f"{prefix}repeat: {node.repeat} must be at least 1")


def _check_stage(stage: StageRecipe, prefix: str) -> None:
    for name in ("batch_size", "micro_batch", "max_steps", "max_length", "save_every", "keep", "log_every"):
        value = getattr(stage, name)
        if value is not None and value < 1:
            raise EmmaError(f"{prefix}{name}: {value} must be at least 1")
    for name in ("warmup", "weight_decay", "max_grad_norm", "workers"):
        if getattr(stage, name) < 0:
            raise EmmaError(f"{prefix}{name}: {getattr(stage, name)} must not be negative")
    for name in ("learning_rate", "adapter_learning_rate", "epochs"):
        value = getattr(stage, name)
        if value is not None and not value > 0:
            raise EmmaError(f"{prefix}{name}: {value} must be positive")
    if stage.deepspeed is not None and stage.fsdp is not None:
        raise EmmaError(
            f"{prefix}deepspeed: {stage.deepspeed} and {prefix}fsdp: {stage.fsdp} exclude each other; set one to null"
        )
    if stage.lora is not None:
        _check_lora(stage.lora, f"{prefix}lora.")
    elif stage.quantization != "none":
        raise EmmaError(
            f"{prefix}quantization: {stage.quantization} goes with finetune.lora only, since packed weights cannot be "
            f"trained themselves; set finetune.lora={{}}, or {prefix}quantization=none"
        )
    if unknown := set(stage.report_to) - {"wandb", "tensorboard", "trackio"}:
        raise EmmaError(f"{prefix}report_to: {', '.join(sorted(unknown))} is not one of wandb, tensorboard, trackio")


def _check_lora(lora: LoraRecipe, prefix: str) -> None:
    if lora.rank < 1 or lora.alpha < 1:
        raise EmmaError(f"{prefix}rank {lora.rank} and {prefix}alpha {lora.alpha} must be positive")
    if not 0 <= lora.dropout < 1:
        raise EmmaError(f"{prefix}dropout: {lora.dropout:g} must be at least 0 and below 1")
    if lora.targets is not None and not lora.targets:
        raise EmmaError(f"{prefix}targets is empty; name linear layers, or leave it out for all of them")


def _check_pretrain(stage: PretrainRecipe) -> None:
    """Settings that have a meaning in fine-tuning only."""
    if stage.init is not None:
        raise EmmaError("pretrain.init: pretraining starts from model.llm and model.clip; only finetune has an init")
    if stage.lora is not None:
        raise EmmaError("pretrain.lora: stage 1 leaves the LLM as it is; set finetune.lora")
    if stage.adapter_learning_rate is not None:
        raise EmmaError("pretrain.adapter_learning_rate: stage 1 trains nothing else; set pretrain.learning_rate")


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that `load_recipe` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
