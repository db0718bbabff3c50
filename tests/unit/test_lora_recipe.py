"""Settings of LoRA: defaults, what decides about a result, and the sentences for what does not go together."""

import dataclasses
import importlib.util

import pytest

from emma.errors import EmmaError
from emma.paths import project_root
from emma.train import load_recipe
from emma.train.arguments import training_arguments
from emma.train.identity import identity, recipe_hash
from emma.train.recipe import to_yaml

CONFIGS = project_root() / "configs"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{name: x, model: {llm: a, clip: b}, finetune: {batch_size: 4}}")
    return path


def test_defaults_are_llava_1_5_s_and_survive_the_round_trip(file, tmp_path):
    assert load_recipe(file).finetune.lora is None
    recipe = load_recipe(file, ["finetune.lora={}"])
    assert dataclasses.asdict(recipe.finetune.lora) == {"rank": 128, "alpha": 256, "dropout": 0.05, "targets": None}
    recipe = load_recipe(file, ["finetune.lora.rank=8", "finetune.lora.targets=[q_proj]"])
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert load_recipe(tmp_path / "again.yaml").finetune == recipe.finetune


def test_what_decides(file):
    def hash_of(*overrides):
        return recipe_hash(load_recipe(file, overrides), "finetune")

    plain = hash_of()
    for change in ("lora={}", "adapter_learning_rate=1e-5"):
        assert hash_of(f"finetune.{change}") != plain
    lora = hash_of("finetune.lora={}")
    for change in ("lora.rank=4", "lora.alpha=4", "lora.dropout=0", "lora.targets=[q_proj]", "quantization=nf4"):
        assert hash_of("finetune.lora={}", f"finetune.{change}") != lora
    assert "lora" not in identity(load_recipe(file), "finetune")["finetune"], "earlier runs without it go on"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["finetune.quantization=nf4"],
            r"finetune\.quantization: nf4 goes with finetune\.lora only.*finetune\.quantization=none",
        ),
        (["finetune.quantization=int4", "finetune.lora={}"], r"'int4' is not one of none, nf4, int8"),
        (["pretrain.lora={}"], r"pretrain\.lora: stage 1 leaves the LLM as it is; set finetune\.lora"),
        (["pretrain.adapter_learning_rate=1"], r"pretrain\.adapter_learning_rate: .*set pretrain\.learning_rate"),
        (["finetune.adapter_learning_rate=0"], r"finetune\.adapter_learning_rate: 0\.0 must be positive"),
        (["finetune.lora.rank=0"], r"finetune\.lora\.rank 0 and finetune\.lora\.alpha 256 must be positive"),
        (["finetune.lora.dropout=1"], r"finetune\.lora\.dropout: 1 must be at least 0 and below 1"),
        (["finetune.lora.targets=[]"], r"finetune\.lora\.targets is empty"),
        (["finetune.lora.rnk=4"], r"did you mean finetune\.lora\.rank"),
    ],
)
def test_settings_that_do_not_go_together(file, overrides, message):
    with pytest.raises(EmmaError, match=message):
        load_recipe(file, overrides)


def test_quantised_weights_are_not_split(file, tmp_path, monkeypatch):
    monkeypatch.setattr("emma.train.arguments.fsdp_settings", lambda stage, name, cuda: {})  # refuses a CPU before
    overrides = ["finetune.lora={}", "finetune.quantization=nf4"]
    for more, engine in (
        (f"finetune.deepspeed={CONFIGS}/deepspeed/zero3.json", "ZeRO-3"),
        (f"finetune.fsdp={CONFIGS}/fsdp2.json", "FSDP"),
    ):
        stage = load_recipe(file, [*overrides, more]).finetune
        with pytest.raises(
            EmmaError, match=rf"quantization nf4 does not go with {engine}: .*cannot be split.*DDP.*ZeRO-2"
        ):
            training_arguments(stage, "finetune", tmp_path, 0)


def test_a_file_that_is_not_deepspeed_s(file, tmp_path):
    stage = load_recipe(file, [f"finetune.deepspeed={tmp_path}/ds.json"]).finetune
    for text, reason in (
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"zero_optimization": 3}', r"zero_optimization\.stage is null"),
        ('{"zero_optimization": {"stage": "auto"}}', r'zero_optimization\.stage is "auto"'),
    ):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(EmmaError, match=rf"finetune\.deepspeed: .*ds\.json:? {reason}"):
            training_arguments(stage, "finetune", tmp_path, 0)


@pytest.mark.parametrize(
    ("lora", "deepspeed", "reentrant"),
    [("{}", "zero3", True), ("{}", "zero3_offload", True), ("{}", "zero2", False), ("null", "zero3", False)],
)
def test_checkpointing_is_reentrant_exactly_for_lora_under_zero_3(
    file, tmp_path, monkeypatch, lora, deepspeed, reentrant
):
    from transformers import TrainingArguments

    seen = {}
    # Before it starts DeepSpeed, which one process without a launcher cannot.
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: seen.update(vars(self)))
    overrides = [
        f"finetune.lora={lora}",
        "finetune.gradient_checkpointing=true",
        f"finetune.deepspeed={CONFIGS}/deepspeed/{deepspeed}.json",
    ]
    training_arguments(load_recipe(file, overrides).finetune, "finetune", tmp_path, 0)
    used = [value for key, value in seen.items() if key.endswith("checkpointing_kwargs") and value]
    assert used == [{"use_reentrant": reentrant}]


def test_bitsandbytes_that_is_not_installed(monkeypatch):
    import torch

    from emma.model.quantization import quantized_loading

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmmaError, match=r"nf4 needs bitsandbytes, .*pip install -e '\.\[quantization\]'"):
        quantized_loading(None, "nf4", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", ["emma-7b-lora", "emma-7b-qlora"])
def test_published_recipes(name):
    recipe, full = load_recipe(CONFIGS / f"{name}.yaml"), load_recipe(CONFIGS / "emma-7b.yaml")
    tuned = recipe.finetune
    assert dataclasses.asdict(tuned.lora) == {"rank": 128, "alpha": 256, "dropout": 0.05, "targets": None}
    assert (tuned.learning_rate, tuned.adapter_learning_rate) == (2e-4, 2e-5)
    assert tuned.quantization == ("nf4" if name.endswith("qlora") else "none")
    assert tuned.deepspeed == (None if name.endswith("qlora") else "configs/deepspeed/zero2.json")
    assert (tuned.data, tuned.template, tuned.batch_size) == (
        full.finetune.data,
        full.finetune.template,
        full.finetune.batch_size,
    )
    assert recipe.model == full.model
    for own, theirs in ((recipe.pretrain, full.pretrain),):
        assert dataclasses.asdict(own) | {"deepspeed": None} == dataclasses.asdict(theirs) | {"deepspeed": None}
