"""What the runner has to know about a benchmark, and where its files are."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from emma.errors import EmmaError
from emma.eval.pictures import Embedded
from emma.eval.scoring.score import Score
from emma.eval.settings import Setting
from emma.paths import resolve

WORLD_FOLDER = "playground/data/world"


@dataclass(frozen=True)
class Item:
    """One question. `prompt` is the whole user turn without the image token; `question` is the declared question
    field, from which the checkpoint's instruction rule takes the text for the CLIP text tower. `category` is the group
    that it is reported under, where there are groups. `extra` stands in the answer's row beside the text, for a scorer
    that has to know what was shown."""

    id: str
    question: str
    prompt: str
    images: tuple[Path | Embedded, ...]
    category: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark is its reader, its prompt (both in `items`), its scorer and the length of an answer.

    `items(data, images, **settings)` reads the folder `data` as downloaded; `images` is the image folder when it is
    elsewhere. `score(data, answers, **settings)` reads the annotations alone, no image, and is what
    `python -m emma.eval score` calls. Each takes the `settings` that affect it. `several_images` says how a question's
    pictures reach the model: `one_by_one`, or pasted `side_by_side` on black (as the released EMMA does). An answer
    ends before the first of the `stop` strings, and with the model's own end in any case. `hub` is the id of the data
    set on the Hugging Face hub whose files `items` and `score` read as they are.
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
    stop: tuple[str, ...] = ()
    hub: str | None = None


def find_benchmark(name: str) -> Benchmark:
    """The declaration called `name`; an unknown name is an error that lists the nearest and all of them."""
    from emma.eval.benchmarks import BENCHMARKS

    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise EmmaError(f"unknown benchmark {name!r}{hint} (known: {', '.join(sorted(BENCHMARKS))})")


def is_world(data: Path) -> bool:
    """True when `data` lies in a folder that the tiny world's generator wrote (it leaves `world.json` at the root)."""
    return any((folder / "world.json").is_file() for folder in (data, *data.resolve().parents[:2]))


def find_data(benchmark: Benchmark, data: str | Path | None, provenance: dict) -> Path:
    """The folder with a benchmark's files.

    `data` is a folder, `world` for the tiny world's set, or `hub` for the data set that the benchmark names, fetched
    once. With None, a checkpoint whose `provenance` says that it was trained on the tiny world gets the world's set,
    and every other one `playground/data/eval/<benchmark>`.
    """
    if data == "hub":
        return fetch_from_hub(benchmark)
    folder, remedy = usual_place(benchmark, data, provenance)
    if not folder.is_dir():
        raise EmmaError(f"{benchmark.title}: no folder {folder}. It should hold {benchmark.files}; {remedy}")
    return folder


def usual_place(benchmark: Benchmark, data: str | Path | None, provenance: dict) -> tuple[Path, str]:
    """The folder that `find_data` looks for, there or not, and what to do where it is not."""
    trained_on = world_of(provenance)
    if data == "world" or (data is None and (trained_on or benchmark.name == "world")):
        world = trained_on if trained_on and trained_on.is_dir() else resolve(WORLD_FOLDER)
        return world / "eval" / benchmark.name, "make it with: python -m emma.data world"
    if data is None:
        remedy = "put them there, name their folder with data=DIR, or use the tiny world's set with data=world"
        return resolve("playground/data/eval") / benchmark.name, remedy
    return Path(data).expanduser(), "check the path"


def fetch_from_hub(benchmark: Benchmark) -> Path:
    """The folder of the benchmark's data set in the hub's local cache, downloaded when it is not there yet.

    Raises:
        EmmaError: the benchmark names none; it is not in the cache and the network does not give it.
    """
    if benchmark.hub is None:
        raise EmmaError(
            f"{benchmark.title} names no data set on the hub: put {benchmark.files} into a folder, and name it with "
            "data=DIR"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(benchmark.hub, repo_type="dataset"))
    except (OSError, ValueError) as error:  # the hub's own errors are one or the other
        raise EmmaError(
            f"{benchmark.title}: the data set {benchmark.hub} is not in the hub's cache on this machine and could not "
            f"be fetched ({type(error).__name__}); fetch it where there is a network, or name a folder with data=DIR"
        ) from error


def world_of(provenance: dict) -> Path | None:
    """The tiny world's folder when all training data of a checkpoint comes from there (training records it)."""
    sources = provenance.get("data") or []
    if not sources or not all(source.get("world") for source in sources):
        return None
    return Path(sources[0]["annotations"]).parent


def title(benchmark: Benchmark, data: Path, controls: str = "") -> str:
    """`MMVP`, or `world (MMVP format)` where the questions are the tiny world's; then `controls` (`Controls.words`)."""
    text = benchmark.title
    if is_world(data) and benchmark.name != "world":
        text = f"world ({text} format)"
    return text + controls


def existing_images(folders: list[Path], what: str) -> Path:
    """The first of `folders` that exists; the error names all of them."""
    for folder in folders:
        if folder.is_dir():
            return folder
    raise EmmaError(f"{what}: no image folder; looked for {', '.join(map(str, folders))}. Name it with images=DIR")
