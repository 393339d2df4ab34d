"""Small posts on disk: pictures and tables that the tests of reading share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image


def make_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / name)


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(number: int) -> list[dict]:
    return [{"image": f"images/{i}.png", "text": f"post {i}", "label": "ab"[i % 2]} for i in range(number)]


def assert_five_good_posts(posts: Dataset, extra: set[str]) -> None:
    assert posts.column_names[:3] == ["image", "text", "row"]
    assert set(posts.column_names[3:]) == extra
    assert posts.features["image"] == datasets.Image()
    assert posts.features["text"] == datasets.Value("string")
    assert posts.features["row"] == datasets.Value("int64")
    assert posts["text"][:] == [f"post {i}" for i in range(5)]
    assert posts["row"][:] == list(range(5))
    assert [np.asarray(image)[0, 0, 0] for image in posts["image"]] == list(range(5))
