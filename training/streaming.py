"""Stage 3 on pairs that are read as a stream, from shards on the Hub or anywhere: for datasets that fit no disk.

`StreamedPairs` takes the place of the training dataset, `StreamedBatches` that of its sampler (docs/streaming.md).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm
from transformers.utils import logging

from .collator import PAIR_COLUMNS
from .partition import PARTITION_NAMES, Partition
from .sampler import EpochPlan
from .schedule import PhaseSchedule

logger = logging.get_logger(__name__)

# Rows that are taken from Arrow to Python at a time.
_TABLE_ROWS = 64
# How far a part's share of the shards may be from its share of the pairs before counts are called wrong.
_TOLERANCE = 0.1


class StreamedPairs:
    """
    A stream of pairs for [`PACLTrainer`], in the place of a `datasets.Dataset`.

    Args:
        dataset (`datasets.IterableDataset`):
            With the columns of Stages 1 and 2, its shards written in random order and its pictures embedded.
        counts (mapping of [`Partition`], its name or its number to `int`):
            Pairs of each partition in the whole stream, from which the length of an epoch is known beforehand; see
            [`StreamedPairs.count`].
        buffer_size (`int`, *optional*, defaults to 4096):
            Pairs, undecoded, that each worker keeps in memory to draw batches from.

    Raises:
        `TypeError`: the dataset is no `datasets.IterableDataset`.
        `ValueError`: a column is missing, or counts name no partition.

    Example:

    ```python
    stream = load_dataset("me/posts", split="train", streaming=True)
    pairs = StreamedPairs(stream, counts={"strong": 22_000, "partial_emotional": 31_000, "partial_factual": 20_000})
    PACLTrainer(model, args, train_dataset=pairs, processing_class=processor).train()
    ```
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        counts: Mapping[Partition | str | int, int],
        buffer_size: int = 4096,
    ):
        if not isinstance(dataset, datasets.IterableDataset):
            raise TypeError(
                f"StreamedPairs takes a datasets.IterableDataset, got {type(dataset).__name__}; a dataset that is on "
                "disk goes to the trainer as it is"
            )
        self.counts = _by_partition(counts)
        self.buffer_size = buffer_size
        columns = _pair_columns(dataset.column_names or next(iter(dataset), {}))
        if dataset.features is not None:
            # Before any other step: load_dataset may have put a pool of decoding threads on a remote stream.
            dataset = dataset.decode(False)
        self._has_text_features = "text_features" in columns
        self.dataset = dataset.select_columns(columns)

    def __len__(self) -> int:
        return sum(self.counts.values())

    @property
    def has_text_features(self) -> bool:
        """Whether the text tower's work is done."""
        return self._has_text_features

    @property
    def num_shards(self) -> int:
        """Number of shards, among which processes and workers are shared out."""
        return self.dataset.num_shards

    @staticmethod
    def count(dataset: datasets.IterableDataset | datasets.Dataset) -> dict[str, int]:
        """
        The pairs of each partition, by name, from one pass over the column `partition`.

        Of a stream of Parquet only that column is fetched if it was loaded with `columns=["partition"]`.
        """
        counts = np.zeros(len(Partition), np.int64)
        with tqdm(unit=" pairs", desc="Counting partitions") as bar:
            for table in dataset.select_columns(["partition"]).with_format("arrow").iter(10_000):
                counts += _count(table)
                bar.update(len(table))
        return dict(zip(PARTITION_NAMES, counts.tolist(), strict=True))

    def shards_of(self, part: int, num_parts: int) -> float:
        """How many shards one of several equal parts of the stream has."""
        if self.num_shards < num_parts:
            return self.num_shards / num_parts
        return len(range(part, self.num_shards, num_parts))

    def tables(self, generator: np.random.Generator, part: int, num_parts: int) -> Iterator[pa.Table]:
        """
        The rows of a part of the stream, undecoded, its shards in an order drawn from the generator.

        Where there are fewer shards than parts, each part reads them all and takes every `num_parts`-th row.
        """
        # Interleaving several shards costs 4 ms a row in datasets 5.2, and the batches are drawn from buffers anyway.
        stream = self.dataset.shuffle(generator=generator, buffer_size=_TABLE_ROWS, max_buffer_input_shards=1)
        strategy = "shards" if self.num_shards >= num_parts else "examples"
        stream = split_dataset_by_node(stream, rank=part, world_size=num_parts, strategy=strategy)
        return stream.with_format("arrow").iter(_TABLE_ROWS)


