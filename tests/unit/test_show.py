"""show: every kind of folder is recognised, counted exactly, and what is wrong with it is said, not raised."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import make  # noqa: F401
from upstream_folders import emma_folder

from emma.checkpoints.__main__ import main
from emma.checkpoints.exporting import export_folder
from emma.checkpoints.showing import describe, print_description

FOUNDATION = Path(__file__).parents[2] / "emma" / "world" / "foundation"
ASSETS = Path(__file__).parents[1] / "assets" / "parity"


@pytest.fixture
def folder(make):  # noqa: F811
    return make()[0]


def test_a_model_folder(make, capsys):  # noqa: F811
    folder, model = make()
    facts = describe(folder)
    assert facts["kind"] == "EMMA model folder of this project, self-contained"
    assert facts["problems"] == []
    assert facts["bytes"] == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    counts = {part: values["parameters"] for part, values in facts["parts"].items()}
    towers = sum(parameter.numel() for parameter in model.towers.parameters())
    assert counts["vision tower"] + counts["text tower"] == towers
    assert counts["vision tower"] == sum(parameter.numel() for parameter in model.towers.visual.parameters())
    assert counts["LLM"] == sum(parameter.numel() for parameter in model.llm.parameters())
    assert counts["visual alignment"] == 4 * 81 + 4
    assert counts["instruction projection"] == 16 * 32 + 32
    assert facts["parts"]["LLM"]["dtypes"] == ["bfloat16"]
    assert facts["parts"]["projector"]["dtypes"] == ["float32"]
    assert facts["parts"]["LLM"]["bytes"] == 2 * counts["LLM"]
    weight = model.alignment.weight.detach().double()
    assert facts["alignment"] == pytest.approx(
        {
            "visual_norm": weight[:, :4].norm().item(),
            "text_norm": weight[:, 4:].norm().item(),
            "distance_from_identity": (weight[:, :4] - torch.eye(4)).norm().item(),
            "bias_norm": model.alignment.bias.double().norm().item(),
        }
    )
    assert facts["settings"]["template"] == "vicuna_v1"
    assert facts["settings"]["image_size"] == 16
    assert facts["provenance"]["stage"] == "finetune"
    print_description(facts)
    printed = capsys.readouterr().out
    assert "visual alignment" in printed
    assert "nothing is missing or damaged" in printed


@pytest.mark.parametrize(("layout", "alignment"), [("emma", "linear"), ("llava", "none"), ("llava-hf", "none")])
def test_exports_have_the_same_parts(make, tmp_path, layout, alignment):  # noqa: F811
    folder, _ = make(alignment)
    ours, theirs = describe(folder), describe(export_folder(folder, tmp_path / "out", layout))
    kinds = {"emma": "released EMMA", "llava": "released LLaVA-1.5", "llava-hf": "llava-hf folder"}
    assert theirs["kind"].startswith(kinds[layout])
    assert theirs["alignment"] == ours["alignment"]
    assert theirs["problems"] == []
    for part in ("projector", "visual alignment", "instruction projection"):
        assert theirs["parts"].get(part) == ours["parts"].get(part)
    assert theirs["parts"].keys() - {"text tower"} == ours["parts"].keys() - {"text tower"}


def test_parts_alone(folder, tmp_path):
    file = describe(export_folder(folder, tmp_path / "adapter", "adapter"))
    assert file["kind"] == "adapter of EmmaForConditionalGeneration, exported"
    assert file["alignment"] == describe(folder)["alignment"]
    llm = describe(export_folder(folder, tmp_path / "llm", "llm"))
    assert llm["kind"] == "language model (llama)"
    assert set(llm["parts"]) == {"LLM"}


def test_a_run_and_its_checkpoints(finished):
    _, pretrained, tuned = finished
    assert describe(tuned)["kind"] == "folder without weights; its folders model look like models"
    for run, parts in ((pretrained, 3), (tuned, 4)):
        facts = describe(run / "checkpoint-6")
        assert facts["kind"].startswith("training checkpoint of this project")
        assert facts["problems"] == []
        assert len(facts["parts"]) == parts


def test_other_kinds(tmp_path):
    assert describe(FOUNDATION / "clip")["kind"] == "CLIP model, open_clip's"
    assert set(describe(FOUNDATION / "clip")["parts"]) == {"vision tower", "text tower"}
    assert describe(ASSETS / "clip")["kind"] == "CLIP model, Hugging Face's"
    assert set(describe(ASSETS / "clip")["parts"]) == {"vision tower", "text tower"}
    assert describe(FOUNDATION)["kind"] == "folder without weights; its folders llm look like models"
    assert describe(ASSETS / "llava15")["kind"] == "released LLaVA-1.5 checkpoint"
    (tmp_path / "notes.txt").write_text("x")
    assert describe(tmp_path)["kind"] == "folder without weights"
    assert describe(tmp_path / "notes.txt")["kind"] == "file without tensors that can be read"


@pytest.mark.parametrize("tower_file", ["fusion", "whole"])
def test_both_forms_of_vision_tower(tmp_path, tower_file):
    source = emma_folder(tmp_path / "source", **({} if tower_file == "fusion" else {"tower_file": "whole"}))
    facts = describe(source)
    assert facts["kind"] == "released EMMA checkpoint"
    assert facts["parts"]["instruction projection"]["tensors"] == 2
    assert facts["parts"]["visual alignment"]["tensors"] == 2
    assert "other" not in facts["parts"]


# -------------------------------------------------------------------------------------------------- what is wrong


def test_an_incomplete_folder(folder):
    (folder / "complete.json").unlink()
    assert describe(folder)["problems"] == ["complete.json: complete.json is missing"]


def test_a_truncated_file(folder):
    file = folder / "model.safetensors"
    whole = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.truncate(whole - 1000)
    problems = describe(folder)["problems"]
    assert f"model.safetensors is truncated: {whole - 1000} bytes instead of {whole}" in problems
    with open(file, "r+b") as stream:
        stream.truncate(20)
    assert any("less than its header" in problem for problem in describe(folder)["problems"])


def test_missing_foreign_and_misshapen_tensors(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["llm.model.norm.weight"]
    weights["extra"] = torch.zeros(2)
    weights["alignment.bias"] = torch.zeros(5)
    save_file(weights, folder / "model.safetensors")
    problems = "\n".join(describe(folder)["problems"])
    assert "1 tensor(s) (llm.model.norm.weight) missing" in problems
    assert "1 tensor(s) (extra) of no part" in problems
    assert "1 tensor(s) (alignment.bias) of another shape" in problems


def test_shards_and_their_index(tmp_path):
    source = emma_folder(tmp_path / "source", shards=3)
    assert describe(source)["problems"] == []
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    changed = {**content, "weight_map": {k: v for k, v in content["weight_map"].items() if k != name}}
    index.write_text(json.dumps(changed))
    assert describe(source)["problems"] == [f"{index.name} has no entry for 1 tensor(s) ({name})"]
    index.write_text(json.dumps(content))
    shard = sorted(source.glob("model-*.safetensors"))[1]
    count = sum(place == shard.name for place in content["weight_map"].values())
    shard.unlink()
    assert describe(source)["problems"] == [f"{shard.name} is missing, with {count} tensors that {index.name} lists"]
    index.write_text("{")
    assert any("index.json is damaged" in problem for problem in describe(source)["problems"])


def test_damaged_json_and_pickles_are_told(folder):
    (folder / "config.json").write_text("{")
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    problems = "\n".join(describe(folder)["problems"])
    assert "config.json is damaged" in problems
    assert "nobody knows which tensors there should be" in problems
    assert "pytorch_model.bin is no file of tensors" in problems


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "mm_projector.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "no file of tensors" in describe(tmp_path)["problems"][0]
    assert not (tmp_path / "touched").exists()


# ---------------------------------------------------------------------------------------------------- command line


def test_command(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["show", str(folder), "--json"])
    assert stop.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parts"]["visual alignment"]["parameters"] == 328
    shutil.rmtree(folder)
    with pytest.raises(SystemExit) as stop:
        main(["show", str(folder)])
    assert stop.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
