"""A partitioned dataset to look through: its partitions at any θ; pictures are read only when a page shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np

from pacl.training.partition import PARTITION_NAMES, SIDES, Partition

from .sources import DemoError

ORDERS = ("as in the dataset", "best match in fact first", "best match in emotion first")


def partition_codes(
    scores: dict[str, np.ndarray], thresholds: dict[str, float], length: int | None = None
) -> np.ndarray:
    """
    The partition of every post at given thresholds: a side matches where its score is greater than θ.

    Args:
        scores (`dict[str, np.ndarray]`): Scores of shape `(posts,)` by side, `"factual"` and `"emotional"`; a side
            that is missing matches everywhere.
        thresholds (`dict[str, float]`): θ of every side in `scores`.
        length (`int`, *optional*): Number of posts, needed where there is no score at all.

    Returns:
        `np.ndarray` of shape `(posts,)` of [`Partition`] values.
    """
    posts = len(next(iter(scores.values()))) if scores else int(length or 0)
    codes = np.zeros(posts, np.int8)
    for side, code in zip(SIDES, (Partition.PARTIAL_EMOTIONAL, Partition.PARTIAL_FACTUAL), strict=True):
        if side in scores:
            # A mismatch in both adds up to weak.
            codes += np.where(scores[side] > thresholds[side], 0, int(code)).astype(np.int8)
    return codes


def shares_of(codes: np.ndarray) -> dict[str, float]:
    """The share of each partition by name; they add up to 1, or are all 0 where there is no post."""
    counts = np.bincount(codes, minlength=len(Partition))
    return dict(zip(PARTITION_NAMES, (counts / max(counts.sum(), 1)).tolist(), strict=True))


class PartitionedPosts:
    """
    A saved partitioned dataset; its pictures stay on disk until a page shows them.

    Args:
        dataset (`datasets.Dataset`): With `image`, `text`, `partition` and at least one of `factual_score` and
            `emotional_score`.

    Raises:
        DemoError: if columns are missing.
    """

    def __init__(self, dataset: datasets.Dataset):
        missing = sorted({"image", "text", "partition"} - set(dataset.column_names))
        sides = [side for side in SIDES if f"{side}_score" in dataset.column_names]
        if missing or not sides:
            wanted = ", ".join(missing or [f"{side}_score" for side in SIDES])
            raise DemoError(f"the dataset is not partitioned: it lacks {wanted}; `pacl train` leaves one in dataset/")
        self.dataset = dataset
        columns = dataset.select_columns([f"{side}_score" for side in sides] + ["partition"]).with_format("numpy")
        self.scores = {side: np.asarray(columns[f"{side}_score"][:], np.float32) for side in sides}
        self.as_saved = np.asarray(columns["partition"][:], np.int64)
        self.start = {side: self._threshold(side) for side in sides}

    @classmethod
    def load(cls, folder: Path) -> PartitionedPosts:
        """
        Open a folder that `datasets` saved.

        Raises:
            DemoError: if it is no such folder, or the posts in it are not partitioned.
        """
        try:
            dataset = datasets.load_from_disk(str(folder))
        except (OSError, ValueError) as error:
            raise DemoError(f"{folder} cannot be read as a saved dataset: {error}") from error
        if isinstance(dataset, datasets.DatasetDict):
            raise DemoError(f"{folder} holds several splits ({', '.join(dataset)}); name the folder of one of them")
        return cls(dataset)

    def __len__(self) -> int:
        return len(self.as_saved)

    def bounds(self, side: str) -> tuple[float, float]:
        """Where θ can usefully be: from just below the lowest score to the highest, in thousandths."""
        scores = self.scores[side]
        low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
        return float(np.floor(low * 1000) / 1000 - 0.001), float(np.ceil(high * 1000) / 1000)

    def codes(self, thresholds: dict[str, float]) -> np.ndarray:
        """As [`partition_codes`]."""
        return partition_codes(self.scores, thresholds, len(self))

    def members(self, thresholds: dict[str, float], partition: str, order: str = ORDERS[0]) -> np.ndarray:
        """Rows of the posts in a partition, in one of the [`ORDERS`]."""
        rows = np.flatnonzero(self.codes(thresholds) == PARTITION_NAMES.index(partition))
        side = dict(zip(ORDERS[1:], SIDES, strict=True)).get(order)
        return rows if side not in self.scores else rows[np.argsort(-self.scores[side][rows], kind="stable")]

    def page(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The posts of some rows with `row`, `image`, `text` and their scores by side."""
        found = self.dataset.select_columns(["image", "text"]).select(rows)
        return [
            {
                "row": int(row),
                "image": post["image"],
                "text": post["text"],
                "scores": {side: float(values[row]) for side, values in self.scores.items()},
            }
            for row, post in zip(rows, found, strict=True)
        ]

    def _threshold(self, side: str) -> float:
        """
        The θ that the saved partition was made with, as its posts show it: from the highest score that does not match
        to the lowest that does. Rounded to thousandths where these leave room.
        """
        scores = self.scores[side]
        mismatch = (Partition.PARTIAL_EMOTIONAL if side == "factual" else Partition.PARTIAL_FACTUAL, Partition.WEAK)
        matched = ~np.isin(self.as_saved, [int(code) for code in mismatch])
        low, high = self.bounds(side)
        if matched.all() or not matched.any():
            return low if matched.all() else high
        below, above = float(scores[~matched].max()), float(scores[matched].min())
        for digits in (1, 2, 3):
            middle = round((below + above) / 2, digits)
            if below <= middle < above:
                return min(max(middle, low), high)
        return round(below, 3)