class StreamedBatches(EpochPlan, torch.utils.data.IterableDataset):
    """
    The batches of [`PartitionBatchSampler`]'s contract from a stream: lists of rows for the collator.

    The partition that has most pairs for its places leads: an epoch is one pass over the stream, in which each of its
    pairs comes once. The others wait in buffers and are drawn from there in turns, again and again. Every process and
    each of its workers reads shards of its own; what a batch holds depends on the seed, the epoch and the numbers of
    processes and workers.

    Args:
        pairs ([`StreamedPairs`]):
            The stream.
        batch_size, schedule, shares, num_processes:
            As for [`EpochPlan`].
        seed (`int`, *optional*, defaults to 0):
            Seed of the shuffling.
        process_index (`int`, *optional*, defaults to 0):
            Which of the processes this one is.
        num_workers (`int`, *optional*, defaults to 0):
            Workers of the loader in each process.

    Raises:
        `ValueError`: as for [`EpochPlan`]; or the buffer or a worker's part of the stream is too small for a
            partition's share of a batch.
    """

    def __init__(
        self,
        pairs: StreamedPairs,
        batch_size: int,
        schedule: PhaseSchedule,
        shares: str = "equal",
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(pairs.counts, batch_size, schedule, shares, num_processes)
        self.pairs = pairs
        self.seed = seed
        self.process_index = process_index
        # A worker without a shard of its own would have to read those of the others: it rests.
        self.num_readers = max(1, min(num_workers, pairs.num_shards // num_processes))
        self.num_parts = num_processes * self.num_readers
        self.last_epoch = max(0, math.ceil(schedule.num_epochs) - 1)
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._shared_epoch = torch.zeros(1, dtype=torch.long).share_memory_()
        self._skipped = (0, 0)
        for epoch in {self.active(epoch): epoch for epoch in range(self.last_epoch + 1)}.values():
            self._require_room(epoch)
        if self.num_readers < num_workers:
            logger.warning(
                f"{self.num_readers} of {num_workers} workers read, for there are {pairs.num_shards} shards"
            )
        if pairs.num_shards % num_processes:
            logger.warning(
                f"{pairs.num_shards} shards do not divide among {num_processes} processes: some pairs come more or "
                "less often than once per epoch. Write a multiple of the number of processes."
            )

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self._shared_epoch.fill_(epoch)

    def skip(self, epoch: int, num_batches: int) -> None:
        """Let the first batches of an epoch be empty lists: a resumed run drops them, so nobody need decode them."""
        self._skipped = (epoch, num_batches)

    def __len__(self) -> int:
        """Batches of the longest epoch for this process, which is what a loader may have to give."""
        return self.num_batches(self.last_epoch) // self.num_processes

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker, num_workers = 0, 1
        if (info := get_worker_info()) is not None:
            worker, num_workers = info.id, info.num_workers
            fsspec.asyn.reset_lock()  # a lock that was held while the worker was forked would never open
        epoch = int(self._shared_epoch)
        quotas = self._quotas(epoch, num_workers)
        skip = self._skipped[1] if self._skipped[0] == epoch else 0
        part = self.process_index + self.num_processes * worker
        for number, rows in enumerate(self._batches(epoch, part, quotas[worker])):
            # The loader takes from the workers in turn, and passes over those that are through.
            before = sum(min(quota, number + (other < worker)) for other, quota in enumerate(quotas))
            yield rows if before >= skip else []

    def leader(self, epoch: int) -> Partition:
        """The partition that has most pairs for its places in a batch, and so sets the length of an epoch."""
        shares = self.batch_shares(epoch)
        return max(shares, key=lambda p: self.sizes[p] / shares[p])

    def room(self, epoch: int) -> dict[Partition, int]:
        """How many pairs of each partition are kept in memory."""
        shares = self.batch_shares(epoch)
        return {p: self.pairs.buffer_size * share // sum(shares.values()) for p, share in shares.items()}

    def _quotas(self, epoch: int, num_workers: int) -> list[int]:
        """How many of this process's batches come from each worker: in proportion to its shards."""
        parts = [self.process_index + self.num_processes * worker for worker in range(self.num_readers)]
        bounds = np.cumsum([0, *(self.pairs.shards_of(part, self.num_parts) for part in parts)])
        num_batches = self.num_batches(epoch) // self.num_processes
        quotas = np.diff(np.round(bounds / bounds[-1] * num_batches).astype(int)).tolist()
        return quotas + [0] * (num_workers - self.num_readers)

    def _batches(self, epoch: int, part: int, num_batches: int) -> Iterator[list[dict[str, Any]]]:
        """One part's batches of an epoch: passes over its shards until there are enough."""
        rng = np.random.default_rng((self.seed, epoch, part))
        shares, room, leader = self.batch_shares(epoch), self.room(epoch), self.leader(epoch)
        pools = {p: _Pool(room[p], rng, reuse=p is not leader) for p in shares}

        def filled() -> bool:
            return all(len(pools[p]) >= share for p, share in shares.items())

        def batch() -> list[dict[str, Any]]:
            return [row for p, share in shares.items() for row in pools[p].draw(share)]

        plans = [(self.batch_shares(planned), self.room(planned)) for planned in (epoch, self.last_epoch)]
        left = num_batches
        while left:
            left_before, seen = left, np.zeros(len(Partition), np.int64)
            tables = self._tables(epoch, part)
            for first_row, table in tables:
                seen += _count(table)
                self._require_mix(seen, plans)
                for row in _rows(table, first_row, tuple(shares), self.num_parts, part):
                    pools[Partition(row["partition"])].add(row)
                    # Half of the leader's room is what it is shuffled in, the other half for partitions that are late.
                    while left and len(pools[leader]) >= min(room[leader] // 2, left * shares[leader]) and filled():
                        yield batch()
                        left -= 1
                if not left:
                    break
            while left and filled():
                yield batch()
                left -= 1
            if epoch == 0 and left_before == num_batches:
                self._check_counts(part, seen, tables)
            if left == left_before:
                wanted = [shares.get(p, 0) for p in Partition]
                raise ValueError(
                    f"part {part} of {self.num_parts} of the stream fills no batch of {_listed(wanted)}: it holds "
                    f"{_listed(seen)}. Use fewer workers or processes, or write shards that each hold a mix of all "
                    "partitions."
                )

    def _tables(self, epoch: int, part: int) -> Iterator[tuple[int, pa.Table]]:
        """One pass over a part of the stream, each table with the number of its first row."""
        first_row = 0
        for table in self.pairs.tables(np.random.default_rng((self.seed, epoch)), part, self.num_parts):
            yield first_row, table
            first_row += len(table)

    def _require_room(self, epoch: int) -> None:
        """Refuse, before any step, sizes with which a batch could not be filled in the middle of the training."""
        shares, room, leader = self.batch_shares(epoch), self.room(epoch), self.leader(epoch)
        if self.pairs.buffer_size < 2 * self.batch_size:
            raise ValueError(
                f"buffer_size must be at least two batches ({2 * self.batch_size}), got {self.pairs.buffer_size}"
            )
        for p, share in shares.items():
            if self.sizes[p] < share * self.num_parts:
                raise ValueError(
                    f"the {self.sizes[p]} pairs that are {p.name.lower()} are too few for {self.num_parts} readers "
                    f"(processes times workers) whose batches hold {share} each. Use fewer workers or processes."
                )
            needed = share * self.sizes[leader] / self.sizes[p]
            if needed > room[leader] and needed * self.num_parts < self.sizes[leader]:
                raise ValueError(
                    f"a batch's share of {p.name.lower()}, {share} pairs, comes with {needed:.0f} pairs of "
                    f"{leader.name.lower()}, of which buffer_size leaves room for {room[leader]}: set it "
                    f"to {2 * needed * sum(shares.values()) / shares[leader]:.0f}"
                )

    def _require_mix(self, seen: np.ndarray, plans: list[tuple[dict[Partition, int], dict[Partition, int]]]) -> None:
        """Refuse, as soon as it shows, a stream that is sorted by partition."""
        for shares, room in plans:
            late = [p.name.lower() for p, share in shares.items() if seen[p] < share]
            if late and any(seen[p] > room[p] + self.pairs.buffer_size for p in shares):
                raise ValueError(
                    f"the stream seems to be sorted: a part of it begins with {_listed(seen)}, which fills no batch "
                    f"for want of {' and '.join(late)}. Write its shards in random order (dataset.shuffle before "
                    "to_parquet), or give a larger buffer_size."
                )

    def _check_counts(self, part: int, seen: np.ndarray, rest: Iterator[tuple[int, pa.Table]]) -> None:
        """Say it where the first pass over a part shows other numbers of pairs than `counts` promises."""
        share = self.pairs.shards_of(part, self.num_parts) / self.pairs.num_shards
        expected = share * np.array([self.sizes[p] for p in Partition])
        # One of several parts holds about its share of the pairs, and chance adds to it.
        slack = 0 if self.num_parts == 1 else _TOLERANCE * expected + 3 * np.sqrt(expected)
        for _, table in rest:
            if (seen > expected + slack).any():
                break
            seen += _count(table)
        if wrong := [p for p in Partition if abs(seen[p] - expected[p]) > np.broadcast_to(slack, 4)[p]]:
            found = ", ".join(f"{seen[p]} {p.name.lower()} where {expected[p]:.0f} were expected" for p in wrong)
            logger.warning(
                f"the stream does not hold what counts say: part {part} of {self.num_parts} has {found}. Epochs are "
                "as long as counts say: count again (StreamedPairs.count)."
            )


class _Pool:
    """
    Undecoded pairs of one partition in memory, drawn at random: either once each or, with `reuse`, in turns, so that
    none comes again before the others. Where there is no room left, who has been drawn most, then longest, makes way.
    """

    def __init__(self, room: int, rng: np.random.Generator, reuse: bool):
        self.room = room
        self.rng = rng
        self.reuse = reuse
        self.rows: dict[int, dict[str, Any]] = {}
        self.turns: dict[int, int] = {}
        self.least_turns = 0

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Take in a pair, unless it is there already."""
        key = row["index"]
        if key in self.rows:
            return
        if len(self.rows) >= self.room:
            self._remove(max(self.turns, key=self.turns.__getitem__))
        # Who comes later has the turns of those who were drawn least, or would be drawn again and again.
        self.rows[key], self.turns[key] = row, self.least_turns

    def draw(self, number: int) -> list[dict[str, Any]]:
        """So many different pairs, at random among those drawn least."""
        keys = np.fromiter(self.rows, np.int64)
        turns = np.fromiter(self.turns.values(), np.int64)
        order = np.lexsort((self.rng.random(len(keys)), turns))
        chosen = keys[order[:number]].tolist()
        drawn = [self.rows[key] for key in chosen]
        self.least_turns = int(turns[order[number]]) if number < len(keys) else int(turns.min()) + 1
        for key in chosen:
            if self.reuse:
                self.turns[key] += 1
            else:
                self._remove(key)
        return drawn

    def _remove(self, key: int) -> None:
        del self.rows[key], self.turns[key]


def collate_unless_skipped(collate: Callable[[list], dict[str, Tensor]], rows: list) -> dict[str, Tensor]:
    """A batch of rows as the collator makes it; the empty list of a skipped batch, which nobody sees, stays empty."""
    return collate(rows) if rows else {}


def _rows(
    table: pa.Table, first_row: int, active: Sequence[Partition], num_parts: int, part: int
) -> Iterator[dict[str, Any]]:
    """The active rows of a table as the collator takes them, with numbers that no other part gives."""
    kept = np.flatnonzero(np.isin(table["partition"].to_numpy(), active))
    if not len(kept):
        return
    table = table.take(kept)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "text_features"}
    picture = columns["image"][0]
    if isinstance(picture, dict) and picture["bytes"] is None and not os.path.exists(picture["path"] or ""):
        raise ValueError(
            f"the shards name pictures without holding them ({picture['path']}): write them from a dataset that was "
            "saved by save_to_disk, or by push_to_hub, which put them in"
        )
    if "text_features" in table.column_names:
        flat = table["text_features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        columns["text_features"] = list(flat.astype(np.float32).reshape(len(kept), -1))
    for k, position in enumerate(kept.tolist()):
        row = {name: values[k] for name, values in columns.items()}
        yield {"index": (first_row + position) * num_parts + part, **row}


def _count(table: pa.Table) -> np.ndarray:
    """The number of rows of each partition."""
    column = table["partition"]
    if column.null_count:
        raise ValueError(f"partition is missing in {column.null_count} of {len(column)} rows of the stream")
    numbers = column.to_numpy()
    if not np.isin(numbers, tuple(Partition)).all():
        raise ValueError(f"partition must be 0 to {max(Partition)}, got {np.unique(numbers).tolist()}")
    return np.bincount(numbers, minlength=len(Partition))


def _listed(numbers: Sequence[int] | np.ndarray) -> str:
    return ", ".join(f"{number} {p.name.lower()}" for p, number in zip(Partition, numbers, strict=True) if number)


def _by_partition(counts: Mapping[Partition | str | int, int]) -> dict[Partition, int]:
    """Counts of all four partitions, whatever they were named by."""
    try:
        given = {
            Partition(PARTITION_NAMES.index(key) if isinstance(key, str) else key): int(n) for key, n in counts.items()
        }
    except ValueError as error:
        raise ValueError(f"counts must be keyed by {', '.join(PARTITION_NAMES)}, got {list(counts)}") from error
    return {p: given.get(p, 0) for p in Partition}


def _pair_columns(columns: Iterable[str]) -> list[str]:
    """The columns that Stage 3 reads, of those that there are."""
    columns = list(columns)
    text = "text_features" if "text_features" in columns else "text"
    needed = ["image", text, *PAIR_COLUMNS]
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(
            f"the stream lacks {', '.join(missing)}; it has {', '.join(columns) or 'no rows'}. partition_dataset and "
            "cluster_dataset write these columns; see docs/streaming.md for WebDataset."
        )
    return needed
