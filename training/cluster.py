"""Stage 2: k-means over the pictures' and over the texts' features, each on its own and without gradients.

Partitioned posts come in; they leave with `factual_cluster`, `emotional_cluster` and `text_features`, for Stage 3.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import datasets
import numpy as np
import sklearn
import torch
from accelerate import PartialState

from .columns import NumberColumn
from .distributed import sum_over_processes, world_size
from .features import TowerEncoders, content_key
from .kmeans import ROWS_IN_MEMORY, kmeans_labels
from .rejections import Rejections
from .scan import feature_columns, scan_posts
from .shards import cache_folder

CLUSTERINGS = {"factual_cluster": "vision_features", "emotional_cluster": "text_features"}


def cluster_dataset(
    dataset: datasets.Dataset,
    towers: TowerEncoders | None = None,
    *,
    clusters: int | Sequence[int] = 2,
    seed: int = 0,
    batch_size: int = 32,
    rejections: Rejections | None = None,
    cache_dir: str | Path | None = None,
    rows_in_memory: int = ROWS_IN_MEMORY,
) -> datasets.Dataset:
    """
    Give every post the cluster of its picture under E_V before PACL and the cluster of its text under E_T.

    Under a launcher all processes call it: they share out the towers' work, and k-means as [`kmeans_labels`] says.
    Clusters are cached as features are.

    Args:
        dataset (`datasets.Dataset`):
            Posts, with `vision_features` and `text_features` where `partition_dataset` was given the towers.
        towers ([`TowerEncoders`], *optional*):
            Needed where one of these columns is missing; then only its tower runs.
        clusters (`int` or pair of `int`, *optional*, defaults to 2):
            K, for both or as (factual, emotional).
        seed (`int`, *optional*, defaults to 0):
            Of k-means. The same features and seed give the same clusters, which are numbered as they first appear.
        batch_size, rejections, cache_dir (*optional*):
            As in `partition_dataset`, for the towers; the stage of rejections is `"cluster"`.
        rows_in_memory (`int`, *optional*, defaults to 50,000):
            More rows are clustered block by block, as [`kmeans_labels`] says.

    Returns:
        `datasets.Dataset`: With `factual_cluster`, `emotional_cluster` (int32) and `text_features` (fixed-length
        float16 lists), without `vision_features`, which nothing needs any more.

    Raises:
        `ValueError`: K is below 1 or more than there are distinct features or rows in memory, or features are missing
            and no towers are given.
    """
    pair = (clusters, clusters) if isinstance(clusters, int) else tuple(clusters)
    if len(pair) != 2 or any(number < 1 for number in pair):
        raise ValueError(f"clusters must be at least 1, one number or a pair (factual, emotional), got {clusters}")
    if missing := [name for name in CLUSTERINGS.values() if name not in dataset.column_names]:
        if towers is None:
            raise ValueError(f"the posts lack {' and '.join(missing)}, and no towers are given to compute them")
        columns = [column for column in feature_columns(towers) if column.name in missing]
        dataset = scan_posts(
            dataset, columns, stage="cluster", batch_size=batch_size, rejections=rejections, cache_dir=cache_dir
        )
    state = PartialState()
    for (name, source), number in zip(CLUSTERINGS.items(), pair, strict=True):
        fingerprint = content_key(dataset._fingerprint, name, number, seed, min(rows_in_memory, len(dataset)))
        path = cache_folder(cache_dir) / f"{name}-{content_key(fingerprint, sklearn.__version__)}.npy"
        if _all_find(path):
            labels = np.load(path)
        else:
            features = NumberColumn(dataset, source)
            labels = kmeans_labels(features, number, seed=seed, name=source, rows_in_memory=rows_in_memory)
            if state.is_main_process:
                _save(path, labels)
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, labels, new_fingerprint=fingerprint, feature=datasets.Value("int32"))
    return dataset.remove_columns("vision_features")


def _all_find(path: Path) -> bool:
    """The same answer for every process, and none before all have looked: what follows is done by all or by none."""
    return int(sum_over_processes(torch.tensor(path.is_file(), dtype=torch.int))) == world_size()


def _save(path: Path, labels: np.ndarray) -> None:
    """Write beside, then move, so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".npy", delete=False) as file:
        np.save(file, labels)
    os.replace(file.name, path)
