"""IAPS: numbered photographs with mean human valence, arousal and dominance."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from datasets import Value

from .benchmark import Benchmark, Rows, ratings
from .dropped import Dropped
from .folder import not_this_dataset, pictures_by_stem, rating_problem, to_float

SCALE = (1.0, 9.0)


def read_iaps(folder: Path, dropped: Dropped) -> Rows:
    """
    Reads `AllSubjects_1-20.txt`, at any depth, beside pictures named by their number (`2034.jpg`, `2034.1.jpg`).

    The table is tab-separated; whatever stands before its header line is passed over. Dominance was asked in two ways
    and each picture has at least one of them: the first counts where it is there, else the second. Where a picture was
    rated in two sets, the first listing counts and the second is dropped as "listed twice".
    """
    tables = [f for f in folder.rglob("*") if f.name.lower().startswith("allsubjects") and f.suffix.lower() == ".txt"]
    if not tables:
        raise not_this_dataset("IAPS", folder, "AllSubjects_1-20.txt, and pictures such as 2034.jpg")
    pictures = pictures_by_stem(folder)
    rows = []
    for cells in _read_ratings(min(tables, key=lambda table: (len(table.parts), table.name)), dropped):
        number = cells["iaps"].removesuffix(".0")
        dominance = to_float(cells["dom1mn"])
        if math.isnan(dominance):
            dominance = to_float(cells["dom2mn"])
        row = {
            "image": str(pictures.get(number.lower(), folder / f"{number}.jpg")),
            "id": number,
            "valence": to_float(cells["valmn"]),
            "arousal": to_float(cells["aromn"]),
            "dominance": dominance,
            "description": cells.get("desc", ""),
            "set": cells.get("set", ""),
        }
        if problem := rating_problem(row, ("valence", "arousal", "dominance"), SCALE):
            dropped.add(number, problem)
        else:
            rows.append(row)
    return {"all": rows}


def _read_ratings(table: Path, dropped: Dropped) -> list[dict[str, str]]:
    """The rows under the header line, which is the first to name the columns."""
    columns = ("iaps", "valmn", "aromn", "dom1mn", "dom2mn")
    with table.open(encoding="latin-1", newline="") as stream:
        lines = [[cell.strip() for cell in line] for line in csv.reader(stream, "excel-tab", quoting=csv.QUOTE_NONE)]
    headers = (i for i, line in enumerate(lines) if set(columns) <= {cell.lower() for cell in line})
    start = next(headers, None)
    if start is None:
        raise ValueError(f"{table} has no header line with the tab-separated columns {', '.join(columns)}.")
    header = [cell.lower() for cell in lines[start]]
    rows = []
    for number, line in enumerate(lines[start + 1 :], start=start + 2):
        if len(line) >= len(header):
            rows.append(dict(zip(header, line, strict=False)))
        elif any(line):
            dropped.add(f"{table.name}:{number}", "line with too few cells")
    return rows


IAPS = Benchmark(
    name="iaps",
    title="IAPS",
    task="regression",
    columns=ratings("valence", "arousal", "dominance"),
    extra_columns={"description": Value("string"), "set": Value("string")},
    scale=SCALE,
    reader=read_iaps,
    citation="Lang, Bradley, Cuthbert: International Affective Picture System, technical report A-8, 2008",
)
