"""Annotation files, mixtures, encoded samples and batches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from emma.data.annotations import open_annotations, read_records
from emma.data.collate import Collator
from emma.data.dataset import TrainingDataset, sample_lengths, usable
from emma.data.mixture import Mixture
from emma.data.sampler import Draw
from emma.errors import EmmaError
from emma.train.recipe import DataSource


def turns(*texts):
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 12), "red").save(tmp_path / "images" / name)
    pictures = [
        {"id": 7, "image": "a.png", "conversations": turns("<image>\nWhat?", "Red."), "extra": 1},
        {"id": "two", "image": ["a.png", "b.png"], "conversations": turns("<image><image>Same?", "Yes, the same.")},
    ]
    texts = [{"conversations": turns("Hi.", "Hello.", "Bye.", "Good bye, see you soon.")}]
    (tmp_path / "pictures.json").write_text(json.dumps(pictures, indent=1))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps(t) for t in texts) + "\n")
    return tmp_path


@pytest.fixture
def mixture(files):
    sources = [
        DataSource(str(files / "pictures.json"), str(files / "images"), 2),
        DataSource(str(files / "texts.jsonl"), str(files / "images")),
    ]
    return Mixture.open(sources, "finetune")


@pytest.fixture
def processor(tiny_model, tiny_processor):
    return tiny_processor(tiny_model().config, template="vicuna_v1")


def test_table_is_memory_mapped_and_keyed_by_content(files):
    table, digest = open_annotations(files / "pictures.json")
    assert table.cache_files, "memory-mapped"
    assert table[1] == {
        "id": "two",
        "image": ["a.png", "b.png"],
        "conversations": turns("<image><image>Same?", "Yes, the same."),
    }
    cached = list((files / ".emma-cache").glob("pictures-*.arrow"))
    assert len(cached) == 1
    open_annotations(files / "pictures.json")
    text = (files / "pictures.json").read_text()
    (files / "pictures.json").write_text(text.replace("Red.", "Blue."))
    table, other = open_annotations(files / "pictures.json")
    assert other != digest
    assert table[0]["conversations"][1]["value"] == "Blue."


def test_records_larger_than_a_chunk_and_odd_whitespace(tmp_path, monkeypatch):
    monkeypatch.setattr("emma.data.annotations.CHUNK", 7)
    records = [{"id": str(i), "conversations": turns("x" * i, 'ü"]}, [')} for i in range(40)]
    (tmp_path / "a.json").write_text("  " + json.dumps(records, ensure_ascii=False, indent=3) + "\n\n", "utf-8")
    assert list(read_records(tmp_path / "a.json")) == records
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    assert list(read_records(tmp_path / "b.jsonl")) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "no records"),
        ('[{"id": 1', "record 0 is not valid JSON"),
        ('[{"id": 1, "conversations": 3}]', r"record 0 \(id 1\): conversations must be a list"),
        ('[{"id": 1, "conversations": [{"from": "human"}]}]', r'turn 0 must be \{"from": str, "value": str\}'),
        ('[{"id": 1, "image": 3, "conversations": [{}]}]', "image must be a path or a list of paths"),
        (json.dumps([{"id": 1, "conversations": turns("\ud83d x")}]), r"\(id 1\): '\\ud83d' is half a character"),
        ("[3]", "record 0 is int, not an object"),
        (json.dumps([{"conversations": turns("x")}]) + " more", "unexpected text after record 0: 'more'"),
    ],
)
def test_broken_annotation_files_name_the_record(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(EmmaError, match=message):
        open_annotations(tmp_path / "bad.json")
    assert not list(tmp_path.rglob("*.arrow*")), "nothing half-made stays"


def test_an_annotation_file_in_another_encoding_is_named(tmp_path):
    records = json.dumps([{"id": "1", "conversations": turns("café")}], ensure_ascii=False)
    (tmp_path / "bad.json").write_bytes(records.encode("latin-1"))
    with pytest.raises(EmmaError, match=r"bad\.json: not UTF-8 text at or after record 0 \(byte 0xe9\)"):
        open_annotations(tmp_path / "bad.json")


def test_mixture_repeats_and_finds(mixture, files):
    assert len(mixture) == 5
    assert [mixture[i]["id"] for i in range(5)] == ["7", "two", "7", "two", "texts:0"]
    assert mixture[3]["image"] == [str(files / "images" / "a.png"), str(files / "images" / "b.png")]
    assert list(mixture.has_image()) == [True] * 4 + [False]
    assert mixture.find("texts:0") == 4
    chosen = mixture.select(np.array([4, 1]))
    assert [chosen[i]["id"] for i in range(2)] == ["texts:0", "two"]
    assert list(chosen.has_image()) == [False, True]
    assert chosen.find("two") == 1
    with pytest.raises(EmmaError, match="no sample has the id '7'"):
        chosen.find("7")


def test_lengths_are_exact_and_cached(mixture, processor, files, monkeypatch):
    lengths = sample_lengths(mixture, processor)
    dataset = TrainingDataset(mixture, processor, max_length=999, over_length="error", seed=0)
    assert list(lengths) == [len(dataset.encode(Draw(i, 0, False))["input_ids"]) for i in range(5)]
    monkeypatch.setattr(type(processor), "length", None)
    assert list(sample_lengths(mixture, processor)) == list(lengths), "from the cache"


def test_over_length_rules(mixture, processor, caplog):
    lengths = sample_lengths(mixture, processor)
    limit = int(np.sort(lengths)[-2])
    assert len(usable(mixture, lengths, int(lengths.max()), "error")) == 5
    with pytest.raises(EmmaError, match=rf"1 of 5 samples exceed max_length {limit}; the longest, '.*', has \d+ "):
        usable(mixture, lengths, limit, "error")
    kept = usable(mixture, lengths, limit, "drop")
    assert len(kept) == 4
    assert int(lengths.argmax()) not in kept
    assert "1 of 5 samples exceed" in caplog.text
    assert len(usable(mixture, lengths, limit, "truncate")) == 5
    with pytest.raises(EmmaError, match="drop leaves no sample"):
        usable(mixture, lengths, 2, "drop")


def test_batch_of_images_texts_and_a_masked_fill(mixture, processor):
    dataset = TrainingDataset(mixture, processor, max_length=999, over_length="truncate", seed=0)
    draws = [Draw(0, 0, False), Draw(1, 0, False), Draw(4, 0, False), Draw(0, 0, True)]
    rows = [dataset[draw] for draw in draws]
    batch = Collator(processor)(rows)
    model = batch["model"]
    assert batch["ids"] == ["7", "two", "texts:0", "7"]
    assert batch["samples"] == 3
    assert model["pixel_values"].shape[0] == model["instruction_ids"].shape[0] == 4
    assert (model["labels"][3] == -100).all()
    assert torch.equal(model["input_ids"][0], model["input_ids"][3])
    assert batch["supervised"] == sum(int((row["labels"] != -100).sum()) for row in rows)
    assert model["attention_mask"].sum(1).tolist() == [len(row["input_ids"]) for row in rows]


def test_random_instruction_follows_the_epoch(mixture, tiny_model, tiny_processor, files):
    asked = turns("<image>Q0?", "a", *[f"Q{i // 2}?" for i in range(2, 20)])
    many = [{"id": "m", "image": "a.png", "conversations": asked}]
    (files / "many.json").write_text(json.dumps(many))
    source = [DataSource(str(files / "many.json"), str(files / "images"))]
    processor = tiny_processor(tiny_model().config, instruction={"text": "question", "turn": "random"})
    dataset = TrainingDataset(Mixture.open(source, "x"), processor, max_length=999, over_length="error", seed=3)
    chosen = [dataset.encode(Draw(0, epoch, False))["instruction"] for epoch in range(12)]
    assert len(set(chosen)) > 2
    assert chosen == [dataset.encode(Draw(0, epoch, False))["instruction"] for epoch in range(12)]


def test_unreadable_images_come_back_as_errors_and_stop_the_batch(mixture, processor, files):
    dataset = TrainingDataset(mixture, processor, max_length=999, over_length="truncate", seed=0)
    (files / "images" / "b.png").write_bytes((files / "images" / "b.png").read_bytes()[:40])
    good, bad = dataset[Draw(0, 0, False)], dataset[Draw(1, 0, False)]
    assert isinstance(bad, EmmaError)
    assert "sample 'two' (record 1 of" in str(bad)
    assert "b.png" in str(bad)
    assert Collator(processor)([good, bad]) == {"error": bad}
