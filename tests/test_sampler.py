"""Batches that hold every active partition: shares, reuse, rules for empty and small partitions, seeds, phases."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from pacl.training.partition import Partition
from pacl.training.sampler import PartitionBatchSampler, share_out
from pacl.training.schedule import PhaseSchedule

S, E, F, W = Partition
LAST = 29  # an epoch of the last phase


def partitions(strong=0, emotional=0, factual=0, weak=0):
    column = np.repeat(np.arange(4), [strong, emotional, factual, weak])
    return np.random.default_rng(0).permutation(column)


def make(sizes, batch_size=16, epoch=LAST, usage="all", **kwargs):
    sampler = PartitionBatchSampler(partitions(*sizes), batch_size, PhaseSchedule(30, usage), **kwargs)
    sampler.set_epoch(epoch)
    return sampler


def test_every_batch_holds_every_active_partition_in_equal_shares():
    column = partitions(40, 60, 25, 30)
    sampler = make((40, 60, 25, 30))
    batches = list(sampler)
    assert len(batches) == len(sampler) == 15, "60 pairs of the largest partition, 4 in a batch"
    for batch in batches:
        assert Counter(column[batch]) == {0: 4, 1: 4, 2: 4, 3: 4}


def test_the_log_line_of_a_phase_names_shares_and_sizes():
    sampler = make((40, 60, 25, 30))
    assert sampler.describe(LAST).startswith("phase 3: 15 batches an epoch, each with 4 strong of 40,")
    assert sampler.exceptions(LAST) == []


def test_proportional_shares_follow_the_sizes():
    assert make((20, 40, 60, 40), shares="proportional").batch_shares(LAST) == {S: 2, E: 4, F: 6, W: 4}


def test_the_largest_partition_is_seen_once_and_small_ones_are_reshuffled_and_reused():
    column = partitions(10, 48, 24, 48)
    seen = Counter(np.concatenate(list(make((10, 48, 24, 48)))))
    assert {seen[i] for i in np.flatnonzero(column == E)} == {1}
    assert {seen[i] for i in np.flatnonzero(column == F)} == {2}
    assert {seen[i] for i in np.flatnonzero(column == S)} <= {4, 5}


@pytest.mark.parametrize("sizes", [(5, 50, 50, 50), (4, 50, 9, 7), (16, 17, 18, 19), (3, 2, 1, 90)])
def test_no_batch_holds_a_pair_twice(sizes):
    for seed in range(5):
        assert all(len(set(batch)) == len(batch) for batch in make(sizes, seed=seed))


def test_an_empty_partition_leaves_its_places_to_the_others():
    sampler = make((40, 40, 0, 40), batch_size=18)
    assert sampler.batch_shares(LAST) == {S: 6, E: 6, W: 6}
    assert "no pair is partial_factual" in sampler.exceptions(LAST)[0]


def test_a_partition_smaller_than_its_share_gives_all_it_has():
    sampler = make((40, 40, 2, 40))
    assert sampler.batch_shares(LAST)[F] == 2
    assert sum(sampler.batch_shares(LAST).values()) == 16
    assert "all of partial_factual is in every batch" in sampler.exceptions(LAST)[0]


def test_a_dataset_smaller_than_a_batch_is_one_smaller_batch():
    sampler = make((3, 2, 2, 2), batch_size=64)
    assert [len(batch) for batch in sampler] == [9]
    assert "only 9 of a batch's 64 places" in sampler.exceptions(LAST)[-1]


def test_phases_are_thirds_of_the_epochs():
    schedule = PhaseSchedule(9)
    assert [schedule.phase(epoch) for epoch in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert schedule.active(0) == (S,)
    assert schedule.active(3) == (S, E, F)
    assert schedule.active(6) == (S, E, F, W)


@pytest.mark.parametrize(
    ("usage", "expected"), [("strong", (S,)), ("strong_partial", (S, E, F)), ("all", (S, E, F, W))]
)
def test_sample_usage_ends_at_its_phase(usage, expected):
    assert PhaseSchedule(30, usage).active(LAST) == expected


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return list(make((40, 60, 25, 30), seed=seed, epoch=epoch))

    assert order(0, 25) == order(0, 25)
    assert order(0, 25) != order(1, 25)
    assert order(0, 25) != order(0, 26)


def test_accelerate_hands_whole_batches_to_the_processes_in_turn():
    sampler = make((40, 60, 25, 30), num_processes=2)
    alone = list(sampler)
    shards = [list(BatchSamplerShard(sampler, num_processes=2, process_index=rank)) for rank in range(2)]
    assert len(alone) % 2 == 0
    assert shards == [alone[0::2], alone[1::2]]


def test_no_pair_for_phase_one_is_an_error_that_tells_what_to_do():
    with pytest.raises(ValueError, match="none of the 30 pairs is strong.*Lower the thresholds"):
        make((0, 10, 10, 10))


def test_fewer_pairs_than_processes_are_refused():
    with pytest.raises(ValueError, match="phase one has 3 pairs for 4 processes"):
        make((3, 40, 40, 40), num_processes=4)


def test_batches_taken_together_hold_no_pair_twice():
    """Also where a partition is used up in the midst of them and begins anew."""
    sampler = make((40, 60, 25, 30), num_processes=4)
    sampler.set_epoch(2)
    batches = list(sampler)
    for start in range(0, len(batches), 4):
        together = sum(batches[start : start + 4], [])
        assert len(set(together)) == len(together)


def test_a_batch_too_small_for_all_partitions_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 is too small for 4 partitions"):
        share_out(6, dict.fromkeys(Partition, 10), dict.fromkeys(Partition, 1))


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"shares": "fair"}, "shares must be one of"), ({"batch_size": 1}, "at least 2")]
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make((4, 4, 4, 4), **kwargs)


def test_wrong_schedules_are_refused():
    with pytest.raises(ValueError, match="sample_usage must be one of strong, strong_partial, all"):
        PhaseSchedule(30, "some")
    with pytest.raises(ValueError, match="num_epochs"):
        PhaseSchedule(0)
