"""An imported checkpoint is trained and evaluated like one that was trained here."""

import csv

import pytest
import torch
from PIL import Image
from train_runs import weights
from upstream_folders import emma_folder, make_assets

from emma.checkpoints import provenance
from emma.checkpoints.importing import import_folder
from emma.eval import runner
from emma.eval.answerers.emma import EmmaAnswerer
from emma.train import load_recipe, run


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The model folder of a v3 EMMA, whose learnable tokens are the least usual part."""
    root = tmp_path_factory.mktemp("import")
    source = emma_folder(root / "source", version="v3")
    return import_folder(source, root / "model", make_assets(root / "assets"))


def test_training_goes_on_from_it(imported, assets, tmp_path):
    overrides = [f"output={tmp_path}", f"finetune.init={imported}", "finetune.max_steps=1", "finetune.warmup=0"]
    trained = run(load_recipe(assets / "recipe.yaml", overrides), "finetune")
    before, after = weights(imported), weights(trained)
    assert before.keys() == after.keys()
    for name in ("alignment.weight", "alignment.learnable_tokens", "llm.lm_head.weight"):
        assert not torch.equal(before[name].float(), after[name].float()), name
    assert torch.equal(before["towers.visual.conv1.weight"].float(), after["towers.visual.conv1.weight"].float())
    assert provenance.read(trained)["stage"] == "finetune"


def test_it_is_evaluated(imported, tmp_path):
    images = tmp_path / "MMVP Images"
    images.mkdir()
    rows = [("lndex", "Question", "Options", "Correct Answer")]
    for index, colour in ((1, "red"), (2, "blue")):
        Image.new("RGB", (30, 20), colour).save(images / f"{index}.jpg")
        rows.append((index, "Is it red?", "(a) Yes (b) No", "(a)" if index == 1 else "(b)"))
    with (tmp_path / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    answerer = EmmaAnswerer(imported, device="cpu")
    report = runner.evaluate("mmvp", answerer, tmp_path, tmp_path / "out", max_new_tokens=3)
    assert report is not None
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2
