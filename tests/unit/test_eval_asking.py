"""The runner with a stub for a model: shares, order, memory, failures, controls, settings, several pictures."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from emma.errors import EmmaError
from emma.eval.__main__ import parse, settings_from
from emma.eval.answering import Answered, Question, Unanswerable, cut_at
from emma.eval.answers import match
from emma.eval.benchmark import Benchmark, Item, find_data
from emma.eval.benchmarks import BENCHMARKS
from emma.eval.controls import UNRELATED, Controls, shuffled
from emma.eval.pictures import Blank, Embedded, Pasted, open_picture
from emma.eval.predictions import Predictions
from emma.eval.questions import groups_by_picture
from emma.eval.runner import evaluate
from emma.eval.scoring.score import Score, accuracy
from emma.eval.settings import Setting
from emma.eval.shards import Shard


class Stub:
    """Answers with the instruction; `room`: questions that its memory holds, `broken`: whose picture is damaged."""

    name, device = "stub", "cpu"

    def __init__(self, room=1000, broken=(), instructed=True):
        self.room, self.broken, self.instructed = room, broken, instructed
        self.batches: list[list[Question]] = []

    def fingerprint(self):
        return {"weights": "0" * 64, "dtype": None, "template": None, "instruction": None, "image_mode": None}

    def instruction(self, question):
        return question.upper() if self.instructed else None

    def answer(self, questions, max_new_tokens, stop=()):
        self.batches.append(list(questions))
        if len(questions) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        for question in questions:
            if question.id in self.broken:
                raise Unanswerable(question.id, "picture is damaged")
        texts = [cut_at(f"{question.prompt}: {question.instruction}", stop) for question in questions]
        return [Answered(text, stopped) for text, stopped in texts]


def score(data, answers, **settings):
    matched = match((str(i) for i in range(12)), answers)
    right = [str(i) in matched.texts for i in range(12)]
    return Score("accuracy", {"accuracy": accuracy(right, list(range(12)))}, "questions", matched.counts)


@pytest.fixture
def benchmark(tmp_path):
    """Twelve questions, three on each of four pictures; their lengths grow with the number."""
    (tmp_path / "data").mkdir()
    pictures = [tmp_path / "data" / f"{i}.png" for i in range(4)]
    for i, picture in enumerate(pictures):
        Image.new("RGB", (4 + i, 8 - i), (50 * i, 0, 9)).save(picture)

    def items(data, images=None, style="plain"):
        rows = []
        for i in range(12):
            question = f"{style} question {i}" + " long" * i
            rows.append(Item(str(i), question, f"{question}?", (pictures[i % 4],), extra={"option_a": f"a{i}"}))
        return rows

    style = Setting("style", "plain", ("plain", "ornate"), ("questions",), "how it is asked")
    mood = Setting("mood", "mild", ("mild", "strict"), ("score",), "how it is judged")
    return Benchmark("stub", "Stub", "nothing", items, score, "stub", 1, 8, settings=(style, mood))


@pytest.fixture
def run(benchmark, tmp_path):
    def run_stub(stub, output="out", declared=benchmark, **further):
        return evaluate(declared, stub, tmp_path / "data", tmp_path / output, **({"batch_size": 4} | further))

    return run_stub


def rows(folder, name="predictions.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def same(report, other):
    """Equal in all but what differs between two runs of one thing."""
    return {key: value for key, value in report.items() if key not in ("run", "software")} == {
        key: value for key, value in other.items() if key not in ("run", "software")
    }


def test_two_shards_give_the_report_of_one(run, tmp_path):
    whole = run(Stub(), "whole")
    first, second = Stub(), Stub()
    assert run(first, shard=Shard(1, 2)) is None
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    report = run(second, shard=Shard(2, 2))
    assert same(report, whole)
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == (tmp_path / "whole/predictions.jsonl").read_bytes()
    asked = [{q.id for batch in stub.batches for q in batch} for stub in (first, second)]
    assert len(asked[0]) == len(asked[1]) == 6
    assert not asked[0] & asked[1]
    pictures = [{q.pictures for batch in stub.batches for q in batch} for stub in (first, second)]
    assert not pictures[0] & pictures[1], "an image belongs to one shard"
    assert len(rows(tmp_path / "out", "predictions-2-of-2.jsonl")) == 6


def test_a_dead_shard_costs_its_remainder(run, tmp_path):
    class Dies(Stub):
        def answer(self, questions, *limits):
            if len(self.batches) == 1:
                raise KeyboardInterrupt
            return super().answer(questions, *limits)

    with pytest.raises(KeyboardInterrupt):
        run(Dies(), shard=Shard(1, 2), batch_size=2)
    assert run(Stub(), shard=Shard(2, 2)) is None
    path = tmp_path / "out" / "predictions-1-of-2.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    alone = Stub()  # one process, or another number of them, takes what is missing
    report = run(alone)
    assert sum(map(len, alone.batches)) == 12 - 6 - 1
    assert same(report, run(Stub(), "whole"))
    again = Stub()
    assert same(run(again, shard=Shard(3, 3)), report)
    assert again.batches == []


def test_shards_are_found(monkeypatch):
    assert Shard.find(None) == Shard(1, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Shard.find(None) == Shard(3, 4)
    assert Shard.find("1/3") == Shard(1, 3)
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0"):
        with pytest.raises(EmmaError, match="expected K/N"):
            Shard.find(wrong)


def test_restart_is_for_one_process(tmp_path):
    with pytest.raises(EmmaError, match="restart=true with several processes"):
        Predictions(tmp_path, {}, Shard(1, 2), restart=True)
    Predictions(tmp_path, {}, Shard(1, 2)).append([{"id": 1, "text": ""}], {})
    assert not Predictions(tmp_path, {}, restart=True).done


def test_out_of_memory_halves_the_batch(run, tmp_path, caplog):
    stub = Stub(room=3)
    report = run(stub, batch_size=10)
    assert [len(batch) for batch in stub.batches] == [10, 5, 2, 2, 2, 2, 2, 2]
    assert "out of memory with 10 questions at once; going on with 5" in caplog.text
    assert report["run"]["batch_sizes"] == [2]
    assert same(report, run(Stub(), "whole"))


def test_a_question_too_large_for_memory_is_named(run, tmp_path):
    with pytest.raises(EmmaError, match=r"12 of 12 .*does not fit into memory even alone \(CUDA out of memory\)"):
        run(Stub(room=0))


def test_a_question_that_cannot_be_asked_leaves_the_others(run, tmp_path):
    with pytest.raises(EmmaError, match=r"2 of 12 .*question 3: picture is damaged"):
        run(Stub(broken={"3", "7"}))
    assert {row["id"] for row in rows(tmp_path / "out")} == {str(i) for i in range(12)} - {"3", "7"}
    stub = Stub()
    run(stub)
    assert sum(map(len, stub.batches)) == 2


def test_pictures_stay_together_longest_first(run):
    stub = Stub()
    run(stub)
    ids = [question.id for batch in stub.batches for question in batch]
    assert ids == ["11", "7", "3", "10", "6", "2", "9", "5", "1", "8", "4", "0"]
    assert [len(batch) for batch in stub.batches] == [4, 4, 4]
    text_only = [Question("a", "short"), Question("b", "much longer")]
    assert [[q.id for q in group] for group in groups_by_picture(text_only)] == [["b"], ["a"]]


def test_rows_hold_what_a_scorer_needs(run, tmp_path):
    run(Stub())
    assert rows(tmp_path / "out")[2] == {
        "id": "2",
        "prompt": "plain question 2 long long?",
        "instruction": "PLAIN QUESTION 2 LONG LONG",
        "instruction_cut": 0,
        "text": "plain question 2 long long?: PLAIN QUESTION 2 LONG LONG",
        "finished": False,
        "option_a": "a2",
    }


@pytest.mark.parametrize("control", ["empty", "shuffled", "unrelated"])
def test_instruction_controls_change_the_instruction_alone(run, tmp_path, control):
    run(Stub(), "plain")
    report = run(Stub(), "changed", controls=Controls(instruction=control))
    before, after = rows(tmp_path / "plain"), rows(tmp_path / "changed")
    assert [row["prompt"] for row in before] == [row["prompt"] for row in after]
    old, new = ([row["instruction"] for row in some] for some in (before, after))
    assert all(a != b for a, b in zip(old, new, strict=True))
    if control == "shuffled":
        assert sorted(old) == sorted(new)
    else:
        assert set(new) == {{"empty": "", "unrelated": UNRELATED}[control]}
    assert report["title"] == f"Stub, {control} instruction"
    assert report["fingerprint"]["control"] == {"image": "none", "instruction": control}
    assert Controls("blank", control).suffix == f"-blank-{control}-instruction"
    with pytest.raises(EmmaError, match=f'control.instruction: "{control}" -> "none"'):
        run(Stub(), "changed")


def test_shuffled_is_a_derangement():
    rng = random.Random(0)
    for _ in range(50):
        texts = [rng.choice("abcd") for _ in range(rng.randint(4, 12))]
        if 2 * max(map(texts.count, texts)) > len(texts):
            with pytest.raises(EmmaError, match="have the same instruction"):
                shuffled(texts)
            continue
        moved = shuffled(texts)
        assert sorted(moved) == sorted(texts)
        assert all(a != b for a, b in zip(texts, moved, strict=True))
        assert moved == shuffled(texts)
    distinct = [str(i) for i in range(20)]
    assert shuffled(distinct, seed=1) != shuffled(distinct, seed=2)


def test_controls_that_are_none(run):
    with pytest.raises(EmmaError, match=r"instruction_control='shufled': expected one of none, empty"):
        Controls(instruction="shufled")
    with pytest.raises(EmmaError, match="image_control='black'"):
        Controls(image="black")
    with pytest.raises(EmmaError, match="no instruction to change"):
        run(Stub(instructed=False), controls=Controls(instruction="empty"))


def test_blank_pictures(run):
    stub = Stub()
    run(stub, controls=Controls(image="blank"))
    assert {question.pictures for batch in stub.batches for question in batch} == {(Blank(),)}
    assert open_picture(Blank()).getcolors() == [(336 * 336, (123, 117, 104))]  # 255 times CLIP's mean, rounded


def test_several_pictures_by_the_declared_rule(tmp_path, benchmark, run):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    Image.new("RGB", (2, 3), (255, 0, 0)).save(paths[0])
    Image.new("RGB", (4, 1), (0, 0, 255)).save(paths[1])

    def items(data, images=None, style="plain"):
        return [Item(str(i), "q", "q", tuple(paths)) for i in range(12)]

    for rule, count in (("one_by_one", 2), ("side_by_side", 1)):
        stub = Stub()
        declared = Benchmark("two", "Two", "", items, score, "", 1, 8, several_images=rule)
        assert run(stub, rule, declared)["fingerprint"]["several_images"] == rule
        assert {len(question.pictures) for batch in stub.batches for question in batch} == {count}
    pasted = open_picture(Pasted(tuple(paths)))
    red, blue, black = (255, 0, 0), (0, 0, 255), (0, 0, 0)
    pixels = [[pasted.getpixel((x, y)) for x in range(6)] for y in range(3)]
    assert pasted.size == (6, 3)
    assert pixels == [[red] * 2 + [blue] * 4, [red] * 2 + [black] * 4, [red] * 2 + [black] * 4]


def test_pictures_of_a_table_are_equal_by_content():
    """Rows of one circular group hold the same picture; another one of the same name and size is another."""
    one, again, other = (Embedded.of_base64(text, "7") for text in ("AAAA", "AAAA", "BBBB"))
    assert one == again
    assert one != other
    structs = [Embedded.of_struct({"bytes": content, "path": "image.png"}, "") for content in (b"a", b"a", b"b")]
    assert structs[0] == structs[1] != structs[2]
    drawn = [
        Embedded("boxes", 9, lambda: b"a"),
        Embedded("boxes", 9, lambda: b"b"),
    ]  # of unknown content
    assert drawn[0] != drawn[1]
    groups = groups_by_picture([Question(str(i), "q", (picture,)) for i, picture in enumerate((one, other, again))])
    assert [[question.id for question in group] for group in groups] == [["0", "2"], ["1"]]


def test_stop_strings_end_an_answer(tmp_path, benchmark, run):
    declared = Benchmark("stop", "Stop", "", benchmark.items, score, "", 1, 8, stop=(" long", ":"))
    run(Stub(), declared=declared)
    assert [row["text"] for row in rows(tmp_path / "out")[:2]] == ["plain question 0?", "plain question 1"]
    assert all(row["finished"] for row in rows(tmp_path / "out"))
    assert cut_at(" a b ", ()) == ("a b", False)


def test_settings_of_the_benchmark(run, tmp_path):
    report = run(Stub(), settings={"style": "ornate", "mood": "strict"})
    assert report["settings"] == {"style": "ornate", "mood": "strict"}
    assert report["fingerprint"]["settings"] == {"style": "ornate"}
    assert rows(tmp_path / "out")[0]["prompt"] == "ornate question 0?"
    with pytest.raises(EmmaError, match=r'settings\.style: "ornate" -> "plain"'):
        run(Stub())
    run(Stub(), settings={"style": "ornate"})  # how answers are judged does not change them
    with pytest.raises(EmmaError, match="Stub has no setting 'stile'; did you mean style"):
        run(Stub(), settings={"stile": "ornate"})


def test_settings_on_the_command_line(benchmark, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "stub", benchmark)
    settings = settings_from(parse(["run", "stub", "folder", "style=ornate", "shard=2/3", "batch_size=3"]))
    assert settings.benchmark == {"style": "ornate"}
    assert (settings.shard, settings.batch_size) == ("2/3", 3)
    with pytest.raises(EmmaError, match="unknown setting 'stile'; did you mean style"):
        settings_from(parse(["run", "stub", "stile=ornate"]))
    with pytest.raises(EmmaError, match="style is given twice"):
        settings_from(parse(["run", "stub", "style=plain", "style=ornate"]))


def test_two_questions_of_one_id_are_refused(benchmark, run):
    twice = [Item("7", "q", "q", ()), Item("7", "r", "r", ())]
    declared = Benchmark("twice", "Twice", "", lambda data, images=None: twice, score, "", 1, 8)
    with pytest.raises(EmmaError, match="2 questions have the id '7'"):
        run(Stub(), declared=declared)


def test_data_from_the_hub(benchmark, monkeypatch, tmp_path):
    with pytest.raises(EmmaError, match="Stub names no data set on the hub"):
        find_data(benchmark, "hub", {})
    named = Benchmark("hub", "Named", "", benchmark.items, score, "", 1, 8, hub="someone/something")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EmmaError, match=r"someone/something is not in the hub's cache .* data=DIR"):
        find_data(named, "hub", {})
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, repo_type: f"/cache/{repo_type}/{name}")
    assert find_data(named, "hub", {}) == Path("/cache/dataset/someone/something")
