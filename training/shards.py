"""Passes over a dataset in shards of rows, each cached in a file: a killed pass goes on, and processes share the work.

`scan.py` (Stages 1 and 2) and `prepare.py` run their passes with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, tqdm

from .features import content_key

# Shards are what processes share out, and one is what each loses at most when a pass is killed: 16 to 32 of few rows,
# then more of this size, up to that number. A shard costs 7 ms, 1 % of 512 posts at 1.3 ms; and datasets copies notes
# on all of them whenever a table changes, which grows with their square: 400 took 15 s and 90 MB, 100 took 2 s.
_SHARD_ROWS, _MAX_SHARDS = 512, 128


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where results are kept; by default the folder `pacl` in datasets' cache."""
    return Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "pacl"))


def shard_rows(rows: int, batch_size: int) -> int:
    """Rows of a shard: whole batches, and of most datasets the same for all batches of a power of two up to 512."""
    few = 2 ** math.ceil(math.log2(min(rows / 32, _SHARD_ROWS)))
    size = max(few, math.ceil(rows / _MAX_SHARDS / _SHARD_ROWS) * _SHARD_ROWS if rows > _MAX_SHARDS * few else 0)
    return math.ceil(size / batch_size) * batch_size


def map_in_shards(
    dataset: datasets.Dataset,
    function: Callable[..., Any],
    *,
    name: str,
    key: str,
    folder: Path,
    rows: int,
    unit: str,
    **options: Any,
) -> datasets.Dataset:
    """
    Map a dataset shard by shard; a shard whose file is there is read from it.

    Under a launcher all processes call it, with one cache folder. Each takes its share of the missing shards, then
    they wait for each other, and all return the same dataset. The main process shows one bar.

    Args:
        dataset (`datasets.Dataset`):
            What is mapped.
        function (`Callable`):
            As `Dataset.map` calls it with a batch and its indices in the shard, and with two arguments more: `start`,
            the shard's first row, and `bar`, which it moves on by the rows that it has done.
        name (`str`):
            Of the pass: how its files' names and the bar's description begin.
        key (`str`):
            Hash of everything that the result depends on, as `content_key` gives it.
        folder (`Path`):
            Where the files are kept.
        rows (`int`):
            Rows of a shard, as `shard_rows` chooses them.
        unit (`str`):
            What the bar calls a row, in the plural.
        options:
            Passed on to `Dataset.map`.
    """
    state = PartialState()
    shards = [range(start, min(start + rows, len(dataset))) for start in range(0, len(dataset), rows)]
    paths = {shard: folder / f"{name}-{content_key(key, shard.start, shard.stop)}.arrow" for shard in shards}
    missing = [shard for shard in shards if not paths[shard].is_file()]
    state.wait_for_everyone()  # until all have looked, none writes

    own = missing[state.process_index :: state.num_processes]
    done = len(dataset) - sum(map(len, missing))
    share = f", share 1 of {state.num_processes}" if state.num_processes > 1 else ""
    with (
        tqdm(
            total=done + sum(map(len, own)),
            initial=done,
            desc=f"{name.capitalize()}{share}",
            unit=f" {unit}",
            disable=not state.is_main_process,
        ) as bar,
        _no_inner_bars(),
    ):

        def run(shard: range) -> datasets.Dataset:
            return dataset.select(shard).map(
                partial(function, start=shard.start, bar=bar),
                with_indices=True,
                batched=True,
                new_fingerprint=paths[shard].stem[-32:],
                cache_file_name=str(paths[shard]),
                load_from_cache_file=True,
                **options,
            )

        for shard in own:
            run(shard)
        state.wait_for_everyone()
        return datasets.concatenate_datasets([run(shard) for shard in shards])  # all files are there now


@contextmanager
def _no_inner_bars() -> Iterator[None]:
    """One bar for the whole pass instead of one for each shard."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
