"""Stage 1: scores how far each post's picture and text agree in fact and in emotion, and sorts posts by both.

Posts come in; the same posts leave with `factual_score`, `emotional_score` and `partition`, for `cluster.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import datasets
import numpy as np

from .columns import column_to_numpy
from .evaluators import Judge
from .features import TowerEncoders, content_key
from .rejections import Rejections
from .scan import PostBatch, ScanColumn, feature_columns, scan_posts

PartitionBy: TypeAlias = Literal["both", "factual", "emotional", "none"]
MatchedShares: TypeAlias = "Sequence[float] | Literal['paper']"

SIDES = ("factual", "emotional")
# At a threshold of 0.7 on TumEmo: strong, both partial partitions together, weak.
PAPER_SHARES = (0.22, 0.51, 0.27)


class Partition(IntEnum):
    """In which respects a post's picture and text match (paper, Stage 1)."""

    STRONG = 0
    PARTIAL_EMOTIONAL = 1
    PARTIAL_FACTUAL = 2
    WEAK = 3


PARTITION_NAMES = [partition.name.lower() for partition in Partition]


def partition_dataset(
    dataset: datasets.Dataset,
    factual_judge: Judge | None = None,
    emotional_judge: Judge | None = None,
    *,
    threshold: float | Sequence[float] = 0.7,
    matched_shares: MatchedShares | None = None,
    partition_by: PartitionBy = "both",
    towers: TowerEncoders | None = None,
    batch_size: int = 32,
    rejections: Rejections | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """
    Score posts and partition them: a pair matches in fact, or in emotion, when that score is greater than θ.

    Both judges, and Stage 2's towers if they are given, share one pass: each picture is decoded once, and models with
    equal weights run once. Scores are cached, so that other thresholds cost nothing; on a dataset that has both score
    columns already, leave the judges out. Under a launcher all processes call it and share out the posts.

    Args:
        dataset (`datasets.Dataset`):
            Posts with `image` and `text`.
        factual_judge, emotional_judge ([`Judge`], *optional*):
            What scores the posts; see `evaluators.py`.
        threshold (`float` or pair of `float`, *optional*, defaults to 0.7):
            θ, in the unit of the scores: one for both, or (factual, emotional).
        matched_shares (pair of `float` or `"paper"`, *optional*):
            Instead of `threshold`: the shares of posts that shall match in (fact, emotion), or `"paper"` for
            thresholds that come nearest to the paper's partition (method.md, reading 1).
        partition_by (`str`, *optional*, defaults to `"both"`):
            Ablations: `"factual"` takes every pair for matched in emotion, `"emotional"` in fact, `"none"` in both.
            The score of a side that is not looked at need not be there.
        towers ([`TowerEncoders`], *optional*):
            With them, `vision_features` and `text_features` are written in the same pass, for Stage 2.
        batch_size (`int`, *optional*, defaults to 32):
            Posts that are decoded and encoded together.
        rejections ([`Rejections`], *optional*):
            Where posts go whose picture does not decode (stage `"partition"`). By default their counts are logged.
        cache_dir (`str` or `Path`, *optional*):
            Where scores are kept. By default the folder `pacl` in datasets' cache.

    Returns:
        `datasets.Dataset`: The usable posts with `factual_score`, `emotional_score` (float32) and `partition`
        (`ClassLabel`).

    Raises:
        `ValueError`: an argument is out of range, a score is needed and neither there nor judged, a judge gives NaN,
            or no picture can be used.
    """
    used = _sides_of(partition_by)
    judges = {side: judge for side, judge in zip(SIDES, (factual_judge, emotional_judge), strict=True) if judge}
    for side in used:
        if side not in judges and f"{side}_score" not in dataset.column_names:
            raise ValueError(f"the posts have no {side}_score, and no {side}_judge is given to score them")

    columns = [_score_column(side, judge) for side, judge in judges.items()]
    columns += feature_columns(towers) if towers else []
    if columns:
        dataset = scan_posts(
            dataset, columns, stage="partition", batch_size=batch_size, rejections=rejections, cache_dir=cache_dir
        )
    thresholds = find_thresholds(
        dataset, threshold=threshold, matched_shares=matched_shares, partition_by=partition_by
    )
    matched = {side: _scores(dataset, side) > thresholds[side] for side in used}
    return _with_partition(dataset, matched, (thresholds, partition_by))


def find_thresholds(
    dataset: datasets.Dataset,
    *,
    threshold: float | Sequence[float] = 0.7,
    matched_shares: MatchedShares | None = None,
    partition_by: PartitionBy = "both",
) -> dict[str, float]:
    """
    The θ of each side that `partition_by` looks at, as `partition_dataset` applies it to a dataset with scores.

    Returns:
        `dict[str, float]`: By `"factual"` and `"emotional"`.
    """
    used = _sides_of(partition_by)
    if matched_shares is None:
        pair = (threshold, threshold) if isinstance(threshold, (int, float)) else tuple(threshold)
        if len(pair) != 2 or np.isnan(pair).any():
            raise ValueError(f"threshold must be one number or a pair (factual, emotional), got {threshold}")
        return {side: float(value) for side, value in zip(SIDES, pair, strict=True) if side in used}
    scores = {side: _scores(dataset, side) for side in used}
    if matched_shares != "paper":
        if isinstance(matched_shares, str):
            raise ValueError(f'matched_shares must be a pair (factual, emotional) or "paper", got {matched_shares!r}')
        _check_shares(matched_shares, 2)
        shares = dict(zip(SIDES, matched_shares, strict=True))
        return {side: calibrate_threshold(values, shares[side]) for side, values in scores.items()}
    if len(used) != 2:
        raise ValueError(f'matched_shares="paper" needs partition_by="both", got {partition_by!r}')
    return dict(zip(SIDES, calibrate_to_partition_shares(scores["factual"], scores["emotional"]), strict=True))


def calibrate_threshold(scores: np.ndarray, matched_share: float) -> float:
    """
    The threshold that the wanted share of scores exceeds.

    It is itself one of the scores; where several are equal to it, fewer match.

    Args:
        scores (`numpy.ndarray` of shape `(N,)`): Scores of one side.
        matched_share (`float`): From 0 to 1.
    """
    _check_shares((matched_share,), 1)
    matched = round(matched_share * len(scores))
    if matched == len(scores):
        return float(np.nextafter(scores.min(), -np.inf, dtype=scores.dtype))
    return float(np.partition(scores, len(scores) - 1 - matched)[len(scores) - 1 - matched])


def calibrate_to_partition_shares(
    factual_scores: np.ndarray, emotional_scores: np.ndarray, shares: Sequence[float] = PAPER_SHARES
) -> tuple[float, float]:
    """
    Thresholds whose partitions come nearest to wanted shares.

    The shares of posts that match in fact and in emotion add up to 1 + strong - weak, whatever the correlation of the
    scores; how that sum is split decides the strong share, and is found by trying 0.25 % steps. Of the splits that
    come equally near, the most even one is taken; fact, the rarer match in the paper, gets the smaller part.

    Args:
        factual_scores, emotional_scores (`numpy.ndarray` of shape `(N,)`):
            The scores of the same posts.
        shares (three `float`, *optional*, defaults to the paper's (0.22, 0.51, 0.27)):
            Strong, both partial partitions together, weak.

    Returns:
        `tuple[float, float]`: The factual and the emotional threshold.
    """
    _check_shares(shares, 3)
    strong, _, weak = shares
    total = 1 + strong - weak
    # Ranks from the best score down, so that the best m posts of a side are those with a rank below m.
    ranks = [_ranks(scores) for scores in (factual_scores, emotional_scores)]
    steps = np.arange(total / 2, max(total - 1, 0) - 1e-9, -0.0025)
    found = [((ranks[0] < a * len(ranks[0])) & (ranks[1] < (total - a) * len(ranks[1]))).mean() for a in steps]
    factual = float(steps[int(np.argmin(np.abs(np.array(found) - strong)))])
    return (
        calibrate_threshold(factual_scores, factual),
        calibrate_threshold(emotional_scores, min(total - factual, 1.0)),
    )


def _ranks(scores: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(scores), np.int32 if len(scores) < 2**31 else np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores), dtype=ranks.dtype)
    return ranks


