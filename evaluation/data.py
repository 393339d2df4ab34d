"""One benchmark in one folder as the protocols see it: its task, its splits by seed, and its pictures, each once."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from .benchmarks import Benchmark, Dropped, get_benchmark, load_benchmark
from .features import PictureTable, pictures_fingerprint
from .tasks import Task, task_of


class BenchmarkData:
    """A benchmark's folder; every split is read once, for all backbones.

    Args:
        name (`str`): of the benchmark.
        folder (`Path`): where its users have it.
        options (*optional*): of the benchmark's reader, such as Emotic's `crop_dir`.
    """

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        self.benchmark: Benchmark = get_benchmark(name)
        self.folder = folder
        self.options = options
        self.dropped = Dropped()
        self.task: Task = task_of(self.benchmark)
        self._splits: dict[tuple[int, int], DatasetDict] = {}

    def splits(self, seed: int, fold: int = 0) -> DatasetDict:
        """`train`, `validation` and `test`; see [`load_benchmark`]. Rows left out are listed in `dropped`."""
        if (seed, fold) not in self._splits:
            dropped = Dropped()  # the same rows at every reading
            self._splits[seed, fold] = load_benchmark(
                self.benchmark.name, self.folder, seed=seed, fold=fold, dropped=dropped, **self.options
            )
            self.dropped = dropped
        return self._splits[seed, fold]

    @cached_property
    def table(self) -> PictureTable:
        """All pictures, which are the same for every seed and fold."""
        return PictureTable(self.splits(0).values())

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the pictures, the labels, and what the folder's own splits are."""
        digest = hashlib.blake2b(pictures_fingerprint(self.table.dataset).encode(), digest_size=16)
        for name, part in self.splits(0).items():
            digest.update(f"{name} {part['id'][:]}".encode())
            for head, targets in self.task.read(part).items():
                digest.update(head.encode())
                digest.update(targets.tobytes())
        return digest.hexdigest()

    def units(self, part: Dataset) -> np.ndarray:
        """What a bootstrap over a split's pictures draws: their groups (OASIS's themes), else their ids."""
        return np.asarray(part[self.benchmark.group_by or "id"][:], dtype=np.str_)
