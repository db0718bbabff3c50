"""Properties of the step sampler, over many random mixtures."""

import numpy as np
import pytest

from emma.data.sampler import StepSampler, epoch_order, steps_per_epoch


def mixtures(count=40):
    rng = np.random.default_rng(0)
    for case in range(count):
        n = int(rng.integers(1, 300))
        share = [0.0, 1.0, 0.5, 0.9][case % 4]
        yield rng.integers(5, 900, size=n), rng.random(n) < share, int(rng.choice([1, 2, 4, 8, 16])), case


def sampler(lengths, has_image, batch, **kwargs):
    settings = {"micro_batch": batch, "total_steps": 2 * steps_per_epoch(has_image, batch), "seed": 3}
    return StepSampler(lengths, has_image, batch_size=batch, **(settings | kwargs))


def test_every_sample_exactly_once_and_one_modality_per_batch():
    for lengths, has_image, batch, seed in mixtures():
        indices, masked = epoch_order(lengths, has_image, batch, seed, epoch=1)
        assert indices.shape == masked.shape == (steps_per_epoch(has_image, batch), batch)
        assert sorted(indices[~masked]) == list(range(len(lengths)))
        assert all(len(set(has_image[row])) == 1 for row in indices)
        assert not masked.all(axis=1).any(), "each batch holds at least one real sample"


def test_longest_first_filled_last():
    for lengths, has_image, batch, seed in mixtures():
        indices, masked = epoch_order(lengths, has_image, batch, seed, epoch=0)
        assert lengths[indices[0]].max() == lengths.max()
        assert lengths[indices[0, 0]] == lengths.max(), "and the longest sample leads its batch"
        filled = np.flatnonzero(masked.any(axis=1))
        filled = filled[filled > 0]  # the longest batch stays first even when it had to be filled
        assert len(filled) <= 2
        assert list(filled) == list(range(len(indices) - len(filled), len(indices)))


def test_batches_hold_similar_lengths():
    lengths = np.random.default_rng(1).integers(10, 1000, size=4096)
    indices, _ = epoch_order(lengths, np.ones(4096, bool), 16, seed=0, epoch=0)
    spread = np.mean([np.ptp(lengths[row]) for row in indices])
    assert spread < 250, "a random batch of 16 spreads over about 870"


def test_same_samples_per_step_for_any_ranks_and_micro_batches():
    rng = np.random.default_rng(2)
    lengths, has_image = rng.integers(5, 99, size=101), rng.random(101) < 0.7
    whole = sampler(lengths, has_image, 16)
    for world in (1, 2, 4):
        for micro in (1, 2, 4):
            ranks = [sampler(lengths, has_image, 16, micro_batch=micro, world_size=world, rank=r) for r in range(world)]
            for step in range(whole.total_steps):
                parts = [draw for rank in ranks for batch in rank.micro_batches(step) for draw in batch]
                assert sorted(parts) == sorted(whole.step(step))
                sizes = {len(batch) for rank in ranks for batch in rank.micro_batches(step)}
                assert sizes == {micro}


def test_deterministic_position_follows_from_step_and_epochs_differ():
    rng = np.random.default_rng(4)
    lengths, has_image = rng.integers(5, 99, size=50), rng.random(50) < 0.5
    one, two = sampler(lengths, has_image, 4, micro_batch=2), sampler(lengths, has_image, 4, micro_batch=2)
    flat = list(one)
    assert flat == list(two)
    assert len(flat) == len(one) == one.total_steps * 2
    assert flat[7 * 2 : 8 * 2] == two.micro_batches(7), "no replay is needed to find step 7"
    per_epoch = one.steps_per_epoch
    assert [one.step(k) for k in range(per_epoch)] != [
        [d._replace(epoch=0) for d in one.step(k + per_epoch)] for k in range(per_epoch)
    ]
    other = sampler(lengths, has_image, 4, seed=5)
    assert [other.step(k) for k in range(per_epoch)] != [one.step(k) for k in range(per_epoch)]


def test_indivisible_batch_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match="global batch 16 is no multiple of micro-batch 5 x 2"):
        sampler(np.ones(20, int), np.ones(20, bool), 16, micro_batch=5, world_size=2)
