"""What the main job ends with: the same linear probes on a backbone before and after PACL, paired by example."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import ClassLabel, Dataset
from tqdm.auto import tqdm

from .backbones import Backbone
from .features import extract_features
from .probes import ProbeResult, classification_probe, regression_probe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeSpec:
    """One question to a backbone's features: a column of a dataset of pictures.

    Args:
        name (`str`): how the results call it, such as `"valence"`.
        dataset (`datasets.Dataset`): pictures and labels.
        target (`str`): the column to predict: floats by ridge regression; a `ClassLabel`, strings, integers or
            booleans by logistic regression. Rows where it is missing are left out, and counted in the results.
        image_column (`str`, *optional*, defaults to `"image"`): the column of pictures.
        groups (`str`, *optional*): a column whose values must not be torn apart by a fold, such as OASIS's `theme`.
        never_test (`Collection[str]`, *optional*): values of `groups` that only train, because a judge has used them.
        folds (`int`, *optional*, defaults to 5): of the cross-validation.
    """

    name: str
    dataset: Dataset
    target: str
    image_column: str = "image"
    groups: str | None = None
    never_test: Collection[str] = ()
    folds: int = 5


def measure(
    before: Backbone | str | Path,
    after: Backbone | str | Path,
    probes: Sequence[ProbeSpec],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    cache_dir: str | Path | None = None,
    num_workers: int | None = None,
) -> dict[str, dict]:
    """Probes two backbones on the same pictures with the same folds.

    Each backbone sees each picture once (see [`extract_features`]); several probes of one dataset share the
    features. Under `accelerate launch` every process has to call it, and gets the same answer.

    Args:
        before, after ([`Backbone`], `str` or `Path`): the two backbones.
        probes (`Sequence[ProbeSpec]`): the questions.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`): each deals the folds anew, alike for both.
        cache_dir, num_workers: as in [`extract_features`].

    Returns:
        `dict[str, dict]`, ready for JSON: for each probe `examples`, `tested`, `missing`, `seeds`, and for each
        metric under `before`, `after` (`values`, `mean`, `std`) and `difference` (also `low`, `high`: the bounds of
        a paired bootstrap interval over test examples, or over groups where there are any).
    """
    names = [probe.name for probe in probes]
    if len(set(names)) != len(names):
        raise ValueError(f"probes must have different names: {', '.join(names)}")
    if not seeds:
        raise ValueError("a measurement needs at least one seed")
    pair = [side if isinstance(side, Backbone) else Backbone.load(side) for side in (before, after)]
    answers: dict[str, dict] = {}
    for probe in tqdm(probes, desc="probes", disable=not PartialState().is_main_process):
        features = [
            extract_features(
                backbone, probe.dataset, image_column=probe.image_column, cache_dir=cache_dir, num_workers=num_workers
            )
            for backbone in pair
        ]
        # The probes are deterministic, but a solver's threads may differ between processes: one answers for all.
        answer = _answer(probe, features, seeds) if PartialState().is_main_process else None
        (answers[probe.name],) = broadcast_object_list([answer])
    return answers


def _answer(probe: ProbeSpec, features: Sequence[np.ndarray], seeds: Sequence[int]) -> dict:
    targets, known = read_targets(probe.dataset, probe.target)
    if not known.all():
        logger.warning("probe %s leaves out %d rows without a %s", probe.name, (~known).sum(), probe.target)
    groups = None if probe.groups is None else np.asarray(probe.dataset[probe.groups])[known]
    run = regression_probe if targets.dtype.kind == "f" else classification_probe
    before, after = (_probe(run, probe, side[known], targets[known], groups, seeds) for side in features)
    return {
        "examples": int(known.sum()),
        "tested": len(after.targets),
        "missing": int((~known).sum()),
        "seeds": list(seeds),
        "before": before.summary(),
        "after": after.summary(),
        "difference": after.difference(before),
    }


def _probe(run, probe: ProbeSpec, features, targets, groups, seeds) -> ProbeResult:
    try:
        return run(features, targets, seeds=seeds, folds=probe.folds, groups=groups, never_test=probe.never_test)
    except ValueError as error:
        raise ValueError(f"probe {probe.name}: {error}") from error


def read_targets(dataset: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A label column as an array, and which of its rows have a label.

    Returns:
        targets (`np.ndarray` of shape `(rows,)`, float64 or int64): strings become the number of their sorted value.
        known (`np.ndarray` of shape `(rows,)`, bool): False where the label is missing (None, NaN, or -1 of a
        `ClassLabel`).

    Raises:
        ValueError: if the column is missing or is no label.
    """
    if column not in dataset.column_names:
        raise ValueError(f"there is no column {column!r} to probe; the dataset has {', '.join(dataset.column_names)}")
    feature = dataset.features[column]
    frame = dataset.select_columns(column).to_pandas()[column]
    dtype = getattr(feature, "dtype", "")
    if dtype.startswith("float"):
        targets = frame.to_numpy(dtype=np.float64)
        return targets, np.isfinite(targets)
    if isinstance(feature, ClassLabel):
        targets = frame.fillna(-1).to_numpy(dtype=np.int64)
        return targets, targets >= 0
    if "string" in dtype or dtype == "bool" or "int" in dtype:
        codes, _ = frame.factorize(sort=True)
        return codes.astype(np.int64), codes >= 0
    raise ValueError(f"column {column!r} is no label but {feature}: cast it to a ClassLabel, a string or a float")
