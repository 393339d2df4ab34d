"""Looking into a user's folder: finding its tables and pictures, checking them, and saying clearly when the folder
isn't the dataset. Every benchmark reader is built on these few functions."""

from __future__ import annotations

import csv
import math
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from tqdm.contrib.concurrent import thread_map

from .benchmark import Row
from .dropped import Dropped

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

#: What Pillow raises for files that it cannot read.
PICTURE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)

#: Left behind in folders by the desktop; nobody means them as data.
DESKTOP_FILES = frozenset({"thumbs.db", "desktop.ini"})


def not_this_dataset(title: str, folder: Path, expected: str) -> FileNotFoundError:
    """The error for a folder that isn't the dataset: what was expected in it and what was found."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    found = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    return FileNotFoundError(f"{folder} does not look like {title}. Expected {expected}; found {found or 'nothing'}.")


def subfolders(folder: Path) -> dict[str, Path]:
    """The visible folders directly inside `folder`, by lower-case name; none where `folder` is no folder."""
    if not folder.is_dir():
        return {}
    return {f.name.lower(): f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")}


def nested(folder: Path, names: Container[str]) -> Iterator[Path]:
    """`folder` itself, then the folders that lie in it under these (lower-case) names, nested in each other or not."""
    yield folder
    for name, subfolder in subfolders(folder).items():
        if name in names:
            yield from nested(subfolder, names)


def find_file(folders: Iterable[Path], *names: str) -> Path | None:
    """The first file of one of these names (letter case aside) in these folders, by order of the names."""
    present: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for file in sorted(folder.iterdir()):
                present.setdefault(file.name.lower(), file)
    files = (present[name.lower()] for name in names if name.lower() in present)
    return next((file for file in files if file.is_file()), None)


def walk_pictures(folder: Path, root: Path, dropped: Dropped) -> Iterator[Path]:
    """
    The picture files under `folder` at any depth, sorted, whatever the letter case of their extension.

    Files of other kinds are listed as dropped, by their path under `root`; hidden ones are passed over.
    """
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if hidden or file.name.lower() in DESKTOP_FILES or file.is_dir():
            continue
        if file.suffix.lower() in PICTURE_SUFFIXES:
            yield file
        else:
            dropped.add(file.relative_to(root).as_posix(), "not a picture file")


def pictures_by_stem(folder: Path) -> dict[str, Path]:
    """
    The picture files under `folder` by their lower-case name without extension: `2034.1.JPG` is `2034.1`.

    Of several with one name the first in sorted order stands.
    """
    pictures: dict[str, Path] = {}
    for file in walk_pictures(folder, folder, Dropped()):  # tables lie beside the pictures here and are no loss
        pictures.setdefault(file.stem.lower(), file)
    return pictures


def read_table(path: Path) -> list[dict[str, str]]:
    """
    The rows of a comma-separated table with a header line.

    Column names come in lower case, names and cells without surrounding blanks; a short line's last cells are empty.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, restkey="", restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a comma-separated table in UTF-8: {error}.") from error
    return [{name.strip().lower(): cell.strip() for name, cell in row.items() if name} for row in rows]


def require_columns(path: Path, rows: list[dict[str, str]], columns: Iterable[str]) -> None:
    """Raises a `ValueError` that names the columns missing from a table read by `read_table`."""
    if not rows:
        raise ValueError(f"{path} has no rows.")
    missing = [column for column in columns if column not in rows[0]]
    if missing:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(rows[0])}.")


def rating_problem(row: Row, columns: Iterable[str], scale: tuple[float, float]) -> str | None:
    """Why a row's ratings cannot be used: one is no number, or lies outside the scale; `None` when all are well."""
    low, high = scale
    for column in columns:
        if math.isnan(row[column]):
            return f"{column} is missing"
        if not low <= row[column] <= high:
            return f"{column} is outside {low:g} to {high:g}"
    return None


def to_float(cell: str) -> float:
    """A cell's number; NaN for what isn't one, such as the `.` of a missing value."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def drop_bad_pictures(rows: list[Row], dropped: Dropped, *, check_pixels: bool, desc: str) -> list[Row]:
    """The rows whose picture can be opened and whose id stands first; the others are listed in `dropped`."""
    paths = sorted({row["image"] for row in rows})
    problems = thread_map(
        lambda path: picture_problem(path, check_pixels), paths, max_workers=8, desc=desc, disable=None, leave=False
    )
    problem_of = dict(zip(paths, problems, strict=True))
    kept, seen = [], set()
    for row in rows:
        if problem := problem_of[row["image"]]:
            dropped.add(row["id"], problem)
        elif row["id"] in seen:
            dropped.add(row["id"], "listed twice")
        else:
            seen.add(row["id"])
            kept.append(row)
    return kept


def picture_problem(path: str, check_pixels: bool = False) -> str | None:
    """
    Why the picture at `path` cannot be used, or `None`.

    Only the header is read, which is quick but lets a file through that ends early; `check_pixels` decodes it all.
    """
    try:
        if Path(path).stat().st_size == 0:
            return "picture file is empty (0 bytes)"
        with Image.open(path) as picture:
            if check_pixels:
                picture.load()
    except FileNotFoundError:
        return "picture file not found"
    except UnidentifiedImageError:
        return "not a picture"
    except PICTURE_ERRORS:
        return "picture cannot be decoded"
    return None
