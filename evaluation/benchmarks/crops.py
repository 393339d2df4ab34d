"""Crops of the people in a picture, written once to a folder of the user's choice: Emotic's pictures by person."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from .benchmark import Row
from .dropped import Dropped
from .folder import PICTURE_ERRORS, picture_problem


def crop_people(rows: list[Row], crop_dir: Path, dropped: Dropped) -> list[Row]:
    """Writes each person's crop, decoding each picture once, and returns the rows with their crops as images."""
    people_of: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        people_of[row["image"]].append(row)

    def crop(image: str) -> list[str | None]:
        return _crop_picture(image, people_of[image], crop_dir)

    results = thread_map(crop, list(people_of), max_workers=8, desc="Emotic: cropping", disable=None, leave=False)
    problems: dict[str, str] = {}
    for people, found in zip(people_of.values(), results, strict=True):
        problems |= {row["id"]: problem for row, problem in zip(people, found, strict=True) if problem}
    for row_id, problem in problems.items():
        dropped.add(row_id, problem)
    return [row | {"image": str(_crop_path(row, crop_dir))} for row in rows if row["id"] not in problems]


def _crop_path(row: Row, crop_dir: Path) -> Path:
    picture = Path(row["image"])
    box = "_".join(str(number) for number in row["bbox"])
    return crop_dir / picture.parent.parent.name / f"{picture.stem}_{box}.jpg"


def _crop_picture(image: str, people: list[Row], crop_dir: Path) -> list[str | None]:
    """Writes the crops of one picture's people; returns for each why there is none, or `None`."""
    if all(_is_fresh(_crop_path(row, crop_dir), Path(image)) for row in people):
        return [None] * len(people)
    try:
        with Image.open(image) as picture:
            whole = picture.convert("RGB")
    except PICTURE_ERRORS:
        return [picture_problem(image, check_pixels=True)] * len(people)
    return [_write_crop(whole, row["bbox"], _crop_path(row, crop_dir)) for row in people]


def _is_fresh(crop: Path, picture: Path) -> bool:
    """Whether a crop is there that is younger than its picture."""
    return crop.exists() and picture.exists() and crop.stat().st_mtime_ns >= picture.stat().st_mtime_ns


def _write_crop(whole: Image.Image, bbox: list[int], path: Path) -> str | None:
    left, top, right, bottom = np.clip(bbox, 0, [*whole.size, *whole.size]).tolist()
    if right <= left or bottom <= top:
        return "body box lies outside the picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")  # so that a crop that was cut short is never taken for a whole one
    whole.crop((left, top, right, bottom)).save(part, format="JPEG", quality=95)
    os.replace(part, path)
    return None
