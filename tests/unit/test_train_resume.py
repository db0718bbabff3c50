"""Interrupted runs: killed, stopped by a signal, with damaged checkpoints or another recipe, and how they go on."""

import os
import shutil
import signal

import pytest
from train_runs import assert_same_model, log_lines

from emma.errors import EmmaError
from emma.train import TrainingStopped, load_recipe, run
from emma.train.saving import checkpoints


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


def test_resume_never_moves_the_old_run_aside(finished, assets, tmp_path):
    _, pretrained, _ = finished
    shutil.copytree(pretrained, tmp_path / "pretrain")
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", "pretrain.max_steps=1"])
    run(recipe, "pretrain", "never")
    assert [line["step"] for line in log_lines(tmp_path / "pretrain")] == [1]
    (aside,) = tmp_path.glob("pretrain-replaced-*")
    assert_same_model(aside / "model", pretrained / "model")


def test_intervals_of_the_new_start_count(assets, tmp_path, die_at):
    """transformers restores the old start's intervals with the checkpoint."""
    recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}"])
    die_at(3)
    with pytest.raises(Kill):
        run(recipe, "pretrain")
    die_at(None)
    run(load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", "pretrain.log_every=1"]), "pretrain")
    assert [line["step"] for line in log_lines(tmp_path / "pretrain")] == [1, 2, 3, 4, 5, 6]
