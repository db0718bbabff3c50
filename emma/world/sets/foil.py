"""FOIL's format: captions, and the same captions with one wrong word."""

import random
from dataclasses import replace
from pathlib import Path

from emma.world.language import caption
from emma.world.scenes import SHAPES, Scene, draw_scenes
from emma.world.sets.files import coco_name, make_folder, save_jpeg, write_json


def write_foil(folder: Path, pairs: int, seed: int) -> int:
    """`foilv1.0_test_2017.json` and `val2014`, one pair on each of `pairs` held-out scenes; returns the number of
    captions. The wrong word is another shape; the two captions of a pair stand in either order."""
    rng = random.Random(seed)
    images = make_folder(folder / "val2014")
    listed, captions = [], []
    for i, scene in enumerate(draw_scenes(pairs, seed, held_out=True), 1):
        save_jpeg(scene, images / coco_name(i), rng)
        listed.append({"id": i, "file_name": coco_name(i)})
        item = rng.choice(scene.objects)
        foil = rng.choice([shape for shape in SHAPES if shape != item.shape])
        wrong = Scene(tuple(replace(o, shape=foil) if o == item else o for o in scene.objects))
        key = {"image_id": i, "id": i}
        both = [
            key | {"foil_id": 0, "caption": caption(scene), "target_word": "ORIG", "foil_word": "ORIG", "foil": False},
            key | {"foil_id": i, "caption": caption(wrong), "target_word": item.shape, "foil_word": foil, "foil": True},
        ]
        rng.shuffle(both)
        captions += both
    info = {"description": "foils of the tiny world", "version": "1.0"}
    write_json(
        folder / "foilv1.0_test_2017.json", {"info": info, "licenses": [], "images": listed, "annotations": captions}
    )
    return len(captions)
