"""The scorers of MMVP, POPE and the world on small official files, with figures worked out by hand."""

import json

import pytest

from emma.errors import EmmaError
from emma.eval.__main__ import main
from emma.eval.answers import read_answers
from emma.eval.benchmark import find_benchmark
from emma.eval.scoring import mmvp, pope, world

MMVP = """{header},Question,Options,Correct Answer
1,"Is the dog facing left or right?","(a) Left (b) Right","(a)"
2,"Is the dog facing left or right?","(a) Left (b) Right","(b)"
3,"Is the door, at the back, open?","(a) Yes (b) No","(b)"
4,"Is the door, at the back, open?","(a) Yes (b) No","(a)"
"""


@pytest.fixture
def mmvp_folder(tmp_path):
    (tmp_path / "Questions.csv").write_text(MMVP.format(header="lndex"))
    return tmp_path


@pytest.fixture
def pope_folder(tmp_path):
    labels = {"random": "yn", "popular": "yn", "adversarial": "yn"}
    for category, answers in labels.items():
        rows = [
            {
                "question_id": i,
                "image": f"{i}.jpg",
                "text": f"Is there a {category} {i} in the image?",
                "label": {"y": "yes", "n": "no"}[letter],
            }
            for i, letter in enumerate(answers, 1)
        ]
        (tmp_path / f"coco_pope_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answers_file(folder, rows):
    path = folder / "answers.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_answers(path)


def lines(texts, first=1):
    return [{"id": id, "text": text} for id, text in enumerate(texts, first)]


@pytest.mark.parametrize("header", ["Index", "lndex", "\ufeffIndex"])
def test_mmvp_rows(tmp_path, header):
    (tmp_path / "Questions.csv").write_text(MMVP.format(header=header), encoding="utf-8")
    rows = mmvp.read(tmp_path)
    assert rows[2].options == {"A": "Yes", "B": "No"}
    assert rows[2].question == "Is the door, at the back, open?"
    assert [row.answer for row in rows] == ["A", "B", "B", "A"]


def test_mmvp_pairs(mmvp_folder):
    score = mmvp.score(mmvp_folder, answers_file(mmvp_folder, lines(["A", "It is Right.", "B", "B"])))
    # rows 1, 2, 3 right, so one of two pairs
    assert score.figures["pair_accuracy"].value == 50
    assert score.figures["pair_accuracy"].n == 2
    assert score.figures["single_accuracy"].value == 75
    assert score.primary == "pair_accuracy"


def test_mmvp_missing_is_wrong(mmvp_folder):
    rows = [{"id": "1", "text": "A"}, {"id": 3, "text": "A"}, {"id": 3, "text": "B"}, {"id": 4, "text": None}]
    rows += [{"id": 99, "text": "A"}, "{broken", {"text": "A"}, {"id": 2.0, "text": 7}]
    score = mmvp.score(mmvp_folder, answers_file(mmvp_folder, rows))
    assert score.figures["single_accuracy"].value == 50  # rows 1 and 3; the last answer to 3 holds
    assert score.figures["pair_accuracy"].value == 0
    assert score.answers == {
        "expected": 4,
        "answered": 2,
        "missing": 2,
        "duplicate": 1,
        "extra": 1,
        "not_text": 2,
        "unreadable": 2,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("(b) No", "No", "line 4"), ("4,", "5,", "rows"), ("3,", "x,", "line 4"), ('"(a)"\n2', '"(c)"\n2', "line 2")],
)
def test_mmvp_damaged_file(mmvp_folder, old, new, message):
    path = mmvp_folder / "Questions.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(EmmaError, match=message):
        mmvp.read(mmvp_folder)


def test_pope_by_llava_ids(pope_folder):
    rows = lines(["no", "no"]) + lines(["Yes", "No."], 10_000_001) + lines(["yes", "yes"], 20_000_001)
    score = pope.score(pope_folder, answers_file(pope_folder, rows))
    value = {name: figure.value for name, figure in score.figures.items()}
    assert value["random/f1"] == 100
    assert value["popular/accuracy"] == 50
    assert value["popular/precision"] == 50
    assert value["popular/recall"] == 100
    assert value["popular/f1"] == pytest.approx(200 / 3)
    assert value["popular/yes_ratio"] == 100
    assert value["adversarial/f1"] == 0
    assert value["mean_f1"] == pytest.approx((100 + 200 / 3) / 3)
    assert value["mean_accuracy"] == pytest.approx((100 + 50 + 50) / 3)
    assert score.answers["missing"] == 0


def test_pope_by_category_and_by_position(pope_folder):
    right, wrong = ["yes", "no"], ["no", "yes"]
    by_category = [row | {"category": "popular"} for row in lines(right)]
    by_category += [row | {"category": "random"} for row in lines(wrong)]
    value = pope.score(pope_folder, answers_file(pope_folder, by_category)).figures
    assert (value["popular/accuracy"].value, value["random/accuracy"].value) == (100, 0)
    assert value["adversarial/accuracy"].n == 0

    by_position = lines(wrong) + lines(right)[:1] + lines(right)  # the second run lacks a question
    score = pope.score(pope_folder, answers_file(pope_folder, by_position))
    assert score.figures["random/accuracy"].value == 0
    assert score.figures["popular/accuracy"].n == 1
    assert score.figures["adversarial/accuracy"].value == 100
    assert score.answers["missing"] == 1


