"""VQAv2, OK-VQA, VizWiz, GQA and TextVQA: official rules on hand-made files, figures worked out beside them."""

import json

import pytest

from emma.errors import EmmaError
from emma.eval.answers import Answer, read_answers
from emma.eval.scoring import gqa, okvqa, textvqa, vizwiz, vqav2
from emma.eval.scoring.vqa_metric import (
    CONTRACTIONS,
    VIZWIZ_CONTRACTIONS,
    credit_by_position,
    normalise,
    processed,
    vqa_credit,
    without_punctuation,
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def answers(*rows):
    return [Answer(str(id), text, fields) for id, text, *rest in rows for fields in [rest[0] if rest else {}]]


def records(*texts):
    return [{"answer": text, "answer_id": number, "answer_confidence": "yes"} for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(red)", " red "),  # no space beside a mark: each becomes a space
        ("red, blue", "red blue"),  # a space behind the comma: deleted
        ("a-b - c", "ab  c"),  # one hyphen stands beside a space, so both go
        ("1,000-2", "10002"),  # digit-comma-digit anywhere: every mark is deleted
        ("5.5 lbs.", "5.5 lbs"),  # a full stop that a digit follows stays
        ("don't & 50%: #1", "don't & 50%: #1"),  # these marks stay
    ],
)
def test_punctuation(text, expected):
    assert without_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog and a Cat", "dog and cat"),
        ("Two", "2"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # lacks both apostrophes: not in the map
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # keys with a capital I never match
        ("its", "its"),
        ("yall'd've", "y'all'd've"),
    ],
)
def test_words(text, expected):
    assert normalise(text) == expected


def test_contractions_are_the_script_s_120():
    assert len(CONTRACTIONS) == 120
    assert "id" not in CONTRACTIONS
    assert VIZWIZ_CONTRACTIONS["dont"] == "don’t"
    assert VIZWIZ_CONTRACTIONS["cant"] == "can't"
    assert VIZWIZ_CONTRACTIONS["couldnt’ve"] == "couldn’t’ve"


def test_llava_s_processing():
    assert processed("Man's hat?\n") == "man 's hat"
    assert processed("1,000") == "1000"


