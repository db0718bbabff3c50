"""The frozen towers' cost: no gradients, the compute dtype, and repeated instructions encoded once."""

import pytest
import torch

from emma.model.text_cache import TextCache


@pytest.fixture
def towers(tiny_model):
    return tiny_model().towers


def instructions(*words):
    ids = torch.zeros(len(words), 77, dtype=torch.long)
    ids[:, 0], ids[:, 2] = 49406, 49407
    ids[:, 1] = torch.tensor(words)
    return ids


def test_towers_run_without_gradients_in_their_own_dtype(tiny_model):
    model = tiny_model()
    model.towers.to(torch.bfloat16)
    steps = model.encode(torch.rand(2, 3, 16, 16), instructions(5, 6))
    towers = model.towers
    for features in (towers.encode_image(torch.rand(1, 3, 16, 16)), towers.encode_text(instructions(5))):
        assert features.dtype == torch.bfloat16
        assert features.grad_fn is None
    assert steps["vision"].grad_fn is None
    assert steps["text"].grad_fn is None
    steps["projected"].sum().backward()
    assert model.projector.dtype == torch.float32
    assert all(p.grad is not None for p in model.projector.parameters())
    assert all(p.grad is None for p in towers.parameters())


def test_cached_rows_equal_a_batch_of_one_whatever_came_before(towers):
    ids = instructions(5, 6, 5, 7, 5)
    alone = torch.cat([towers.encode_text(row[None]) for row in ids])
    towers.text_cache = TextCache()
    assert torch.equal(towers.encode_text(ids), alone)
    assert torch.equal(towers.encode_text(ids.flip(0)), alone.flip(0)), "from the cache"
    towers.text_cache = TextCache()
    towers.encode_text(instructions(9, 8, 7))
    assert torch.equal(towers.encode_text(ids), alone), "another history"
    assert towers.encode_text(ids[:0]).shape == (0, 77, 16)


def test_each_instruction_is_encoded_once_and_the_oldest_goes(towers, monkeypatch):
    encoded = []
    original = towers._run_text
    monkeypatch.setattr(towers, "_run_text", lambda ids: encoded.append(int(ids[0, 1])) or original(ids))
    towers.text_cache = TextCache(size=2)
    towers.encode_text(instructions(5, 6, 5, 6))
    towers.encode_text(instructions(5))
    assert encoded == [5, 6]
    towers.encode_text(instructions(7, 5))
    assert encoded == [5, 6, 7], "6 was used least recently and makes room"
    towers.encode_text(instructions(6))
    assert encoded == [5, 6, 7, 6]


def test_a_cast_empties_the_cache(towers):
    towers.text_cache = TextCache()
    towers.encode_text(instructions(5))
    towers.to(torch.bfloat16)
    assert towers.encode_text(instructions(5)).dtype == torch.bfloat16
