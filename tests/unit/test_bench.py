"""`python -m emma.bench` on the tiny assets: every line is JSON and its figures fit together."""

import json

import pytest

from emma.bench.__main__ import main
from emma.checkpoints.folder import save_folder


def bench(capfd, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output = capfd.readouterr()
    assert ended.value.code == 0, output.err
    return [json.loads(line) for line in output.out.splitlines()]


def test_pairs_of_settings_of_both_stages(assets, capfd, tmp_path):
    lines = bench(capfd, "train", assets / "recipe.yaml", "--steps", 2, f"output={tmp_path}/none")
    for stage in ("pretrain", "finetune"):
        machine, *rest = [line for line in lines if line["stage"] == stage]
        assert (machine["bench"], machine["recipe"], machine["batch_size"]) == ("machine", "test", 4)
        settings = [(line["bench"], line["setting"]) for line in rest]
        assert settings == [
            *[("packing", setting) for setting in ("padded", "packed", "padded / packed")],
            *[("text_cache", setting) for setting in ("off", "on", "off / on")],
            *[("feature_cache", setting) for setting in ("off", "on", "off / on")],
        ]
        for line in rest:
            if "/" in line["setting"]:
                assert line["step_speedup"] > 0
                assert line["load_speedup"] > 0
                assert line["largest_loss_difference"] < 1e-5
                continue
            assert line["steps"] == 2
            assert line["tokens_per_second"] > line["supervised_tokens_per_second"] > line["samples_per_second"] > 0
            assert 0 <= line["padding_share"] < 1
        assert rest[1]["padding_share"] <= rest[0]["padding_share"]
    assert not (tmp_path / "none").exists(), "a bench leaves nothing behind"


def test_loading_by_number_of_workers(assets, capfd):
    lines = bench(capfd, "data", "--stage", "pretrain", assets / "recipe.yaml", "--steps", 4, "--workers", "0,1")
    assert [line.get("workers") for line in lines] == [None, 0, 1]
    assert all(line["samples_per_second"] > 0 for line in lines[1:])


def test_answering_by_batch_size(tiny_model, tiny_processor, capfd, tmp_path):
    model = tiny_model().eval()
    save_folder(tmp_path / "model", model, tiny_processor(model.config), {})
    machine, *lines, best = bench(capfd, "eval", tmp_path / "model", "--images", 2, "--batch-sizes", "4")
    assert (machine["questions"], machine["questions_per_image"], machine["dtype"]) == (12, 6, "float32")
    settings = [(line["image_once"], line["batch_size"]) for line in lines]
    assert settings == [(False, 1), (False, 4), (True, 1), (True, 4)]
    rates = [line["questions_per_second"] for line in lines]
    assert min(rates) > 0
    assert best["questions_per_second"] == max(rates)
    assert best["speedup"] == pytest.approx(max(rates) / rates[0], rel=0.01)
    assert best["same_answers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--steps", "0"], "--steps 0 must be at least 1"),
        (["data", "--workers", "two"], "--workers 'two' is not a list of numbers such as 1,2"),
        (["data", "--workers", "0,-1"], "--workers '0,-1': -1 must be at least 0"),
        (["eval", "--batch-sizes", "0"], "--batch-sizes '0': 0 must be at least 1"),
        (["eval", "--images", "0"], "--images 0 must be at least 1"),
        (["eval", "no/model"], "no/model"),
        (["train", "no.yaml"], "config no.yaml does not exist"),
    ],
)
def test_errors_are_one_line(arguments, message, capfd):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert message in capfd.readouterr().err


def test_one_process_only(assets, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["train", str(assets / "recipe.yaml")])
    assert "the bench measures one process: start it without torchrun" in capfd.readouterr().err
