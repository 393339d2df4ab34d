"""Batches that hold every active partition: which pairs stand together in Stage 3 (method.md, reading 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Sampler

from pacl.configuration_pacl import require_choice

from .partition import Partition
from .schedule import PhaseSchedule

BATCH_SHARES = ("equal", "proportional")
# A pair alone in its partition has nothing to be compared with.
SMALLEST_SHARE = 2


class EpochPlan:
    """
    What an epoch's batches hold, from the partitions' sizes alone: how many batches, and each partition's places.

    An epoch ends when the largest active partition is through; the smaller ones are reused until then. A partition
    smaller than its share gives all it has, and the others take the rest of its places. An empty one takes no part.

    Args:
        sizes (`Mapping[Partition, int]`):
            Pairs of each partition.
        batch_size (`int`):
            Pairs in a batch, per device.
        schedule ([`PhaseSchedule`]):
            Says which partitions are active in an epoch.
        shares (`str`, *optional*, defaults to `"equal"`):
            `"equal"`: every active partition has the same number of places. `"proportional"`: places by the
            partitions' sizes.
        num_processes (`int`, *optional*, defaults to 1):
            The number of batches of an epoch is a multiple of it, so that all processes take equally many steps.
        together (`int`, *optional*, defaults to 1):
            How many batches are planned as one. What is said of a batch is then said of so many.

    Raises:
        `ValueError`: no pair belongs to any partition that is active in the first epoch, or an argument is wrong.
    """

    def __init__(
        self,
        sizes: Mapping[Partition, int],
        batch_size: int,
        schedule: PhaseSchedule,
        shares: str = "equal",
        num_processes: int = 1,
        together: int = 1,
    ):
        require_choice("shares", shares, BATCH_SHARES)
        if batch_size < SMALLEST_SHARE:
            raise ValueError(f"batch_size must be at least {SMALLEST_SHARE}, got {batch_size}")
        self.sizes = sizes
        self.batch_size = batch_size
        self.schedule = schedule
        self.shares = shares
        self.num_processes = num_processes
        self.together = together
        self.epoch = 0
        self._require_pairs_in_phase_one()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration, and `len`, speak of."""
        self.epoch = epoch

    def active(self, epoch: int) -> tuple[Partition, ...]:
        """The partitions that are active in an epoch and have pairs."""
        return tuple(p for p in self.schedule.active(epoch) if self.sizes[p])

    def batch_shares(self, epoch: int) -> dict[Partition, int]:
        """How many places each partition has in a batch of an epoch."""
        sizes = {p: self.sizes[p] for p in self.active(epoch)}
        weights = sizes if self.shares == "proportional" else dict.fromkeys(sizes, 1)
        return share_out(self.batch_size * self.together, sizes, weights)

    def num_batches(self, epoch: int) -> int:
        """How many batches an epoch has, over all processes."""
        needed = max(-(-self.sizes[p] // share) for p, share in self.batch_shares(epoch).items())
        return -(-needed * self.together // self.num_processes) * self.num_processes

    def describe(self, epoch: int) -> str:
        """One line for the log: the phase of an epoch, its partitions and their shares of a batch."""
        shares = self.batch_shares(epoch)
        parts = ", ".join(f"{share} {p.name.lower()} of {self.sizes[p]}" for p, share in shares.items())
        batches = self.num_batches(epoch) // self.together
        return f"phase {self.schedule.phase(epoch) + 1}: {batches} batches an epoch, each with {parts}"

    def exceptions(self, epoch: int) -> list[str]:
        """Where an epoch's batches could not be what was asked for, and the rule that was followed instead."""
        shares = self.batch_shares(epoch)
        found = []
        if empty := [p.name.lower() for p in self.schedule.active(epoch) if not self.sizes[p]]:
            found.append(f"no pair is {' or '.join(empty)}, so the others take their places")
        if small := [p.name.lower() for p, share in shares.items() if share == self.sizes[p]]:
            found.append(f"all of {' and '.join(small)} is in every batch, for it is no larger than its share")
        if sum(shares.values()) < (places := self.batch_size * self.together):
            found.append(f"only {sum(shares.values())} of a batch's {places} places can be filled")
        return found

    def _require_pairs_in_phase_one(self) -> None:
        if self.active(0):
            return
        names = " or ".join(p.name.lower() for p in self.schedule.active(0))
        counts = ", ".join(f"{self.sizes[p]} {p.name.lower()}" for p in Partition)
        raise ValueError(
            f"none of the {sum(self.sizes.values())} pairs is {names}, so that phase one has nothing to train on "
            f"({counts}). Lower the thresholds of stage 1, or calibrate them to wanted shares of matched pairs "
            "(matched_shares)."
        )


class PartitionBatchSampler(EpochPlan, Sampler[list[int]]):
    """
    Yields batches in which every active partition has its share.

    Smaller partitions are reshuffled and reused until the largest is through. A batch never holds a pair twice.
    Exceptions are said in the log. What a batch holds depends on the seed and the epoch alone, so that every process
    sees the same order.

    On several processes the batches that they take at the same time are parts of one: that of a single process with so
    many times the batch size.

    Args:
        partition (`Sequence[int]` of length N):
            [`Partition`] of each pair of the dataset.
        batch_size, schedule, shares, num_processes:
            As for [`EpochPlan`].
        seed (`int`, *optional*, defaults to 0):
            Seed of the shuffling.

    Raises:
        `ValueError`: as for [`EpochPlan`].
    """

    def __init__(
        self,
        partition: Sequence[int] | np.ndarray,
        batch_size: int,
        schedule: PhaseSchedule,
        shares: str = "equal",
        seed: int = 0,
        num_processes: int = 1,
    ):
        partition = np.asarray(partition)
        self.members = {p: np.flatnonzero(partition == p) for p in Partition}
        self.seed = seed
        self.drop_last = False
        sizes = {p: len(self.members[p]) for p in Partition}
        super().__init__(sizes, batch_size, schedule, shares, num_processes, together=num_processes)
        if (first := sum(self.batch_shares(0).values())) < num_processes:  # later phases have more
            raise ValueError(
                f"phase one has {first} pairs for {num_processes} processes, of which each needs one: give more pairs "
                "or start fewer processes"
            )

    def __len__(self) -> int:
        return self.num_batches(self.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        num_batches = len(self) // self.num_processes
        columns = []
        for p, share in self.batch_shares(self.epoch).items():
            rng = np.random.default_rng((self.seed, self.epoch, int(p)))
            columns.append(_shuffled_rows(self.members[p], num_batches, share, rng))
        for rows in zip(*columns, strict=True):
            batch = np.concatenate(rows)
            yield from (batch[part :: self.num_processes].tolist() for part in range(self.num_processes))


def share_out(places: int, sizes: dict[Partition, int], weights: dict[Partition, int]) -> dict[Partition, int]:
    """
    Divide a batch's places by weight; nobody gets more than its size, and nobody less than two where it has two.

    Args:
        places (`int`):
            Places in a batch.
        sizes (`dict[Partition, int]`):
            Pairs of each partition, none of them 0.
        weights (`dict[Partition, int]`):
            What the places are divided by.

    Returns:
        `dict[Partition, int]`: places of each partition; their sum is `places`, or all pairs where there are fewer.
    """
    shares = {p: min(SMALLEST_SHARE, size) for p, size in sizes.items()}
    if sum(shares.values()) > places:
        raise ValueError(
            f"a batch of {places} is too small for {len(sizes)} partitions: give it {sum(shares.values())}"
        )
    for _ in range(places - sum(shares.values())):
        open_to = [p for p in sizes if shares[p] < sizes[p]]
        if not open_to:
            break
        # The next place goes to whoever is furthest below its due; ties to the larger partition.
        neediest = min(open_to, key=lambda p: ((shares[p] + 1) / weights[p], -sizes[p]))
        shares[neediest] += 1
    return shares


def _shuffled_rows(members: np.ndarray, num_rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """`(num_rows, width)` members in random order, each used up before it comes again, none twice in a row."""
    chunks: list[np.ndarray] = []
    length = 0
    while length < num_rows * width:
        order = rng.permutation(members)
        if begun := length % width:
            # Whoever stands in the row that the last round left unfinished goes to the end of this one.
            waiting = np.isin(order, chunks[-1][-begun:])
            order = np.concatenate([order[~waiting], order[waiting]])
        chunks.append(order)
        length += len(order)
    return np.concatenate(chunks)[: num_rows * width].reshape(num_rows, width)
