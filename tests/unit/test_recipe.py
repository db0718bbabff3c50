"""The recipe: strict keys and types, overrides, and what a resumption compares."""

import subprocess
import sys

import pytest

from emma.errors import EmmaError
from emma.paths import project_root
from emma.train.identity import differences, identity, recipe_hash
from emma.train.recipe import load_recipe, to_yaml

YAML = """
name: x
model: {llm: a, clip: b}
pretrain:
  data: [{annotations: a.json, images: im}]
  learning_rate: 1e-3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML)
    return path


def test_defaults_overrides_and_round_trip(file):
    recipe = load_recipe(
        file,
        [
            "finetune.learning_rate=2e-4",
            "finetune.data=[{annotations: q, images: r, repeat: 2}]",
            "pretrain.data[0].repeat=3",
            "finetune.trainer.adam_beta2=0.95",
            "finetune.eval_instruction.text=whole",
            "finetune.init=null",
        ],
    )
    assert recipe.output == "runs/x"
    assert (recipe.pretrain.learning_rate, recipe.finetune.learning_rate) == (1e-3, 2e-4)
    first, second = recipe.pretrain, recipe.finetune
    assert (first.template, first.image_mode, first.batch_size) == ("plain", "square", 256)
    assert (second.template, second.image_mode, second.batch_size) == ("vicuna_v1", "pad", 128)
    assert (recipe.pretrain.data[0].repeat, recipe.finetune.data[0].repeat) == (3, 2)
    assert recipe.finetune.trainer == {"adam_beta2": 0.95}
    assert (recipe.finetune.eval_instruction.text, recipe.finetune.eval_instruction.turn) == ("whole", "last")
    file.write_text(to_yaml(recipe))
    assert load_recipe(file) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.lerning_rate=1", "unknown key finetune.lerning_rate; did you mean finetune.learning_rate?"),
        ("learning_rate=1", "did you mean pretrain.learning_rate or finetune.learning_rate?"),
        ("finetune.data=[{annotatons: q}]", "did you mean finetune.data.annotations?"),
        ("finetune.optim=adamw", "further transformers arguments go under trainer:"),
        ("finetune.batch_size=abc", "finetune.batch_size: Value 'abc'"),
        ("finetune.batch_size=2.5", "finetune.batch_size: Value '2.5'"),
        ("model=3", "int is not a subclass of ModelRecipe"),
        ("finetune.data=[{annotations: q}]", r"finetune.data\[0\].images.* mandatory"),
        ("finetune.data[4].repeat=2", "finetune.data has 0 entries"),
        ("model.alignment=liner", "'liner' is not one of linear, cross_attention, none; did you mean linear?"),
        ("pretrain.keep=0", "pretrain.keep: 0 must be at least 1"),
        ("pretrain.learning_rate=-1", "must be positive"),
        ("pretrain.report_to=[mlflow]", "mlflow is not one of wandb, tensorboard, trackio"),
        ("pretrain.init=x", "only finetune has an init"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_wrong_settings_are_named(file, override, message):
    with pytest.raises(EmmaError, match=message):
        load_recipe(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "must be a mapping"),
        ("", "name is required but not set"),
        ("name: q", "model.llm.* mandatory"),
        (YAML + "  seed: 3", "unknown key pretrain.seed; did you mean seed?"),
    ],
)
def test_wrong_files_are_named(file, text, message):
    file.write_text(text)
    with pytest.raises(EmmaError, match=message):
        load_recipe(file)


def test_missing_file(tmp_path):
    with pytest.raises(EmmaError, match=r"no.yaml does not exist"):
        load_recipe(tmp_path / "no.yaml")


def test_hash_covers_what_decides_and_nothing_else(file):
    base = load_recipe(file)
    free = ["pretrain.log_every=1", "pretrain.workers=0", "pretrain.micro_batch=2", "output=elsewhere", "name=y"]
    free += ["pretrain.packing=true", "pretrain.text_cache=false", "pretrain.feature_cache=cache"]
    assert recipe_hash(load_recipe(file, free), "pretrain") == recipe_hash(base, "pretrain")
    for decisive in ("seed=1", "pretrain.batch_size=4", "model.text_layer=final", "pretrain.instruction.turn=last"):
        other = load_recipe(file, [decisive])
        assert recipe_hash(other, "pretrain") != recipe_hash(base, "pretrain")
        assert recipe_hash(other, "finetune") != recipe_hash(base, "finetune"), "which starts from pretraining"
    own_init = load_recipe(file, ["finetune.init=m"])
    changed = load_recipe(file, ["finetune.init=m", "pretrain.batch_size=4"])
    assert recipe_hash(own_init, "finetune") == recipe_hash(changed, "finetune")
    other = load_recipe(file, ["pretrain.batch_size=4", "pretrain.trainer.adam_beta2=0.9"])
    assert differences(identity(base, "pretrain"), identity(other, "pretrain")) == [
        "pretrain.batch_size: 256 -> 4",
        "pretrain.trainer: {} -> absent",
        "pretrain.trainer.adam_beta2: absent -> 0.9",
    ]


@pytest.mark.parametrize("name", ["emma-7b", "llava-7b"])
def test_published_recipes_have_llava_1_5_s_settings(name):
    recipe = load_recipe(project_root() / "configs" / f"{name}.yaml")
    assert recipe.model.alignment == ("linear" if name == "emma-7b" else "none")
    for stage, batch, rate, template, mode in (
        (recipe.pretrain, 256, 1e-3, "plain", "square"),
        (recipe.finetune, 128, 2e-5, "vicuna_v1", "pad"),
    ):
        assert (stage.batch_size, stage.learning_rate) == (batch, rate)
        assert (stage.template, stage.image_mode) == (template, mode)
        assert (stage.epochs, stage.max_steps, stage.warmup, stage.schedule) == (1, None, 0.03, "cosine")
        assert (stage.weight_decay, stage.max_grad_norm, stage.max_length) == (0, 1, 2048)
        assert stage.gradient_checkpointing


def test_reading_a_recipe_loads_no_torch():
    code = "import sys, emma.train; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project_root(), timeout=60).returncode == 0
