"""The tiny world: scenes split by content, right answers, files in the real formats, texts cut where they may be."""

import csv
import json
import random

import pytest
import torch
from PIL import Image

from emma.errors import EmmaError
from emma.world import language
from emma.world.data import finetune_rows, pretrain_rows, write_world
from emma.world.render import RGB, SIZE, render
from emma.world.scenes import Object, Scene, draw_scenes
from emma.world.sets import write_mmvp, write_pope, write_questions

SCENE = Scene(
    (
        Object(0, 0, "small", "red", "circle"),
        Object(1, 1, "large", "red", "cross"),
        Object(2, 2, "small", "blue", "square"),
    )
)
SMALL = {"pretrain": 6, "finetune": 40, "held_out": 3, "pairs": 12, "pope": 4, "scenes": 6}


def test_no_training_scene_is_held_out():
    train = set(draw_scenes(300, seed=0, held_out=False))
    test = set(draw_scenes(60, seed=0, held_out=True))
    assert not train & test
    assert len(train) == 300
    assert all(not scene.held_out for scene in train)


def test_scene_rules_hold():
    for scene in draw_scenes(200, seed=1, held_out=False):
        assert 1 <= len(scene.objects) <= 4
        assert len({(o.row, o.column) for o in scene.objects}) == len(scene.objects)
        assert len({o.name for o in scene.objects}) == len(scene.objects)
        assert list(scene.objects) == sorted(scene.objects, key=lambda o: (o.row, o.column))


def test_picture_shows_each_object_at_its_place():
    image = render(SCENE, random.Random(0))
    assert image.size == (SIZE, SIZE)
    for item in SCENE.objects:
        pixel = image.getpixel((item.column * 16 + 8, item.row * 16 + 8))
        assert max(abs(a - b) for a, b in zip(pixel, RGB[item.color], strict=True)) <= 13
    assert min(image.getpixel((8, 40))) >= 215, "an empty cell shows the background"


def test_texts_about_a_scene():
    assert language.caption(SCENE) == (
        "a small red circle in the northwest, a large red cross in the center, a small blue square in the southeast."
    )
    assert language.tell(SCENE) == ("northwest small red circle, center large red cross, southeast small blue square")


RIGHT = {
    "Is there a red circle in the image?": "Yes",
    "Is there a blue circle in the image?": "No",
    "How many objects are there?": "3",
    "How many red objects are there?": "2",
    "How many crosses are there?": "1",
    "How many triangles are there?": "0",
    "What color is the circle?": "red",
    "What color is the object in the southeast?": "blue",
    "What shape is the blue object?": "square",
    "What shape is the object in the center?": "cross",
    "What size is the red cross?": "large",
    "Where is the blue square?": "southeast",
    "Is the red circle left of the blue square?": "Yes",
    "Is the red circle right of the red cross?": "No",
    "Is the blue square above the red cross?": "No",
    "Is the blue square below the red cross?": "Yes",
    "What is in the northwest?": "red circle",
    "What is in the north?": "nothing",
}


def test_answers_are_right():
    rng = random.Random(0)
    asked = {q.text: q for _ in range(400) for q in language.questions(SCENE, rng, 8)}
    assert {text: asked[text].answer for text in RIGHT} == RIGHT
    assert "What shape is the red object?" not in asked, "two objects are red"
    assert all(q.answer not in q.wrong for q in asked.values())


def test_multiple_choice_letters_the_right_option():
    rng = random.Random(0)
    question = language.Question("color", "What color is it?", "red", ("green", "blue"))
    letters = set()
    for _ in range(20):
        text, letter = language.multiple_choice(question, rng)
        assert f"{letter}. red" in text.split("\n")
        letters.add(letter)
    assert letters == {"A", "B"}


