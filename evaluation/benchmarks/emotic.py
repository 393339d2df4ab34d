"""Emotic: people in context, each with any of 26 emotion categories and with valence, arousal and dominance; one
benchmark for either task."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import List, Value
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from .benchmark import Benchmark, Row, Rows, class_lists, ratings
from .crops import crop_people
from .dropped import Dropped
from .folder import (
    find_file,
    nested,
    not_this_dataset,
    rating_problem,
    read_table,
    require_columns,
    subfolders,
    to_float,
)

CATEGORIES = (
    "Affection",
    "Anger",
    "Annoyance",
    "Anticipation",
    "Aversion",
    "Confidence",
    "Disapproval",
    "Disconnection",
    "Disquietment",
    "Doubt/Confusion",
    "Embarrassment",
    "Engagement",
    "Esteem",
    "Excitement",
    "Fatigue",
    "Fear",
    "Happiness",
    "Pain",
    "Peace",
    "Pleasure",
    "Sadness",
    "Sensitivity",
    "Suffering",
    "Surprise",
    "Sympathy",
    "Yearning",
)

VAD = ("valence", "arousal", "dominance")
SCALE = (1.0, 10.0)
SPLITS = {"train": "train", "validation": "val", "test": "test"}
IMAGE_FOLDERS = ("emotic", "cvpr_emotic")
ANNOTATION_FOLDERS = ("annotations", "emotic_pre", "annotations_pre", *IMAGE_FOLDERS)
SOURCES = ("ade20k", "emodb_small", "framesdb", "mscoco")


def _bare(category: str) -> str:
    return re.sub(r"[^a-z]", "", category.lower())


#: Categories by their letters; the releases spell two of them in several ways.
BY_LETTERS = {_bare(category): category for category in CATEGORIES} | {
    "disquitement": "Disquietment",
    "doubtconfuzion": "Doubt/Confusion",
}


def emotic_reader(columns: tuple[str, ...]) -> Callable[..., Rows]:
    """
    A reader of one row per person with these label columns, `categories` or the three ratings.

    The picture is the whole one by default, context and all, as backbones see pictures elsewhere; where it shows
    several people, their rows share it.
    """

    def read(folder: Path, dropped: Dropped, *, crop_dir: str | Path | None = None) -> Rows:
        """
        Reads `Annotations.mat` or `CVPR17_Annotations.mat`, or `train.csv`, `val.csv` and `test.csv`; the pictures lie
        as `<source>/images/<file>` under `emotic/`, `cvpr_emotic/` or the folder itself.

        Args:
            crop_dir (`str` or `Path`, *optional*): a folder for crops of each person's body, to use in place of the
                whole pictures; crops that are there already are used again.
        """
        roots = list(nested(folder, IMAGE_FOLDERS))
        root = next((r for r in roots if any(source in subfolders(r) for source in SOURCES)), None)
        people = _find_people(folder)
        if root is None or people is None:
            expected = (
                "Annotations.mat, CVPR17_Annotations.mat or train.csv, val.csv and test.csv, and pictures in "
                f"{', '.join(SOURCES)}, inside emotic/ or cvpr_emotic/ or not"
            )
            raise not_this_dataset("Emotic", folder, expected)
        rows: Rows = {}
        for split, found in people.items():
            rows[split] = _usable(found, root, columns, dropped)
            if crop_dir is not None:
                rows[split] = crop_people(rows[split], Path(crop_dir).expanduser().resolve(), dropped)
        return rows

    return read


def _find_people(folder: Path) -> dict[str, list[Row]] | None:
    """Every annotated person by split, from whichever annotation is there."""
    places = list(nested(folder, ANNOTATION_FOLDERS))
    mat = find_file(places, "Annotations.mat", "CVPR17_Annotations.mat")
    if mat is not None:
        try:
            content = loadmat(mat, simplify_cells=True)
        except (MatReadError, NotImplementedError, OSError, ValueError) as error:
            raise ValueError(f"{mat} cannot be read as a MATLAB file: {error}.") from error
        if missing := [key for key in SPLITS.values() if key not in content]:
            raise ValueError(f"{mat} lacks the key(s) {', '.join(missing)}.")
        return {split: list(_people_of_mat(content[key])) for split, key in SPLITS.items()}
    tables = {split: find_file(places, f"{key}.csv") for split, key in SPLITS.items()}
    found = {split: list(_people_of_csv(table)) for split, table in tables.items() if table is not None}
    return found if len(found) == len(SPLITS) else None


def _people_of_mat(pictures: Any) -> Iterator[Row]:
    """
    The people of one split of the .mat.

    Where several annotators saw a person, the release combines them (`combined_categories`, `combined_continuous`);
    the training split has one annotator and no such fields.
    """
    for picture in _items(pictures):
        for person in _items(picture["person"]):
            categories = person.get("combined_categories")
            if categories is None:
                categories = [
                    c for note in _items(person["annotations_categories"]) for c in _items(note["categories"])
                ]
            notes = _items(person.get("combined_continuous", person["annotations_continuous"]))
            yield {
                "file": f"{picture['folder']}/{picture['filename']}",
                "bbox": np.asarray(person["body_bbox"]).tolist(),
                "categories": list(dict.fromkeys(_items(categories))),
                **{name: float(np.mean([note[name] for note in notes])) if notes else math.nan for name in VAD},
            }


def _people_of_csv(table: Path) -> Iterator[Row]:
    """The people of one table: `Index,Folder,Filename,Image Size,BBox,Categorical_Labels,Continuous_Labels,…`."""
    rows = read_table(table)
    require_columns(table, rows, ("folder", "filename", "bbox", "categorical_labels", "continuous_labels"))
    for cells in rows:
        vad = [to_float(number) for number in cells["continuous_labels"].strip("[]").split(",")]
        yield {
            "file": f"{cells['folder']}/{cells['filename']}",
            "bbox": [float(number) for number in re.findall(r"-?\d+\.?\d*", cells["bbox"])],
            "categories": re.findall(r"""['"]([^'"]+)['"]""", cells["categorical_labels"]),
            **dict(zip(VAD, (vad + [math.nan] * len(VAD))[: len(VAD)], strict=True)),
        }


def _items(value: Any) -> list[Any]:
    """What `loadmat` gives for a struct or cell array, as a list: one element comes bare, none as an empty array."""
    if isinstance(value, np.ndarray | list | tuple):
        return list(value)
    return [] if value is None else [value]


def _usable(people: list[Row], root: Path, columns: tuple[str, ...], dropped: Dropped) -> list[Row]:
    """The people who have the wanted labels, as rows; the others are listed in `dropped`."""
    rows = []
    count: Counter[str] = Counter()
    for person in people:
        count[person["file"]] += 1
        row = {
            "image": str(root / person["file"]),
            "id": f"{person['file']}#{count[person['file']]}",
            "bbox": [round(number) for number in person["bbox"]],
            **{column: person[column] for column in columns},
        }
        if problem := _label_problem(row):
            dropped.add(row["id"], problem)
            continue
        if "categories" in row:
            row["categories"] = [BY_LETTERS[_bare(category)] for category in row["categories"]]
        rows.append(row)
    return rows


def _label_problem(row: Row) -> str | None:
    if len(row["bbox"]) != 4:
        return "body box is not four numbers"
    if "categories" not in row:
        return rating_problem(row, VAD, SCALE)
    if not row["categories"]:
        return "person without categories"
    if any(_bare(category) not in BY_LETTERS for category in row["categories"]):
        return "unknown category"
    return None


_PAPER = "Kosti, Alvarez, Recasens, Lapedriza: Context Based Emotion Recognition Using EMOTIC Dataset, TPAMI 2020"
_BOX = {"bbox": List(Value("int32"), length=4)}

EMOTIC = Benchmark(
    name="emotic",
    title="Emotic",
    task="multi_label",
    columns={"categories": class_lists(*CATEGORIES)},
    extra_columns=_BOX,
    reader=emotic_reader(("categories",)),
    citation=_PAPER,
)

EMOTIC_VAD = Benchmark(
    name="emotic_vad",
    title="Emotic-VAD",
    of="emotic",
    task="regression",
    columns=ratings(*VAD),
    extra_columns=_BOX,
    scale=SCALE,
    reader=emotic_reader(VAD),
    citation=_PAPER,
)
