"""Whole small training runs on a two-layer model: what they change, save and log, and how they go on."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from emma.errors import EmmaError
from emma.train import TrainingStopped, load_recipe, run
from emma.train.saving import checkpoints

RECIPE = """
name: test
output: {root}/runs/test
seed: 5
model: {{llm: {root}/llm, clip: {root}/clip}}
pretrain:
  data: [{{annotations: {root}/captions.json, images: {root}/images}}]
  batch_size: 4
  max_steps: 6
  max_length: 128
  learning_rate: 1e-3
  save_every: 2
  log_every: 2
  workers: 0
finetune:
  data: [{{annotations: {root}/chats.json, images: {root}/images}}]
  batch_size: 4
  max_steps: 6
  max_length: 256
  learning_rate: 1e-3
  save_every: 2
  log_every: 2
  workers: 0
"""


@pytest.fixture(scope="module")
def assets(tmp_path_factory, tiny_clip, _tiny_llm, tiny_tokenizer):
    """A folder with LLM, CLIP, images, annotations and a recipe."""
    root = tmp_path_factory.mktemp("assets dir")
    _tiny_llm.save_pretrained(root / "llm")
    tiny_tokenizer.save_pretrained(root / "llm")
    config, weights = tiny_clip
    (root / "clip").mkdir()
    architecture = {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "vision_cfg": config.vision_cfg,
        "text_cfg": config.text_cfg,
    }
    (root / "clip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    weights = {k: v.reshape(1) if v.ndim == 0 else v.contiguous() for k, v in weights.items()}
    save_file(weights, root / "clip" / "open_clip_model.safetensors")
    (root / "images").mkdir()
    colours = ("red", "green", "blue", "white", "black")
    for i in range(10):
        Image.new("RGB", (20 + i, 16), colours[i % 5]).save(root / "images" / f"{i}.png")
    captions, chats = [], []
    for i in range(10):
        colour = colours[i % 5]
        turns = [("human", "Describe it.\n<image>"), ("gpt", f"a {colour} picture" + " wide" * (i % 3))]
        captions.append(record(f"c{i}", f"{i}.png", turns))
        turns = [("human", "<image>\nWhat colour?"), ("gpt", colour), ("human", "How wide?"), ("gpt", str(20 + i))]
        chats.append(record(f"v{i}", f"{i}.png", turns))
    for i in range(5):
        chats.append(record(f"t{i}", None, [("human", f"Say {i}."), ("gpt", f"It is {i}.")]))
    (root / "captions.json").write_text(json.dumps(captions))
    (root / "chats.json").write_text(json.dumps(chats))
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return root


def record(name, image, turns):
    conversation = [{"from": role, "value": text} for role, text in turns]
    return {"id": name, **({"image": image} if image else {}), "conversations": conversation}


@pytest.fixture(scope="module")
def finished(assets, tmp_path_factory):
    """An uninterrupted run of both stages; (recipe, pretrain folder, finetune folder)."""
    output = tmp_path_factory.mktemp("finished")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={output}"])
    pretrained = run(recipe, "pretrain")
    return recipe, pretrained.parent, run(recipe, "finetune").parent


def weights(model_folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(model_folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def log_lines(stage_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (stage_folder / "log.jsonl").read_text().splitlines()]


def assert_same_model(one: Path, two: Path):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def part(name):
    first = name.split(".")[0]
    return first if first in ("towers", "llm") else "adapter"


def test_pretraining_changes_exactly_the_adapter(finished):
    _, folder, _ = finished
    before, after = weights(folder / "init"), weights(folder / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if part(name) == "adapter"}


def test_finetuning_changes_the_llm_too_and_no_tower(finished):
    _, pretrained, folder = finished
    before, after = weights(pretrained / "model"), weights(folder / "model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if part(name) in ("adapter", "llm")}


def test_log_holds_every_interval_once(finished):
    _, pretrained, tuned = finished
    for folder in (pretrained, tuned):
        lines = log_lines(folder)
        assert [line["step"] for line in lines] == [1, 2, 4, 6]
        for key in ("loss", "learning_rate", "grad_norm", "samples_per_second", "supervised_tokens_per_second"):
            assert all(isinstance(line[key], float) for line in lines)
        assert lines[-1]["epoch"] == pytest.approx(6 / (3 if folder is pretrained else 5))
        assert sum(line["supervised_tokens"] for line in lines) > 20
        assert 0 <= lines[-1]["data_wait"] <= 1


def test_saved_folder_has_the_stage_s_template_and_loads(finished):
    import emma

    _, pretrained, tuned = finished
    _, processor = emma.load(pretrained / "model", device="cpu")
    assert (processor.template, processor.image_mode, processor.instruction.text) == ("plain", "square", "whole")
    model, processor = emma.load(tuned / "model", device="cpu")
    assert (processor.template, processor.image_mode, processor.instruction.turn) == ("vicuna_v1", "pad", "random")
    assert "use_cache" not in json.loads((tuned / "model" / "config.json").read_text())
    assert (tuned / "model" / "train.yaml").is_file()
    facts = json.loads((tuned / "model" / "provenance.json").read_text())
    assert facts["stage"] == "finetune"
    assert facts["steps"] == 6
    assert facts["data"][0]["rows"] == 15
    assert not model.training


def test_finished_stage_returns_at_once(finished, monkeypatch):
    recipe, pretrained, tuned = finished
    monkeypatch.setattr("emma.train.session.train_stage", None)
    assert run(recipe, "pretrain") == pretrained / "model"
    assert run(recipe, "finetune") == tuned / "model"


def test_finished_stage_of_another_recipe_is_refused_with_the_difference(finished, assets):
    recipe, _, _ = finished
    other = load_recipe(assets / "recipe.yaml", [f"output={recipe.output}", "finetune.learning_rate=0.5"])
    with pytest.raises(EmmaError, match=r"finetune.learning_rate: 0.001 -> 0.5.*--resume never"):
        run(other, "finetune")


class Kill(BaseException):
    """Stands for a killed process: nothing in the project catches it."""


@pytest.fixture
def die_at(monkeypatch):
    """`die_at(step)`: the process "dies" at the end of this step, before anything is saved for it."""
    from emma.train.trainer import EmmaTrainer

    step_of_death = []
    original = EmmaTrainer._maybe_log_save_evaluate

    def dying(self, *args, **kwargs):
        if step_of_death and self.state.global_step == step_of_death[0]:
            raise Kill
        return original(self, *args, **kwargs)

    monkeypatch.setattr(EmmaTrainer, "_maybe_log_save_evaluate", dying)

    def arm(step):
        step_of_death[:] = [step] if step else []

    return arm


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_killed_and_resumed_ends_with_the_same_weights_and_log(finished, assets, tmp_path, die_at, stage):
    _, pretrained, tuned = finished
    reference = pretrained if stage == "pretrain" else tuned
    again = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}"])
    if stage == "finetune":
        shutil.copytree(pretrained / "model", tmp_path / "pretrain" / "model")
    folder = tmp_path / stage
    for step in (1, 3, 5):
        die_at(step)
        with pytest.raises(Kill):
            run(again, stage)
        assert max(checkpoints(folder)) == step - 1
    die_at(None)
    run(again, stage)
    assert_same_model(folder / "model", reference / "model")
    for ours, theirs in zip(log_lines(folder), log_lines(reference), strict=True):
        for key in ("step", "loss", "learning_rate", "grad_norm", "epoch", "supervised_tokens"):
            assert ours[key] == theirs[key], key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops_and_the_run_goes_on(finished, assets, tmp_path, monkeypatch, number):
    from emma.train.trainer import EmmaTrainer

    _, pretrained, _ = finished
    original = EmmaTrainer.compute_loss

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}"])
    with monkeypatch.context() as patch:
        patch.setattr(EmmaTrainer, "compute_loss", signalled)
        with pytest.raises(TrainingStopped) as stopped:
            run(recipe, "pretrain")
    assert stopped.value.code == 128 + number
    assert stopped.value.checkpoint == tmp_path / "pretrain" / "checkpoint-3"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    run(recipe, "pretrain")
    assert_same_model(tmp_path / "pretrain" / "model", pretrained / "model")
    assert [line["step"] for line in log_lines(tmp_path / "pretrain")] == [1, 2, 3, 4, 6]


def test_death_while_saving_leaves_the_previous_checkpoint(finished, assets, tmp_path, monkeypatch):
    import emma.train.trainer as trainer

    _, pretrained, _ = finished
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}"])
    folder = tmp_path / "pretrain"

    def dying(partial, target):
        if target.name == "checkpoint-4":
            raise Kill
        return original(partial, target)

    original = trainer.publish
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "publish", dying)
        with pytest.raises(Kill):
            run(recipe, "pretrain")
    assert (folder / "checkpoint-4.partial").is_dir()
    assert max(checkpoints(folder)) == 2
    run(recipe, "pretrain")
    assert_same_model(folder / "model", pretrained / "model")
    assert not list(folder.glob("*.partial"))


def test_incomplete_checkpoints_do_not_count_and_old_ones_go(finished, assets, tmp_path):
    _, pretrained, _ = finished
    assert list(checkpoints(pretrained)) == [4, 6], "keep: 2"
    copy = tmp_path / "pretrain"
    shutil.copytree(pretrained, copy)
    shutil.rmtree(copy / "model")
    with open(copy / "checkpoint-6" / "optimizer.pt", "ab") as file:
        file.write(b"x")
    assert list(checkpoints(copy)) == [4]
    (copy / "checkpoint-4" / "complete.json").unlink()
    assert checkpoints(copy) == {}
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}"])
    with pytest.raises(EmmaError, match="checkpoint-4 is not complete; complete ones: none"):
        run(recipe, "pretrain", str(copy / "checkpoint-4"))


def test_checkpoint_of_another_recipe_is_refused(finished, assets, tmp_path):
    _, pretrained, _ = finished
    shutil.copytree(pretrained, tmp_path / "pretrain")
    shutil.rmtree(tmp_path / "pretrain" / "model")
    changed = ["pretrain.max_steps=8", "pretrain.warmup=0.5", "pretrain.log_every=1"]
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", *changed])
    with pytest.raises(EmmaError, match=r"max_steps: 6 -> 8; recipe.pretrain.warmup: 0.03 -> 0.5") as refused:
        run(recipe, "pretrain")
    assert "log_every" not in str(refused.value), "what decides nothing may change"


def test_changed_data_is_refused(finished, assets, tmp_path):
    recipe, _, _ = finished
    other = tmp_path / "captions.json"
    other.write_text((assets / "captions.json").read_text().replace("wide", "broad"))
    changed = load_recipe(assets / "recipe.yaml", [f"output={recipe.output}", f"pretrain.data[0].annotations={other}"])
    with pytest.raises(EmmaError, match=r"data: \['captions.json sha256 \w+'\] -> \['captions.json sha256 \w+'\]\. "):
        run(changed, "pretrain")


def test_moved_data_and_free_settings_do_not_matter(finished, assets, tmp_path):
    recipe, pretrained, _ = finished
    shutil.copy(assets / "captions.json", tmp_path)
    moved = [f"pretrain.data[0].annotations={tmp_path}/captions.json", "pretrain.log_every=1", "pretrain.micro_batch=2"]
    recipe = load_recipe(assets / "recipe.yaml", [f"output={recipe.output}", *moved])
    assert run(recipe, "pretrain") == pretrained / "model"


def test_checkpoint_holds_exactly_the_trainable_tensors(finished):
    _, pretrained, tuned = finished
    stored = load_file(pretrained / "checkpoint-6" / "trainable.safetensors")
    assert {part(name) for name in stored} == {"adapter"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    stored = load_file(tuned / "checkpoint-6" / "trainable.safetensors")
    assert {part(name) for name in stored} == {"adapter", "llm"}


def test_resume_never_moves_the_old_run_aside(finished, assets, tmp_path):
    _, pretrained, _ = finished
    shutil.copytree(pretrained, tmp_path / "pretrain")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", "pretrain.max_steps=1"])
    run(recipe, "pretrain", "never")
    assert [line["step"] for line in log_lines(tmp_path / "pretrain")] == [1]
    (aside,) = tmp_path.glob("pretrain-replaced-*")
    assert_same_model(aside / "model", pretrained / "model")


def one_step(assets, output, *overrides, stage="finetune", pretrained=None):
    if pretrained is not None:
        overrides = (*overrides, f"finetune.init={pretrained}")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={output}", f"{stage}.max_steps=2", *overrides])
    return run(recipe, stage).parent


def test_accumulation_does_not_change_the_result(finished, assets, tmp_path):
    _, pretrained, _ = finished
    folders = [
        one_step(
            assets,
            tmp_path / f"micro{micro}",
            "finetune.batch_size=8",
            f"finetune.micro_batch={micro}",
            "finetune.warmup=0",
            pretrained=pretrained / "model",
        )
        for micro in (8, 1, 2)
    ]
    whole = weights(folders[0] / "model")
    for folder in folders[1:]:
        for ours, theirs in zip(log_lines(folder), log_lines(folders[0]), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            assert ours["supervised_tokens"] == theirs["supervised_tokens"]
        other = weights(folder / "model")
        worst = max(float((whole[name] - other[name]).abs().max()) for name in whole)
        assert worst < 2e-4, "AdamW's first steps divide by the gradient's size, which magnifies rounding"


def test_microbatch_normalisation_is_the_mean_of_means(finished, assets, tmp_path):
    _, pretrained, _ = finished
    settings = ("finetune.batch_size=8", "finetune.micro_batch=1", "finetune.over_length=truncate")
    losses = {}
    for norm in ("global", "microbatch"):
        folder = one_step(
            assets, tmp_path / norm, *settings, f"finetune.loss_norm={norm}", pretrained=pretrained / "model"
        )
        losses[norm] = log_lines(folder)[0]["loss"]
    assert losses["global"] != pytest.approx(losses["microbatch"], rel=1e-6)


def test_table_at_the_start(assets, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="emma"):
        one_step(assets, tmp_path, "pretrain.micro_batch=2", stage="pretrain")
    text = caplog.text
    for expected in (
        "towers",
        "frozen",
        "llm",
        "projector",
        "trained",
        "float32",
        "effective batch: 4 = 2 per process x 1 process(es) x 2 accumulation",
        "supervised tokens: about",
        "steps: 2 = 0.67 epochs of 3",
        "tensors changed, 0 of",
    ):
        assert expected in text, expected


def test_non_finite_loss_stops_before_backward_and_names_the_samples(assets, tmp_path, monkeypatch):
    from emma.model import EmmaForConditionalGeneration

    original = EmmaForConditionalGeneration.forward

    def broken(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(EmmaForConditionalGeneration, "forward", broken)
    with pytest.raises(EmmaError, match=r"step 1: the loss is nan; samples of the micro-batch: c\d, c\d, c\d, c\d\."):
        one_step(assets, tmp_path, stage="pretrain")
    assert list(checkpoints(tmp_path / "pretrain")) == [0]


def test_non_finite_gradient_stops_before_the_step(assets, tmp_path, monkeypatch):
    from emma.train.trainer import EmmaTrainer

    original = EmmaTrainer.training_step

    def poisoned(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(EmmaTrainer, "training_step", poisoned)
    with pytest.raises(EmmaError, match=r"step 1: the gradient norm is (inf|nan); samples of the step: c\d"):
        one_step(assets, tmp_path, stage="pretrain")
    assert list(checkpoints(tmp_path / "pretrain")) == [0]


def test_frozen_tensor_that_changes_is_an_error(assets, tmp_path, monkeypatch):
    from emma.train.trainer import EmmaTrainer

    original = EmmaTrainer.training_step

    def meddling(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        with torch.no_grad():
            self.model.llm.lm_head.weight[3, 3] += 1e-3
        return loss

    monkeypatch.setattr(EmmaTrainer, "training_step", meddling)
    with pytest.raises(EmmaError, match=r"1 frozen tensors changed in training, first llm\.lm_head"):
        one_step(assets, tmp_path, "pretrain.warmup=0", stage="pretrain")


def test_trainable_tensor_that_does_not_change_is_an_error(assets, tmp_path, monkeypatch):
    from emma.train.trainer import EmmaTrainer

    original = EmmaTrainer.create_optimizer

    def forgetful(self, *args, **kwargs):
        optimizer = original(self, *args, **kwargs)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not self.model.projector[2].bias]
        return optimizer

    monkeypatch.setattr(EmmaTrainer, "create_optimizer", forgetful)
    with pytest.raises(EmmaError, match=r"1 trainable tensors had a gradient but did not change.*projector\.2\.bias"):
        one_step(assets, tmp_path, "pretrain.warmup=0", stage="pretrain")


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_image_names_sample_file_and_remedy(assets, tmp_path, workers):
    images = tmp_path / "images"
    shutil.copytree(assets / "images", images)
    data = [f"pretrain.data[0].images={images}", f"pretrain.workers={workers}"]
    (images / "7.png").unlink()
    with pytest.raises(EmmaError, match=r"sample 'c7' \(record 7 of .*captions.json\): image .*7.png does not exist"):
        one_step(assets, tmp_path, *data, stage="pretrain")


def test_text_only_data_trains(assets, tmp_path, finished):
    _, pretrained, _ = finished
    texts = [r for r in json.loads((assets / "chats.json").read_text()) if "image" not in r]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    folder = one_step(
        assets, tmp_path, f"finetune.data[0].annotations={tmp_path}/texts.json", pretrained=pretrained / "model"
    )
    assert log_lines(folder)[-1]["step"] == 2


def test_tensorboard_and_offline_wandb(assets, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "TENSORBOARD_LOGGING_DIR", "WANDB_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = one_step(assets, tmp_path, "pretrain.report_to=[wandb,tensorboard]", stage="pretrain")
    assert list((folder / "tensorboard").glob("events*"))
    assert list((folder / "wandb").glob("offline-run-*"))


def test_asset_errors_name_path_and_remedy(assets, tmp_path):
    def message(*overrides, stage="pretrain"):
        recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", *overrides])
        with pytest.raises(EmmaError) as raised:
            run(recipe, stage)
        return str(raised.value)

    text = message("model.llm=lmsys/vicuna-7b-v1.5")
    assert "lmsys/vicuna-7b-v1.5" in text
    assert f"python -m emma.checkpoints fetch {assets / 'recipe.yaml'} --to playground/models" in text
    assert "emma.checkpoints fetch" in message("model.clip=ViT-L-14-336-quickgelu:openai")
    assert "annotation file /nowhere.json does not exist" in message("pretrain.data[0].annotations=/nowhere.json")
    assert "folder /nowhere does not exist" in message("pretrain.data[0].images=/nowhere")
    assert "run --stage pretrain first" in message(stage="finetune")
    assert "did you mean adam_beta2?" in message("pretrain.trainer.adam_betta2=0.9")
    assert "set learning_rate of the recipe instead" in message("pretrain.trainer.learning_rate=0.9")
    assert "batch_size 4 cannot be made of micro_batch 3" in message("pretrain.micro_batch=3")
    assert "pretrain.deepspeed: file /no.json does not exist" in message("pretrain.deepspeed=/no.json")
    assert "pretrain.data is empty" in message("pretrain.data=[]")


def test_finetuning_refuses_another_architecture(assets, tmp_path, finished):
    _, pretrained, _ = finished
    with pytest.raises(EmmaError, match=r"model.alignment is 'none', but .* holds a model with 'linear'"):
        one_step(assets, tmp_path, "model.alignment=none", pretrained=pretrained / "model")
