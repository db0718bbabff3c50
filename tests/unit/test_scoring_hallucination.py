"""AMBER, FOIL, MMRel, R-Bench, MME, LLaVA-Bench and MM-Vet on hand-made files, figures worked out beside them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from emma.errors import EmmaError
from emma.eval.answers import Answer
from emma.eval.scoring import amber, foil, llava_bench_wild, mme, mmrel, mmvet, rbench


def answers(*rows):
    return [Answer(str(id), text, rest[0] if rest else {}) for id, text, *rest in rows]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# --------------------------------------------------------------------------------------------------------- AMBER


@pytest.fixture
def amber_folder(tmp_path):
    annotations = [
        {"id": 1, "type": "generative", "truth": ["sky", "forest"], "hallu": ["cloud", "dog"]},
        {"id": 2, "type": "generative", "truth": ["man", "man"], "hallu": ["cat"]},
        {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 4, "type": "discriminative-attribute-number", "truth": "no"},
        {"id": 5, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 6, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 7, "type": "relation", "truth": "no"},
        {"id": 8, "type": "discriminative-relation", "truth": "yes"},
    ]
    write(tmp_path / "data" / "annotations.json", annotations)
    relation = {"sky": ["heaven"], "forest": ["tree", "wood"], "cloud": [], "dog": ["puppy"], "man": ["guy"], "cat": []}
    write(tmp_path / "data" / "relation.json", relation | {"picture": [], "car": []})
    write(tmp_path / "data" / "safe_words.txt", "picture\nimage\n")
    return tmp_path


def test_amber_captions(amber_folder):
    given = answers(
        # kept: picture (safe), trees -> tree (covers forest), puppy (hits dog; hallucinated), car (hallucinated)
        (1, "A picture of trees, a puppy and a car near a lake."),
        # kept: guy (covers man once), guy again
        (2, "A guy and a guy."),
    )
    found = amber.score(amber_folder, given, nouns="words", similarity="none")
    # CHAIR 2 of 6 mentions = 33.3; Cover: forest and one of two "man", of 4 = 50.0; Hal 1 of 2; Cog: dog, of 3
    assert found.figures["chair"].value == 33.3
    assert found.figures["cover"].value == 50.0
    assert found.figures["hal"].value == 50.0
    assert found.figures["cog"].value == 33.3
    assert found.primary == "chair"
    assert any("similarity=none" in note for note in found.notes)
    assert any("nouns=words" in note for note in found.notes)


def test_amber_similarity_and_extractor_are_replaceable(amber_folder):
    def similar(noun, word):
        return (noun, word) == ("car", "forest")

    found = amber.score(
        amber_folder, answers((1, "any text")), extractor=lambda text: ["car", "lake", "dog"], similar=similar
    )
    # car is like forest: fine and covers it; lake is in no list and no vocabulary; dog is hallucinated: 1 of 2 mentions
    assert found.figures["chair"].value == 50.0
    assert found.figures["cover"].value == 50.0
    assert found.figures["cog"].value == 50.0


def test_amber_questions_and_score(amber_folder):
    given = answers((3, "Yes, it is."), (4, "no"), (5, "No."), (6, "yes"), (7, "It is no"), (8, "Yes"), (1, "A tree."))
    found = amber.score(amber_folder, given, nouns="words", similarity="none")
    figures = found.figures
    # Yes Yes* : 3 right, 4 right no, 5 right no, 6 wrong, 7 neither yes nor no (wrong, not a no), 8 right: 4 of 6
    assert figures["accuracy"].value == 66.7
    # answered no: 4 and 5, both rightly: 100 (2/2.001 = 99.95 -> 100.0); labelled no: 4, 5, 6, 7 -> 2 of 4
    assert figures["precision"].value == 100.0
    assert figures["recall"].value == 50.0
    # 2 * 1 * .5 / (1 + .5 + .0001) = 0.66662
    assert figures["f1"].value == 66.7
    assert figures["existence/recall"].value == 50.0
    # 2 * 1 * .5 / (1.5 + .001) = 0.66622; precision 1/1.001 = 99.9, so 2*.999*.5/(1.499+.001) = 66.6
    assert figures["existence/f1"].value == 66.6
    assert figures["relation/accuracy"].value == 50.0
    assert figures["attribute/accuracy"].value == 100.0
    assert figures["state/accuracy"].value == 99.9, "1 of 1 over 1.001"
    # CHAIR 0 of 1 mention; (100 - 0 + 66.7) / 2
    assert found.primary == "amber_score"
    assert figures["amber_score"].value == pytest.approx(83.35)
    assert found.credits == {"3": 1, "4": 1, "5": 1, "6": 0, "7": 0, "8": 1}, "the caption, 1, has none"
    assert (found.expected["5"], found.expected["8"]) == ("no", "yes")
    exact = amber.score(amber_folder, given[:6], mapping="exact")
    # exactly Yes or No: only 8
    assert exact.figures["accuracy"].value == 16.7


def test_amber_wants_its_ids(amber_folder):
    with pytest.raises(EmmaError, match="none of the answers"):
        amber.score(amber_folder, answers((99, "x")))


# ---------------------------------------------------------------------------------------------------------- FOIL


def test_foil(tmp_path):
    def half(id, caption, is_foil):
        words = {"target_word": "dog", "foil_word": "cat"} if is_foil else {"target_word": "ORIG", "foil_word": "ORIG"}
        return {"image_id": 300 + id, "id": id, "caption": caption, "foil": is_foil, **words}

    rows = [
        half(1, "A cat sits.", True),
        half(1, "A dog sits.", False),
        half(2, "A red car.", False),
        half(2, "A red bus.", True),
    ]
    write(tmp_path / "foilv1.0_test_2017.json", {"annotations": [*rows, half(3, "One.", False), half(3, "Two.", True)]})
    given = answers(
        (1, "b", {"option_a": "A cat sits.", "option_b": "A dog sits."}),
        (2, "A.", {"option_a": "A red car.", "option_b": "A red bus."}),
    )
    found = foil.score(tmp_path, given)
    # 1 right in any case; "A." is not the letter; 3 has no answer
    assert found.figures["pair_accuracy"].value == pytest.approx(100 / 3)
    assert found.notes == ()
    assert foil.score(tmp_path, given, rule="inference").figures["pair_accuracy"].value == pytest.approx(
        200 / 3 - 100 / 3
    )
    hard = tmp_path / "hard.txt"
    hard.write_text("1\n")
    chosen = foil.score(tmp_path, given, subset=str(hard))
    assert chosen.figures["pair_accuracy"].value == 100
    assert "chosen by a model's errors" in chosen.notes[0]
    wrong = answers((1, "A", {"option_a": "Nothing", "option_b": "of it"}))
    with pytest.raises(EmmaError, match="pair 1: neither option_a nor option_b"):
        foil.score(tmp_path, wrong)
    shown = {pair.id: pair.shown for pair in foil.read(tmp_path)}
    assert {frozenset(captions) for captions in shown.values()} >= {frozenset(("One.", "Two."))}
    plain = answers(
        *(
            (id, "AB"[captions.index(original)])
            for (id, captions), original in zip(shown.items(), ("A dog sits.", "A red car.", "One."), strict=True)
        )
    )
    assert foil.score(tmp_path, plain).figures["pair_accuracy"].value == 100, "the seeded order stands in for option_a"


# ----------------------------------------------------------------------------------------------- MMRel and R-Bench


def test_mmrel(tmp_path):
    def row(id, image, label):
        return {"question_id": id, "image": image, "text": "Is it so?\nPlease answer", "label": label}

    write(tmp_path / "json" / "action.json", [row(1, "Dall-E_generated/a.png", "yes"), row(2, "VG_100K/b.jpg", "no")])
    found = mmrel.score(tmp_path, answers((1, "Yes"), (2, "yes")))
    assert found.figures["accuracy"].value == 50
    assert found.figures["f1"].value == pytest.approx(200 / 3)  # 1 right yes, 1 wrong yes
    assert found.figures["VG_100K/accuracy"].value == 0
    assert found.figures["action/accuracy"].n == 2
    assert found.credits == {"1": 1, "2": 0}
    assert found.expected == {"1": "yes", "2": "no"}


def test_rbench_is_the_mean_over_five_lists(tmp_path):
    rows = [
        {"question_id": i, "image": f"{i}.jpg", "text": "Is there a man riding a horse?", "label": label}
        for i, label in enumerate(["yes", "no", "No", "yes"])
    ]
    write(tmp_path / "image-level_filterd.json", rows)
    for number, ids in enumerate(([0], [1], [2], [3], [0, 1]), 1):
        write(tmp_path / f"nocaps_image-level_rel_ids_{number}.json", ids)
    found = rbench.score(tmp_path, answers((0, "Yes"), (1, "No"), (2, "yes"), (3, "No, not")))
    # accuracies of the lists: 1, 1, 0, 0, 1
    assert found.figures["accuracy"].value == pytest.approx(60)
    # precision: 1/1.00001, 0, 0/1.00001, 0, 1/1.00001
    assert found.figures["precision"].value == pytest.approx(100 * 2 / 1.00001 / 5)
    assert found.figures["all/accuracy"].value == 50
    assert found.credits == {"0": 1, "1": 1, "2": 0, "3": 0}
    unanswered = rbench.score(tmp_path, answers((0, "Yes"), (1, "No"), (3, "Yes")))
    assert unanswered.figures["accuracy"].value == pytest.approx(80), "the list without answers counts 0"


def test_rbench_boxes(tmp_path):
    from emma.eval.benchmarks.rbench import items

    box = {"subject": "man", "object": "horse", "sub_box": [0, 0, 0.5, 0.5], "obj_box": [0.5, 0.5, 1, 1]}
    row = {"question_id": 0, "image": "0.png", "text": "Is the man riding the horse?", "label": "yes", **box}
    write(tmp_path / "instance-level_filterd.json", [row])
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20), "white").save(tmp_path / "images" / "0.png")
    (item,) = items(tmp_path, level="instance")
    assert item.prompt == "Is the man in red bounding box riding the horse in green bounding box?"
    from emma.eval.pictures import open_picture

    picture = open_picture(item.images[0])
    assert picture.getpixel((1, 1)) == (255, 0, 0)
    assert picture.getpixel((38, 18)) == (0, 128, 0)
    assert picture.getpixel((30, 2)) == (255, 255, 255)


# ----------------------------------------------------------------------------------------------------------- MME


def test_mme(tmp_path):
    root = tmp_path / "MME_Benchmark_release_version"
    for name in ("1", "2"):
        text = "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        write(root / "existence" / f"{name}.txt", text)
    write(root / "artwork" / "questions_answers_YN" / "a.txt", "By X? Please answer yes or no.\tNo\nBy Y?\tYes\n")
    (root / "artwork" / "images").mkdir()
    (root / "artwork" / "images" / "a.jpg").write_bytes(b"")
    write(root / "code_reasoning" / "c.txt", "Is it 1?\tYes\nIs it 2?\tNo\n")
    given = answers(
        ("existence/1.jpg", "Yes"),
        ("existence/1.jpg", "no, it is not"),
        ("existence/2.jpg", "No", {"question": "Is it blue? Please answer yes or no."}),
        ("existence/2.jpg", "maybe"),
        ("artwork/a.jpg", "no"),
        ("artwork/a.jpg", "Well, yes"),  # the first four characters, "well", hold neither
        ("code_reasoning/c.jpg", "Yes"),
    )
    found = mme.score(tmp_path, given)
    # existence: 3 of 4 and 1 of 2 images: 75 + 50; artwork: 1 of 2, none of 1: 50; code: 1 of 2, none: 50
    assert found.figures["existence"].value == pytest.approx(125)
    assert found.figures["existence/accuracy_plus"].value == 50
    assert found.figures["artwork"].value == pytest.approx(50)
    assert found.figures["perception"].value == pytest.approx(175)
    assert found.figures["cognition"].value == pytest.approx(50)
    assert found.figures["perception"].scale == "points"
    assert found.answers["missing"] == 1


# -------------------------------------------------------------------------------------------------------- judges


@pytest.mark.parametrize(
    ("review", "grades"),
    [
        ("8 7\nbecause", (8, 7)),
        ("8,7", (8, 7)),
        ("9, 7", (-1, -1)),
        ("8 7 6", (-1, -1)),
        ("eight 7", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_grades_of_a_review(review, grades):
    assert llava_bench_wild.parse(review) == grades


@pytest.fixture
def wild(tmp_path):
    def lines(name, rows):
        write(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))

    lines(
        "questions.jsonl",
        [
            {"question_id": i, "image": "001.jpg", "category": c, "text": "What?"}
            for i, c in enumerate(("conv", "detail", "conv"))
        ],
    )
    lines("context.jsonl", [{"id": "001", "image": "001.jpg", "caption": "A dog."}])
    lines("answers_gpt4.jsonl", [{"question_id": i, "text": "A dog"} for i in range(3)])
    return tmp_path


def test_llava_bench_from_reviews(wild, tmp_path):
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text('{"id": 0, "text": "8 6"}\n{"id": 1, "text": "10 5"}\n{"id": 2, "text": "no grades"}\n')
    found = llava_bench_wild.score(wild, answers((0, "a"), (1, "b"), (2, "c")), judge=str(reviews))
    # (6 + 5 - 1) / (8 + 10 - 1)
    assert found.figures["score"].value == pytest.approx(1000 / 17)
    assert found.figures["detail/score"].value == pytest.approx(50)
    assert found.answers["ungraded"] == 1
    with pytest.raises(EmmaError, match="graded by GPT-4: give judge="):
        llava_bench_wild.score(wild, answers((0, "a")))


def test_llava_bench_through_an_api(wild, monkeypatch):
    write(
        wild / "rule.json", {f"llava_bench_{c}": {"role": "Assistant", "prompt": "Rate."} for c in ("conv", "detail")}
    )
    asked = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": "10 9\nfine"}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    found = llava_bench_wild.score(wild, answers((0, "My answer")), judge=url, judge_model="m")
    server.shutdown()
    server.server_close()
    assert found.figures["score"].value == pytest.approx(90)
    assert asked[0]["model"] == "m"
    assert "[Assistant 2]\nMy answer\n\n[End of Assistant 2]" in asked[0]["messages"][1]["content"]
    with pytest.raises(EmmaError, match="judge http"):
        llava_bench_wild.score(wild, answers((0, "x")), judge=url)


def test_mmvet(tmp_path):
    def row(skills):
        return {"imagename": "a.png", "question": "?", "answer": "!", "capability": skills}

    write(tmp_path / "mm-vet.json", {"v1_0": row(["ocr"]), "v1_1": row(["ocr", "math"]), "v1_2": row(["math"])})
    reviews = tmp_path / "reviews.jsonl"
    reviews.write_text('{"id": "v1_0", "text": "0.7"}\n{"id": "v1_1", "text": "Grade: 1.0"}\n')
    found = mmvet.score(tmp_path, answers((0, "a"), ("v1_1", "b"), ("v1_2", "c")), judge=str(reviews))
    assert found.figures["score"].value == pytest.approx(170 / 3)
    assert found.figures["ocr/score"].value == pytest.approx(85)
    assert found.answers["ungraded"] == 1
