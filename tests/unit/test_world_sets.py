"""The world's sets in the formats of VQAv2, GQA, MMBench, AMBER and FOIL: official files, sound answers."""

import base64
import csv
import io
import json
import random
from collections import Counter, defaultdict

import pytest
from PIL import Image

from emma.world.scenes import COLORS, SHAPES, Object, Scene, draw_scenes
from emma.world.sets import write_amber, write_foil, write_gqa, write_mmbench, write_vqav2
from emma.world.sets.amber import _asked

SCENES = 12


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("write", [write_amber, write_foil, write_gqa, write_mmbench, write_vqav2])
def test_one_seed_one_set(write, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, 3, seed=4)
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    write(tmp_path / "other", 3, seed=5)
    assert any(path.read_bytes() != (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()
               for path in files if (tmp_path / "other" / path.relative_to(tmp_path / "one")).exists())  # fmt: skip


def test_vqav2(tmp_path):
    number = write_vqav2(tmp_path, SCENES, seed=0)
    questions = load(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
    annotations = load(tmp_path / "v2_mscoco_val2014_annotations.json")["annotations"]
    assert number == len(questions) == len(annotations) == len({q["question_id"] for q in questions})
    agreed = []
    for question, annotation in zip(questions, annotations, strict=True):
        assert (question["question_id"], question["image_id"]) == (annotation["question_id"], annotation["image_id"])
        assert (tmp_path / "val2014" / f"COCO_val2014_{question['image_id']:012d}.jpg").is_file()
        assert [row["answer_id"] for row in annotation["answers"]] == list(range(1, 11))
        (answer, votes), *_ = Counter(row["answer"] for row in annotation["answers"]).most_common()
        assert answer == annotation["multiple_choice_answer"] == answer.lower()
        assert question["question"].lower().startswith(annotation["question_type"])
        agreed.append(votes)
    assert min(agreed) >= 7
    assert max(agreed) == 10
    assert set(agreed) - {10}, "some are not of one mind"
    kinds = {row["answer_type"]: row["multiple_choice_answer"] for row in annotations}
    assert set(kinds) == {"yes/no", "number", "other"}
    assert kinds["yes/no"] in ("yes", "no")
    assert kinds["number"].isdigit()


def test_gqa(tmp_path):
    number = write_gqa(tmp_path, SCENES, seed=0)
    rows = load(tmp_path / "questions1.2" / "testdev_balanced_questions.json")
    assert number == len(rows) > 5 * SCENES
    scenes = draw_scenes(SCENES, 0, held_out=True)
    colors = 0
    for id, row in rows.items():
        assert (tmp_path / "images" / f"{row['imageId']}.jpg").is_file()
        assert row["equivalent"] == [id]
        assert (row["types"]["structural"] == "verify") == (row["answer"] in ("yes", "no"))
        assert (row["groups"]["global"] is None) == (row["types"]["structural"] == "verify")
        assert not row["question"].startswith("How many")
        if row["question"].startswith("What color is the object in the "):
            place = row["question"].removeprefix("What color is the object in the ").removesuffix("?")
            scene = scenes[int(row["imageId"].removeprefix("n"))]
            assert row["answer"] == next(o.color for o in scene.objects if o.place == place)
            colors += 1
    assert colors
    assert {row["types"]["semantic"] for row in rows.values()} == {"obj", "attr", "rel"}


def test_mmbench_has_every_rotation(tmp_path):
    number = write_mmbench(tmp_path, SCENES, seed=0)
    with (tmp_path / "mmbench_dev_20230712.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == number
    groups = defaultdict(dict)
    for row in rows:
        shift, index = divmod(int(row["index"]), 1_000_000)
        groups[index][shift] = row
    assert len(groups) == 2 * SCENES
    sizes = Counter()
    for group in groups.values():
        options = [group[0][letter] for letter in "ABCD" if group[0][letter]]
        sizes[len(options)] += 1
        assert sorted(group) == list(range(len(options)))
        right = group[0][group[0]["answer"]]
        for shift, row in group.items():
            assert [row[letter] for letter in "ABCD" if row[letter]] == options[shift:] + options[:shift]
            assert row[row["answer"]] == right
            assert row["question"] == group[0]["question"]
            assert row["image"] == group[0]["image"]
    assert set(sizes) == {2, 3, 4}
    assert Image.open(io.BytesIO(base64.b64decode(rows[0]["image"]))).size == (48, 48)


def test_amber(tmp_path):
    number = write_amber(tmp_path, SCENES, seed=0)
    queries = load(tmp_path / "data" / "query" / "query_all.json")
    annotations = load(tmp_path / "data" / "annotations.json")
    assert [row["id"] for row in queries] == [row["id"] for row in annotations] == list(range(1, number + 1))
    by_type = defaultdict(list)
    for row in annotations:
        by_type[row["type"]].append(row["truth"])
    attributes = [f"discriminative-attribute-{kind}" for kind in ("state", "number", "action")]
    relations = ["discriminative-relation", "relation"]
    assert list(by_type) == ["generative", *attributes, "discriminative-hallucination", *relations]
    for kind in attributes:
        assert Counter(by_type[kind]) == {"yes": SCENES // 2, "no": SCENES // 2}
    assert by_type["discriminative-hallucination"] == ["no"] * 2 * SCENES
    assert set(by_type["discriminative-relation"]) == {"yes"}
    assert set(by_type["relation"]) == {"no"}
    words = load(tmp_path / "data" / "relation.json")
    for row, query in zip(annotations[:SCENES], queries, strict=False):
        assert row["truth"]
        assert row["hallu"]
        assert sorted(row["truth"] + row["hallu"]) == sorted(SHAPES) == sorted(words)
        assert query["query"] == "Describe this image."
    assert all((tmp_path / "image" / query["image"]).is_file() for query in queries)
    parts = {path.stem: [row["id"] for row in load(path)] for path in (tmp_path / "data" / "query").iterdir()}
    assert sorted(parts["query_generative"] + parts["query_discriminative"]) == parts["query_all"]
    three = [parts[f"query_discriminative-{kind}"] for kind in ("attribute", "existence", "relation")]
    assert [*three[0], *three[1], *three[2]] == parts["query_discriminative"]
    assert (tmp_path / "data" / "safe_words.txt").read_text().split()


def test_amber_answers_are_true_of_the_scene():
    """Of a scene with one object, every question can be answered by hand."""
    scene = Scene((Object(0, 2, "small", "red", "cross"),))
    for index, answer in ((1, "no"), (2, "yes")):
        seen = set()
        for seed in range(20):
            asked = {
                kind.rsplit("-", 1)[-1]: (text, truth)
                for kind, text, truth in _asked(scene, index, random.Random(seed))
            }
            assert set(asked) == {"state", "number", "action", "hallucination"}  # one object stands in no relation
            state, number, place, absent = (asked[kind][0] for kind in ("state", "number", "action", "hallucination"))
            assert [asked[kind][1] for kind in ("state", "number", "action")] == [answer] * 3
            true = answer == "yes"
            assert (state in ("Is the red cross small?", "Is the object in the northeast red?")) == true
            assert (number == "Is there one cross in the image?") == true
            assert (place == "Is the red cross in the northeast?") == true
            assert "red cross" not in absent
            seen.add(state)
        assert len(seen) > 1
        assert all(any(word in state for word in ("small", "large", *COLORS)) for state in seen)


def test_foil_pairs_differ_in_one_word(tmp_path):
    assert write_foil(tmp_path, SCENES, seed=0) == 2 * SCENES
    content = load(tmp_path / "foilv1.0_test_2017.json")
    files = {image["id"]: image["file_name"] for image in content["images"]}
    rows = content["annotations"]
    first = []
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert one["id"] == two["id"]
        assert (tmp_path / "val2014" / files[one["image_id"]]).is_file()
        true, false = (one, two) if two["foil"] else (two, one)
        assert (true["foil"], false["foil"]) == (False, True)
        assert true["target_word"] == true["foil_word"] == "ORIG"
        changed = [(a, b) for a, b in zip(true["caption"].split(), false["caption"].split(), strict=True) if a != b]
        assert changed == [(false["target_word"], false["foil_word"])]
        first.append(one["foil"])
    assert set(first) == {True, False}, "neither caption always comes first"
