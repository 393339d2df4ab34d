"""One benchmark in one folder as the protocols see it: its task, its splits by seed, and its pictures, each once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from .benchmarks import Benchmark, Dropped, get_benchmark, make_splits, read_benchmark
from .features import PictureTable, pictures_fingerprint
from .tasks import Task, task_of


class BenchmarkData:
    """A benchmark's folder, read once for all backbones, seeds and folds.

    Args:
        name (`str`): of the benchmark.
        folders (`Sequence[Path]`): where its users may have it; the first that is the dataset counts.
        check_pixels (`bool`, *optional*, defaults to `False`): as in [`load_benchmark`].
        options (*optional*): of the benchmark's reader, such as Emotic's `crop_dir`.
    """

    def __init__(self, name: str, folders: Sequence[Path], *, check_pixels: bool = False, **options: Any) -> None:
        self.benchmark: Benchmark = get_benchmark(name)
        self.folders = folders
        self.options = {"check_pixels": check_pixels, **options}
        self.dropped = Dropped()
        self.task: Task = task_of(self.benchmark)
        self._splits: dict[tuple[int, int], DatasetDict] = {}

    @cached_property
    def parts(self) -> DatasetDict:
        """What the folder holds; see [`read_benchmark`]. Rows left out are listed in `dropped`."""
        writes = "crop_dir" in self.options  # which one process has to do for all
        with PartialState().main_process_first() if writes else nullcontext():
            return self._read()

    def _read(self) -> DatasetDict:
        refusals: list[FileNotFoundError] = []
        for folder in self.folders:
            self.dropped = Dropped()
            try:
                return read_benchmark(self.benchmark.name, folder, dropped=self.dropped, **self.options)
            except FileNotFoundError as error:
                refusals.append(error)
        raise refusals[-1]

    def splits(self, seed: int, fold: int = 0) -> DatasetDict:
        """`train`, `validation` and `test`; see [`make_splits`]."""
        if (seed, fold) not in self._splits:
            self._splits[seed, fold] = make_splits(self.parts, self.benchmark, seed=seed, fold=fold)
        return self._splits[seed, fold]

    @cached_property
    def table(self) -> PictureTable:
        """All pictures, which are the same for every seed and fold."""
        return PictureTable(self.parts.values())

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the pictures, the labels, and what the folder's own splits are."""
        digest = hashlib.blake2b(pictures_fingerprint(self.table.dataset).encode(), digest_size=16)
        for name, part in self.parts.items():
            digest.update(f"{name} {part['id'][:]}".encode())
            for head, targets in self.task.read(part).items():
                digest.update(head.encode())
                digest.update(targets.tobytes())
        return digest.hexdigest()

    def units(self, part: Dataset) -> np.ndarray:
        """What a bootstrap over a split's rows draws: their groups (OASIS's themes), else their pictures.

        Rows that share a picture (Emotic's persons) have the same features, so that they are drawn together.
        """
        group = self.benchmark.group_by
        units = self.table.rows(part) if group is None else part[group][:]
        return np.asarray(units).astype(np.str_)
