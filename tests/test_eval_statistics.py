"""Weighted statistics against scikit-learn and SciPy, and the paired bootstrap's behaviour."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from pacl.evaluation import statistics

GENERATOR = np.random.default_rng(0)
TRUE = GENERATOR.integers(0, 4, 50)
GUESSED = np.where(GENERATOR.random(50) < 0.5, TRUE, GENERATOR.integers(0, 4, 50))
COUNTS = GENERATOR.multinomial(50, np.full(50, 1 / 50), size=20)
REAL = GENERATOR.normal(4, 1, 50)
RATINGS = GENERATOR.normal(4, 1, (50, 3))
RATED = RATINGS + GENERATOR.normal(0, 0.8, (50, 3))
SCORES = GENERATOR.normal(size=(50, 4))
TAGS = (SCORES + GENERATOR.normal(size=(50, 4)) > 0).astype(int)
FITTED = REAL + GENERATOR.normal(0, 0.8, 50)


@pytest.mark.parametrize(
    ("statistic", "targets", "predictions", "reference"),
    [
        (statistics.accuracy, TRUE, GUESSED, accuracy_score),
        (statistics.weighted_f1, TRUE, GUESSED, lambda t, p: f1_score(t, p, average="weighted", zero_division=0)),
        (statistics.pearson_r, REAL, FITTED, lambda t, p: pearsonr(t, p).statistic),
        (statistics.mean_r2, RATINGS, RATED, r2_score),
        (statistics.mean_mse, RATINGS, RATED, mean_squared_error),
        (statistics.mean_average_precision, TAGS, SCORES, average_precision_score),
        (statistics.mean_roc_auc, TAGS, SCORES, roc_auc_score),
    ],
)
def test_weights_are_the_same_as_repeating_examples(statistic, targets, predictions, reference):
    repeated = ((np.repeat(targets, row, axis=0), np.repeat(predictions, row, axis=0)) for row in COUNTS)
    expected = [reference(*pair) for pair in repeated]
    np.testing.assert_allclose(statistic(COUNTS.astype(float), targets, predictions), expected, atol=1e-12)


def paired(targets, before, after, units=None):
    units = np.arange(len(targets)) if units is None else units
    return [statistics.PairedRun(units, targets, b, a) for b, a in zip(before, after, strict=True)]


def test_clear_improvement_has_an_interval_above_zero_and_noise_has_not():
    after = [np.where(GENERATOR.random(50) < 0.9, TRUE, GUESSED) for _ in range(3)]
    clear = statistics.paired_difference("accuracy", paired(TRUE, [GUESSED] * 3, after))
    assert clear["low"] > 0
    assert clear["improved"] > 0.99
    nothing = statistics.paired_difference("accuracy", paired(TRUE, after, after))
    assert nothing["low"] == nothing["high"] == nothing["mean"] == 0


def test_less_error_counts_as_improvement():
    better = statistics.paired_difference("mean_mse", paired(REAL, [FITTED], [(FITTED + REAL) / 2]))
    assert better["high"] < 0
    assert better["improved"] == 1


def test_interval_is_that_of_a_plain_loop():
    worse = np.roll(GUESSED, 1)
    found = statistics.paired_difference("accuracy", paired(TRUE, [GUESSED], [worse]), replicates=4000)
    loop = np.random.default_rng(1)
    gains = (worse == TRUE).astype(float) - (GUESSED == TRUE)
    drawn = [gains[loop.integers(0, 50, 50)].mean() for _ in range(4000)]
    np.testing.assert_allclose([found["low"], found["high"]], np.quantile(drawn, [0.025, 0.975]), atol=0.03)


def test_pictures_of_one_theme_widen_the_interval():
    gains = np.repeat(GENERATOR.random(10) < 0.5, 5).astype(int)  # a whole theme gains or loses together
    ones = np.ones(50, dtype=int)
    alone = statistics.paired_difference("accuracy", paired(ones, [1 - gains], [gains]))
    themes = np.repeat(np.arange(10), 5)
    together = statistics.paired_difference("accuracy", paired(ones, [1 - gains], [gains], themes))
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])


def test_seeds_may_test_different_pictures():
    runs = [
        statistics.PairedRun(np.arange(30), TRUE[:30], GUESSED[:30], TRUE[:30]),
        statistics.PairedRun(np.arange(20, 50), TRUE[20:], GUESSED[20:], TRUE[20:]),
    ]
    assert statistics.paired_difference("accuracy", runs)["low"] > 0


def test_replicate_that_draws_nothing_of_a_small_run_counts_the_others():
    single = statistics.PairedRun(np.array([0]), np.array([1]), np.array([0]), np.array([1]))
    many = statistics.PairedRun(np.arange(50), TRUE, GUESSED, TRUE)
    found = statistics.paired_difference("accuracy", [single, many])
    assert np.isfinite([found["low"], found["high"]]).all()


def test_unpaired_predictions_are_refused():
    with pytest.raises(ValueError, match="same examples"):
        statistics.PairedRun(np.arange(50), TRUE, GUESSED, GUESSED[:40])


def test_spread_of_one_seed_is_zero():
    assert statistics.spread([0.5]) == {"values": [0.5], "mean": 0.5, "std": 0.0}
