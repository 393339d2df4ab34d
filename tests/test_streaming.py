"""Training on a stream: shares, reuse, phases, parts of processes and workers, resuming, errors, the docs' code."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from conftest import make_pairs
from launch_helpers import launch
from pacl.training import PACLTrainer, PACLTrainingArguments, Partition, PhaseSchedule, StreamedPairs
from pacl.training import streaming as streaming_module
from pacl.training.collator import PACLCollator, training_transform
from pacl.training.streaming import StreamedBatches

LAST = 29  # an epoch of the last phase
SIZES = (64, 128, 32, 48)  # strong, partial_emotional, partial_factual, weak
COUNTS = dict(zip(Partition, SIZES, strict=True))


def mixed_pairs(sizes=SIZES, text_width=24):
    """Pairs in random order whose `factual_cluster` is their number."""
    column = np.random.default_rng(0).permutation(np.repeat(np.arange(4), sizes))
    pairs = make_pairs(len(column), text_width=text_width).remove_columns(["partition", "factual_cluster"])
    label = datasets.ClassLabel(names=[p.name.lower() for p in Partition])
    pairs = pairs.add_column("partition", column, feature=label)
    return pairs.add_column("factual_cluster", np.arange(len(column), dtype=np.int32))


def write_shards(folder, pairs, number=8):
    for i in range(number):
        pairs.shard(number, i).to_parquet(str(folder / f"{i}.parquet"))
    return str(folder / "*.parquet")


def load(files, **kwargs):
    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, **kwargs)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Eight shards, each with an eighth of every partition."""
    pairs = mixed_pairs()
    order = np.concatenate([np.flatnonzero(np.array(pairs["partition"]) == p) for p in Partition])
    return write_shards(tmp_path_factory.mktemp("shards"), pairs.select(order.reshape(-1, 8).T.reshape(-1)))


@pytest.fixture(scope="session")
def uneven_shards(tmp_path_factory):
    """Four shards that hold what chance gave them."""
    return write_shards(tmp_path_factory.mktemp("shards"), mixed_pairs(), 4)


def batches_of(files, epoch=LAST, buffer_size=1000, counts=COUNTS, batch_size=16, usage="all", **kwargs):
    pairs = StreamedPairs(load(files), counts, buffer_size=buffer_size)
    batches = StreamedBatches(pairs, batch_size, PhaseSchedule(30, usage), **kwargs)
    batches.set_epoch(epoch)
    return batches


def numbers(batches):
    return [[row["factual_cluster"] for row in batch] for batch in batches]


def loaded(batches, num_workers, **kwargs):
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=lambda rows: rows, num_workers=num_workers, **kwargs
    )
    return list(loader)


def times_seen(batches):
    """How often each pair of each partition came."""
    seen = {p: Counter() for p in Partition}
    for row in (row for batch in batches for row in batch):
        seen[row["partition"]][row["factual_cluster"]] += 1
    return seen


def assert_shares(batches, share=4):
    for batch in batches:
        assert Counter(row["partition"] for row in batch) == dict.fromkeys(range(4), share)
        assert len({row["factual_cluster"] for row in batch}) == len(batch), "a pair twice"


@pytest.mark.parametrize("buffer_size", [1000, 128])
def test_every_batch_has_its_shares_and_the_leading_partition_comes_once(shards, buffer_size):
    batches = batches_of(shards, buffer_size=buffer_size)
    found = list(batches)
    assert len(found) == batches.num_batches(LAST) == 32
    assert_shares(found)
    seen = times_seen(found)
    assert set(seen[Partition.PARTIAL_EMOTIONAL].values()) == {1}
    assert len(seen[Partition.PARTIAL_EMOTIONAL]) == 128
    for p in Partition:
        assert len(seen[p]) >= 0.9 * COUNTS[p], "the smaller ones are seen, too"


