"""Properties of the step sampler, over many random mixtures."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emma.data.sampler import StepSampler, epoch_order, steps_per_epoch

# The same examples every time, however busy the machine is.
EXAMPLES = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

# Lengths repeat, as truncation makes them do; the flags cover one modality only, and both in any share.
SAMPLES = st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=120)
MIXTURE = SAMPLES | SAMPLES.flatmap(lambda rows: st.just([(length, rows[0][1]) for length, _ in rows]))
LAYOUT = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))  # ranks, micro-batch, accumulation


@st.composite
def plans(draw):
    """(lengths, has_image, samplers of all ranks, a sampler of one process with the same global batch)."""
    rows, (world, micro, accumulation) = draw(MIXTURE), draw(LAYOUT)
    lengths, has_image = np.array([n for n, _ in rows]), np.array([flag for _, flag in rows])
    batch = world * micro * accumulation
    total = 2 * steps_per_epoch(has_image, batch)
    common = {"batch_size": batch, "total_steps": total, "seed": draw(st.integers(0, 9))}
    ranks = [
        StepSampler(lengths, has_image, micro_batch=micro, rank=rank, world_size=world, **common)
        for rank in range(world)
    ]
    return lengths, has_image, ranks, StepSampler(lengths, has_image, micro_batch=batch, **common)


@EXAMPLES
@given(plans())
def test_any_mixture_any_ranks_each_sample_once_an_epoch(plan):
    lengths, has_image, ranks, _ = plan
    per_epoch = ranks[0].steps_per_epoch
    for epoch in (0, 1):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        draws = [d for step in steps for rank in ranks for batch in rank.micro_batches(step) for d in batch]
        assert sorted(d.sample for d in draws if not d.masked) == list(range(len(lengths)))
        assert {d.epoch for d in draws} == {epoch}
        for step in steps:
            assert len({bool(has_image[d.sample]) for d in ranks[0].step(step)}) == 1, "one modality a step"
            assert not all(d.masked for d in ranks[0].step(step))


@EXAMPLES
@given(plans())
def test_any_ranks_and_micro_batches_see_the_same_samples_in_a_step(plan):
    _, _, ranks, single = plan
    for step in range(single.total_steps):
        parts = [rank.micro_batches(step) for rank in ranks]
        assert sorted(itertools.chain(*itertools.chain(*parts))) == sorted(single.step(step))
        assert {len(batch) for part in parts for batch in part} == {ranks[0].micro_batch}
        assert {len(part) for part in parts} == {ranks[0].accumulation}


@EXAMPLES
@given(plans(), st.data())
def test_steps_do_not_depend_on_what_was_drawn_before(plan, data):
    _, _, ranks, _ = plan
    rank = data.draw(st.sampled_from(ranks))
    drawn = list(rank)
    assert len(drawn) == len(rank) == rank.total_steps * rank.accumulation
    step = data.draw(st.integers(0, rank.total_steps - 1))
    fresh = StepSampler(
        rank.lengths, rank.has_image, batch_size=rank.batch_size, micro_batch=rank.micro_batch,
        total_steps=rank.total_steps, seed=rank.seed, rank=rank.rank, world_size=rank.world_size,
    )  # fmt: skip
    later = [batch for k in range(step, fresh.total_steps) for batch in fresh.micro_batches(k)]
    assert drawn[step * rank.accumulation :] == later


@EXAMPLES
@given(plans())
def test_no_micro_batch_is_larger_than_the_first_step_s(plan):
    lengths, _, ranks, _ = plan

    def padded_tokens(step):
        batches = [batch for rank in ranks for batch in rank.micro_batches(step)]
        return max(len(batch) * max(lengths[d.sample] for d in batch) for batch in batches)

    per_epoch = ranks[0].steps_per_epoch
    assert padded_tokens(0) == max(padded_tokens(step) for step in range(2 * per_epoch))
    longest = [step for step in range(per_epoch) if lengths[ranks[0].step(step)[0].sample] == lengths.max()]
    tokens = [sum(lengths[d.sample] for d in ranks[0].step(step)) for step in longest]
    assert tokens[0] == max(tokens), "of the steps with a longest sample, the one with the most tokens comes first"


def mixtures(count=40):
    rng = np.random.default_rng(0)
    for case in range(count):
        n = int(rng.integers(1, 300))
        share = [0.0, 1.0, 0.5, 0.9][case % 4]
        yield rng.integers(5, 900, size=n), rng.random(n) < share, int(rng.choice([1, 2, 4, 8, 16])), case


def sampler(lengths, has_image, batch, **kwargs):
    defaults = {"micro_batch": batch, "total_steps": 2 * steps_per_epoch(has_image, batch), "seed": 3}
    return StepSampler(lengths, has_image, batch_size=batch, **(defaults | kwargs))


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
