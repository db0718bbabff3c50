"""Writes the tiny world to disk in the real file formats: LLaVA json for both stages, and the evaluation sets."""

import json
import logging
import random
import shutil
from pathlib import Path

from emma.errors import EmmaError, describe_os_error
from emma.world.language import CAPTION_REQUESTS, LETTER, SHORT, caption, multiple_choice, questions, tell
from emma.world.render import render
from emma.world.scenes import Scene, draw_scenes
from emma.world.sets import (
    write_amber,
    write_foil,
    write_gqa,
    write_mmbench,
    write_mmvp,
    write_pope,
    write_questions,
    write_vqav2,
)

logger = logging.getLogger(__name__)

VERSION = 2  # raise when the same arguments would write other files
UNFINISHED = ".unfinished-world"  # stands in the folder while it is written: only what bears it is ever deleted
PARTS = ("images", "eval", "pretrain.json", "finetune.json")
TURNS = 8  # questions in one conversation


def write_world(
    folder: Path,
    *,
    seed: int = 0,
    pretrain: int = 6400,
    finetune: int = 16000,
    held_out: int = 200,
    pairs: int = 150,
    pope: int = 100,
    scenes: int = 30,
) -> Path:
    """Write the world's data to `folder` unless it is there already, complete and made with the same arguments.

    Layout: `pretrain.json`, `finetune.json` and `images/train/`; `eval/BENCHMARK` with the files
    and images of each benchmark's format, made of held-out scenes only; `world.json` (arguments, counts), written last.

    Args:
        pretrain: captioned pictures of stage 1.
        finetune: conversations of stage 2, each about another picture; the first ones are those of stage 1.
        held_out: scenes asked about in `eval/world`, eight questions each.
        pairs: picture pairs in `eval/mmvp`.
        pope: pictures in `eval/pope`, six questions each and category.
        scenes: pictures in each of `eval/vqav2`, `gqa`, `mmbench_en`, `amber` and `foil` (there three times as many,
            with one pair of captions each).

    Raises:
        EmmaError: the folder holds another world or something else, cannot be written, or a number is below 1.
    """
    arguments = {
        "version": VERSION,
        "seed": seed,
        "pretrain": pretrain,
        "finetune": finetune,
        "held_out": held_out,
        "pairs": pairs,
        "pope": pope,
        "scenes": scenes,
    }
    for name in ("pretrain", "finetune", "held_out", "pairs", "pope", "scenes"):
        if arguments[name] < 1:
            raise EmmaError(f"{name}: {arguments[name]} must be at least 1")
    manifest = folder / "world.json"
    if manifest.exists():
        if (found := _arguments(manifest)) == arguments:
            logger.info("the world's data is complete in %s", folder)
            return folder
        raise EmmaError(
            f"{folder} holds a world made with {found}, not {arguments}: delete the folder or name another one"
        )
    try:
        _claim(folder)
        counts = _write(folder, arguments)
    except OSError as error:
        raise EmmaError(f"cannot write the world to {folder}: {describe_os_error(error)}") from error
    logger.info("wrote the world to %s: %s", folder, counts)
    return folder


