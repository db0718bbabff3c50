"""The foundation that ships is whole and as its provenance says, and the command that rebuilds it runs."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from emma.model.towers import read_clip
from emma.processing.instruction import find_clip_bpe
from emma.world.foundation import FOLDER, PARTS, file_hashes, rebuild


@pytest.mark.parametrize("part", PARTS)
def test_shipped_files_are_those_of_the_provenance(part):
    provenance = json.loads((FOLDER / "provenance.json").read_text())[part]
    assert file_hashes(FOLDER / part) == provenance["sha256"]
    assert provenance["command"].startswith(f"python -m emma.world foundation --only {part} --seed ")
    assert provenance["commit"]


def test_shipped_foundation_is_small_and_good():
    provenance = json.loads((FOLDER / "provenance.json").read_text())
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8e6
    assert provenance["clip"]["recall_at_1_of_256"] >= 0.9
    assert provenance["llm"]["told_in_words_accuracy"] >= 0.8


def test_shipped_language_model_reads_as_well_as_its_provenance_says():
    from emma.world.tiny_llm import Reader, told_in_words

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "llm")
    model = AutoModelForCausalLM.from_pretrained(FOLDER / "llm").eval()
    _, accuracy = told_in_words(model, Reader(tokenizer))
    recorded = json.loads((FOLDER / "provenance.json").read_text())["llm"]["told_in_words_accuracy"]
    assert accuracy == pytest.approx(recorded, abs=0.003)  # another CPU may round a near tie the other way


def test_short_rebuild(tmp_path):
    provenance = rebuild(tmp_path, short=True)
    assert set(provenance) == set(PARTS)
    assert json.loads((tmp_path / "provenance.json").read_text()) == provenance
    assert "--short" in provenance["clip"]["command"]
    assert provenance["clip"]["loss"] < 6
    assert provenance["llm"]["loss"] < 7
    config, weights = read_clip(tmp_path / "clip")
    assert weights["token_embedding.weight"].shape[0] == config.text_cfg["vocab_size"]
    assert find_clip_bpe(tmp_path / "clip") == find_clip_bpe(FOLDER / "clip"), "the vocabulary does not depend on steps"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "llm").config.hidden_size == 128


def test_tokenizer_is_rebuilt_to_the_byte(tmp_path):
    from emma.world.tiny_llm import write_tokenizer

    write_tokenizer(tmp_path, seed=0)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / "llm" / name).read_bytes()
