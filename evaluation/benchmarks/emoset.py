"""EmoSet-118K: pictures in the eight emotions of FI, newer and larger, with an official split."""

from __future__ import annotations

import json
from pathlib import Path

from .benchmark import Benchmark, Row, Rows, classes
from .class_folders import MIKELS
from .dropped import Dropped
from .folder import find_file, not_this_dataset

TABLES = {"train": "train.json", "validation": "val.json", "test": "test.json"}


def read_emoset(folder: Path, dropped: Dropped) -> Rows:
    """
    Reads `train.json`, `val.json` and `test.json`: rows `[emotion, image, annotation]` or
    `[emotion, id, image, annotation]`, the image by its path in the folder.
    """
    rows: Rows = {}
    for split, name in TABLES.items():
        table = find_file([folder], name)
        if table is None:
            raise not_this_dataset("EmoSet-118K", folder, f"{', '.join(TABLES.values())}, and the folder image/")
        rows[split] = _read_list(table, folder, dropped)
    return rows


def _read_list(table: Path, folder: Path, dropped: Dropped) -> list[Row]:
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{table} is not JSON: {error}.") from error
    rows: list[Row] = []
    for number, entry in enumerate(entries):
        match entry:
            case [str(emotion), str(image), _] | [str(emotion), _, str(image), _] if emotion.lower() in MIKELS:
                rows.append({"image": str(folder / image), "id": image, "label": emotion.lower()})
            case [_, _, _] | [_, _, _, _]:
                dropped.add(f"{table.name}:{number}", "unknown emotion")
            case _:
                dropped.add(f"{table.name}:{number}", "row is not [emotion, (id,) image, annotation]")
    return rows


EMOSET = Benchmark(
    name="emoset",
    title="EmoSet-118K",
    task="single_label",
    columns={"label": classes(*MIKELS)},
    reader=read_emoset,
    citation="Yang, Huang, Ding, Lischinski, Cohen-Or, Huang: EmoSet, ICCV 2023",
)
