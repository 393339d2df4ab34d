"""Linear probes (scikit-learn) on cached features, cross-validated with the same folds for every backbone.

The quick measurement at the end of the main job; the paper's own protocol is in `linear.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from . import statistics

CLASSIFICATION = ("accuracy", "weighted_f1")
REGRESSION = ("pearson_r", "mean_r2")


@dataclass(frozen=True)
class ProbeResult:
    """Held-out predictions of a probe: each example predicted once per seed, by a fold that never saw it.

    Args:
        metrics (`tuple[str, ...]`): keys of [`statistics.STATISTICS`].
        targets (`np.ndarray` of shape `(examples,)`): what is true of the tested examples.
        predictions (`np.ndarray` of shape `(seeds, examples)`): what was predicted of them.
        units (`np.ndarray` of shape `(examples,)`): their groups, or their rows where there are no groups.
    """

    metrics: tuple[str, ...]
    targets: np.ndarray
    predictions: np.ndarray
    units: np.ndarray

    def summary(self) -> dict[str, dict[str, object]]:
        """Each metric's value per seed, mean and standard deviation."""
        return {
            name: statistics.spread(
                [statistics.score(statistics.STATISTICS[name], self.targets, row) for row in self.predictions]
            )
            for name in self.metrics
        }

    def difference(self, before: ProbeResult) -> dict[str, dict[str, object]]:
        """Each metric's paired difference to `before`: see [`statistics.paired_difference`]."""
        pairs = zip(before.predictions, self.predictions, strict=True)
        runs = [statistics.PairedRun(self.units, self.targets, old, new) for old, new in pairs]
        return {name: statistics.paired_difference(name, runs) for name in self.metrics}


def classification_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    seeds: Sequence[int],
    folds: int = 5,
    groups: np.ndarray | None = None,
    never_test: Collection[str] = (),
) -> ProbeResult:
    """Cross-validated logistic regression on standardised features.

    Its strength C is chosen by an inner cross-validation of each fold's training part, never on what is tested.

    Args:
        features (`np.ndarray` of shape `(examples, dim)`): of a frozen backbone.
        labels (`np.ndarray` of shape `(examples,)`): integer classes.
        seeds (`Sequence[int]`): each deals the folds anew.
        folds (`int`, *optional*, defaults to 5): of the outer, stratified cross-validation.
        groups (`np.ndarray` of shape `(examples,)`, *optional*): examples of one group stay in one fold.
        never_test (`Collection[str]`, *optional*): groups that only train.

    Raises:
        ValueError: if a class has fewer examples than there are folds.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < folds:
        found = ", ".join(f"{label}: {count}" for label, count in zip(classes, counts, strict=True))
        raise ValueError(f"a {folds}-fold probe needs two classes of at least {folds} examples; found {found}")

    def estimator(seed: int) -> BaseEstimator:
        inner = StratifiedKFold(3, shuffle=True, random_state=seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3))
        grid = {"logisticregression__C": np.logspace(-4, 0, 5)}
        return GridSearchCV(model, grid, scoring="neg_log_loss", cv=inner)

    stratified = StratifiedKFold if groups is None else StratifiedGroupKFold
    return _cross_validate(
        estimator,
        lambda seed: stratified(folds, shuffle=True, random_state=seed),
        features,
        labels,
        seeds,
        groups,
        never_test,
        CLASSIFICATION,
    )


def regression_probe(
    features: np.ndarray,
    targets: np.ndarray,
    *,
    seeds: Sequence[int],
    folds: int = 5,
    groups: np.ndarray | None = None,
    never_test: Collection[str] = (),
) -> ProbeResult:
    """Cross-validated ridge regression on standardised features; its penalty by leave-one-out on the training part.

    Pearson's r and R² are over all held-out predictions of a seed together. Arguments as in
    [`classification_probe`], with `targets` (`np.ndarray` of shape `(examples,)`) of any float dtype.
    """

    def estimator(seed: int) -> BaseEstimator:
        return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 6, 13)))

    plain = KFold if groups is None else GroupKFold
    return _cross_validate(
        estimator,
        lambda seed: plain(folds, shuffle=True, random_state=seed),
        features,
        targets,
        seeds,
        groups,
        never_test,
        REGRESSION,
    )


def _cross_validate(
    estimator: Callable[[int], BaseEstimator],
    splitter: Callable[[int], StratifiedKFold],
    features: np.ndarray,
    targets: np.ndarray,
    seeds: Sequence[int],
    groups: np.ndarray | None,
    never_test: Collection[str],
    metrics: tuple[str, ...],
) -> ProbeResult:
    tested = _tested(len(targets), groups, never_test)
    predictions = np.empty((len(seeds), len(targets)), dtype=targets.dtype)
    for row, seed in zip(predictions, seeds, strict=True):
        for train, test in splits(splitter(seed), targets, groups, tested):
            with warnings.catch_warnings():
                # The weakest penalties of the grid may stop early; they are candidates, and rarely chosen.
                warnings.simplefilter("ignore", ConvergenceWarning)
                row[test] = estimator(seed).fit(features[train], targets[train]).predict(features[test])
    units = tested if groups is None else groups[tested]
    return ProbeResult(metrics, targets[tested], predictions[:, tested], units)


def _tested(examples: int, groups: np.ndarray | None, never_test: Collection[str]) -> np.ndarray:
    """The examples that may be tested, shape `(tested,)`."""
    if not never_test:
        return np.arange(examples)
    if groups is None:
        raise ValueError("never_test names groups, but the probe has no groups")
    unknown = sorted(set(never_test) - set(groups.tolist()))
    if unknown:
        raise ValueError(f"never_test names groups that the data doesn't have: {', '.join(map(str, unknown))}")
    return np.flatnonzero(~np.isin(groups, list(never_test)))


def splits(
    splitter: StratifiedKFold, targets: np.ndarray, groups: np.ndarray | None, tested: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers to train and to test on; rows outside `tested` train in every fold."""
    always = np.setdiff1d(np.arange(len(targets)), tested)
    dealt = splitter.split(tested, targets[tested], None if groups is None else groups[tested])
    for train, test in dealt:
        yield np.concatenate([always, tested[train]]), tested[test]
