"""The emotion datasets that backbones are evaluated on: from a user's folder to typed `datasets` splits."""

from __future__ import annotations

from .benchmark import Benchmark
from .dropped import Dropped
from .registry import BENCHMARKS, get_benchmark, load_benchmark, read_benchmark
from .splits import make_splits, split_8_1_1

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Dropped",
    "get_benchmark",
    "load_benchmark",
    "make_splits",
    "read_benchmark",
    "split_8_1_1",
]
