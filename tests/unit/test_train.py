"""Whole small training runs on a two-layer model: what they change, save and log."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from train_runs import log_lines, one_step, part, weights


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


def test_checkpoint_holds_exactly_the_trainable_tensors(finished):
    _, pretrained, tuned = finished
    stored = load_file(pretrained / "checkpoint-6" / "trainable.safetensors")
    assert {part(name) for name in stored} == {"adapter"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    stored = load_file(tuned / "checkpoint-6" / "trainable.safetensors")
    assert {part(name) for name in stored} == {"adapter", "llm"}


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


def test_bfloat16_keeps_the_adapter_s_small_changes_through_both_stages(assets, tmp_path):
    folder = one_step(assets, tmp_path, "pretrain.precision=bf16", "pretrain.warmup=0", stage="pretrain")
    before = weights(folder / "model")
    assert {part(name): str(tensor.dtype) for name, tensor in before.items()} == {
        "adapter": "torch.float32",
        "llm": "torch.bfloat16",
        "towers": "torch.bfloat16",
    }
    diagonal = before["alignment.weight"].diagonal()
    assert 1e-4 < float((diagonal - 1).abs().max()) < 3e-3, "below bfloat16's step of 0.004 to 0.008 around 1"
    tuned = one_step(assets, tmp_path, "finetune.precision=bf16", "finetune.learning_rate=1e-9")
    after = weights(tuned / "model")["alignment.weight"].diagonal()
    assert torch.allclose(after, diagonal, atol=1e-6, rtol=0)


def test_gradient_checkpointing_changes_no_loss(finished, assets, tmp_path):
    _, pretrained, _ = finished
    for stage, start in (("pretrain", None), ("finetune", pretrained / "model")):
        lines = []
        for on in ("false", "true"):
            settings = (f"{stage}.gradient_checkpointing={on}", f"{stage}.warmup=0")
            lines.append(log_lines(one_step(assets, tmp_path / on, *settings, stage=stage, pretrained=start)))
        for plain, saving in zip(*lines, strict=True):
            assert saving["loss"] == pytest.approx(plain["loss"], rel=1e-6)
            assert saving["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)


def test_show_prints_a_sample_as_the_model_sees_it(finished, assets, capsys):
    from emma.data.__main__ import main

    recipe, _, _ = finished
    with pytest.raises(SystemExit) as ended:
        main(["show", str(assets / "recipe.yaml"), "--stage", "finetune", "--id", "v3", f"output={recipe.output}"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "sample       v3 (index 3 of 15; record 3 of",
        "3.png -> pad, 16 x 16",
        "<4 visual tokens>",
        "learned      'white</s>'",
        "learned      '23</s>'",
    ):
        assert expected in text, text
    assert "instruction  'What colour?'" in text or "instruction  'How wide?'" in text
