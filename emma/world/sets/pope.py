"""POPE's format: is a thing there, asked of what is and of what is not."""

import random
from collections import Counter
from pathlib import Path

from emma.world.language import absent_names, existence_text
from emma.world.scenes import Scene, draw_scene
from emma.world.sets.files import coco_name, make_folder, save_jpeg, write_lines

POPE_PER_IMAGE = 3  # present and as many absent objects a picture


def write_pope(folder: Path, number: int, seed: int) -> int:
    """POPE's own three files: existence of colour-and-shape names, asked half of the time about absent ones.

    As in POPE, the absent names are drawn at random, from those most frequent in the set, or (adversarial) from those
    most like the picture's own: here, sharing a colour or a shape with an object that is there. Scenes hold three or
    four objects, as POPE asks about pictures with at least three. Returns the number of questions.
    """
    rng = random.Random(seed)
    images = make_folder(folder / "images")
    scenes = [_scene_of_at_least(POPE_PER_IMAGE, rng) for _ in range(number)]
    frequent = [name for name, _ in Counter(o.name for s in scenes for o in s.objects).most_common()]
    for i, scene in enumerate(scenes):
        save_jpeg(scene, images / coco_name(i), rng)
    total = 0
    for category in ("random", "popular", "adversarial"):
        rows: list[dict] = []
        for i, scene in enumerate(scenes):
            absent = absent_names(scene, near=category == "adversarial")
            if category == "popular":
                chosen = [name for name in frequent if name in absent][:POPE_PER_IMAGE]
            else:
                chosen = rng.sample(absent, POPE_PER_IMAGE)
            present = rng.sample([o.name for o in scene.objects], POPE_PER_IMAGE)
            for yes, no in zip(present, chosen, strict=True):
                for name, label in ((yes, "yes"), (no, "no")):
                    row = {"question_id": len(rows) + 1, "image": coco_name(i)}
                    rows.append({**row, "text": existence_text(name), "label": label})
        write_lines(folder / f"coco_pope_{category}.json", rows)
        total += len(rows)
    return total


def _scene_of_at_least(objects: int, rng: random.Random) -> Scene:
    while len((scene := draw_scene(rng, held_out=True)).objects) < objects:
        pass
    return scene
