"""Stages 1 and 2 as posts grow: peak memory of each size in a process of its own, and seconds per post.

Scan, cache, join, partition and k-means are the real ones; encoders are stand-ins that cost nothing, their features
random around two centres, and pictures are of four pixels. Ratios are of anonymous memory (`RssAnon`): what a process
has written and the machine cannot take back. Pages of a memory-mapped table count as resident, too, for as long as
nobody else needs the room; `VmHWM`, which has them, is printed beside.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from _table import HEADER, row, seconds
from datasets.arrow_writer import ArrowWriter
from PIL import Image

from pacl.training import cluster_dataset, partition_dataset
from pacl.training.features import Encoding, TowerEncoders

SIZES, TARGET = (10_000, 200_000, 1_000_000), 1.1
FEW, MANY = 2_000, 200_000
WIDTH, BATCH = 64, 256


class StandIn:
    """An encoder of pictures or texts that only draws numbers: as many for each post as a tower gives."""

    has_head = False

    def __init__(self, name: str, seed: int):
        self.key = self.backbone_key = self.pixels_key = name
        self.generator = np.random.default_rng(seed)

    def preprocess(self, picture: Image.Image) -> dict[str, torch.Tensor]:
        return {}

    def encode(self, inputs) -> Encoding:
        features = self.generator.standard_normal((len(inputs), WIDTH), dtype=np.float32)
        features[:, 0] += 4 * self.generator.integers(2, size=len(inputs))
        return Encoding(torch.from_numpy(features), None)


class StandInJudge:
    """Scores at random."""

    encoders = ()

    def __init__(self, name: str, seed: int):
        self.key = name
        self.generator = np.random.default_rng(seed)

    def __call__(self, batch) -> np.ndarray:
        return self.generator.random(len(batch), dtype=np.float32)


def make_posts(path: Path, number: int) -> datasets.Dataset:
    """Posts in a memory-mapped file, all with one of four pictures in it."""
    pictures = []
    for shade in range(4):
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2), (60 * shade, 0, 0)).save(buffer, "BMP")
        pictures.append(buffer.getvalue())
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "row": datasets.Value("int64")}
    )
    with ArrowWriter(path=str(path), features=features) as writer:
        for start in range(0, number, 1000):
            rows = range(start, min(start + 1000, number))
            images = pa.array([{"bytes": pictures[i % 4], "path": None} for i in rows], features.arrow_schema[0].type)
            table = {"image": images, "text": [f"post number {i}, short as most are" for i in rows], "row": rows}
            writer.write_table(pa.table({**table, "row": pa.array(rows)}, schema=features.arrow_schema))
        writer.finalize()
    return datasets.Dataset.from_file(str(path))


def both_stages(posts: datasets.Dataset, cache: Path) -> None:
    """From posts to clusters, nothing cached before."""
    towers = TowerEncoders(StandIn("pictures", 2), StandIn("texts", 3))  # type: ignore[arg-type]
    judges = StandInJudge("fact", 0), StandInJudge("emotion", 1)
    options = {"batch_size": BATCH, "cache_dir": cache}
    scored = partition_dataset(posts, *judges, matched_shares="paper", towers=towers, **options)
    cluster_dataset(scored, **options)


def memory(field: str) -> float:
    """A field of the kernel's record of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1000


def measure(number: int) -> dict[str, float]:
    """Both stages once over so many posts, with the peaks of memory as a thread sees them."""
    with tempfile.TemporaryDirectory() as folder:
        posts = make_posts(Path(folder, "posts.arrow"), number)
        peak, done = [memory("RssAnon")], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], memory("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        taken = seconds(lambda: both_stages(posts, Path(folder)))
        done.set()
        watcher.join()
        return {"anonymous": peak[0], "resident": memory("VmHWM"), "seconds": taken}


def measure_elsewhere(number: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(number)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def cost_ratios(few: int, many: int, repeats: int = 3) -> list[float]:
    """Seconds per post of many by those of few, on the same posts; one warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        posts = make_posts(Path(folder, "posts.arrow"), many)

        def per_post(rows: range, name: str) -> float:
            return seconds(lambda: both_stages(posts.select(rows), Path(folder, name))) / len(rows)

        per_post(range(few), "warm-up")
        short = [per_post(range(i * few, (i + 1) * few), f"few{i}") for i in range(repeats)]
        long = per_post(range(many), "many")
        return [long / each for each in short]


def main() -> None:
    """Prints a row for each size; `--sizes` (first the one to compare with) and `--cost FEW MANY` choose others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--cost", type=int, nargs=2, default=(FEW, MANY))
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    print(HEADER, flush=True)
    base, *larger = ((size, measure_elsewhere(size)) for size in arguments.sizes)
    for size, found in larger:
        what = f"peak anonymous memory of stages 1 and 2, {size:,} posts ({found['anonymous']:,.0f} MB, resident"
        against = f"{base[0]:,} posts ({base[1]['anonymous']:,.0f} MB, resident {base[1]['resident']:,.0f} MB)"
        ratio = found["anonymous"] / base[1]["anonymous"]
        row(f"{what} {found['resident']:,.0f} MB, {found['seconds']:.0f} s)", against, [ratio], at_most=TARGET)
    few, many = arguments.cost
    row(f"seconds per post, {many:,} posts", f"{few:,} posts", cost_ratios(few, many), at_most=TARGET)


if __name__ == "__main__":
    main()
