"""Stage 2: k-means over the pictures' and over the texts' features, each on its own and without gradients.

Partitioned posts come in; they leave with `factual_cluster`, `emotional_cluster` and `text_features`, for Stage 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from sklearn.cluster import KMeans

from .features import TowerEncoders, content_key
from .rejections import Rejections
from .scan import column_to_numpy, feature_columns, scan_posts

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
) -> datasets.Dataset:
    """
    Give every post the cluster of its picture under E_V before PACL and the cluster of its text under E_T.

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

    Returns:
        `datasets.Dataset`: With `factual_cluster`, `emotional_cluster` (int32) and `text_features` (fixed-length
        float16 lists), without `vision_features`, which nothing needs any more.

    Raises:
        `ValueError`: K is below 1 or more than there are distinct features, or features are missing and no towers
            are given.
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
    for (name, source), number in zip(CLUSTERINGS.items(), pair, strict=True):
        labels = kmeans_labels(column_to_numpy(dataset, source), number, seed=seed, name=source)
        fingerprint = content_key(dataset._fingerprint, name, number, seed)
        if name in dataset.column_names:
            dataset = dataset.remove_columns(name)
        dataset = dataset.add_column(name, labels, new_fingerprint=fingerprint, feature=datasets.Value("int32"))
    return dataset.remove_columns("vision_features")


def kmeans_labels(features: np.ndarray, clusters: int, *, seed: int = 0, name: str = "features") -> np.ndarray:
    """
    Cluster rows by k-means until no row changes its cluster.

    Args:
        features (`numpy.ndarray` of shape `(N, D)`):
            What is clustered. It is left as it is; k-means works on one float32 copy.
        clusters (`int`):
            K.
        seed (`int`, *optional*, defaults to 0):
            Of the initial centres.
        name (`str`, *optional*):
            What error messages call the features.

    Returns:
        `numpy.ndarray` of shape `(N,)`, int32: Clusters, numbered as they first appear.

    Raises:
        `ValueError`: there are fewer distinct rows than clusters.
    """
    if clusters == 1:
        return np.zeros(len(features), np.int32)
    if clusters > len(features):
        raise ValueError(f"{clusters} clusters of {len(features)} {name} are too many; lower `clusters`")
    # Stopping at a tolerance would make a rounding error in the centres decide how many rounds there are.
    kmeans = KMeans(clusters, n_init=4, tol=0, random_state=seed, copy_x=False)
    labels = kmeans.fit_predict(features.astype(np.float32))
    found, first, labels = np.unique(labels, return_index=True, return_inverse=True)
    if len(found) < clusters:
        raise ValueError(
            f"{name} have only {len(found)} distinct rows, too few for {clusters} clusters; lower `clusters`"
        )
    return np.argsort(np.argsort(first)).astype(np.int32)[labels]
