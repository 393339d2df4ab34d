"""Stage 1: thresholds, calibration, ablations, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest

from pacl.training import scan
from pacl.training.partition import (
    PARTITION_NAMES,
    Partition,
    calibrate_threshold,
    calibrate_to_partition_shares,
    find_thresholds,
    partition_dataset,
    partition_shares,
    partition_table,
)
from stage_helpers import BrightnessJudge, LengthJudge, make_posts


def scored(factual, emotional) -> datasets.Dataset:
    features = datasets.Features({name: datasets.Value("float32") for name in ("factual_score", "emotional_score")})
    return datasets.Dataset.from_dict({"factual_score": factual, "emotional_score": emotional}, features=features)


def random_scores(number=2000, correlation=0.0, seed=0):
    rng = np.random.default_rng(seed)
    factual = rng.normal(size=number)
    emotional = correlation * factual + np.sqrt(1 - correlation**2) * rng.normal(size=number)
    return factual.astype(np.float32), emotional.astype(np.float32)


FOUR = ([0.9, 0.1, 0.9, 0.1], [0.9, 0.9, 0.1, 0.1])  # one post of each partition, in order


def test_pairs_are_partitioned_by_what_matches():
    result = partition_dataset(scored(*FOUR))
    assert result["partition"][:] == [0, 1, 2, 3]
    assert result.features["partition"] == datasets.ClassLabel(
        names=["strong", "partial_emotional", "partial_factual", "weak"]
    )
    assert [Partition[name.upper()] for name in PARTITION_NAMES] == [0, 1, 2, 3]


def test_score_equal_to_the_threshold_does_not_match():
    result = partition_dataset(scored([0.7, np.nextafter(np.float32(0.7), 1)], [1, 1]))
    assert result["partition"][:] == [Partition.PARTIAL_EMOTIONAL, Partition.STRONG]


@pytest.mark.parametrize(
    ("partition_by", "expected"),
    [("both", [0, 1, 2, 3]), ("factual", [0, 1, 0, 1]), ("emotional", [0, 0, 2, 2]), ("none", [0] * 4)],
)
def test_ablations_take_the_other_side_for_matched(partition_by, expected):
    assert partition_dataset(scored(*FOUR), partition_by=partition_by)["partition"][:] == expected


def test_side_that_an_ablation_does_not_look_at_needs_no_score():
    posts = scored(*FOUR).remove_columns("emotional_score")
    assert partition_dataset(posts, partition_by="factual")["partition"][:] == [0, 1, 0, 1]
    assert partition_dataset(posts, partition_by="none")["partition"][:] == [0] * 4
    with pytest.raises(ValueError, match="no emotional_score, and no emotional_judge is given"):
        partition_dataset(posts)


def test_each_side_may_have_its_own_threshold():
    assert partition_dataset(scored(*FOUR), threshold=[0.95, 0.05])["partition"][:] == [1, 1, 1, 1]


def test_scores_are_partitioned_anew_without_judges(tmp_path):
    posts = make_posts(tmp_path, 6)
    result = partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    again = partition_dataset(result, threshold=(-1, -1))
    assert partition_shares(again)["strong"] == 1
    assert again.column_names == result.column_names
    assert again["factual_score"][:] == result["factual_score"][:]
    assert again._fingerprint == partition_dataset(result, threshold=(-1, -1))._fingerprint != result._fingerprint


def test_one_judge_may_join_a_score_that_is_there(tmp_path):
    posts = make_posts(tmp_path, 4).add_column("factual_score", np.array([1, 0, 1, 0], np.float32))
    result = partition_dataset(posts, None, LengthJudge(), cache_dir=tmp_path / "c")
    assert result["partition"][:] == [0, 1, 0, 1]


def test_partitioned_dataset_survives_saving(tmp_path):
    posts = make_posts(tmp_path, 4)
    result = partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    result.save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved")
    assert loaded.features == result.features
    assert loaded["partition"][:] == result["partition"][:]
    assert loaded["language"][:] == ["en"] * 4
    assert loaded[0]["image"].size == (40, 40)


@pytest.mark.parametrize("share", [0, 0.001, 0.25, 0.5, 1])
def test_calibrated_threshold_matches_the_wanted_share(share):
    scores, _ = random_scores(1000)
    assert (scores > calibrate_threshold(scores, share)).mean() == share


def test_matched_shares_are_calibrated_for_each_side():
    posts = scored(*random_scores())
    result = partition_dataset(posts, matched_shares=[0.40, 0.55])
    shares = partition_shares(result)
    assert shares["strong"] + shares["partial_factual"] == pytest.approx(0.40)
    assert shares["strong"] + shares["partial_emotional"] == pytest.approx(0.55)
    thresholds = find_thresholds(posts, matched_shares=[0.40, 0.55])
    by_threshold = partition_dataset(posts, threshold=(thresholds["factual"], thresholds["emotional"]))
    assert by_threshold["partition"][:] == result["partition"][:]


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_papers_shares_are_reached_whatever_the_correlation(correlation):
    result = partition_dataset(scored(*random_scores(20_000, correlation)), matched_shares="paper")
    shares = partition_shares(result)
    assert shares["strong"] == pytest.approx(0.22, abs=0.005)
    assert shares["weak"] == pytest.approx(0.27, abs=0.005)
    assert shares["partial_emotional"] > shares["partial_factual"]


def test_independent_scores_solve_to_two_fifths_and_eleven_twentieths():
    """method.md, reading 1."""
    factual, emotional = random_scores(100_000)
    thresholds = calibrate_to_partition_shares(factual, emotional)
    assert (factual > thresholds[0]).mean() == pytest.approx(0.40, abs=0.02)
    assert (emotional > thresholds[1]).mean() == pytest.approx(0.55, abs=0.02)


@pytest.mark.parametrize("shares", [(1, 0, 0), (0, 0, 1), (0, 1, 0), (0.5, 0, 0.5)])
def test_extreme_shares_are_reached_where_scores_allow(shares):
    scores, _ = random_scores(1000)
    other = -scores if shares == (0, 1, 0) else scores
    factual, emotional = calibrate_to_partition_shares(scores, other, shares)
    matched = np.stack([scores > factual, other > emotional])
    found = (matched.all(0).mean(), (matched.sum(0) == 1).mean(), (~matched).all(0).mean())
    assert found == pytest.approx(shares, abs=0.01)


def test_shares_and_table_stand_beside_the_papers():
    result = partition_dataset(scored([0.9, 0.1, 0.9, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1, 0.1]))
    assert partition_shares(result) == pytest.approx(
        {"strong": 0.2, "partial_emotional": 0.2, "partial_factual": 0.2, "weak": 0.4}
    )
    lines = [line.split() for line in partition_table(result).splitlines()]
    assert ["strong", "1", "20.0%", "22%"] in lines
    assert ["partial", "2", "40.0%", "51%"] in lines
    assert ["weak", "2", "40.0%", "27%"] in lines


class BrokenJudge(LengthJudge):
    key = "broken-judge"

    def __init__(self, scores):
        self.scores = scores

    def __call__(self, batch):
        return self.scores(batch)


def test_judge_that_gives_nan_is_refused_with_the_row(tmp_path):
    judge = BrokenJudge(lambda batch: np.where(np.array(batch.rows) == 200, np.nan, 1))
    with pytest.raises(ValueError, match="the emotional judge gave nan for row 200; scores must be finite"):
        partition_dataset(make_posts(tmp_path, 4), BrightnessJudge(), judge, cache_dir=tmp_path / "c")


def test_row_of_a_bad_score_is_counted_over_shards_where_there_is_no_row_column(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "shard_rows", lambda posts, batch_size: 4)
    judge = BrokenJudge(lambda batch: np.where(np.array(batch.rows) == 9, np.nan, 1))
    posts = make_posts(tmp_path, 10).remove_columns("row")
    with pytest.raises(ValueError, match="for row 9;"):
        partition_dataset(posts, judge, LengthJudge(), cache_dir=tmp_path / "c")


def test_judge_that_gives_another_number_of_scores_is_refused(tmp_path):
    judge = BrokenJudge(lambda batch: np.ones((len(batch), 2)))
    with pytest.raises(ValueError, match=r"the factual judge gave scores of shape \(4, 2\) for 4 posts"):
        partition_dataset(make_posts(tmp_path, 4), judge, LengthJudge(), cache_dir=tmp_path / "c")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition_by": "mood"}, "partition_by must be one of both, factual, emotional, none, got 'mood'"),
        ({"threshold": (0.1, 0.2, 0.3)}, "threshold must be one number or a pair"),
        ({"threshold": float("nan")}, "threshold must be one number or a pair"),
        ({"matched_shares": (0.5, 1.5)}, "from 0 to 1"),
        ({"matched_shares": "papers"}, "\"paper\", got 'papers'"),
        ({"matched_shares": "paper", "partition_by": "factual"}, 'needs partition_by="both"'),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        partition_dataset(scored(*FOUR), **arguments)


def test_nan_in_a_score_column_is_refused():
    with pytest.raises(ValueError, match="factual_score is nan at position 1"):
        partition_dataset(scored([0.1, float("nan")], [0.1, 0.1]))
