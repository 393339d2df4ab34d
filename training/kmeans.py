"""k-means in memory that does not grow with the rows: whole where they fit, else from a sample and then exact passes.

`cluster.py` calls it with columns that stay on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from datasets.utils import tqdm
from sklearn.cluster import KMeans

logger = logging.getLogger(__name__)

# 154 MB of 768 numbers in float32. Centres that a sample this large gives are near those of all rows.
ROWS_IN_MEMORY = 50_000
# As many rounds as scikit-learn's KMeans goes at most.
MAX_PASSES = 300
# What a pass holds at once: some 40 MB of 768 numbers.
_BLOCK_ROWS = 4096


class Features(Protocol):
    """Rows of numbers that can be read slice by slice: an array, a memory map or a [`NumberColumn`]."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


def kmeans_labels(
    features: Features,
    clusters: int,
    *,
    seed: int = 0,
    name: str = "features",
    rows_in_memory: int = ROWS_IN_MEMORY,
    max_passes: int = MAX_PASSES,
) -> np.ndarray:
    """
    Cluster rows by k-means until no row changes its cluster.

    More rows than fit in memory are clustered exactly, too: scikit-learn's k-means finds the first centres on a random
    sample, and Lloyd's rounds over all rows, read block by block, go on from there.

    Args:
        features ([`Features`] of shape `(N, D)`):
            What is clustered. It is left as it is.
        clusters (`int`):
            K.
        seed (`int`, *optional*, defaults to 0):
            Of the initial centres and of the sample.
        name (`str`, *optional*):
            What messages call the features.
        rows_in_memory (`int`, *optional*, defaults to 50,000):
            How many rows are held in memory at most, in float32.
        max_passes (`int`, *optional*, defaults to 300):
            After so many passes over larger data k-means stops, with a warning if labels still change.

    Returns:
        `numpy.ndarray` of shape `(N,)`, int32: Clusters, numbered as they first appear.

    Raises:
        `ValueError`: there are fewer distinct rows than clusters, or more clusters than rows in memory.
    """
    if clusters == 1:
        return np.zeros(len(features), np.int32)
    if clusters > min(len(features), rows_in_memory):
        raise ValueError(
            f"{clusters} clusters of {min(len(features), rows_in_memory):,} {name} are too many; lower `clusters`"
        )
    fits = len(features) <= rows_in_memory
    sample = _single(features[:]).clone().numpy() if fits else _sample(features, rows_in_memory, seed)
    # Stopping at a tolerance would make a rounding error in the centres decide how many rounds there are.
    kmeans = KMeans(clusters, n_init=4, tol=0, random_state=seed, copy_x=False).fit(sample)
    if (distinct := len(np.unique(kmeans.labels_))) < clusters:
        raise ValueError(
            f"{name} have only {distinct} distinct rows{'' if fits else f' in a sample of {len(sample):,}'}, "
            f"too few for {clusters} clusters; lower `clusters`"
        )
    del sample
    labels = kmeans.labels_ if fits else _lloyd(features, kmeans.cluster_centers_, max_passes, name)
    return _number_by_appearance(labels, clusters)


def _sample(features: Features, number: int, seed: int) -> np.ndarray:
    """Random rows in their order, each at most once; float32 of shape `(number, D)`."""
    rows = np.sort(np.random.default_rng(seed).choice(len(features), number, replace=False, shuffle=False))
    sample = np.empty((number, features[:1].shape[1]), np.float32)
    for start, block in _blocks(features):
        first, last = np.searchsorted(rows, (start, start + len(block)))
        sample[first:last] = _single(block[rows[first:last] - start])
    return sample


def _lloyd(features: Features, centres: np.ndarray, max_passes: int, name: str) -> np.ndarray:
    """Assign every row to its nearest centre and move the centres to the means, until no row changes its cluster."""
    labels, centroids = np.full(len(features), -1, np.int32), torch.from_numpy(centres).double()
    with tqdm(desc=f"k-means of {len(labels):,} {name}", unit=" passes") as bar:
        for _ in range(max_passes):
            changed, sums, counts = 0, torch.zeros_like(centroids), torch.zeros(len(centroids), dtype=torch.long)
            for start, block in _blocks(features):
                rows, old = _single(block).double(), labels[start : start + len(block)]
                # Squared distances, less what is the same for all centres, halved; in float64, where nothing cancels.
                nearest = (centroids.square().sum(1) / 2 - rows @ centroids.t()).argmin(1)
                changed += int((nearest.numpy() != old).sum())
                old[:] = nearest
                sums.index_add_(0, nearest, rows)
                counts += nearest.bincount(minlength=len(centroids))
            bar.update()
            bar.set_postfix(changed=f"{changed:,}")
            if not changed:
                return labels
            # A cluster that has lost all its rows stays where it is.
            means = sums / counts.clamp(min=1)[:, None]
            centroids = torch.where(counts[:, None] > 0, means, centroids)
    logger.warning("k-means of %s: %s rows still changed their cluster in pass %s", name, f"{changed:,}", max_passes)
    return labels


def _single(block: np.ndarray) -> torch.Tensor:
    """A block in float32. NumPy converts half precision number by number, which took most of a pass."""
    return torch.from_numpy(block if block.flags.writeable else block.copy()).float()


def _blocks(features: Features) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(features), _BLOCK_ROWS):
        yield start, features[start : start + _BLOCK_ROWS]


def _number_by_appearance(labels: np.ndarray, clusters: int) -> np.ndarray:
    """Renumber clusters in the order of their first rows."""
    first = np.full(clusters, len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]  # of equal indices the last assignment stands
    return np.argsort(np.argsort(first)).astype(np.int32)[labels]
