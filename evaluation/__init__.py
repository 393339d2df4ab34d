"""How well a vision backbone perceives emotion: probes, the paper's protocols, tasks, metrics and tables."""

from __future__ import annotations

from .backbones import Backbone
from .before_after import ProbeSpec, measure
from .features import extract_features
from .zero_shot import PROMPTS, ZeroShotResult, zero_shot

__all__ = ["PROMPTS", "Backbone", "ProbeSpec", "ZeroShotResult", "extract_features", "measure", "zero_shot"]
