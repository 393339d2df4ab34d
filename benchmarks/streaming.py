"""Pairs from a stream of Parquet shards against the same pairs on disk, both as `PACLTrainer` loads them: decoded and
augmented.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import datasets
from _table import HEADER, ratios, row
from input_pipeline import exhaust, make_files, make_model, make_pairs, make_processor, pacl_loader

from pacl.training import StreamedPairs

SHARDS, REPEATS = 4, 5


def main() -> None:
    """Prints the row."""
    datasets.disable_progress_bars()
    model, processor = make_model(), make_processor()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = make_pairs(make_files(folder, "small"))
        pairs.save_to_disk(folder / "saved")  # with the pictures in it, as the shards
        saved = datasets.load_from_disk(folder / "saved")
        for number in range(SHARDS):
            saved.shard(SHARDS, number).to_parquet(folder / f"{number}.parquet", batch_size=100)
        files = [str(path) for path in sorted(folder.glob("*.parquet"))]
        stream = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder)
        )
        streamed = pacl_loader(model, processor, StreamedPairs(stream, {"strong": len(saved)}), 0)
        mapped = pacl_loader(model, processor, saved, 0)
        steps = len(mapped)
        measured = ratios(lambda: exhaust(islice(mapped, steps)), lambda: exhaust(islice(streamed, steps)), REPEATS)
    print(HEADER)
    row("pictures/s of a stream, 320 × 240 JPEG", "the same pairs on disk", measured, at_least=0.95)


if __name__ == "__main__":
    main()
