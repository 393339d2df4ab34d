"""What the benchmarks share: timing two sides in turn, and one row of the table for each ratio."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

# Large activations are kept when they are freed, and not given back to the kernel to be fetched again at every step.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}
HEADER = "| what | against | ratio (range) | target |\n| --- | --- | --- | --- |"


def keep_freed_memory() -> None:
    """Starts the script anew with these settings of glibc's malloc: page faults vary more than what is compared."""
    if not MALLOC.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC)


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ratios(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, warmup: int = 1) -> list[float]:
    """Seconds of `ours` by seconds of `theirs`, called in turn so that both see the same machine."""
    for _ in range(warmup):
        theirs()
        ours()
    return [seconds(ours) / seconds(theirs) for _ in range(repeats)]


def row(what: str, against: str, measured: list[float], *, at_most: float | None = None, at_least: float = 0) -> bool:
    """Prints one row: median and range over the repeats. Returns whether the median meets the target."""
    median = float(np.median(measured))
    target = f"≤ {at_most}" if at_most is not None else f"≥ {at_least}"
    met = median <= at_most if at_most is not None else median >= at_least
    shown = f"{median:.2f} ({min(measured):.2f} to {max(measured):.2f})"
    print(f"| {what} | {against} | {shown}{'' if met else ', missed'} | {target} |", flush=True)
    return met