def partition_shares(dataset: datasets.Dataset) -> dict[str, float]:
    """The share of each partition in a partitioned dataset, by name; they add up to 1."""
    counts = np.bincount(column_to_numpy(dataset, "partition"), minlength=len(Partition))
    return dict(zip(PARTITION_NAMES, (counts / counts.sum()).tolist(), strict=True))


def partition_table(dataset: datasets.Dataset) -> str:
    """The partitions' counts and shares as a table for the terminal, beside the paper's."""
    shares = partition_shares(dataset)
    both = shares["partial_emotional"] + shares["partial_factual"]
    rows = [
        ("strong", shares["strong"], PAPER_SHARES[0]),
        ("partial", both, PAPER_SHARES[1]),
        ("  partial_emotional", shares["partial_emotional"], None),
        ("  partial_factual", shares["partial_factual"], None),
        ("weak", shares["weak"], PAPER_SHARES[2]),
    ]
    lines = [f"{'partition':<20} {'posts':>12} {'share':>8} {'paper':>6}"]
    for name, share, paper in rows:
        paper_share = "" if paper is None else f"{paper:.0%}"
        lines.append(f"{name:<20} {round(share * len(dataset)):>12,} {share:>8.1%} {paper_share:>6}".rstrip())
    return "\n".join(lines)


