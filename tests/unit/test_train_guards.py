"""Runs that must stop: non-finite numbers, tensors that change or do not, missing files, refused settings."""

import shutil

import pytest
import torch
from train_runs import one_step

from emma.errors import EmmaError
from emma.train import load_recipe, run
from emma.train.saving import checkpoints


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
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_missing_or_corrupt_image_names_sample_file_and_remedy(assets, tmp_path, workers, damage):
    images = tmp_path / "images"
    shutil.copytree(assets / "images", images)
    data = [f"pretrain.data[0].images={images}", f"pretrain.workers={workers}"]
    content = (images / "7.png").read_bytes()
    (images / "7.png").unlink()
    reason = "does not exist; put the image there"
    if damage == "cut":
        (images / "7.png").write_bytes(content[: len(content) // 2])
        reason = "is damaged or cannot be read"
    with pytest.raises(EmmaError, match=rf"sample 'c7' \(record 7 of .*captions.json\): image .*7.png {reason}"):
        one_step(assets, tmp_path, *data, stage="pretrain")


def test_asset_errors_name_path_and_remedy(assets, tmp_path):
    def message(*overrides, stage="pretrain"):
        recipe = load_recipe(assets / "recipe.yaml", [f"output={tmp_path}", *overrides])
        with pytest.raises(EmmaError) as raised:
            run(recipe, stage)
        return str(raised.value)

    assert f"{assets / 'clip'} is no language model with its tokenizer" in message(f"model.llm={assets / 'clip'}")
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