def test_training_files_have_llavas_form():
    scenes = draw_scenes(120, seed=2, held_out=False)
    captions = pretrain_rows(scenes[:4], seed=0)
    assert captions[0]["image"] == "000000.png"
    assert captions[0]["conversations"][0]["value"].count("<image>") == 1
    assert captions[0]["conversations"][1] == {"from": "gpt", "value": language.caption(scenes[0])}
    rows = finetune_rows(scenes, seed=0)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {len(row["conversations"]) for row in rows} >= {2, 8, 16}, "descriptions, multiple choice, short answers"
    assert any("image" not in row for row in rows), "some rows are text only"
    for row in rows:
        speakers = [turn["from"] for turn in row["conversations"]]
        assert speakers == ["human", "gpt"] * (len(speakers) // 2)
        assert row["conversations"][0]["value"].startswith("<image>\n") == ("image" in row)
        assert not any("<image>" in turn["value"] for turn in row["conversations"][1:])


def test_mmvp_pairs(tmp_path):
    assert write_mmvp(tmp_path, pairs=12, seed=0) == 24
    rows = list(csv.DictReader((tmp_path / "Questions.csv").open()))
    assert [int(row["Index"]) for row in rows] == list(range(1, 25))
    first_letters = set()
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert (one["Question"], one["Options"]) == (two["Question"], two["Options"])
        assert {one["Correct Answer"], two["Correct Answer"]} == {"(a)", "(b)"}
        a, b = (Image.open(tmp_path / "MMVP Images" / f"{row['Index']}.jpg").tobytes() for row in (one, two))
        assert a != b
        first_letters.add(one["Correct Answer"])
    assert first_letters == {"(a)", "(b)"}, "neither letter always comes first"


def test_pope_files(tmp_path):
    assert write_pope(tmp_path, number=4, seed=0) == 4 * 6 * 3
    for category in ("random", "popular", "adversarial"):
        rows = [json.loads(line) for line in (tmp_path / f"coco_pope_{category}.json").read_text().splitlines()]
        assert [row["question_id"] for row in rows] == list(range(1, 25))
        assert sum(row["label"] == "yes" for row in rows) == 12
        assert all((tmp_path / "images" / row["image"]).is_file() for row in rows)


def test_questions_by_type(tmp_path):
    assert write_questions(tmp_path, number=3, seed=0) == 24
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert set(language.QUESTION_TYPES) >= {row["type"] for row in rows}
    assert len({row["question_id"] for row in rows}) == 24


def test_world_is_written_once_and_refuses_other_arguments(tmp_path):
    folder = write_world(tmp_path / "world", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    write_world(folder, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    with pytest.raises(EmmaError, match="delete the folder"):
        write_world(folder, **(SMALL | {"pretrain": 7}))
    again = write_world(tmp_path / "again", **SMALL)
    for path in before:
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes(), "one seed, one world"


def test_interrupted_world_is_written_anew(tmp_path):
    folder = write_world(tmp_path / "world", **SMALL)
    (folder / "world.json").unlink()
    (folder / ".unfinished-world").touch()
    (folder / "pretrain.json").write_text("[")
    (folder / "notes.txt").write_text("mine")
    write_world(folder, **SMALL)
    assert (folder / "notes.txt").exists()
    assert not (folder / ".unfinished-world").exists()
    assert len(json.loads((folder / "pretrain.json").read_text())) == SMALL["pretrain"]


def test_a_kill_while_writing_leaves_the_mark(tmp_path, monkeypatch):
    from emma.world import data

    with monkeypatch.context() as patch:
        patch.setattr(data, "write_pope", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_world(tmp_path / "world", **SMALL)
    assert (tmp_path / "world/eval/mmvp/Questions.csv").exists()
    write_world(tmp_path / "world", **SMALL)


def test_what_is_no_world_is_never_deleted(tmp_path):
    (tmp_path / "home" / "images").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name, message in {"home": "holds other things than a world", "file": "is a file"}.items():
        with pytest.raises(EmmaError, match=message):
            write_world(tmp_path / name, **SMALL)
    assert (tmp_path / "home" / "images").is_dir()
    (tmp_path / "home" / "world.json").write_text("{")
    with pytest.raises(EmmaError, match=r"world\.json is damaged"):
        write_world(tmp_path / "home", **SMALL)
    with pytest.raises(EmmaError, match="pretrain: 0 must be at least 1"):
        write_world(tmp_path / "new", **(SMALL | {"pretrain": 0}))
    assert not (tmp_path / "new").exists()


def test_data_command_writes_a_world(tmp_path, monkeypatch):
    from emma.data.__main__ import main
    from emma.world import data

    calls = []
    monkeypatch.setattr(data, "write_world", lambda folder, **numbers: calls.append((folder, numbers)))
    with pytest.raises(SystemExit) as ended:
        main(["world", "--to", str(tmp_path), "--pretrain", "3", "--finetune", "4"])
    assert ended.value.code == 0
    assert calls == [(tmp_path, {"seed": 0, "pretrain": 3, "finetune": 4})]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    from transformers import AutoTokenizer

    from emma.world.tiny_llm import Reader, write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, seed=0)
    return Reader(AutoTokenizer.from_pretrained(folder))


def test_questions_cut_from_their_telling_are_whole_chats(reader):
    from emma.world.tiny_llm import ask

    told = language.tell(SCENE)
    for human, gpt in ask(SCENE, random.Random(0)):
        ids, labels = reader.conversation(told, human, gpt)
        start = reader.telling(told)
        asked_ids, asked_labels = reader.question(human, gpt)
        assert start + asked_ids == ids
        assert [-100] * len(start) + asked_labels == labels


def test_shared_telling_gives_the_loss_of_separate_chats(reader):
    from torch.nn import functional as F

    from emma.world.tiny_llm import answer_loss, new_model

    rng = random.Random(1)
    samples = [reader.sample(scene, rng) for scene in draw_scenes(3, seed=0, held_out=False)]
    samples.append(reader.plain(SCENE, language.tell(SCENE)))
    torch.manual_seed(0)
    model = new_model(900)
    total, count = 0.0, 0
    for told, asked in samples:
        for ids, labels in asked:
            logits = model(torch.tensor([told + ids])).logits[0, len(told) - 1 : -1]
            total += F.cross_entropy(logits, torch.tensor(labels), reduction="sum").item()
            count += sum(label != -100 for label in labels)
    assert answer_loss(model, samples).item() == pytest.approx(total / count, rel=1e-5)


def test_world_bpe_is_clips_own_on_the_worlds_words(tmp_path):
    from open_clip.tokenizer import SimpleTokenizer

    from emma.world.tiny_clip import write_bpe

    write_bpe(tmp_path / "bpe.txt.gz")
    small, full = SimpleTokenizer(bpe_path=str(tmp_path / "bpe.txt.gz")), SimpleTokenizer()
    text = "Is the small red circle in the northwest left of the large purple triangle?"
    assert [small.decoder[i] for i in small.encode(text)] == [full.decoder[i] for i in full.encode(text)]
    assert small.decode(small.encode("zebra éclair")) == "zebra éclair ", "other words are spelt in bytes"
    assert small.vocab_size < 1000
