"""Submission files: order, processing and what is missing, as each server wants it."""

import json

import pytest

from emma.eval.__main__ import main
from emma.eval.prompts import SHORT, UNANSWERABLE


def call(tmp_path, benchmark, rows, output, *words):
    predictions = tmp_path / "answers.jsonl"
    predictions.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in rows))
    arguments = ["--annotations", str(tmp_path), "--predictions", str(predictions), "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(["export", benchmark, *arguments, *words])
    return ended.value.code


def test_vqav2(tmp_path):
    rows = [{"image_id": 1, "question": "?", "question_id": id} for id in (30, 10, 20)]
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").write_text(json.dumps({"questions": rows}))
    output = tmp_path / "out" / "upload.json"
    assert call(tmp_path, "vqav2", [(10, "The Dog."), (30, "Man's")], output, "split=test-dev2015") == 0
    assert json.loads(output.read_text()) == [
        {"question_id": 30, "answer": "man 's"},
        {"question_id": 10, "answer": "dog"},
        {"question_id": 20, "answer": ""},
    ]


def test_vqav2_lists_what_the_server_scores(tmp_path, capsys):
    for split, id in (("val2014", 1), ("test2015", 2), ("test-dev2015", 3)):
        rows = [{"image_id": 1, "question": "?", "question_id": id}]
        (tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"questions": rows}))
    output = tmp_path / "upload.json"
    assert call(tmp_path, "vqav2", [(2, "The cat")], output) == 0
    assert json.loads(output.read_text()) == [{"question_id": 2, "answer": "cat"}]
    assert call(tmp_path, "vqav2", [(2, "The cat")], output, "predictions=raw") == 0
    assert json.loads(output.read_text()) == [{"question_id": 2, "answer": "The cat"}]
    assert call(tmp_path, "vqav2", [(2, "cat")], output, "unanimous=as_is") == 1
    assert "export of VQAv2 has no setting 'unanimous'; its settings: split, predictions" in capsys.readouterr().err


def test_lists_in_llava_s_files(tmp_path):
    rows = [
        {"question_id": id, "image": f"COCO_test2015_{id:012d}.jpg", "text": f"What?\n{SHORT}", "category": "default"}
        for id in (5, 3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "llava_vqav2_mscoco_test2015.jsonl").write_text(lines)
    output = tmp_path / "upload.json"
    assert call(tmp_path, "vqav2", [(3, "yes")], output) == 0
    assert json.loads(output.read_text()) == [{"question_id": 5, "answer": ""}, {"question_id": 3, "answer": "yes"}]
    row = {"question_id": 0, "image": "VizWiz_test_00000000.jpg", "text": f"What?\n{UNANSWERABLE}\n{SHORT}"}
    (tmp_path / "llava_test.jsonl").write_text(json.dumps(row) + "\n")
    assert call(tmp_path, "vizwiz", [(0, "Three")], output) == 0
    assert json.loads(output.read_text()) == [{"image": "VizWiz_test_00000000.jpg", "answer": "3"}]


def test_vizwiz_wants_all(tmp_path, capsys):
    (tmp_path / "test.json").write_text(json.dumps([{"image": f"{i}.jpg", "question": "?"} for i in "ab"]))
    output = tmp_path / "upload.json"
    assert call(tmp_path, "vizwiz", [("a.jpg", "Two")], output) == 1
    assert "wants an answer to every question: 1 are missing, first b.jpg" in capsys.readouterr().err
    assert call(tmp_path, "vizwiz", [("a.jpg", "Two"), (1, "unanswerable")], output, "split=test") == 0
    assert json.loads(output.read_text()) == [
        {"image": "a.jpg", "answer": "2"},
        {"image": "b.jpg", "answer": "unanswerable"},
    ]


def test_mmbench_sheet(tmp_path):
    from openpyxl import load_workbook

    head = "index\tquestion\thint\tA\tB\tC\tD\tcategory\timage\tl2-category\tsplit\n"
    (tmp_path / "mmbench_test_20230712.tsv").write_text(head + "7\tWhat?\t\tone\ttwo\t\t\tc\taGk=\tl\ttest\n")
    output = tmp_path / "upload.xlsx"
    assert call(tmp_path, "mmbench_en", [(7, "B. two\x00")], output) == 0
    rows = list(load_workbook(output).active.values)
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert rows[1] == (7, "What?", "one", "two", None, None, "B. two", None, "test")


def test_mmmu_and_seed_bench(tmp_path):
    row = {
        "id": "test_Math_1",
        "question": "?",
        "options": "['a', 'b']",
        "answer": "?",
        "question_type": "multiple-choice",
    }
    (tmp_path / "Math").mkdir()
    lines = [row, {**row, "id": "test_Math_2", "question_type": "open", "options": "[]"}]
    (tmp_path / "Math" / "test-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = tmp_path / "upload.json"
    assert call(tmp_path, "mmmu", [("test_Math_1", "(B) it is"), ("test_Math_2", "42 m")], output, "split=test") == 0
    assert json.loads(output.read_text()) == {"test_Math_1": "B", "test_Math_2": "42 m"}
    choices = {f"choice_{letter}": letter for letter in "abcd"}
    question = {"question_id": "101", "question": "?", "answer": "A", "question_type_id": 1, "data_type": "image"}
    content = {"questions": [question | choices | {"data_id": "x"}], "question_type": {"Scene": 1}}
    (tmp_path / "SEED-Bench.json").write_text(json.dumps(content))
    assert call(tmp_path, "seed_bench", [("101", "C")], output) == 0
    assert json.loads(output.read_text()) == {"question_id": "101", "prediction": "C"}


def test_a_benchmark_without_a_server(tmp_path, capsys):
    assert call(tmp_path, "mmvp", [(1, "A")], tmp_path / "x") == 1
    assert "mmvp has no submission file; these have: mmbench_cn" in capsys.readouterr().err