def _sides_of(partition_by: str) -> tuple[str, ...]:
    if partition_by not in get_args(PartitionBy):
        raise ValueError(f"partition_by must be one of {', '.join(get_args(PartitionBy))}, got {partition_by!r}")
    return {"both": SIDES, "none": ()}.get(partition_by, (partition_by,))


def _score_column(side: str, judge: Judge) -> ScanColumn:
    def compute(batch: PostBatch) -> np.ndarray:
        scores = np.asarray(judge(batch), dtype=np.float32)
        if scores.shape != (len(batch),):
            raise ValueError(f"the {side} judge gave scores of shape {scores.shape} for {len(batch)} posts")
        if not np.isfinite(scores).all():
            first = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(
                f"the {side} judge gave {scores[first]} for row {batch.rows[first]}; scores must be finite"
            )
        return scores

    return ScanColumn(f"{side}_score", judge.key, tuple(judge.encoders), compute)


def _scores(dataset: datasets.Dataset, side: str) -> np.ndarray:
    scores = column_to_numpy(dataset, f"{side}_score")
    if not np.isfinite(scores).all():
        first = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{side}_score is {scores[first]} at position {first}; scores must be finite")
    return scores


def _with_partition(dataset: datasets.Dataset, matched: dict[str, np.ndarray], settings: object) -> datasets.Dataset:
    """Add the column; a side that is not looked at counts as matched."""
    codes = np.zeros(len(dataset), np.int64)
    for side, code in (("factual", Partition.PARTIAL_EMOTIONAL), ("emotional", Partition.PARTIAL_FACTUAL)):
        if side in matched:
            # A mismatch in both adds up to weak.
            codes += np.where(matched[side], 0, int(code))
    fingerprint = content_key(dataset._fingerprint, "partition", settings)
    if "partition" in dataset.column_names:
        dataset = dataset.remove_columns("partition")
    label = datasets.ClassLabel(names=PARTITION_NAMES)
    return dataset.add_column("partition", codes, new_fingerprint=fingerprint, feature=label)


def _check_shares(shares: Sequence[float], number: int) -> None:
    if len(shares) != number or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"expected {number} share(s) from 0 to 1, got {shares}")
    if number == 3 and abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the shares of strong, partial and weak must add up to 1, got {shares}")