def test_pope_one_file_takes_its_own_ids(pope_folder):
    for category in ("random", "popular"):
        (pope_folder / f"coco_pope_{category}.json").unlink()
    rows = [*lines(["yes", "yes"]), {"id": 2, "text": "no"}, {"id": 3, "text": "no"}]
    score = pope.score(pope_folder, answers_file(pope_folder, rows))
    assert score.figures["mean_accuracy"].value == 100
    assert (score.answers["duplicate"], score.answers["extra"]) == (1, 1)
    (pope_folder / "coco_pope_adversarial.json").rename(pope_folder / "coco_pope_popular.json")
    assert pope.score(pope_folder, answers_file(pope_folder, rows)).answers["answered"] == 2


def test_pope_missing_is_left_out(pope_folder):
    rows = [*lines(["no", "yes"], 10_000_001), {"id": 1, "text": "yes"}, {"id": 2, "text": None}]
    score = pope.score(pope_folder, answers_file(pope_folder, rows))
    assert score.figures["adversarial/accuracy"].value == 100
    assert score.figures["adversarial/accuracy"].n == 1
    assert score.answers["missing"] == 3
    assert score.answers["not_text"] == 1


def test_pope_with_llava_rows(pope_folder):
    ids = {"adversarial": 1, "random": 10_000_001, "popular": 20_000_001}
    suffix = "\nAnswer the question using a single word or phrase."
    rows = [
        {"question_id": first + i, "image": "x.jpg", "text": row.question + suffix, "category": category}
        for category, first in ids.items()
        for i, row in enumerate(row for row in pope.read(pope_folder) if row.category == category)
    ]
    path = pope_folder / "llava_pope_test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {row.id for row in pope.read(pope_folder)} == {str(first + i) for first in ids.values() for i in (0, 1)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with pytest.raises(EmmaError, match=r"1 popular questions and coco_pope_popular\.json 2"):
        pope.read(pope_folder)


def test_pope_in_llavas_folders(pope_folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("pope")
    (other / "coco").symlink_to(pope_folder)
    assert len(pope.read(other)) == 6
    with pytest.raises(EmmaError, match="no POPE questions"):
        pope.read(tmp_path_factory.mktemp("empty"))


def test_world_by_type(tmp_path):
    rows = [
        {"question_id": 0, "image": "s0.png", "text": "What color is it?", "answer": "red", "type": "color"},
        {"question_id": 1, "image": "s0.png", "text": "How many?", "answer": "Two", "type": "count"},
        {"question_id": 2, "image": "s1.png", "text": "How many?", "answer": "one", "type": "count"},
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = world.score(tmp_path, answers_file(tmp_path, lines([" Red. ", "two", "one.."], 0)))
    assert score.figures["accuracy/color"].value == 100
    assert score.figures["accuracy/count"].value == 50  # one final full stop is dropped, not two
    assert score.figures["accuracy"].value == pytest.approx(200 / 3)
    assert score.figures["accuracy"].n == 3


def test_world_refuses_what_is_no_id(tmp_path):
    row = {"question_id": None, "image": "s.png", "text": "Red?", "answer": "yes", "type": "color"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(EmmaError, match=r"questions\.jsonl line 1: expected question_id"):
        world.read(tmp_path)


def test_score_command(mmvp_folder, capsys, tmp_path):
    answers_file(mmvp_folder, lines(["A", "B", "B", "A"]))
    arguments = ["score", "mmvp", "--annotations", str(mmvp_folder)]
    arguments += ["--predictions", str(mmvp_folder / "answers.jsonl"), "--output", str(tmp_path / "score.json")]
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "score.json").read_text())
    assert (printed["benchmark"], printed["score"], printed["n"]) == ("mmvp", 100, 2)
    assert printed["title"] == "MMVP"
    (mmvp_folder / "world.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(arguments)
    assert json.loads(capsys.readouterr().out)["title"] == "world (MMVP format)"


def test_score_command_errors(mmvp_folder, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(["score", *arguments])
        assert exit.value.code == 1
        return capsys.readouterr().err

    folder = str(mmvp_folder)
    assert "did you mean mmvp?" in error("mmpv", "--annotations", folder, "--predictions", "x.jsonl")
    assert "cannot read answers" in error("mmvp", "--annotations", folder, "--predictions", "x.jsonl")
    assert "no such folder" in error("mmvp", "--annotations", "nowhere", "--predictions", "x.jsonl")
    (mmvp_folder / "bad.jsonl").write_text("not json\n[1]\n")
    assert "no line of" in error("mmvp", "--annotations", folder, "--predictions", f"{folder}/bad.jsonl")


def test_line_separators_inside_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": 1, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n")
    assert read_answers(path)[0].text == "a\u2028b\x85c"


def test_unknown_benchmark():
    with pytest.raises(EmmaError, match="unknown benchmark 'popes'; did you mean pope"):
        find_benchmark("popes")
