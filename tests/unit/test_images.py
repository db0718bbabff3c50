"""Opening images, with an error for each way it can fail, and the geometry of pre-processing."""

import numpy as np
import pytest
import torch
from PIL import Image

from emma.errors import EmmaError
from emma.processing.images import CLIP_MEAN, CLIP_STD, open_image, preprocess


def test_open_image_errors(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "good.jpg")
    data = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("404 not found")
    assert open_image(tmp_path / "good.jpg").mode == "RGB"
    for name, message in [
        ("missing.jpg", "missing.jpg does not exist"),
        ("", "is a directory"),
        ("cut.jpg", "cut.jpg is damaged.*truncated"),
        ("empty.png", r"empty.png is not an image.*\(0 bytes\)"),
        ("text.png", "text.png is not an image"),
    ]:
        with pytest.raises(EmmaError, match=message):
            open_image(tmp_path / name)


def test_an_image_far_too_large_says_so(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(EmmaError, match=r"huge\.png has more than 400 pixels; make it smaller"):
        open_image(tmp_path / "huge.png")


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (10, 6)).save(path)
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (10, 6))


def test_alpha_is_dropped_not_composited(tmp_path):
    Image.new("RGBA", (4, 4), (200, 10, 30, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((1, 1)) == (200, 10, 30)


def raw(pixels: torch.Tensor) -> np.ndarray:
    """uint8[H, W, 3] before normalisation."""
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((pixels.permute(1, 2, 0) * std + mean) * 255).round().to(torch.uint8).numpy()


def test_pad_keeps_everything_and_square_cuts_the_sides():
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 5, 20))
    padded = raw(preprocess(image, 40, "pad"))
    assert padded.shape == (40, 40, 3)
    assert (padded[:10] == (122, 116, 104)).all()
    assert (padded[30:] == (122, 116, 104)).all()
    assert (padded[10:30] == np.asarray(image)).all()
    square = raw(preprocess(image, 20, "square"))
    assert (square == (255, 0, 0)).all()
    tall = raw(preprocess(image.rotate(90, expand=True), 40, "pad"))
    assert (tall[:, :10] == (122, 116, 104)).all()
    assert tall[39, 20].tolist() == [0, 0, 255]


def test_same_size_is_untouched():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for mode in ("pad", "square"):
        pixels = preprocess(image, 16, mode)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        assert (raw(pixels) == np.asarray(image)).all()


@pytest.mark.parametrize("mode", ["pad", "square"])
@pytest.mark.parametrize("size", [(97, 61), (50, 83), (7, 200), (1, 1), (1000, 5)])
def test_equals_clip_of_transformers_on_pil(size, mode):
    """Against the independent implementation; for `pad` the image is made square first."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    given = image
    if mode == "pad":
        given = Image.new("RGB", (max(size), max(size)), (122, 116, 104))
        given.paste(image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = clip(given, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(image, 56, mode), expected, atol=2e-6, rtol=0)


def test_refusals():
    with pytest.raises(EmmaError, match=r"2000 x 4.*pad"):
        preprocess(Image.new("RGB", (2000, 4)), 56, "square")
    assert preprocess(Image.new("RGB", (2000, 4)), 56, "pad").shape == (3, 56, 56)
    with pytest.raises(EmmaError, match="no pixels"):
        preprocess(Image.new("RGB", (0, 4)), 56, "pad")
    with pytest.raises(EmmaError, match="'crop' is not one of pad, square"):
        preprocess(Image.new("RGB", (4, 4)), 56, "crop")