@pytest.mark.parametrize(("matches", "credit"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_credit_for_matching_annotators(matches, credit):
    # 3 of 10 match: the three that match leave 2 others (2/3 each), seven leave 3 (1 each): (3*2/3 + 7)/10 = 0.9
    given = records(*["cat"] * matches, *(f"other {n}" for n in range(10 - matches)))
    assert vqa_credit("cat", given) == pytest.approx(credit)


def test_unanimous_answers_are_not_normalised():
    assert vqa_credit("Yes", records(*["yes"] * 10)) == 0
    assert vqa_credit("yes\n", records(*["yes"] * 10)) == 1
    assert vqa_credit("Yes", records(*["yes"] * 9, "no")) == 1
    assert vqa_credit("The dog.", records(*["dog"] * 9, "a dog")) == 1
    assert vqa_credit("Yes", records(*["yes"] * 10), normalise_unanimous=True) == 1


def test_annotators_are_left_out_by_their_whole_record():
    same = [{"answer": "cat"}] * 2 + [{"answer": f"x{n}"} for n in range(8)]
    # Equal records leave together: 0 others twice, 2 others eight times: 8 * 2/3 / 10
    assert vqa_credit("cat", same) == pytest.approx(16 / 30)
    assert credit_by_position("cat", [r["answer"] for r in same]) == pytest.approx(0.6)


def test_vqav2(tmp_path):
    rows = [
        {"question_id": 11, "image_id": 1, "question_type": "is the", "answer_type": "yes/no"},
        {"question_id": 12, "image_id": 1, "question_type": "what", "answer_type": "other"},
        {"question_id": 21, "image_id": 2, "question_type": "how many", "answer_type": "number"},
        {"question_id": 22, "image_id": 2, "question_type": "what", "answer_type": "other"},
    ]
    given = [["yes"] * 10, ["cat"] * 2 + ["dog"] * 8, ["2"] * 10, ["man 's hat"] * 5 + ["hat"] * 5]
    annotated = [{**row, "answers": records(*texts)} for row, texts in zip(rows, given, strict=True)]
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": annotated})
    found = vqav2.score(tmp_path, answers((11, "Yes"), (12, "cat"), (21, "two"), (99, "extra"), (22, "man's hat")))
    # processed: yes 100, cat 60, "two" -> 2 (unanimous, but processed before) 100, man 's hat 100: mean 90
    assert found.figures["accuracy"].value == pytest.approx(90)
    assert found.figures["yes/no/accuracy"].value == pytest.approx(100)
    assert found.figures["other/accuracy"].value == pytest.approx(80)
    assert found.figures["how many/accuracy"].value == pytest.approx(100)
    assert found.answers["extra"] == 1
    # raw: "Yes" and "two" against unanimous strings 0; cat 60; "man's hat" is not "man 's hat" 0: mean 15
    raw = vqav2.score(tmp_path, answers((11, "Yes"), (12, "cat"), (21, "two"), (22, "man's hat")), predictions="raw")
    assert raw.figures["accuracy"].value == pytest.approx(15)
    # all normalised: Yes and "two" match now, "man's hat" still is not "man 's hat": (100 + 60 + 100 + 0) / 4
    loose = answers((11, "Yes"), (12, "cat"), (21, "two"), (22, "man's hat"))
    found = vqav2.score(tmp_path, loose, predictions="raw", unanimous="normalised")
    assert found.figures["accuracy"].value == pytest.approx(65)
    missing = vqav2.score(tmp_path, answers((12, "dog")))
    assert missing.figures["accuracy"].value == pytest.approx(25)
    assert missing.answers["missing"] == 3


def test_vqav2_questions_and_other_splits(tmp_path):
    rows = [{"image_id": 7, "question": "What? ", "question_id": 70}]
    write(tmp_path / "Questions" / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": rows})
    (question,) = vqav2.read(tmp_path, "test2015")
    assert (question.id, question.image_id, question.text) == ("70", 7, "What?")
    with pytest.raises(EmmaError, match="VQAv2 test2015 has no published answers: export"):
        vqav2.score(tmp_path, [], split="test2015")
    with pytest.raises(EmmaError, match=r"no VQAv2 annotations in .*v2_mscoco_val2014_annotations.json"):
        vqav2.score(tmp_path, [])


def test_vqav2_refuses_what_it_cannot_score(tmp_path):
    row = {"question_id": 1, "image_id": 1, "question_type": "q", "answer_type": "other", "answers": records("a", "b")}
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    for rows, message in (
        ([row, row], "a question_id occurs twice"),
        ([row, {**row, "question_id": 2, "answers": []}], "question 2 has no answers"),
        ([{"question_id": 1}], "expected question_id and answers"),
        ([], "expected an object with a list 'annotations'"),
    ):
        write(file, {"annotations": rows})
        with pytest.raises(EmmaError, match=message):
            vqav2.score(tmp_path, [])


def test_okvqa_counts_equal_pairs(tmp_path):
    pairs = [text for text in ("spain", "italy", "france", "peru", "chad") for _ in range(2)]
    row = {"question_id": 1, "image_id": 1, "question_type": "one", "answer_type": "other", "answers": records(*pairs)}
    write(tmp_path / "mscoco_val2014_annotations.json", {"annotations": [row]})
    assert okvqa.score(tmp_path, answers((1, "Spain."))).figures["accuracy"].value == pytest.approx(60)


def test_okvqa_s_question_type_other_is_not_its_answer_type(tmp_path):
    base = {"image_id": 1, "answer_type": "other", "answers": records(*["spain"] * 10)}
    rows = [base | {"question_id": 1, "question_type": "one"}, base | {"question_id": 2, "question_type": "other"}]
    write(tmp_path / "mscoco_val2014_annotations.json", {"annotations": rows})
    figures = okvqa.score(tmp_path, answers((1, "spain"), (2, "peru"))).figures
    assert {name: figure.value for name, figure in figures.items()} == {
        "accuracy": 50,
        "one/accuracy": 100,
        "other/accuracy": 0,
    }
    write(tmp_path / "mscoco_val2014_annotations.json", {"annotations": rows[:1]})
    assert list(okvqa.score(tmp_path, answers((1, "spain"))).figures) == ["accuracy", "one/accuracy"]


def test_vizwiz(tmp_path):
    def row(image, texts, kind):
        return {"image": image, "question": "what?", "answers": [{"answer": t} for t in texts], "answer_type": kind}

    rows = [
        row("VizWiz_val_00000000.jpg", ["dont know"] * 10, "other"),
        row("VizWiz_val_00000001.jpg", ["don't know"] * 10, "other"),
        row("VizWiz_val_00000002.jpg", ["Coke"] * 3 + ["coke"] * 7, "other"),
        row("VizWiz_val_00000003.jpg", ["unanswerable"] * 10, "unanswerable"),
    ]
    write(tmp_path / "Annotations" / "val.json", rows)
    given = answers((0, "dont know"), (1, "dont know"), ("VizWiz_val_00000002.jpg", "Coke"), (3, "Unanswerable"))
    # raw: the map writes a typographic apostrophe, which matches neither spelling: 0, 0; "coke" with 7 others 100; 100
    raw = vizwiz.score(tmp_path, given, predictions="raw")
    assert raw.figures["accuracy"].value == pytest.approx(50)
    # processed first: don't (plain apostrophe), which the second map leaves: 0, 100, 100, 100
    found = vizwiz.score(tmp_path, given)
    assert found.figures["accuracy"].value == pytest.approx(75)
    assert found.figures["other/accuracy"].value == pytest.approx(200 / 3)
    assert found.figures["unanswerable/accuracy"].value == pytest.approx(100)
    # both sides processed: all match
    assert vizwiz.score(tmp_path, given, ground_truth="processed").figures["accuracy"].value == pytest.approx(100)


def test_vizwiz_test_has_no_answers(tmp_path):
    write(tmp_path / "Annotations" / "test.json", [{"image": "a.jpg", "question": "what?"}])
    assert [row.image for row in vizwiz.read(tmp_path, "test")] == ["a.jpg"]
    with pytest.raises(EmmaError, match="no published answers"):
        vizwiz.score(tmp_path, [], split="test")


def test_vizwiz_leaves_annotators_out_by_place(tmp_path):
    texts = ["red"] * 2 + ["unsuitable"] * 8
    given = [{"answer": text, "answer_confidence": "yes"} for text in texts]
    write(tmp_path / "val.json", [{"image": "a.jpg", "question": "what?", "answers": given, "answer_type": "other"}])
    # two of ten: 2 * 1/3 + 8 * 2/3 = 6; their records are equal, and by record it would be 8 * 2/3 = 5.33
    assert vizwiz.score(tmp_path, answers(("a.jpg", "Red"))).figures["accuracy"].value == pytest.approx(60)
    missing = vizwiz.score(tmp_path, answers(("b.jpg", "red")))
    assert (missing.figures["accuracy"].value, missing.answers["missing"], missing.answers["extra"]) == (0, 1, 1)


def gqa_row(question, answer, image, structural, semantic, group=None, balanced=True):
    types = {"structural": structural, "semantic": semantic, "detailed": "x"}
    base = {"question": question, "answer": answer, "imageId": image, "isBalanced": balanced, "types": types}
    return {**base, "groups": {"global": group, "local": None}}


def test_gqa(tmp_path):
    rows = {
        "1": gqa_row("Is it red?", "yes", "n1", "verify", "attr"),
        "2": gqa_row("Which colour is it?", "red", "n1", "query", "attr", "color"),
        "3": gqa_row("Which colour has it?", "blue", "n2", "query", "attr", "color"),
        "4": gqa_row("Is it so?", "no", "n2", "logical", "obj", balanced=False),
        "5": gqa_row("Left or right?", "left", "n2", "choose", "rel"),
    }
    write(tmp_path / "questions1.2" / "testdev_balanced_questions.json", rows)
    given = answers((1, "Yes."), (2, "Red.."), (3, "blue!"), (4, "no"), (5, "the left"))
    found = gqa.score(tmp_path, given)
    # balanced: 1 right, 2 right (full stops off), 3 wrong (only full stops are), 5 wrong: 2 of 4
    assert found.figures["accuracy"].value == pytest.approx(50)
    assert found.figures["binary"].value == pytest.approx(50)
    assert found.figures["open"].value == pytest.approx(50)
    assert found.figures["verify/accuracy"].value == pytest.approx(100)
    assert found.figures["attr/accuracy"].value == pytest.approx(200 / 3)
    assert found.figures["03 words/accuracy"].value == pytest.approx(50)
    # group color: gold red 1, blue 1; said red 1, blue! 1: chi = 0 + 1, over 100
    assert found.figures["distribution"].value == pytest.approx(0.01)
    assert found.answers["extra"] == 1, "the unbalanced question is not scored"
    # every mark off: "blue!" is right too
    assert gqa.score(tmp_path, given, punctuation="all").figures["accuracy"].value == pytest.approx(75)
    assert gqa.score(tmp_path, given[:1]).figures["accuracy"].value == pytest.approx(25), "missing is wrong"


def test_gqa_by_reasoning_steps(tmp_path):
    def program(*steps):
        return {"semantic": [{"operation": o, "argument": a, "dependencies": []} for o, a in steps]}

    # select, filter and verify count; exist, query: name and choose name only read off
    first = program(("select", "dog (1)"), ("filter color", "red"), ("exist", "?"))
    second = program(("select", "dog (1)"), ("relate", "cat,on,s (2)"), ("query", "name"))
    third = program(("select", "dog (1)"), ("choose name", "cat|dog"))
    rows = {
        "1": gqa_row("Is there a red dog?", "yes", "n1", "verify", "obj") | first,
        "2": gqa_row("What is on the dog?", "cat", "n1", "query", "rel") | second,
        "3": gqa_row("Is it a cat or a dog?", "dog", "n2", "choose", "cat") | third,
    }
    write(tmp_path / "testdev_balanced_questions.json", rows)
    figures = gqa.score(tmp_path, answers((1, "yes"), (2, "dog"), (3, "dog"))).figures
    assert (figures["02 steps/accuracy"].value, figures["02 steps/accuracy"].n) == (50, 2)
    assert (figures["01 steps/accuracy"].value, figures["01 steps/accuracy"].n) == (100, 1)


def test_textvqa_by_order_by_question_and_by_id(tmp_path):
    def row(id, image, question, texts):
        return {"question_id": id, "image_id": image, "question": question, "answers": texts}

    rows = [
        row(1, "i1", "What brand?", ["Pepsi"] * 10),
        row(2, "i1", "What colour?", ["red"] * 2 + ["blue"] * 8),
        row(3, "i2", "Time?", ["10:10"] * 10),
    ]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    # pepsi 100, red 60 (two of ten), 10:10 100
    expected = pytest.approx(260 / 3)
    in_order = answers(("i1", "pepsi"), ("i1", "Red"), ("i2", "10:10"))
    assert textvqa.score(tmp_path, in_order).figures["accuracy"].value == expected
    mixed = answers(
        ("i1", "red", {"question": "WHAT COLOUR?"}), ("i1", "pepsi", {"question": "What brand?"}), (3, "10:10")
    )
    assert textvqa.score(tmp_path, mixed).figures["accuracy"].value == expected
    llava = "What colour?\nReference OCR token: A, B\nAnswer"
    some = answers(("i1", "pepsi"), ("i1", "red", {"prompt": llava}), ("i2", "10:10"))
    assert textvqa.score(tmp_path, some).figures["accuracy"].value == expected
    # the second gets the question that the first has left
    named_first = answers(("i1", "pepsi", {"question": "what brand?"}), ("i1", "red"), ("i2", "10:10"))
    found = textvqa.score(tmp_path, named_first)
    assert (found.figures["accuracy"].value, found.answers["duplicate"]) == (expected, 0)


def test_textvqa_answers_that_match_nothing_or_twice(tmp_path):
    rows = [
        {"question_id": id, "image_id": "i1", "question": question, "answers": ["red"] * 10}
        for id, question in ((1, "What?"), (2, "what?"), (3, "Why?"))
    ]
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    other = textvqa.score(tmp_path, answers(("i1", "red", {"question": "Who?"}), ("i9", "red")))
    assert (other.answers["extra"], other.answers["missing"]) == (2, 3)
    # one image asked the same question twice: both answers find a place, a third is the second's once more
    asked = [("i1", text, {"question": "WHAT?"}) for text in ("red", "blue", "red")]
    twice = textvqa.score(tmp_path, answers(*asked))
    assert (twice.answers["duplicate"], twice.answers["missing"]) == (1, 1)
    assert twice.figures["accuracy"].value == pytest.approx(200 / 3), "a missing answer is an empty one"
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [*rows, {**rows[0], "question_id": 4, "answers": []}]})
    with pytest.raises(EmmaError, match="question 4 has no answers"):
        textvqa.score(tmp_path, [])


def test_scores_from_the_command_line(tmp_path, capsys):
    from emma.eval.__main__ import main

    row = {
        "question_id": 1,
        "image_id": 1,
        "question_type": "q",
        "answer_type": "other",
        "answers": records(*["a cat"] * 9, "x"),
    }
    write(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [row]})
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text('{"id": 1, "text": "Cat"}\n{"id": 1, "text": 5}\n{"id": 1, "text": "The cat"}\n')
    assert len(read_answers(predictions)) == 3
    main_arguments = ["score", "vqav2", "--annotations", str(tmp_path), "--predictions", str(predictions)]
    with pytest.raises(SystemExit) as ended:
        main([*main_arguments, "predictions=raw"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["metric"], result["score"], result["n"]) == ("accuracy", 100.0, 1)
    assert result["settings"] == {"split": "val2014", "predictions": "raw", "unanimous": "as_is"}
    assert result["answers"]["duplicate"] == 2
    with pytest.raises(SystemExit) as ended:
        main([*main_arguments, "predictions=rar"])
    assert ended.value.code == 1
    assert "predictions='rar' is not one of processed, raw" in capsys.readouterr().err
