"""What the runner has to know about a benchmark, and where its files are."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from emma.errors import EmmaError
from emma.eval.pictures import Picture
from emma.eval.scoring.score import Score
from emma.eval.settings import Setting
from emma.paths import resolve

WORLD_FOLDER = "playground/data/world"
IMAGE_CONTROLS = ("none", "blank")


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is the whole user turn without the image token; `question` is the declared question
    field, from which the checkpoint's instruction rule takes the text for the CLIP text tower. `category` is the group
    that it is reported under, where there are groups. `extra` stands in the answer's row beside the text, for a scorer
    that has to know what was shown."""

    id: str
    question: str
    prompt: str
    images: tuple[Picture, ...]
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark is its reader, its prompt (both in `items`), its scorer and the length of an answer.

    `items(data, images, **settings)` reads the folder `data` as downloaded; `images` is the image folder when it is
    elsewhere. `score(data, answers, **settings)` reads the annotations alone, no image, and is what
    `python -m emma.eval score` calls. Each takes the `settings` that affect it. `several_images` says how a question's
    pictures reach the model: `one_by_one`, or pasted `side_by_side` on black (as the released EMMA does).
    """

    name: str
    title: str
    files: str
    items: Callable[..., list[Item]]
    score: Callable[..., Score]
    scorer: str
    scorer_version: int
    max_new_tokens: int
    settings: tuple[Setting, ...] = ()
    several_images: Literal["one_by_one", "side_by_side"] = "one_by_one"


def find_benchmark(name: str) -> Benchmark:
    """The declaration called `name`; an unknown name is an error that lists the nearest and all of them."""
    from emma.eval.benchmarks import BENCHMARKS

    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise EmmaError(f"unknown benchmark {name!r}{hint} (known: {', '.join(sorted(BENCHMARKS))})")


def check_image_control(value: str) -> None:
    """Raises `EmmaError` for anything but `none` and `blank` (the CLIP mean colour in place of every image)."""
    if value not in IMAGE_CONTROLS:
        raise EmmaError(f"image_control={value!r}: expected one of {', '.join(IMAGE_CONTROLS)}")


def is_world(data: Path) -> bool:
    """True when `data` lies in a folder that the tiny world's generator wrote (it leaves `world.json` at the root)."""
    return any((folder / "world.json").is_file() for folder in (data, *data.resolve().parents[:2]))


def find_data(benchmark: Benchmark, data: str | Path | None, provenance: dict) -> Path:
    """The folder with a benchmark's files.

    `data` is a folder, or `world` for the tiny world's set. With None, a checkpoint whose `provenance` says that it was
    trained on the tiny world gets the world's set, and every other one `playground/data/eval/<benchmark>`.
    """
    trained_on = world_of(provenance)
    if data == "world" or (data is None and (trained_on or benchmark.name == "world")):
        world = trained_on if trained_on and trained_on.is_dir() else resolve(WORLD_FOLDER)
        folder = world / "eval" / benchmark.name
        remedy = "make it with: python -m emma.data world"
    elif data is None:
        folder = resolve("playground/data/eval") / benchmark.name
        remedy = "put them there, name their folder with data=DIR, or use the tiny world's set with data=world"
    else:
        folder = Path(data).expanduser()
        remedy = "check the path"
    if not folder.is_dir():
        raise EmmaError(f"{benchmark.title}: no folder {folder}. It should hold {benchmark.files}; {remedy}")
    return folder


def world_of(provenance: dict) -> Path | None:
    """The tiny world's folder when all training data of a checkpoint comes from there (training records it)."""
    sources = provenance.get("data") or []
    if not sources or not all(source.get("world") for source in sources):
        return None
    return Path(sources[0]["annotations"]).parent


def title(benchmark: Benchmark, data: Path, image_control: str = "none") -> str:
    """`MMVP`, or `world (MMVP format)` where the questions are the tiny world's; a control is always named."""
    text = benchmark.title
    if is_world(data) and benchmark.name != "world":
        text = f"world ({text} format)"
    return text if image_control == "none" else f"{text}, {image_control} image"


def existing_images(folders: list[Path], what: str) -> Path:
    """The first of `folders` that exists; the error names all of them."""
    for folder in folders:
        if folder.is_dir():
            return folder
    raise EmmaError(f"{what}: no image folder; looked for {', '.join(map(str, folders))}. Name it with images=DIR")
