"""k-means in memory that does not grow with the rows: whole where they fit, else from a sample and then exact passes.

`cluster.py` calls it with columns that stay on disk. Under a launcher the processes share out the passes.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
import torch
from accelerate import PartialState
from datasets.utils import tqdm
from sklearn.cluster import KMeans

from .distributed import sum_over_processes

logger = logging.getLogger(__name__)

# 154 MB of 768 numbers in float32. Centres that a sample this large gives are near those of all rows.
ROWS_IN_MEMORY = 50_000
# As many rounds as scikit-learn's KMeans goes at most.
MAX_PASSES = 300
# What a pass holds at once: some 40 MB of 768 numbers.
_BLOCK_ROWS = 4096


class Features(Protocol):
    """Rows of numbers that can be read by slices and by row numbers: an array, a memory map or a [`NumberColumn`]."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray: ...


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

    Under a launcher all processes call it and get the same. The main one alone clusters what fits in memory, and the
    sample; they share out the blocks of the rounds.

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
    if PartialState().is_main_process:
        kmeans = _fit(features, clusters, seed, name, rows_in_memory)
        found = kmeans.labels_ if fits else kmeans.cluster_centers_
    else:  # it adds nothing to what the main process finds
        found = np.zeros(len(features), np.int32) if fits else np.zeros((clusters, features[:1].shape[1]), np.float32)
    found = sum_over_processes(torch.from_numpy(found)).numpy()
    return _number_by_appearance(found if fits else _lloyd(features, found, max_passes, name), clusters)


def _fit(features: Features, clusters: int, seed: int, name: str, rows_in_memory: int) -> KMeans:
    """scikit-learn's k-means of all rows where they fit in memory, else of a sample."""
    fits = len(features) <= rows_in_memory
    sample = _single(features[:]).clone().numpy() if fits else _sample(features, rows_in_memory, seed)
    # Stopping at a tolerance would make a rounding error in the centres decide how many rounds there are.
    kmeans = KMeans(clusters, n_init=4, tol=0, random_state=seed, copy_x=False).fit(sample)
    if (distinct := len(np.unique(kmeans.labels_))) < clusters:
        where, remedy = ("", "") if fits else (f" in a sample of {len(sample):,}", " or raise `rows_in_memory`")
        raise ValueError(
            f"{name} have only {distinct} distinct rows{where}, too few for {clusters} clusters; "
            f"lower `clusters`{remedy}"
        )
    return kmeans


def _sample(features: Features, number: int, seed: int) -> np.ndarray:
    """Random rows in their order, each at most once; float32 of shape `(number, D)`."""
    rows = np.sort(np.random.default_rng(seed).choice(len(features), number, replace=False, shuffle=False))
    sample = np.empty((number, features[:1].shape[1]), np.float32)
    for start in range(0, number, _BLOCK_ROWS):
        sample[start : start + _BLOCK_ROWS] = _single(features[rows[start : start + _BLOCK_ROWS]])
    return sample


def _lloyd(features: Features, centres: np.ndarray, max_passes: int, name: str) -> np.ndarray:
    """Assign every row to its nearest centre and move the centres to the means, until no row changes its cluster."""
    state, centroids = PartialState(), torch.from_numpy(centres).double()
    labels = np.full(len(features), -1, np.int32)  # and so to the end where another process has the block
    own = range(0, len(labels), _BLOCK_ROWS)[state.process_index :: state.num_processes]
    description = f"k-means of {len(labels):,} {name}"
    with tqdm(desc=description, unit=" passes", disable=not state.is_main_process) as bar:
        for _ in range(max_passes):
            changed, sums, counts = 0, torch.zeros_like(centroids), centroids.new_zeros(len(centroids))
            for start in own:
                block = slice(start, start + _BLOCK_ROWS)
                rows, old = _single(features[block]).double(), labels[block]
                # Squared distances, less what is the same for all centres, halved; in float64, where nothing cancels.
                nearest = (centroids.square().sum(1) / 2 - rows @ centroids.t()).argmin(1)
                changed += int((nearest.numpy() != old).sum())
                old[:] = nearest
                sums.index_add_(0, nearest, rows)
                counts += nearest.bincount(minlength=len(centroids))
            # One message. Half precision adds up in float64 with hardly ever a rounding, whoever has which block.
            message = sum_over_processes(torch.cat([sums.flatten(), counts, counts.new_tensor([changed])]))
            sums, counts, changed = message[: sums.numel()].view_as(sums), message[sums.numel() : -1], int(message[-1])
            bar.update()
            bar.set_postfix(changed=f"{changed:,}")
            if not changed:
                break
            # A cluster that has lost all its rows stays where it is.
            means = sums / counts.clamp(min=1)[:, None]
            centroids = torch.where(counts[:, None] > 0, means, centroids)
        else:
            if state.is_main_process:
                logger.warning(
                    "k-means of %s: %s rows still changed their cluster in pass %s", name, f"{changed:,}", max_passes
                )
    return sum_over_processes(torch.from_numpy(labels + 1)).numpy() - 1


def _single(block: np.ndarray) -> torch.Tensor:
    """A block in float32. NumPy converts half precision number by number, which took most of a pass."""
    return torch.from_numpy(block if block.flags.writeable else block.copy()).float()


def _number_by_appearance(labels: np.ndarray, clusters: int) -> np.ndarray:
    """Renumber clusters in the order of their first rows."""
    first = np.full(clusters, len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]  # of equal indices the last assignment stands
    return np.argsort(np.argsort(first)).astype(np.int32)[labels]