def test_smaller_partitions_that_fit_the_buffer_are_reused_in_turns(shards):
    seen = times_seen(batches_of(shards))
    assert set(seen[Partition.STRONG].values()) <= {1, 2, 3}
    assert set(seen[Partition.PARTIAL_FACTUAL].values()) <= {3, 4, 5}


def test_a_pair_that_comes_late_is_not_drawn_again_and_again():
    pool = streaming_module._Pool(10, np.random.default_rng(0), reuse=True)
    for index in range(4):
        pool.add({"index": index})
    for _ in range(20):
        pool.draw(2)
    pool.add({"index": 4})
    drawn = Counter(row["index"] for _ in range(20) for row in pool.draw(2))
    assert all(7 <= drawn[index] <= 9 for index in range(5))


def test_a_pair_that_comes_again_takes_nobodys_room():
    pool = streaming_module._Pool(2, np.random.default_rng(0), reuse=True)
    for index in (0, 1, 1, 0):
        pool.add({"index": index})
    assert sorted(row["index"] for row in pool.draw(2)) == [0, 1]


def test_decoding_threads_that_came_with_a_remote_stream_are_taken_off(shards, monkeypatch):
    monkeypatch.setattr(datasets.Image, "decode_example", None)  # a call would fail
    pairs = StreamedPairs(load(shards).decode(num_threads=2), COUNTS)
    assert next(iter(StreamedBatches(pairs, 16, PhaseSchedule(30))))[0]["image"]["bytes"]


def test_memory_is_bounded_by_the_buffer(shards, monkeypatch):
    pools = []

    class Watched(streaming_module._Pool):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            pools.append(self)

        def add(self, row):
            super().add(row)
            held.append(sum(len(pool) for pool in pools))

    held = []
    monkeypatch.setattr(streaming_module, "_Pool", Watched)
    list(batches_of(shards, buffer_size=64))
    assert 32 < max(held) <= 64


def test_pairs_of_inactive_partitions_are_not_read_and_pictures_not_decoded(shards):
    rows = [row for batch in batches_of(shards, epoch=0) for row in batch]
    assert {row["partition"] for row in rows} == {Partition.STRONG}
    assert isinstance(rows[0]["image"]["bytes"], bytes)
    assert rows[0]["text_features"].dtype == np.float32
    assert "text" not in rows[0]


def test_order_depends_on_seed_and_epoch_alone(shards):
    first = numbers(batches_of(shards))
    assert first == numbers(batches_of(shards))
    assert first != numbers(batches_of(shards, seed=1))
    assert first != numbers(batches_of(shards, epoch=LAST - 1))


@pytest.mark.parametrize("num_processes", [2, 3, 5])
def test_processes_take_equally_many_batches_and_share_out_the_leading_partition(uneven_shards, num_processes):
    """Two divide the four shards; three do not; five read them all and take every fifth pair."""
    found = [list(batches_of(uneven_shards, num_processes=num_processes, batch_size=8, process_index=rank))
             for rank in range(num_processes)]  # fmt: skip
    assert len({len(batches) for batches in found}) == 1
    for batches in found:
        assert_shares(batches, share=2)
    seen = times_seen(batch for batches in found for batch in batches)[Partition.PARTIAL_EMOTIONAL]
    assert len(seen) > (100 if num_processes == 3 else 120)


def test_processes_with_equal_shards_see_each_leading_pair_once(shards):
    found = [batch for rank in range(2) for batch in batches_of(shards, num_processes=2, process_index=rank)]
    seen = times_seen(found)[Partition.PARTIAL_EMOTIONAL]
    assert set(seen.values()) == {1}
    assert len(seen) == 128


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_read_shards_of_their_own(shards, num_workers):
    found = loaded(batches_of(shards, num_workers=num_workers), num_workers)
    assert len(found) == 32
    assert_shares(found)
    seen = times_seen(found)[Partition.PARTIAL_EMOTIONAL]
    assert set(seen.values()) == {1}
    assert len(seen) == 128
    assert len({row["index"] for batch in found for row in batch}) == len({n for b in numbers(found) for n in b})


