"""What Stage 3 spends on a pair before its picture is decoded, drawing batches and reading rows, as pairs grow."""

from __future__ import annotations

from itertools import islice

import datasets
import numpy as np
import pyarrow as pa
from _table import HEADER, row, seconds

from pacl.training import PartitionBatchSampler, PhaseSchedule
from pacl.training.collator import PairDataset

FEW, MANY, BATCH, WIDTH, REPEATS = 2_000, 200_000, 64, 1024, 5
LAST_PHASE = 2
READ = 30  # batches whose rows are read


def make_pairs(number: int) -> PairDataset:
    """Pairs with text features of SKEP's width and pictures of a few bytes, which nobody decodes."""
    rng = np.random.default_rng(0)
    features = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(number * WIDTH, np.float16)), WIDTH)
    labels = {name: rng.integers(0, 2, number, np.int32) for name in ("factual_cluster", "emotional_cluster")}
    table = pa.table(
        {
            "image": pa.array([{"bytes": b"pixels", "path": None}] * number),
            "text_features": features,
            "partition": rng.integers(0, 4, number),
            **labels,
        }
    )
    return PairDataset(datasets.Dataset(table).cast_column("image", datasets.Image()))


def seconds_per_pair(pairs: PairDataset) -> float:
    """To draw all batches of an epoch in which every partition is active, and to read the rows of some."""
    sampler = PartitionBatchSampler(pairs.partition, BATCH, PhaseSchedule(LAST_PHASE + 1))
    sampler.set_epoch(LAST_PHASE)
    drawing = seconds(lambda: list(sampler)) / (len(sampler) * BATCH)
    batches = list(islice(sampler, READ))
    return drawing + seconds(lambda: [pairs.__getitems__(batch) for batch in batches]) / (len(batches) * BATCH)


def main() -> None:
    """Prints the row."""
    few, many = make_pairs(FEW), make_pairs(MANY)
    seconds_per_pair(few)
    measured = [seconds_per_pair(many) / seconds_per_pair(few) for _ in range(REPEATS)]
    print(HEADER)
    row(f"drawing and reading a pair of {MANY:,}", f"of {FEW:,}", measured, at_most=1.1)


if __name__ == "__main__":
    main()
