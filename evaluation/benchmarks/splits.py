"""Train, validation and test: 8:1:1 for benchmarks without an official split, and a validation part where the official
split has none. Seeded, balanced by class or rating, and never through a group of related pictures."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, concatenate_datasets
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from .benchmark import Benchmark

FOLDS = 10

#: Ratings are balanced by quintile, or by fewer parts where that leaves less than a picture per part and fold.
RATING_BINS = 5


def make_splits(parts: DatasetDict, benchmark: Benchmark, *, seed: int = 0, fold: int = 0) -> DatasetDict:
    """
    `train`, `validation` and `test` of what a reader found.

    Official splits stand; a missing validation part is taken from the training one. Without official splits the
    pictures are split 8:1:1; where a reader gives `train` beside `all`, those pictures train in every fold.

    Args:
        parts (`DatasetDict`): from [`read_benchmark`].
        benchmark, seed, fold: as in [`split_8_1_1`].

    Raises:
        ValueError: for a fold of data with an official test split, or too few pictures to split.
    """
    if "all" in parts:
        splits = split_8_1_1(parts["all"], benchmark, seed=seed, fold=fold)
        if "train" in parts:
            splits["train"] = concatenate_datasets([parts["train"], splits["train"]])
        return splits
    if fold:
        raise ValueError(f"{benchmark.title} has an official test split, so there is no fold {fold} of it.")
    splits = DatasetDict(parts)
    if "validation" not in splits:
        splits.update(hold_out_validation(splits["train"], benchmark, seed=seed))
    return DatasetDict({split: splits[split] for split in ("train", "validation", "test")})


def split_8_1_1(dataset: Dataset, benchmark: Benchmark, *, seed: int = 0, fold: int = 0) -> DatasetDict:
    """
    Splits 8:1:1 by dealing the pictures into ten balanced folds.

    Fold `fold` is the test, the next one the validation; so a cross-validation over all `fold`s tests each picture
    exactly once. Classes are balanced over the folds; ratings are balanced by the quintiles of the first of them
    (valence). Where the benchmark has groups (OASIS's themes), each lies in one fold as a whole, and sizes are as
    near to equal as that allows.

    Args:
        dataset (`Dataset`): all pictures of a benchmark.
        benchmark (`Benchmark`): names the column to balance and the groups.
        seed (`int`, *optional*, defaults to 0): deals the folds.
        fold (`int`, *optional*, defaults to 0): the test fold, 0 to 9.

    Raises:
        ValueError: for another `fold`, or when there are fewer than ten pictures in every class, or ten groups.
    """
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold must lie between 0 and {FOLDS - 1}, not {fold}.")
    folds = deal_folds(dataset, benchmark, seed)
    parts = {"train": [], "validation": [(fold + 1) % FOLDS], "test": [fold]}
    parts["train"] = [f for f in range(FOLDS) if f not in parts["validation"] + parts["test"]]
    return DatasetDict({name: dataset.select(np.flatnonzero(np.isin(folds, part))) for name, part in parts.items()})


def hold_out_validation(dataset: Dataset, benchmark: Benchmark, *, seed: int = 0) -> DatasetDict:
    """Takes a tenth of an official training split as validation, balanced in the same way; returns both."""
    folds = deal_folds(dataset, benchmark, seed)
    return DatasetDict(
        train=dataset.select(np.flatnonzero(folds != 0)), validation=dataset.select(np.flatnonzero(folds == 0))
    )


def deal_folds(dataset: Dataset, benchmark: Benchmark, seed: int) -> np.ndarray:
    """The fold of each picture, int64 of shape `(rows,)`."""
    strata = _strata(dataset, benchmark.stratify_by)
    if not len(strata) or np.bincount(strata).max() < FOLDS:
        raise ValueError(
            f"{benchmark.title} has {len(dataset)} usable pictures here and no value of {benchmark.stratify_by} with "
            f"{FOLDS} of them: too few to split 8:1:1."
        )
    groups = None
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    if benchmark.group_by is not None:
        groups = np.asarray(dataset[benchmark.group_by])
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        if len(np.unique(groups)) < FOLDS:
            raise ValueError(
                f"{benchmark.title} has fewer than {FOLDS} values of {benchmark.group_by} here to split by."
            )
    folds = np.empty(len(dataset), dtype=np.int64)
    for fold, (_, members) in enumerate(splitter.split(strata, strata, groups)):
        folds[members] = fold
    return folds


def _strata(dataset: Dataset, column: str) -> np.ndarray:
    values = np.asarray(dataset[column])
    if isinstance(dataset.features[column], ClassLabel):
        return values.astype(np.int64)
    bins = max(1, min(RATING_BINS, len(values) // FOLDS))
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