def test_uneven_shards_give_workers_uneven_numbers_of_batches(shards):
    found = loaded(batches_of(shards, num_workers=3, batch_size=8), 3)
    seen = times_seen(found)[Partition.PARTIAL_EMOTIONAL]
    assert len(found) == 64
    assert len(seen) == 128, "three, three and two shards: all of them are read through"


def test_more_workers_than_shards_rest(shards, caplog):
    with caplog.at_level(logging.WARNING):
        found = loaded(batches_of(shards, num_workers=9, batch_size=8), 9)
    assert len(found) == 64
    assert set(times_seen(found)[Partition.PARTIAL_EMOTIONAL].values()) == {1}


def test_workers_that_outlive_an_epoch_see_the_next_one(shards):
    batches = batches_of(shards, epoch=0, num_workers=1)
    loader = torch.utils.data.DataLoader(
        batches, batch_size=None, collate_fn=numbers_of, num_workers=1, persistent_workers=True
    )
    first = list(loader)
    batches.set_epoch(LAST)
    assert list(loader) == numbers(batches)
    assert len(first) == batches.num_batches(0)


def numbers_of(rows):
    return [row["factual_cluster"] for row in rows]


@pytest.mark.parametrize("num_workers", [0, 2, 3])
def test_skipped_batches_are_empty_and_the_others_what_they_were(shards, num_workers):
    straight = loaded(batches_of(shards, num_workers=num_workers), num_workers)
    batches = batches_of(shards, num_workers=num_workers)
    batches.skip(LAST, 7)
    found = loaded(batches, num_workers)
    assert found[:7] == [[]] * 7
    assert numbers(found[7:]) == numbers(straight[7:])


def test_counts_are_found_in_one_pass_over_one_column(shards):
    expected = {p.name.lower(): n for p, n in COUNTS.items()}
    assert StreamedPairs.count(load(shards, columns=["partition"])) == expected
    assert StreamedPairs.count(mixed_pairs().select_columns(["partition"])) == expected
    pairs = StreamedPairs(load(shards), expected)
    assert pairs.counts == COUNTS
    assert len(pairs) == sum(SIZES)


@pytest.mark.parametrize(("strong", "num_workers"), [(60, 0), (66, 0), (32, 2), (200, 2)])
def test_wrong_counts_are_said_with_both_figures(shards, caplog, monkeypatch, strong, num_workers):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    batches = batches_of(shards, epoch=0, counts=COUNTS | {Partition.STRONG: strong}, num_workers=num_workers)
    with caplog.at_level(logging.WARNING):
        assert len(list(batches)) == -(-strong // 16) // max(1, num_workers)
    found = re.search(r"(\d+) strong where (\d+) were expected.*count again", caplog.text)
    assert int(found[2]) == strong // max(1, num_workers)


def test_right_counts_are_not_complained_of(shards, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for num_workers in (0, 2):
        list(batches_of(shards, epoch=0, num_workers=num_workers))
    assert not caplog.records


def test_a_sorted_stream_is_refused_in_the_first_epoch(tmp_path):
    pairs = mixed_pairs((200, 200, 200, 200), text_width=None).sort("partition", reverse=True)
    files = write_shards(tmp_path, pairs, 1)
    batches = batches_of(files, epoch=0, counts=dict.fromkeys(Partition, 200), buffer_size=64)
    with pytest.raises(ValueError, match=r"sorted: .* begins with \d+ weak, .* for want of.*dataset\.shuffle"):
        list(batches)


def test_a_part_without_a_partition_is_refused_and_not_read_for_ever(shards):
    wrong = COUNTS | {Partition.WEAK: 0}
    only_weak = batches_of(shards, counts=wrong)  # counts say that nothing is weak: nobody waits for it
    assert {row["partition"] for batch in only_weak for row in batch} == {0, 1, 2}
    batches = batches_of(shards, epoch=0, counts=COUNTS, batch_size=128, usage="strong")
    batches.sizes = {**COUNTS, Partition.STRONG: 128}
    with pytest.raises(ValueError, match="fills no batch of 128 strong: it holds 64 strong, 128 partial"):
        list(batches)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 31}, r"at least two batches \(32\), got 31"),
        ({"num_processes": 9}, "64 pairs that are strong are too few for 9 readers.* hold 16 each"),
        (
            {"counts": {0: 6400, 1: 6400, 2: 64, 3: 6400}, "buffer_size": 320},
            "share of partial_factual, 5 pairs, comes with 500 pairs of partial_emotional.* for 100: set it to 3200",
        ),
    ],
)
def test_sizes_that_cannot_fill_a_batch_are_refused_before_any_step(shards, kwargs, message):
    with pytest.raises(ValueError, match=message):
        batches_of(shards, **kwargs)


