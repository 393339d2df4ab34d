"""The emotion datasets that backbones are evaluated on: from a user's folder to typed `datasets` splits."""

from __future__ import annotations

from .benchmark import Benchmark
from .dropped import Dropped
from .registry import BENCHMARKS, get_benchmark, load_benchmark
from .splits import split_8_1_1

__all__ = ["BENCHMARKS", "Benchmark", "Dropped", "get_benchmark", "load_benchmark", "split_8_1_1"]
