"""Scenes of the tiny world: one to four objects on a 3x3 grid, drawn from a seed and split by their content."""

import random
import zlib
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
PLACES = (  # one word a cell: a language model this small learns to look up one word long before it learns pairs
    ("northwest", "north", "northeast"),
    ("west", "center", "east"),
    ("southwest", "south", "southeast"),
)
GRID = len(PLACES)
MAX_OBJECTS = 4
HELD_OUT_SHARE = 10  # one scene in ten is never trained on, by any model of the world


@dataclass(frozen=True, order=True)
class Object:
    """One object. Ordered by row, then column: sorting a scene's objects gives reading order."""

    row: int
    column: int
    size: str
    color: str
    shape: str

    @property
    def name(self) -> str:
        """The words that single it out in its scene, for example `red circle`."""
        return f"{self.color} {self.shape}"

    @property
    def place(self) -> str:
        """One word, for example `northwest`."""
        return PLACES[self.row][self.column]


@dataclass(frozen=True)
class Scene:
    """Objects in reading order; no two share a cell or a colour-and-shape name."""

    objects: tuple[Object, ...]

    @property
    def held_out(self) -> bool:
        """Whether the scene belongs to evaluation. Decided by its content, so no seed can move it to training."""
        return zlib.crc32(repr(self.objects).encode()) % HELD_OUT_SHARE == 0

    def at(self, row: int, column: int) -> Object | None:
        return next((o for o in self.objects if (o.row, o.column) == (row, column)), None)


def random_scene(rng: random.Random) -> Scene:
    """A scene of 1 to 4 objects, any split."""
    count = rng.randint(1, MAX_OBJECTS)
    cells = rng.sample([(r, c) for r in range(GRID) for c in range(GRID)], count)
    names = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], count)
    objects = [Object(r, c, rng.choice(SIZES), *name) for (r, c), name in zip(cells, names, strict=True)]
    return Scene(tuple(sorted(objects)))


def draw_scene(rng: random.Random, held_out: bool) -> Scene:
    """A scene of the wanted split."""
    while (scene := random_scene(rng)).held_out != held_out:
        pass
    return scene


def draw_scenes(count: int, seed: int, held_out: bool) -> list[Scene]:
    """`count` different scenes of one split."""
    rng = random.Random(seed)
    scenes: dict[Scene, None] = {}
    while len(scenes) < count:
        scenes.setdefault(draw_scene(rng, held_out))
    return list(scenes)
