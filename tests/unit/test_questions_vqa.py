"""What VQAv2, OK-VQA, VizWiz, GQA and TextVQA ask: prompts, questions and pictures, from official and LLaVA's files."""

import json

import pytest

from emma.errors import EmmaError
from emma.eval.benchmark import find_benchmark

SHORT = "Answer the question using a single word or phrase."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))


def asked(name, data, folder, **settings):
    """The only item of a benchmark as (id, question, prompt, picture), its picture's folder cut off."""
    (data / folder).mkdir(parents=True, exist_ok=True)
    (item,) = find_benchmark(name).items(data, None, **settings)
    (picture,) = item.images
    return item.id, item.question, item.prompt, str(picture.relative_to(data / folder))


def test_vqav2(tmp_path):
    questions = [{"image_id": 42, "question": "What is it?", "question_id": 42001}]
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    expected = ("42001", "What is it?", f"What is it?\n{SHORT}")
    assert asked("vqav2", tmp_path, "val2014") == (*expected, "COCO_val2014_000000000042.jpg")
    write(tmp_path / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions})
    picture = "COCO_test2015_000000000042.jpg"
    assert asked("vqav2", tmp_path, "test2015", split="test-dev2015") == (*expected, picture)
    row = {"question_id": 42001, "image": picture, "text": f"What is it?\n{SHORT}", "category": "default"}
    write(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [row])
    assert asked("vqav2", tmp_path, "test2015", split="test2015") == (*expected, picture)
    write(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [{**row, "image": "dog.jpg"}])
    with pytest.raises(EmmaError, match=r"llava_vqav2_mscoco_test2015\.jsonl: expected question_id, image and text"):
        asked("vqav2", tmp_path, "test2015", split="test2015")


def test_okvqa(tmp_path):
    questions = [{"image_id": 7, "question": "Which country?", "question_id": 75}]
    write(tmp_path / "OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    expected, picture = ("75", "Which country?"), "COCO_val2014_000000000007.jpg"
    assert asked("okvqa", tmp_path, "val2014") == (*expected, f"Which country?\n{SHORT}", picture)
    prompt = f"Which country?\n{UNANSWERABLE}\n{SHORT}"
    assert asked("okvqa", tmp_path, "val2014", suffix="unanswerable") == (*expected, prompt, picture)


def test_vizwiz(tmp_path):
    image, prompt = "VizWiz_test_00000000.jpg", f"What is this?\n{UNANSWERABLE}\n{SHORT}"
    write(tmp_path / "llava_test.jsonl", [{"question_id": 0, "image": image, "text": prompt, "category": "default"}])
    expected = (image, "What is this?", prompt, image)
    assert asked("vizwiz", tmp_path, "test", split="test") == expected
    write(tmp_path / "Annotations" / "test.json", [{"image": image, "question": "what is this?"}])
    assert asked("vizwiz", tmp_path, "test", split="test") == expected


def test_gqa(tmp_path):
    prompt = f"Is the door open?\n{SHORT}"
    write(
        tmp_path / "llava_gqa_testdev_balanced.jsonl",
        [{"question_id": "0901", "image": "n5.jpg", "text": prompt, "category": "default"}],
    )
    expected = ("0901", "Is the door open?", prompt, "n5.jpg")
    assert asked("gqa", tmp_path, "images") == expected
    row = {"question": "Is the door open?", "answer": "no", "imageId": "n5", "isBalanced": True}
    write(
        tmp_path / "questions1.2" / "testdev_balanced_questions.json", {"0901": row, "2": row | {"isBalanced": False}}
    )
    assert asked("gqa", tmp_path, "images") == expected


@pytest.mark.parametrize("order", ["question first", "tokens first"])
def test_textvqa(tmp_path, order):
    row = {"question_id": 34602, "image_id": "0054c91397f2fe05", "question": "what brand?", "answers": ["x"] * 10}
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    picture = "0054c91397f2fe05.jpg"
    plain = ("34602", "what brand?", f"what brand?\n{SHORT}", picture)
    assert asked("textvqa", tmp_path, "train_images", ocr="none") == plain
    with pytest.raises(EmmaError, match=r"no OCR tokens \(ocr=none asks without them\)"):
        asked("textvqa", tmp_path, "train_images")
    lines = ["What brand?", "Reference OCR token: A, B"]
    text = "\n".join([*(lines if order == "question first" else reversed(lines)), SHORT])
    file = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    write(file, [{"question_id": "0054c91397f2fe05", "image": picture, "text": text}])
    assert asked("textvqa", tmp_path, "train_images") == ("34602", "what brand?", text, picture)
    write(file, [{"question_id": "another", "image": picture, "text": text}])
    with pytest.raises(EmmaError, match="question 34602 is not in LLaVA's file"):
        asked("textvqa", tmp_path, "train_images")
