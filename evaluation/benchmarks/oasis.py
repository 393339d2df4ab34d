"""OASIS: photographs with mean human valence and arousal. Reads the original release and a plain table of ratings."""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Value

from .benchmark import Benchmark, Row, Rows, ratings
from .dropped import Dropped
from .folder import (
    find_file,
    not_this_dataset,
    pictures_by_stem,
    rating_problem,
    read_table,
    require_columns,
    to_float,
)

SCALE = (1.0, 7.0)


def read_oasis(folder: Path, dropped: Dropped, *, train_only: str | Path | None = None) -> Rows:
    """
    Reads `ratings.csv` (image, theme, category, valence, arousal; image paths relative to the folder), or the original
    release: `OASIS.csv` (Theme, Category, Valence_mean, Arousal_mean, …) beside `images/<Theme>.jpg`.

    Args:
        train_only (`str` or `Path`, *optional*): a text file with a theme on each line. Their pictures train and are
            never tested, because something that made the backbone has seen them; a run of PACL whose judge used OASIS
            leaves such a file, `reference_names.txt`.
    """
    table = find_file([folder], "ratings.csv", "OASIS.csv")
    if table is None:
        raise not_this_dataset("OASIS", folder, "ratings.csv or OASIS.csv, and a folder of pictures")
    rows = read_table(table)
    if "valence_mean" in (rows[0] if rows else {}):
        rows = _from_original(table, rows, folder)
    require_columns(table, rows, ("image", "theme", "category", "valence", "arousal"))
    kept = []
    for cells in rows:
        row: Row = {
            "image": str(folder / cells["image"]),
            "id": cells["image"],
            "valence": to_float(cells["valence"]),
            "arousal": to_float(cells["arousal"]),
            "theme": cells["theme"],
            "category": cells["category"],
        }
        if problem := rating_problem(row, ("valence", "arousal"), SCALE):
            dropped.add(row["id"], problem)
        else:
            kept.append(row)
    return {"all": kept} if train_only is None else _set_apart(kept, Path(train_only), table)


def _set_apart(rows: list[Row], names: Path, table: Path) -> Rows:
    """The rows of the themes that `names` lists as `train`, the others as `all`."""
    listed = {line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()}
    if unknown := sorted(listed - {row["theme"] for row in rows}):
        raise ValueError(f"{names} names themes that {table} doesn't have, such as {unknown[0]!r}.")
    return {
        "all": [row for row in rows if row["theme"] not in listed],
        "train": [row for row in rows if row["theme"] in listed],
    }


def _from_original(table: Path, rows: list[dict[str, str]], folder: Path) -> list[dict[str, str]]:
    """The original table's rows under the plain table's column names; a theme there ends in the picture's number."""
    require_columns(table, rows, ("theme", "category", "valence_mean", "arousal_mean"))
    pictures = pictures_by_stem(folder)
    return [
        {
            "image": pictures.get(row["theme"].lower(), folder / f"{row['theme']}.jpg").relative_to(folder).as_posix(),
            "theme": re.sub(r"\s*\d+$", "", row["theme"]),
            "category": row["category"],
            "valence": row["valence_mean"],
            "arousal": row["arousal_mean"],
        }
        for row in rows
    ]


OASIS = Benchmark(
    name="oasis",
    title="OASIS",
    task="regression",
    columns=ratings("valence", "arousal"),
    extra_columns={"theme": Value("string"), "category": Value("string")},
    group_by="theme",
    scale=SCALE,
    reader=read_oasis,
    citation="Kurdi, Lozano, Banaji: Introducing the Open Affective Standardized Image Set (OASIS), 2017",
)