def _write(folder: Path, arguments: dict[str, int]) -> dict[str, int]:
    """All files, the manifest last; returns the counts."""
    seed, pretrain, finetune = arguments["seed"], arguments["pretrain"], arguments["finetune"]
    train = draw_scenes(max(pretrain, finetune), seed, held_out=False)
    _write_images(folder / "images" / "train", train, seed)
    counts = {
        "pretrain": _write_json(folder / "pretrain.json", pretrain_rows(train[:pretrain], seed + 1)),
        "finetune": _write_json(folder / "finetune.json", finetune_rows(train[:finetune], seed + 2)),
        "world": write_questions(folder / "eval" / "world", arguments["held_out"], seed + 3),
        "mmvp": write_mmvp(folder / "eval" / "mmvp", arguments["pairs"], seed + 4),
        "pope": write_pope(folder / "eval" / "pope", arguments["pope"], seed + 5),
        "vqav2": write_vqav2(folder / "eval" / "vqav2", arguments["scenes"], seed + 6),
        "gqa": write_gqa(folder / "eval" / "gqa", arguments["scenes"], seed + 7),
        "mmbench_en": write_mmbench(folder / "eval" / "mmbench_en", arguments["scenes"], seed + 8),
        "amber": write_amber(folder / "eval" / "amber", arguments["scenes"], seed + 9),
        "foil": write_foil(folder / "eval" / "foil", 3 * arguments["scenes"], seed + 10),
    }
    manifest = {"arguments": arguments, "counts": counts, "world": True}
    (folder / "world.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / UNFINISHED).unlink()
    return counts


def _arguments(manifest: Path) -> dict:
    try:
        return json.loads(manifest.read_text())["arguments"]
    except (ValueError, KeyError, TypeError) as error:
        raise EmmaError(f"{manifest} is damaged ({error!r}): delete its folder or name another one") from error


def _claim(folder: Path) -> None:
    """Make the folder ours: new, empty, or an unfinished world, whose parts are deleted. Nothing else is touched."""
    if folder.exists() and not folder.is_dir():
        raise EmmaError(f"{folder} is a file: name a folder for the world")
    mark = folder / UNFINISHED
    if mark.exists():
        logger.info("an unfinished world in %s is written anew", folder)
        for part in (folder / name for name in PARTS):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
    elif folder.exists() and any(folder.iterdir()):
        raise EmmaError(f"{folder} holds other things than a world: name another folder, or empty this one")
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _write_images(folder: Path, scenes: list[Scene], seed: int) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    for i, scene in enumerate(scenes):
        render(scene, rng).save(folder / image_name(i), compress_level=1)


def image_name(index: int) -> str:
    return f"{index:06d}.png"


def _write_json(path: Path, rows: list[dict]) -> int:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return len(rows)


def pretrain_rows(scenes: list[Scene], seed: int) -> list[dict]:
    """One caption a picture, in the form of LLaVA's 558K file."""
    rng = random.Random(seed)
    rows = []
    for i, scene in enumerate(scenes):
        request = rng.choice(CAPTION_REQUESTS)
        human = f"<image>\n{request}" if rng.random() < 0.5 else f"{request}\n<image>"
        rows.append(_row(f"caption-{i}", i, [(human, caption(scene))]))
    return rows


def finetune_rows(scenes: list[Scene], seed: int) -> list[dict]:
    """Conversations in the form of LLaVA's 665K file: short answers, multiple choice, descriptions, and text only."""
    rng = random.Random(seed)
    return [_conversation(i, scene, rng) for i, scene in enumerate(scenes)]


def _conversation(index: int, scene: Scene, rng: random.Random) -> dict:
    kind = rng.random()
    if kind < 0.04:
        turns = [(rng.choice(CAPTION_REQUESTS), caption(scene))]
    elif kind < 0.20:
        choices = [multiple_choice(q, rng) for q in questions(scene, rng, TURNS // 2)]
        turns = [(f"{text}\n{LETTER}", letter) for text, letter in choices]
    else:
        asked = questions(scene, rng, TURNS)
        turns = [(q.text + (f"\n{SHORT}" if i == 0 else ""), q.answer) for i, q in enumerate(asked)]
    first, answer = turns[0]
    if kind > 0.96:
        return _row(f"text-{index}", None, [(f"{tell(scene)}\n{first}", answer), *turns[1:]])
    return _row(f"conversation-{index}", index, [(f"<image>\n{first}", answer), *turns[1:]])


def _row(identity: str, image: int | None, turns: list[tuple[str, str]]) -> dict:
    row: dict = {"id": identity}
    if image is not None:
        row["image"] = image_name(image)
    row["conversations"] = [
        {"from": speaker, "value": value} for human, gpt in turns for speaker, value in (("human", human), ("gpt", gpt))
    ]
    return row
