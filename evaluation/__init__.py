"""How well a vision backbone perceives emotion: probes, the paper's protocols, tasks, metrics and tables."""

from __future__ import annotations

from .arguments import EvaluationArguments
from .backbones import Backbone
from .before_after import ProbeSpec, measure
from .benchmarks import BENCHMARKS, load_benchmark
from .features import extract_features
from .report import Evaluation
from .run import evaluate
from .zero_shot import ZeroShotResult, zero_shot

__all__ = [
    "BENCHMARKS",
    "Backbone",
    "Evaluation",
    "EvaluationArguments",
    "ProbeSpec",
    "ZeroShotResult",
    "evaluate",
    "extract_features",
    "load_benchmark",
    "measure",
    "zero_shot",
]
