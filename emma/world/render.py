"""Pictures of scenes: 48x48 RGB, drawn at three times the size and reduced by averaging."""

import random

from PIL import Image, ImageDraw

from emma.world.scenes import Object, Scene

CELL = 16  # pixels
SIZE = 3 * CELL
SCALE = 3
RADIUS = {"small": 4.0, "large": 7.0}  # pixels
RGB = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 85, 200),
    "yellow": (235, 210, 40),
    "purple": (140, 60, 180),
    "orange": (245, 130, 25),
}


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene as an RGB image of `SIZE` x `SIZE`; `rng` decides background, shades and shifts of up to a pixel."""
    grey = rng.randint(215, 250)
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), (grey, grey, grey))
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        _draw(draw, item, rng)
    return image.reduce(SCALE)


def _draw(draw: ImageDraw.ImageDraw, item: Object, rng: random.Random) -> None:
    r = RADIUS[item.size] * SCALE
    x = (item.column + 0.5) * CELL * SCALE + rng.uniform(-1, 1) * SCALE
    y = (item.row + 0.5) * CELL * SCALE + rng.uniform(-1, 1) * SCALE
    fill = tuple(max(0, min(255, channel + rng.randint(-12, 12))) for channel in RGB[item.color])
    if item.shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        s = r * 0.88
        draw.rectangle((x - s, y - s, x + s, y + s), fill=fill)
    elif item.shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r * 0.85), (x - r, y + r * 0.85)], fill=fill)
    else:
        a = r * 0.34
        draw.rectangle((x - r, y - a, x + r, y + a), fill=fill)
        draw.rectangle((x - a, y - r, x + a, y + r), fill=fill)
