"""`feature_cache`: same losses, each image encoded once, and what happens to changed, damaged and missing files."""

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from PIL import Image
from train_runs import log_lines, one_step

from emma.data.features import FeatureCache
from emma.errors import EmmaError
from emma.model.towers import ClipTowers

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def encoded(monkeypatch):
    """Batch sizes of all calls of the vision tower."""
    calls = []
    original = ClipTowers.encode_image

    def counted(self, pixels):
        calls.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(ClipTowers, "encode_image", counted)
    return calls


@pytest.fixture
def data(assets, tmp_path):
    """A copy of the images that a test may change; overrides that point a run of stage 1 to it and to a cache."""
    shutil.copytree(assets / "images", tmp_path / "images")
    return [f"pretrain.data[0].images={tmp_path}/images", f"pretrain.feature_cache={tmp_path}/cache"]


def files(tmp_path):
    return sorted(tmp_path.glob("cache/*/*/*.safetensors"))


def train(assets, tmp_path, data, name, **kwargs):
    return one_step(assets, tmp_path / name, *data, stage="pretrain", **kwargs)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_losses_are_those_of_the_uncached_run_in_both_stages(finished, assets, tmp_path, encoded, packing):
    _, pretrained, _ = finished
    for stage, start in (("pretrain", None), ("finetune", pretrained / "model")):
        lines = []
        for folder in ("null", f"{tmp_path}/cache"):
            choices = (f"{stage}.feature_cache={folder}", f"{stage}.packing={packing}", f"{stage}.log_every=1")
            output = tmp_path / folder.strip("/").replace("/", "-")
            lines.append(
                log_lines(one_step(assets, output, *choices, f"{stage}.max_steps=6", stage=stage, pretrained=start))
            )
        for without, cached in zip(*lines, strict=True):
            assert cached["loss"] == pytest.approx(without["loss"], rel=1e-6)
            assert cached["grad_norm"] == pytest.approx(without["grad_norm"], rel=1e-5)


def test_losses_are_those_of_the_uncached_run_in_bfloat16(assets, tmp_path):
    """There autocast is on around the tower, in training and when the cache is filled."""
    losses = []
    for folder in ("null", f"{tmp_path}/cache"):
        choices = ("pretrain.precision=bf16", "pretrain.log_every=1", f"pretrain.feature_cache={folder}")
        output = tmp_path / folder.strip("/").replace("/", "-")
        losses.append([line["loss"] for line in log_lines(one_step(assets, output, *choices, stage="pretrain"))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_every_image_is_encoded_once_for_all_runs(assets, tmp_path, data, encoded):
    train(assets, tmp_path, data, "one")
    assert encoded == [1] * 10, "ten pictures, and no batch of the training itself"
    assert len(files(tmp_path)) == 10
    train(assets, tmp_path, data, "two")
    assert len(encoded) == 10
    train(assets, tmp_path, [*data, "pretrain.image_mode=pad"], "three")
    assert len(encoded) == 20, "other pixels"
    (one, two) = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("cache/*/about.json"))]
    assert {one["image_mode"], two["image_mode"]} == {"pad", "square"}
    assert one["weights_sha256"] == two["weights_sha256"]


def test_a_changed_image_is_encoded_again(assets, tmp_path, data, encoded):
    train(assets, tmp_path, data, "one")
    Image.new("RGB", (20, 16), "purple").save(tmp_path / "images" / "0.png")
    os.utime(tmp_path / "images" / "1.png", ns=(1, 1))
    train(assets, tmp_path, data, "two")
    assert len(encoded) == 12


def test_an_interrupted_fill_goes_on(assets, tmp_path, data, encoded, monkeypatch):
    write = FeatureCache.write

    def interrupted(self, file, features):
        if len(encoded) == 4:
            raise KeyboardInterrupt
        write(self, file, features)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(assets, tmp_path, data, "one")
    assert len(files(tmp_path)) == 3
    train(assets, tmp_path, data, "one")
    assert len(encoded) == 4 + 7
    assert not list(tmp_path.glob("cache/**/*.partial"))


def test_a_damaged_file_is_named_and_made_again(assets, tmp_path, data, encoded, caplog):
    train(assets, tmp_path, data, "one")
    first, second = files(tmp_path)[:2]
    first.write_bytes(first.read_bytes()[:-7])
    train(assets, tmp_path, data, "two")
    assert f"{first} is damaged" in caplog.text
    assert len(encoded) == 11
    content = bytearray(second.read_bytes())
    content[-20] ^= 1
    second.write_bytes(content)
    with pytest.raises(EmmaError, match=r"sample 'c\d' .*: .*the features of image .*\.png, was damaged .*start again"):
        train(assets, tmp_path, [*data, "pretrain.max_steps=3"], "three")
    assert not second.exists()
    train(assets, tmp_path, [*data, "pretrain.max_steps=3"], "three")
    assert len(encoded) == 12


def test_too_small_a_disk_is_an_error_before_anything_is_written(assets, tmp_path, data, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 0, 1))
    with pytest.raises(EmmaError, match=r"feature_cache: .* needs 0\.00 GiB for 10 images, but its disk has 0\.00 GiB"):
        train(assets, tmp_path, data, "one")
    assert files(tmp_path) == []


def test_missing_and_broken_images_name_their_sample(assets, tmp_path, data):
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(
        EmmaError, match=r"sample 'c3' \(record 3 of .*captions.json\): .*3.png is not an image .*; put"
    ):
        train(assets, tmp_path, data, "one")
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(
        EmmaError, match=r"sample 'c2' .*2.png cannot be read: No such file or directory; put the image"
    ):
        train(assets, tmp_path, data, "one")


def test_features_keep_the_tower_s_dtype_exactly(tmp_path, tiny_model, tiny_processor):
    model = tiny_model()
    model.towers.to(torch.bfloat16)
    cache = FeatureCache.open(tmp_path, model, tiny_processor(model.config))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    features = model.towers.encode_image(torch.rand(1, 3, 16, 16))[0]
    file = cache.file(str(tmp_path / "a.png"))
    cache.write(file, features)
    assert file.stat().st_size == cache.file_bytes
    assert cache.holds(file)
    (read,) = cache.read([str(tmp_path / "a.png")])
    assert read.dtype == torch.bfloat16
    assert torch.equal(read, features)
    with torch.no_grad():
        next(model.towers.visual.parameters()).add_(1)
    assert FeatureCache.open(tmp_path, model, tiny_processor(model.config)).folder != cache.folder


def test_features_of_another_tower_are_refused(tiny_model):
    with pytest.raises(
        EmmaError, match=r"vision_features has shape \(1, 5, 32\), but the towers give \[images, 4, 32\]"
    ):
        tiny_model().encode(None, torch.zeros(1, 77, dtype=torch.long), torch.zeros(1, 5, 32))
