"""The benchmarks by name, and `load_benchmark`: a user's folder in, a `DatasetDict` with typed columns and three
splits out. Tasks and protocols start from here; those that need the splits of many seeds read once and split often."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from .benchmark import Benchmark
from .class_folders import EMOTION6, FI, FI2, UNBIASED_EMO
from .dropped import Dropped
from .emoset import EMOSET
from .emotic import EMOTIC, EMOTIC_VAD
from .folder import drop_bad_pictures
from .iaps import IAPS
from .oasis import OASIS
from .splits import make_splits
from .twitter import TWITTER1
from .webemo import WEBEMO, WEBEMO6

logger = logging.getLogger(__name__)

_ALL = (FI, FI2, EMOTION6, UNBIASED_EMO, WEBEMO, WEBEMO6, EMOTIC, EMOTIC_VAD, IAPS, EMOSET, OASIS, TWITTER1)

#: Every dataset and task by its name, the paper's first.
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def get_benchmark(name: str) -> Benchmark:
    """
    The benchmark of this name or title, letter case and punctuation aside ("Twitter-I" is "twitter1").

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """

    def bare(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower())

    for benchmark in BENCHMARKS.values():
        if bare(name) in (bare(benchmark.name), bare(benchmark.title)):
            return benchmark
    raise ValueError(f"Unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}.")


def load_benchmark(
    name: str,
    data_dir: str | Path,
    *,
    seed: int = 0,
    fold: int = 0,
    check_pixels: bool = False,
    dropped: Dropped | None = None,
    **options: Any,
) -> DatasetDict:
    """
    Reads a benchmark from a user's folder, and splits it.

    Every split has the columns `image` (`Image`, by path, decoded to RGB), `id` (`string`), and the benchmark's label
    columns: `ClassLabel` (one per level for hierarchical labels, a list of them for multi-label ones) or `float32`.
    Rows that cannot be used are counted in a warning and listed in `dropped`.

    Args:
        name (`str`): a key of `BENCHMARKS`, or a title such as "Twitter-I".
        data_dir (`str` or `Path`): the folder as its users have it; each reader says which layouts it takes.
        seed (`int`, *optional*, defaults to 0): draws what the data leaves open: the 8:1:1 split, or the validation
            part of an official training split.
        fold (`int`, *optional*, defaults to 0): which tenth is the test where there is no official split.
        check_pixels (`bool`, *optional*, defaults to `False`): whether to decode every picture in full, not only its
            header; finds files that end early, and takes as long as decoding does.
        dropped (`Dropped`, *optional*): list to add the left-out rows to.
        **options: the reader's own options, `BENCHMARKS[name].options`.

    Raises:
        FileNotFoundError: when the folder isn't the dataset; says what was expected and what was found.
        ValueError: for an unknown benchmark or option, a table without its columns, or too few pictures to split.
    """
    parts = read_benchmark(name, data_dir, check_pixels=check_pixels, dropped=dropped, **options)
    return make_splits(parts, get_benchmark(name), seed=seed, fold=fold)


def read_benchmark(
    name: str, data_dir: str | Path, *, check_pixels: bool = False, dropped: Dropped | None = None, **options: Any
) -> DatasetDict:
    """
    Reads a benchmark from a user's folder as it is there, not split yet.

    Arguments and errors are those of [`load_benchmark`], which splits the result.

    Returns:
        `DatasetDict` with the official splits, or `all`, and perhaps `train` for pictures that must not be tested.
    """
    benchmark = get_benchmark(name)
    unknown = [option for option in options if option not in benchmark.options]
    if unknown:
        known = ", ".join(benchmark.options) or "none"
        raise ValueError(f"{benchmark.title} has no option {', '.join(unknown)}; its options: {known}.")
    dropped = Dropped() if dropped is None else dropped
    before = len(dropped)
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; {benchmark.title} is read from the folder of its files.")
    tables = benchmark.reader(folder, dropped, **options)
    parts = DatasetDict()
    for split, rows in tables.items():
        desc = f"{benchmark.title}: checking pictures ({split})"
        kept = drop_bad_pictures(rows, dropped, check_pixels=check_pixels, desc=desc)
        if not kept:
            raise ValueError(f"{folder} has no usable {benchmark.title} picture ({split}): {dropped.summary()}.")
        parts[split] = Dataset.from_list(kept, features=benchmark.features)
    if len(dropped) > before:
        logger.warning("%s in %s: %s", benchmark.title, folder, Dropped(dropped.entries[before:]).summary())
    return parts
