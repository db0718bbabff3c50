"""`python -m emma.plan`: its table, its JSON, and one sentence for each thing that cannot be planned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emma.plan.__main__ import main

ROOT = Path(__file__).parents[2]
SEVEN_B, LLAVA, TINY = (str(ROOT / "configs" / name) for name in ("emma-7b.yaml", "llava-7b.yaml", "tiny.yaml"))
ABSENT = ["model.assets=nowhere", "pretrain.data=[{annotations: nowhere.json, images: nowhere}]",
          "finetune.data=[{annotations: nowhere.json, images: nowhere}]"]  # fmt: skip


@pytest.fixture
def uncounted(monkeypatch):
    """Leaves out the count by torch, which takes seconds at 7B; `test_table_of_7b` has it."""
    monkeypatch.setattr("emma.plan.plan._agrees", lambda *_: True)


def plan(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def plan_json(capsys, *arguments):
    code, out, err = plan(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(capsys, *arguments):
    code, out, err = plan(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_table_of_7b(capsys):
    code, out, err = plan(capsys, SEVEN_B, "model.assets=nowhere")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 120
    for expected in (
        "22,143,872 = 22.1 M, 0.31 % of all",
        "787,456",
        "376,704",
        "6,738,415,616",
        "torch's flop counter, run for one sample on the meta device, counts the same",
        "pretrain: 256 samples a step = 32 per GPU x 8 GPUs x 1 accumulation",
        "assumed, not measured",
        "2,181 steps",
        "5,198 steps",
        "EMMA over LLaVA: +1.16 M trained, +124 M loaded; FLOPs +0.11 % pretrain, +0.05 % finetune; GiB/GPU +",
    ):
        assert expected in out, expected
    assert "DIFFERS" not in out


def test_json_of_7b_has_the_first_setting_that_fits(capsys, uncounted):
    plain = ("finetune.deepspeed=null", "--gpu", "a100", "--mfu", "0.5")
    made = plan_json(capsys, SEVEN_B, "model.assets=nowhere", *plain)
    tuned = made["stages"]["finetune"]
    assert not tuned["as_written"]["fits"], "AdamW's states of 7 B alone take 50 GiB"
    first = tuned["first_that_fits"]["overrides"]
    assert first[0] == "finetune.deepspeed=configs/deepspeed/zero2.json"
    again = plan_json(capsys, SEVEN_B, "model.assets=nowhere", "--gpu", "a100", *first)
    assert again["stages"]["finetune"]["as_written"]["fits"]
    step = tuned["flops_per_step"]["all"]
    seconds = (step["forward"] + step["backward"]) / (8 * 312e12 * 0.5)
    assert tuned["time"]["seconds_per_step"] == pytest.approx(seconds)
    assert tuned["time"]["gpu_hours"] == pytest.approx(5198 * seconds / 3600 * 8)


def test_llava_has_no_text_tower_and_the_same_projector(capsys, uncounted):
    code, out, err = plan(capsys, LLAVA, "model.assets=nowhere")
    assert code == 0, err
    assert "text tower  " not in out
    assert "adapter (instruction projection, alignment, projector): 20,979,712 = 21.0 M" in out
    assert "EMMA over LLaVA: +1.16 M trained, +124 M loaded; FLOPs +" in out


def test_thirteen_b_is_known_too(capsys, uncounted):
    made = plan_json(capsys, SEVEN_B, "model.assets=nowhere", "model.llm=lmsys/vicuna-13b-v1.5")
    assert made["parameters"]["llm"] == 13_015_864_320


def test_tiny_without_data_assumes_and_asks_for_samples(capsys):
    code, out, err = plan(capsys, TINY, *ABSENT[1:])
    assert code == 0, err
    assert "nowhere.json is not here" in out
    assert "steps unknown without the data: give --samples N" in out
    assert "MiB per GPU" in out
    made = plan_json(capsys, TINY, *ABSENT[1:], "--samples", "3200", "--tokens", "100")
    assert made["stages"]["pretrain"]["time"]["steps"] == 500, "5 epochs of 100 steps of 32"
    assert made["stages"]["pretrain"]["load"]["tokens_mean"] == 100


def test_lengths_are_measured_where_the_data_is(capsys, assets):
    made = plan_json(capsys, str(assets / "recipe.yaml"), "--gpus", "1", "--gpu", "4090", "finetune.max_steps=null")
    for name, samples in (("captions", 10), ("chats", 15)):
        stage = made["stages"]["pretrain" if name == "captions" else "finetune"]
        assert stage["load"]["samples"] == samples
        assert stage["load"]["source"].startswith("measured on the data")
        assert stage["counter_agrees"]
    # 15 samples in batches of 4 of one modality: 3 of ten with an image, 2 of five without.
    assert made["stages"]["finetune"]["time"]["steps"] == 5
    towers = made["stages"]["finetune"]["flops_per_step"]["vision"]["forward"]
    per_image = plan_json(capsys, str(assets / "recipe.yaml"), "--gpus", "1", "finetune.batch_size=15")
    assert towers == per_image["stages"]["finetune"]["flops_per_step"]["vision"]["forward"] * 4 // 15


def test_every_image_of_a_sample_counts(capsys, uncounted, assets, tmp_path):
    records = json.loads((assets / "chats.json").read_text())[:4]
    single = plan_json(capsys, *_with_data(assets, tmp_path, records))
    records[0]["image"] = ["0.png", "1.png"]
    records[0]["conversations"][0]["value"] = "<image>\n<image>\nWhat colours?"
    double = plan_json(capsys, *_with_data(assets, tmp_path, records))
    one, two = (made["stages"]["finetune"]["flops_per_step"]["vision"]["forward"] for made in (single, double))
    assert two == one * 5 // 4


def _with_data(assets, folder, records):
    file = folder / "several.json"
    file.write_text(json.dumps(records))
    return [str(assets / "recipe.yaml"), "--gpus", "1", f"finetune.data[0].annotations={file}"]


def test_user_errors_are_one_sentence(capsys):
    here = [SEVEN_B, "model.assets=nowhere"]
    assert "--gpu tpu is not one of a100, " in refused(capsys, *here, "--gpu", "tpu")
    assert "batch_size 128 cannot be made of micro_batch 16 x 3 processes" in refused(
        capsys, *here, "--gpus", "3", "pretrain.batch_size=96"
    )
    assert "--gpus 0 must be at least 1" in refused(capsys, *here, "--gpus", "0")
    assert "--mfu 1.5 is a share" in refused(capsys, *here, "--mfu", "1.5")
    assert "--memory and --peak must be positive" in refused(capsys, *here, "--memory", "-1")
    assert "--samples 0 must be at least 1" in refused(capsys, *here, "--samples", "0")
    assert "--tokens 100: a sample with an image has 576 visual tokens" in refused(capsys, *here, "--tokens", "100")
    assert "--tokens 4000 is more than pretrain.max_length 2048" in refused(capsys, *here, "--tokens", "4000")
    message = refused(capsys, *here, "model.llm=org/unheard-of-9b")
    assert "the shape of org/unheard-of-9b is not known here; put its config.json (no weights) into" in message
    assert "open_clip knows no model ViT-Q" in refused(capsys, *here, "model.clip=ViT-Q:openai")
    assert "finetune.deepspeed: file" in refused(capsys, *here, "finetune.deepspeed=nowhere.json")


def test_a_deepspeed_file_without_a_stage_is_refused(capsys, tmp_path):
    (tmp_path / "ds.json").write_text("{}")
    message = refused(capsys, SEVEN_B, "model.assets=nowhere", f"finetune.deepspeed={tmp_path}/ds.json")
    assert "has no zero_optimization.stage" in message


def test_nothing_fits_is_said(capsys, uncounted):
    code, out, _ = plan(capsys, SEVEN_B, "model.assets=nowhere", "--memory", "1")
    assert code == 0
    assert "first that fits: none" in out
    assert "use more or larger GPUs, or a smaller finetune.max_length" in out


def test_a_local_config_json_is_enough(capsys, uncounted, tmp_path, tiny_llm):
    tiny_llm.config.save_pretrained(tmp_path / "some-llm")
    made = plan_json(capsys, SEVEN_B, f"model.assets={tmp_path}", "model.llm=org/some-llm")
    assert made["parameters"]["llm"] == sum(p.numel() for p in tiny_llm.parameters())


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "emma.plan", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "--memory GiB" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "omegaconf"}