def test_wrong_datasets_and_counts_are_refused(shards):
    with pytest.raises(ValueError, match="lacks text, partition"):
        StreamedPairs(load(shards, columns=["image", "factual_cluster", "emotional_cluster"]), COUNTS)
    unnamed = load(shards).map(lambda row: {"image": row["image"]}, remove_columns=["partition"])
    assert unnamed.features is None
    with pytest.raises(ValueError, match="lacks partition"):
        StreamedPairs(unnamed, COUNTS)
    with pytest.raises(ValueError, match="keyed by strong, partial_emotional"):
        StreamedPairs(load(shards), {"stronk": 3})
    named = load(shards).map(lambda row: {**row, "image": {"bytes": None, "path": "away.jpg"}})
    with pytest.raises(ValueError, match=r"name pictures without holding them \(away.jpg\)"):
        next(iter(StreamedBatches(StreamedPairs(named, COUNTS), 16, PhaseSchedule(30))))
    with pytest.raises(TypeError, match=r"takes a datasets\.IterableDataset, got Dataset"):
        StreamedPairs(mixed_pairs(), COUNTS)


# The trainer -------------------------------------------------------------------------------------------------------


def trainer_for(model, processor, folder, pairs, **kwargs):
    defaults = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    eval_dataset = kwargs.pop("eval_dataset", None)
    args = PACLTrainingArguments(str(folder), **(defaults | kwargs))
    return PACLTrainer(model, args, train_dataset=pairs, eval_dataset=eval_dataset, processing_class=processor)


def test_the_trainer_takes_a_stream_through_all_phases(model, processor, tmp_path, shards, recwarn):
    trainer = trainer_for(model, processor, tmp_path, StreamedPairs(load(shards), COUNTS))
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == trainer.state.max_steps == 4 + 22 + 32
    assert "pairs_weak" not in history[10]
    assert {history[-1][f"pairs_{p.name.lower()}"] for p in Partition} == {4}
    assert trainer.state.epoch == 3
    assert not [w for w in recwarn if "Length of IterableDataset" in str(w.message)]


