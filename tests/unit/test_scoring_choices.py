"""Multiple-choice benchmarks: official parsing rules and denominators, on hand-made files, worked out beside them."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.errors import EmmaError
from emma.eval.answers import Answer
from emma.eval.scoring import abench, mathvista, mmbench_cn, mmbench_en, mmmu, muirbench, scienceqa, seed_bench
from emma.eval.scoring.mmmu_parse import normalise, open_is_right, parse_letter, parse_open


def answers(*rows):
    return [Answer(str(id), text, {}) for id, text in rows]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ----------------------------------------------------------------------------------------------------- ScienceQA


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. iron", "B"),
        ("B.", None),
        ("(B)", None),
        ("b", None),
        ("F", None),
        ("The answer is B.", "B"),
        ("The answer is B", None),  # nothing follows the letter
        ("The answer is A. No, The answer is B.", None),  # two matches
        ("I think The answer is C!", "C"),
    ],
)
def test_scienceqa_parse(text, letter):
    assert scienceqa.parse(text) == letter


def test_scienceqa(tmp_path):
    def problem(answer, image, subject, choices=("iron", "glass")):
        base = {"question": "Which?", "choices": list(choices), "answer": answer, "hint": "", "image": image}
        return {**base, "subject": subject, "split": "test"}

    problems = {
        "1": problem(0, "image.png", "natural science"),
        "2": problem(1, "image.png", "natural science"),
        "3": problem(1, None, "language science"),
        "4": problem(0, "image.png", "social science"),
        "9": problem(0, None, "language science"),
    }
    write(tmp_path / "problems.json", problems)
    write(tmp_path / "pid_splits.json", {"test": ["1", "2", "3", "4"], "train": ["9"]})
    given = answers((1, "A"), (2, "C"), (3, "B. glass"), (9, "A"))
    found = scienceqa.score(tmp_path, given)
    # images: 1 right, 2 beyond its choices, 4 unanswered and so absent: 1 of 2; in all: 1 and 3 right of 4
    assert found.figures["image_accuracy"].value == 50
    assert found.figures["image_accuracy"].n == 2
    assert found.figures["accuracy"].value == 50
    assert found.figures["language science/accuracy"].value == 100
    assert found.answers["extra"] == 1


# ------------------------------------------------------------------------------------------------------- MMBench

HEAD = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit\n"


def mmbench_row(index, options, answer, category="ocr", wide="coarse", hint=""):
    cells = [*options, "", "", "", ""][:4]
    return "\t".join([str(index), "What?", hint, *cells, answer, category, "aGk=", "s", wide, "", "dev"]) + "\n"


def test_mmbench_counts_groups(tmp_path):
    rows = [
        mmbench_row(1, ["red", "blue"], "A"),
        mmbench_row(1_000_001, ["blue", "red"], "B"),
        mmbench_row(2, ["cat", "None", "NA"], "C", "actions", "fine"),  # None is no option, NA is one
        mmbench_row(1_000_002, ["NA", "cat"], "A", "actions", "fine"),
        mmbench_row(3, ["up", "down"], "A", "actions", "fine"),
    ]
    (tmp_path / "mmbench_dev_20230712.tsv").write_text(HEAD + "".join(rows))
    read = mmbench_en.read(tmp_path)
    assert read[2].options == {"A": "cat", "C": "NA"}
    given = answers((1, "A"), (1_000_001, "B. red"), (2, "C"), (1_000_002, "B"), (3, "up"))
    found = mmbench_en.score(tmp_path, given)
    # groups: 1 right in both orders, 2 wrong in one, 3 right by its text: 2 of 3; rows 4 of 5
    assert found.figures["circular_accuracy"].value == pytest.approx(200 / 3)
    assert found.figures["vanilla_accuracy"].value == 80
    assert found.figures["coarse/accuracy"].value == 100
    assert found.figures["fine/accuracy"].value == 50
    assert found.figures["actions/accuracy"].n == 2
    # a missing row spoils its group
    assert mmbench_en.score(tmp_path, given[1:]).figures["circular_accuracy"].value == pytest.approx(100 / 3)


def test_mmbench_files(tmp_path):
    (tmp_path / "mmbench_dev_cn_20231003.tsv").write_text(HEAD + mmbench_row(1, ["a", "b"], "B"))
    assert mmbench_cn.score(tmp_path, answers((1, "B"))).figures["circular_accuracy"].value == 100
    with pytest.raises(EmmaError, match="no MMBench"):
        mmbench_en.score(tmp_path, [])
    (tmp_path / "mine.tsv").write_text(HEAD + mmbench_row(1, ["a", "b"], ""))
    with pytest.raises(EmmaError, match="has no answers: export"):
        mmbench_cn.score(tmp_path, [], file="mine.tsv")


# ---------------------------------------------------------------------------------------------------------- MMMU

OPTIONS = {"A": "a red bus", "B": "the blue bike", "C": "a dog"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(A) is wrong, (C) is right", "C"),  # the bracketed one that occurs last
        ("A or (B)", "B"),  # bracketed letters go first
        ("I say A then B now", "B"),
        ("it must be the blue bike over there", "B"),  # more than five words: by text
    ],
)
def test_mmmu_letter(text, letter):
    assert parse_letter(text, OPTIONS, random.Random(0)) == (letter, False)


def test_mmmu_draws_only_where_nothing_is_found():
    drawn = random.Random(42).choice(["A", "B", "C"])
    assert parse_letter("the blue bike", OPTIONS, random.Random(42)) == (drawn, True)  # three words: texts do not count
    assert parse_letter("", OPTIONS, random.Random(42)) == (drawn, True)


def test_mmmu_open_answers():
    assert normalise("1,234.567") == [1234.57]
    assert normalise("X") == [" x", "x "]
    assert 1000.0 in parse_open("The total is 1,000 dollars.")
    assert open_is_right(["24"], "So the answer is 24.")
    assert open_is_right(["24"], "x = 12 + 12 = 24.00")
    assert not open_is_right(["24"], "x = 240")
    assert open_is_right(["Paris", "paris, france"], "Therefore it must be Paris")
    assert not open_is_right(["a"], "the answer is cat")  # a single letter counts as a word only
    assert open_is_right(["0.5"], "roughly .5")
    assert open_is_right(["1200"], "is 1.2e3")


def test_mmmu(tmp_path):
    def row(subject, number, kind, options, answer):
        base = {"id": f"validation_{subject}_{number}", "question": "<image 1> Which?", "options": str(options)}
        return {**base, "answer": answer, "question_type": kind}

    lines(
        tmp_path / "Math" / "validation-00000-of-00001.jsonl",
        [row("Math", 1, "open", [], "['7', '7.0']"), row("Math", 2, "multiple-choice", ["x", "y"], "B")],
    )
    choices = ["one", "two", "three"]
    table = pa.Table.from_pylist(
        [row("Art", 1, "multiple-choice", choices, "C"), row("Art", 2, "multiple-choice", choices, "A")]
    )
    (tmp_path / "Art").mkdir()
    pq.write_table(table, tmp_path / "Art" / "validation-00000-of-00001.parquet")
    with pytest.raises(EmmaError, match="no MMMU rows in"):
        mmmu.score(tmp_path / "nowhere", [])
    assert [row.subject for row in mmmu.read(tmp_path)] == ["Art", "Art", "Math", "Math"]
    math = tmp_path / "Math" / "validation-00000-of-00001.jsonl"
    kept = math.read_text()
    math.unlink()
    found = mmmu.score(tmp_path, answers(("validation_Art_1", "(C)"), ("validation_Art_2", "no idea")))
    # the second is drawn from A, B, C with seed 42
    lucky = random.Random(42).choice(["A", "B", "C"]) == "A"
    assert found.figures["accuracy"].value == (100 if lucky else 50)
    assert found.answers["drawn_at_random"] == 1
    assert "Art and Design/accuracy" in found.figures
    (tmp_path / "Art" / "validation-00000-of-00001.parquet").unlink()
    math.write_text(kept)
    found = mmmu.score(tmp_path, answers(("validation_Math_1", "It is 7"), ("validation_Math_2", "B")))
    assert found.figures["accuracy"].value == 100
    assert found.figures["Science/accuracy"].n == 2


# ----------------------------------------------------------------------------------------------------- MathVista


def problem(question_type, answer_type, answer, choices=None, precision=None):
    metadata = {"task": "figure question answering", "skills": ["arithmetic reasoning", "logical reasoning"]}
    base = {"question": "What?", "image": "images/1.jpg", "choices": choices, "unit": None, "precision": precision}
    kinds = {"question_type": question_type, "answer_type": answer_type}
    return {**base, "answer": answer, **kinds, "metadata": metadata}


def test_mathvista(tmp_path):
    problems = {
        "1": problem("multi_choice", "text", "blue", ["red", "blue"]),
        "2": problem("multi_choice", "text", "blue", ["red", "blue"]),
        "3": problem("multi_choice", "text", "red", ["red", "blue"]),
        "4": problem("free_form", "integer", "12"),
        "5": problem("free_form", "float", "2.5", precision=1),
        "6": problem("free_form", "float", "2.50", precision=2),
        "7": problem("free_form", "list", "[1, 2]"),
        "8": problem("free_form", "integer", "3"),
    }
    write(tmp_path / "data" / "testmini.json", problems)
    given = answers(
        (1, "(b) is it"),  # letter in brackets, any case
        (2, "blu"),  # the most similar option
        (3, ""),  # distances 3 and 4: red
        (4, "12.0"),  # no int, so the raw text, int(float()) 12
        (5, "2.46"),  # rounds to 2.5
        (6, "2.5"),  # round gives 2.5, which is never "2.50"
        (7, "[1, 2]"),
        (8, 'I say: The answer is "3".'),
    )
    found = mathvista.score(tmp_path, given)
    assert found.figures["accuracy"].value == pytest.approx(700 / 8)
    assert found.figures["multi_choice/accuracy"].value == 100
    assert found.figures["answer float/accuracy"].value == 50
    assert found.figures["logical reasoning/accuracy"].n == 8
    # without quick 8 fails; an empty text wrong: 3 fails
    strict = mathvista.score(tmp_path, given, quick="off", empty="wrong")
    assert strict.figures["accuracy"].value == pytest.approx(500 / 8)
    assert mathvista.score(tmp_path, given[:1]).figures["accuracy"].value == pytest.approx(100 / 8)


def test_edit_distance():
    assert mathvista.edit_distance("kitten", "sitting") == 3
    assert mathvista.edit_distance("", "abc") == 3
    assert mathvista.most_similar("x", ("a", "b")) == "a", "the first of equals"


# ------------------------------------------------------------------------------- MuirBench, A-Bench, SEED-Bench


def test_muirbench(tmp_path):
    def row(idx, answer, task):
        base = {"idx": idx, "task": task, "image_relation": "Overall", "question": "How many in <image>?"}
        return {**base, "options": ["1", "2", "<image>"], "answer": answer}

    lines(tmp_path / "data" / "test-00000-of-00001.jsonl", [row("1", "A", "Counting"), row("2", "B", "Ordering")])
    found = muirbench.score(tmp_path, answers((1, "The answer: (A)"), (2, "b")))
    lucky = random.Random(42).choice(["A", "B", "C"]) == "B"
    assert found.figures["accuracy"].value == (100 if lucky else 50)
    assert found.answers["drawn_at_random"] == 1
    assert muirbench.score(tmp_path, answers((1, "A. 1"), (2, "b")), rule="lmms_eval").figures["accuracy"].value == 100
    assert muirbench.score(tmp_path, answers((1, "A. 1"), (2, "B")), rule="equality").figures["accuracy"].value == 50


def test_muirbench_wording(tmp_path):
    from emma.eval.benchmarks.muirbench import wording

    row = muirbench.Row(
        "1", "Is <image> like <image>?", {"A": "<image>", "B": "no", "C": "<image>"}, "A", "t", "r", (tmp_path, 0)
    )
    assert wording(row, "released") == (
        "Is  like Right Image?\nA. Image 2\nB. no\nC. Image 3\nAnswer with the option's letter A, B, C directly ."
    )
    assert wording(row, "official").startswith("Question: Is  like ?\nChoices:\n(A) (image)\n(B) no")


def test_abench(tmp_path):
    def row(id, answer, category, last="N/A"):
        options = {"option0": "Morning", "option1": "Night", "option2": "Noon", "option3": last}
        return {"id": id, "question": "When?", **options, "category": category, "correct_choice": answer}

    rows = [row(0, "B", "part1 -> words -> attribute"), row(1, "A", "part1 -> basic"), row(2, "C", "part2")]
    lines(tmp_path / "data" / "dev-00000-of-00001.jsonl", rows)
    given = answers((0, "The answer is Night."), (1, "A"), (2, "D"))
    found = abench.score(tmp_path, given)
    assert found.figures["accuracy"].value == pytest.approx(200 / 3)
    assert found.figures["part1/accuracy"].value == 100
    assert found.figures["part1 -> words -> attribute/accuracy"].n == 1
    assert abench.score(tmp_path, given, rule="equality").figures["accuracy"].value == pytest.approx(100 / 3)


def test_seed_bench(tmp_path):
    def row(id, answer, kind, data_type):
        choices = {f"choice_{letter}": letter for letter in "abcd"}
        base = {"question_id": id, "question": "?", "answer": answer, "question_type_id": kind, "data_type": data_type}
        return {**base, **choices, "data_id": f"m{id}"}

    rows = [row("101", "A", 1, "image"), row("102", "B", 1, "image"), row("103", "C", 2, "video")]
    write(tmp_path / "SEED-Bench.json", {"questions": rows, "question_type": {"Scene Understanding": 1, "Action": 2}})
    found = seed_bench.score(tmp_path, answers((101, "A"), (102, "B.")))
    # equality: "B." is not B; 103 has no answer
    assert found.figures["accuracy"].value == pytest.approx(100 / 3)
    assert found.figures["image/accuracy"].value == 50
    assert found.figures["video/accuracy"].value == 0
    assert found.figures["Scene Understanding/accuracy"].value == 50
