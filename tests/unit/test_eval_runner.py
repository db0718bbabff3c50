"""The evaluation runner on a tiny model: batches, resuming, fingerprints, images that fail, reports."""

import csv
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from emma.checkpoints.folder import save_folder
from emma.checkpoints.seal import is_complete
from emma.errors import EmmaError
from emma.eval.__main__ import main, parse, settings_from
from emma.eval.answerers.emma import EmmaAnswerer
from emma.eval.benchmark import find_benchmark, find_data
from emma.eval.controls import Controls
from emma.eval.predictions import Predictions, fingerprint_differences
from emma.eval.report import as_table, find_reports
from emma.eval.runner import evaluate

PAIRS = 5
KILLED_RUN = Path(__file__).parents[1] / "killed_run.py"


@pytest.fixture
def data(tmp_path):
    """MMVP's layout with questions of different lengths and pictures of noise."""
    folder = tmp_path / "data"
    images = folder / "MMVP Images"
    images.mkdir(parents=True)
    rng = random.Random(0)
    rows = [("lndex", "Question", "Options", "Correct Answer")]
    for index in range(1, 2 * PAIRS + 1):
        size = (12 + index, 20)
        pixels = bytes(rng.randrange(256) for _ in range(3 * size[0] * size[1]))
        Image.frombytes("RGB", size, pixels).save(images / f"{index}.jpg")
        question = f"Is the dog {'very ' * ((index + 1) // 2)}small?"
        rows.append((index, question, "(a) Yes (b) No", "(a)" if index % 2 else "(b)"))
    with (folder / "Questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_processor):
    """Factory of answerers, each with a folder of its own."""

    def make(name="model", seed=0, **parts):
        model = tiny_model(seed=seed, **parts).eval()
        processor = tiny_processor(model.config)
        save_folder(tmp_path / name, model, processor, {})
        return EmmaAnswerer(tmp_path / name)

    return make


@pytest.fixture
def run(data, tmp_path):
    def run_mmvp(answerer, output="out", benchmark="mmvp", **settings):
        settings = {"max_new_tokens": 6, "batch_size": 4} | settings
        controls = Controls(settings.pop("image_control", "none"), settings.pop("instruction_control", "none"))
        return evaluate(benchmark, answerer, data, tmp_path / output, controls=controls, **settings)

    return run_mmvp


def lines(folder):
    return sorted((folder / "predictions.jsonl").read_text().splitlines(), key=lambda line: int(json.loads(line)["id"]))


def test_answers_do_not_depend_on_the_batch(checkpoint, run, tmp_path):
    made = checkpoint()
    for size in (1, 4, 7):
        run(made, f"batch{size}", batch_size=size)
    one = lines(tmp_path / "batch1")
    assert len(one) == 2 * PAIRS
    assert len({json.loads(line)["text"] for line in one}) > 2  # else equality would mean little
    assert one == lines(tmp_path / "batch4") == lines(tmp_path / "batch7")


def test_prompt_and_instruction(checkpoint, run, tmp_path):
    run(checkpoint())
    row = json.loads(lines(tmp_path / "out")[0])
    letter = "Answer with the option's letter from the given choices directly."
    assert row["prompt"] == f"Is the dog very small?\nA. Yes\nB. No\n{letter}"
    assert row["instruction"] == "Is the dog very small?"


@pytest.mark.parametrize("cut", [1, 15, 0])
def test_a_killed_run_goes_on(checkpoint, run, tmp_path, monkeypatch, cut):
    made = checkpoint()
    run(made, "whole")
    calls, answer = [], EmmaAnswerer.answer

    def dies(self, questions, *limits):
        calls.append(len(questions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, questions, *limits)

    monkeypatch.setattr(EmmaAnswerer, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        run(made, batch_size=3)
    path = tmp_path / "out" / "predictions.jsonl"
    assert len(path.read_text().splitlines()) == 6
    path.write_bytes(path.read_bytes()[: -cut or None])  # kill -9 in the middle of a write
    calls.clear()
    calls += [0] * 3
    report = run(made, batch_size=4)
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    assert sum(calls[3:]) == 2 * PAIRS - 6 + bool(cut)
    assert report["run"]["batch_sizes"] == [3, 4]
    calls.clear()
    assert run(made)["score"] == report["score"]
    assert calls == []  # nothing is asked twice


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    Predictions(tmp_path, {}).append([{"id": i, "text": ""} for i in range(3)], {})
    path = tmp_path / "predictions.jsonl"
    path.write_text(path.read_text().replace('"id": 1', '"id": '))
    with pytest.raises(EmmaError, match="line 2 is damaged"):
        Predictions(tmp_path, {})


def test_a_last_line_of_zeros_is_dropped(tmp_path):
    Predictions(tmp_path, {}).append([{"id": i, "text": ""} for i in range(3)], {})
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes() + b"\0" * 20 + b"\n")
    assert list(Predictions(tmp_path, {}).done) == ["0", "1", "2"]
    assert path.read_text().count("\n") == 3


def test_answers_made_otherwise_are_refused(checkpoint, run, tmp_path):
    run(checkpoint())
    for made, settings, difference in (
        (checkpoint("other", alignment="none"), {}, "weights"),
        (checkpoint(), {"image_control": "blank"}, 'control.image: "none" -> "blank"'),
        (checkpoint(), {"max_new_tokens": 7}, "generation.max_new_tokens: 6 -> 7"),
    ):
        with pytest.raises(EmmaError, match="restart=true") as error:
            run(made, **settings)
        assert difference in str(error.value)
    other = checkpoint("moved")  # the same weights in another place are the same
    assert run(other)["score"] == run(checkpoint())["score"]
    assert run(checkpoint(), max_new_tokens=7, restart=True)["fingerprint"]["generation"]["max_new_tokens"] == 7
    (tmp_path / "out" / "fingerprint.json").unlink()
    with pytest.raises(EmmaError, match=r"no fingerprint\.json"):
        run(checkpoint())


def test_other_questions_and_pictures_are_refused(checkpoint, run, data):
    run(checkpoint())
    Image.new("RGB", (9, 9)).save(data / "MMVP Images" / "3.jpg")
    with pytest.raises(EmmaError, match="questions: "):
        run(checkpoint())


def test_fingerprint_differences():
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert fingerprint_differences(before, now) == ["a.c: 2 -> 4", "d: 3 -> null", "e: null -> 5"]
    assert fingerprint_differences(before, before) == []


def test_a_broken_picture_is_named_and_the_rest_answered(checkpoint, run, data, tmp_path):
    picture = data / "MMVP Images" / "4.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"x" * len(whole))
    with pytest.raises(EmmaError, match=r"1 of 10 .* question 4: .*4\.jpg"):
        run(checkpoint())
    assert len(lines(tmp_path / "out")) == 2 * PAIRS - 1
    picture.write_bytes(whole)
    run(checkpoint())
    assert len(lines(tmp_path / "out")) == 2 * PAIRS


def test_a_missing_picture_is_named_before_anything_is_asked(checkpoint, run, data, tmp_path):
    (data / "MMVP Images" / "7.jpg").unlink()
    with pytest.raises(EmmaError, match=r"1 images are missing, the first is .*7\.jpg \(question 7\)"):
        run(checkpoint())
    assert not (tmp_path / "out").exists()


def test_blank_images_make_pairs_alike(checkpoint, run, tmp_path):
    report = run(checkpoint(), image_control="blank")
    texts = [json.loads(line)["text"] for line in lines(tmp_path / "out")]
    assert texts[::2] == texts[1::2]
    assert report["title"] == "MMVP, blank image"
    run(checkpoint(), "seeing")
    texts = [json.loads(line)["text"] for line in lines(tmp_path / "seeing")]
    assert texts[::2] != texts[1::2]


def test_a_model_without_instructions(checkpoint, run, tmp_path):
    report = run(checkpoint(alignment="none"))
    assert json.loads(lines(tmp_path / "out")[0])["instruction"] is None
    assert report["fingerprint"]["instruction"] is None


def test_report(checkpoint, run, data, tmp_path):
    (data.parent / "world.json").write_text("{}")
    made = checkpoint()
    report = run(made)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["title"] == "world (MMVP format)"
    assert report["metric"] == "pair_accuracy"
    assert report["n"] == PAIRS
    assert report["answers"]["missing"] == 0
    assert report["fingerprint"]["dtype"] == "float32"
    page = (tmp_path / "out" / "report.md").read_text()
    for part in (report["title"], report["model"]["weights"], made.name, "letter by option inference", "95 %"):
        assert part in page
    assert "24.7" not in page  # LLaVA-1.5's published figure
    table = as_table(find_reports([tmp_path / "out", tmp_path / "out" / "report.json"]))
    assert table.count("world (MMVP format)") == 2
    with pytest.raises(EmmaError, match="is not a report"):
        find_reports([tmp_path / "out" / "fingerprint.json"])


def test_reports_inside_a_checkpoint_are_no_part_of_it(checkpoint, run, tmp_path):
    made = checkpoint()
    run(made, "model/eval/mmvp")
    checkpoint()  # trained and saved again in the same place
    (tmp_path / "model" / "eval" / "mmvp" / "report.md").unlink()
    assert is_complete(tmp_path / "model")


def test_where_data_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("EMMA_ROOT", str(tmp_path))
    mmvp, world = find_benchmark("mmvp"), find_benchmark("world")
    of_world, official = tmp_path / "playground/data/world/eval", tmp_path / "playground/data/eval/mmvp"
    with pytest.raises(EmmaError, match=r"Questions\.csv.*data=world"):
        find_data(mmvp, None, {})
    for folder in (of_world / "mmvp", of_world / "world", official):
        folder.mkdir(parents=True)
    assert find_data(mmvp, None, {}) == official
    trained = {"data": [{"annotations": "/gone/finetune.json", "world": True}]}
    assert find_data(mmvp, None, trained) == of_world / "mmvp"
    mixed = {"data": [*trained["data"], {"annotations": "/gone/other.json", "world": False}]}
    assert find_data(mmvp, None, mixed) == official
    own = tmp_path / "my world"
    (own / "eval" / "mmvp").mkdir(parents=True)
    assert find_data(mmvp, None, {"data": [{"annotations": str(own / "a.json"), "world": True}]}) == own / "eval/mmvp"
    assert find_data(mmvp, "world", {}) == of_world / "mmvp"
    assert find_data(world, None, {}) == of_world / "world"
    assert find_data(mmvp, str(official), trained) == official


def test_command_line_settings():
    def settings(*words):
        return settings_from(parse(["run", "mmvp", *words]))

    both = settings("folder", "batch_size=3", "--image-control", "blank", "restart=true")
    assert (both.model, both.batch_size, both.image_control, both.restart) == ("folder", 3, "blank", True)
    assert settings("--restart").restart
    for words, message in {
        ("batchsize=3",): "did you mean batch_size",
        ("batch_size=x",): "whole number",
        ("a", "b"): "given twice",
        ("restart=maybe",): "true or false",
    }.items():
        with pytest.raises(EmmaError, match=message):
            settings(*words)
    with pytest.raises(SystemExit):
        settings("--batchsize", "3")


def test_killed_five_times_a_run_ends_as_if_undisturbed(checkpoint, data, tmp_path):
    made = checkpoint()
    command = [sys.executable, KILLED_RUN, made.name, data, tmp_path, 0]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout.splitlines()[-1])
    assert len(left) == 5
    assert any(0 < answers < 2 * PAIRS for answers in left), (
        f"a kill in the middle, but answers after kills were {left}"
    )
    whole, killed = (tmp_path / name / "predictions.jsonl" for name in ("whole", "killed"))
    assert sorted(killed.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert len(whole.read_text().splitlines()) == 2 * PAIRS


def test_shares_on_the_command_line(checkpoint, data, tmp_path, capsys):
    folder = checkpoint().name
    words = ["run", "mmvp", folder, f"data={data}", "max_new_tokens=6", "instruction_control=shuffled"]
    for shard, printed in (("2/2", "share 2/2 is answered"), ("1/2", "# MMVP, shuffled instruction")):
        with pytest.raises(SystemExit) as ended:
            main([*words, f"shard={shard}"])
        output = capsys.readouterr()
        assert ended.value.code == 0, output.err
        assert printed in output.out
    output = tmp_path / "model" / "eval" / "mmvp-shuffled-instruction"
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(index) for index in range(1, 2 * PAIRS + 1)]
    assert all(row["instruction"] != row["prompt"].split("\n")[0] for row in rows)