def test_without_text_features_the_texts_are_streamed(model, processor, tmp_path):
    files = write_shards(tmp_path, mixed_pairs(text_width=None), 2)
    trainer = trainer_for(model, processor, tmp_path, StreamedPairs(load(files), COUNTS), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_mid_epoch_ends_with_equal_weights(model, processor, tmp_path, shards, workers, monkeypatch):
    twin, options = copy.deepcopy(model), {"dataloader_num_workers": workers, "per_device_train_batch_size": 16}
    pairs = StreamedPairs(load(shards), COUNTS, buffer_size=128)
    straight = trainer_for(model, processor, tmp_path / "a", pairs, save_strategy="steps", save_steps=1, **options)
    straight.train()
    middle = straight._updates_in_epoch(0) + 5
    decoded = []
    resumed = trainer_for(twin, processor, tmp_path / "b", pairs, **options)
    collate = PACLCollator.__call__
    monkeypatch.setattr(PACLCollator, "__call__", lambda self, rows: decoded.append(len(rows)) or collate(self, rows))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{middle}"))
    assert resumed.state.global_step == straight.state.global_step
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    if not workers:
        assert len(decoded) == straight.state.global_step - middle, "what is skipped is not decoded"


def test_a_stream_is_no_evaluation_set_and_needs_counts(model, processor, tmp_path, shards):
    with pytest.raises(TypeError, match=r"only training streams, from StreamedPairs\(stream, counts\)"):
        trainer_for(model, processor, tmp_path, load(shards))
    stream = load(shards)
    with pytest.raises(TypeError, match="to evaluate, take rows into memory"):
        trainer_for(model, processor, tmp_path, StreamedPairs(stream, COUNTS), eval_dataset=stream)
    held_out = datasets.Dataset.from_list(list(stream.take(20)), features=stream.features)
    trainer = trainer_for(model, processor, tmp_path, StreamedPairs(stream, COUNTS), eval_dataset=held_out)
    assert trainer.evaluate()["eval_loss"] > 0


class Watching(PACLTrainer):
    """Keeps the pairs of every batch by their numbers."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.__dict__.setdefault("seen", []).append((inputs["partition"].tolist(), inputs["factual_cluster"].tolist()))
        return super().compute_loss(model, inputs, *args, **kwargs)


def train_watched(folder, files, model, processor):
    args = PACLTrainingArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=16, save_strategy="no", report_to=[], use_cpu=True,
        dataloader_num_workers=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Watching(model, args, train_dataset=StreamedPairs(load(files), COUNTS), processing_class=processor)
    trainer.train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return trainer.seen, [trainer._batches_in_epoch(epoch) for epoch in range(3)], weights


@pytest.mark.slow
def test_two_processes_train_on_their_own_halves_of_the_stream(model, processor, tmp_path, shards):
    """Both take the same steps; over both, each pair of the leading partition comes once in the last epoch."""
    results = launch(train_watched, 2, str(tmp_path), shards, model, processor)
    assert results[0][1] == results[1][1] == [2, 11, 16]
    assert all(torch.equal(value, results[1][2][name]) for name, value in results[0][2].items())
    leading = Counter()
    for seen, lengths, _ in results:
        assert len(seen) == sum(lengths)
        for partition, chosen in seen[-lengths[-1] :]:
            assert Counter(partition) == dict.fromkeys(range(4), 4)
            assert len(set(chosen)) == len(chosen)
            leading.update(n for p, n in zip(partition, chosen, strict=True) if p == Partition.PARTIAL_EMOTIONAL)
    assert set(leading.values()) == {1}
    assert len(leading) == 128


def test_the_docs_code_writes_and_trains_on_shards(model, processor, tmp_path, monkeypatch):
    """The code blocks of docs/streaming.md, one after the other, on local files."""
    text = (Path(__file__).parent.parent / "docs" / "streaming.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    mixed_pairs().save_to_disk("runs/posts/dataset")
    args = PACLTrainingArguments(
        "out", max_steps=2, per_device_train_batch_size=16, save_strategy="no", report_to=[], use_cpu=True
    )
    names = {"model": model, "processor": processor, "args": args}
    for block in blocks:
        exec(compile(block, "docs/streaming.md", "exec"), names)
    assert names["trainer"].state.global_step == 2
    collate = PACLCollator(processor, training_transform(processor.image_processor))
    by_source = {}
    for source in ("from_parquet", "from_tar"):
        pairs = names[source]
        assert pairs.counts == COUNTS
        batches = StreamedBatches(pairs, 16, PhaseSchedule(30))
        batches.set_epoch(LAST)
        rows = {row["factual_cluster"]: row for batch in batches for row in batch}
        by_source[source] = collate([{**rows[n], "index": n} for n in sorted(rows)[:8]])
    for name, value in by_source["from_parquet"].items():
        torch.testing.assert_close(by_source["from_tar"][name], value)
