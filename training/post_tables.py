"""Finds out what kind of thing the user's posts are in, and opens it as a memory-mapped table.

`posts.py` calls it first and then looks at the posts themselves. Tables are read by datasets' own readers, made to say
what is wrong with a file and where; the folders of TumEmo and MVSA have `post_folders.py`.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetsError

from .post_folders import MVSA_INDEX, PROCESSED_INDEX, TUMEMO_INDEX, read_mvsa_index, read_tumemo_index

PostFormat: TypeAlias = Literal["json", "csv", "parquet", "imagefolder", "saved", "tumemo", "mvsa", "hub"]

_FILE_FORMATS: dict[str, PostFormat] = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_FOLDER_SIGNS: dict[PostFormat, tuple[str, ...]] = {
    "saved": ("dataset_dict.json", "state.json"),
    "tumemo": (TUMEMO_INDEX, PROCESSED_INDEX),
    "mvsa": (MVSA_INDEX,),
    "imagefolder": (*_METADATA, *(f"*/{name}" for name in _METADATA)),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EXPECTED = f"""Posts are read from
  a {", ".join(_FILE_FORMATS)} file with a column of image paths and one of texts,
  an imagefolder: pictures with a {" or ".join(_METADATA)} that has file_name and a column of texts,
  a folder that Dataset.save_to_disk has written,
  a TumEmo folder, which holds {TUMEMO_INDEX} or {PROCESSED_INDEX},
  an MVSA folder, which holds {MVSA_INDEX},
  a dataset on the Hub, given as owner/name."""


@dataclass(frozen=True)
class PostTable:
    """
    An opened source of posts.

    Args:
        table (`datasets.Dataset`):
            One row for each post: `image` (a path, or an undecoded `Image`), `text`, and all other columns.
        folder (`str`):
            Where relative image paths start.
        name (`str`):
            What to call the source in messages.
        in_files (`bool`):
            Whether `text` holds the paths of text files, and a column `reason` what the index itself rules out.
    """

    table: Dataset
    folder: str
    name: str
    in_files: bool


def open_table(source: str, format: PostFormat | None, image_column: str, text_column: str, split: str) -> PostTable:
    """
    Opens a source of posts; the arguments and errors are those of [`read_posts`].

    Returns:
        [`PostTable`]: Its table has at least one row.
    """
    format = _detect_format(source) if format is None else _check_format(source, format)
    if format == "imagefolder":  # its metadata is a table like any other
        source, split = _find_metadata(Path(source), split), "train"
        format = _FILE_FORMATS[Path(source).suffix]
        image_column = "file_name" if image_column == "image" else image_column
    if format == "hub":
        table = _read_hub(source, split)
    elif format == "saved":
        table = _read_saved(source, split)
    elif split != "train":
        raise ValueError(f"{source} has no splits; leave split at 'train' instead of {split!r}.")
    elif format == "tumemo":
        table = read_tumemo_index(Path(source))
    elif format == "mvsa":
        table = read_mvsa_index(Path(source))
    else:
        table = _read_file(source, format, image_column, text_column)
    if len(table) == 0:
        raise ValueError(f"{source} holds no posts.")
    path = os.path.abspath(source)
    return PostTable(
        table=_name_columns(table, source, image_column, text_column),
        folder=os.path.dirname(path) if os.path.isfile(path) else path,
        name=source,
        in_files=format in ("tumemo", "mvsa"),
    )


def _detect_format(source: str) -> PostFormat:
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() in _FILE_FORMATS:
            return _FILE_FORMATS[path.suffix.lower()]
        raise ValueError(f"{source} is not a kind of file that posts are read from.\n{_EXPECTED}")
    if path.is_dir():
        for format, signs in _FOLDER_SIGNS.items():
            if any(next(path.glob(sign), None) for sign in signs):
                return format
        names = sorted(entry.name for entry in islice(os.scandir(path), 8))
        table = next((name for name in names if Path(name).suffix.lower() in _FILE_FORMATS), None)
        hint = f"; is {path / table} meant?" if table else "."
        found = f"Found in it: {', '.join(names)}" if names else "It is empty"
        raise ValueError(f"The folder {source} has none of the known layouts. {found}{hint}\n{_EXPECTED}")
    if _HUB_ID.fullmatch(source) and path.suffix.lower() not in _FILE_FORMATS:
        return "hub"
    raise FileNotFoundError(f"{source} does not exist.\n{_EXPECTED}")


def _check_format(source: str, format: PostFormat) -> PostFormat:
    if format not in get_args(PostFormat):
        raise ValueError(f"Unknown format {format!r}; the known ones are {', '.join(get_args(PostFormat))}.")
    if format == "hub":
        return format
    if not os.path.exists(source):
        raise FileNotFoundError(f"{source} does not exist.")
    found, wanted = (
        "file" if is_file else "folder" for is_file in (os.path.isfile(source), format in _FILE_FORMATS.values())
    )
    if found != wanted:
        raise ValueError(f"{source} is a {found}, but format {format!r} is read from a {wanted}.")
    return format


def _read_file(path: str, format: PostFormat, image_column: str, text_column: str) -> Dataset:
    if format == "parquet":
        options: dict[str, Any] = {}
    elif format == "json":
        _refuse_unreadable_lines(path, expected=1)
        options = {"parse_agent_traces": False}
    else:
        _refuse_unreadable_lines(path, expected=2)
        options = {"sep": "\t" if path.lower().endswith(".tsv") else ",", "na_values": ["", "nan", "NaN"]}
        _refuse_ragged_csv(path, options["sep"])
        # Left alone, pandas takes a text such as "None" or "007" for a missing value or a number.
        options |= {"converters": {image_column: str, text_column: str}, "keep_default_na": False}
    try:
        return _load_file(path, format, options)
    except (DatasetsError, ValueError) as error:
        if format == "json":
            _refuse_malformed_json(path)
        raise ValueError(
            f"{path} cannot be read as {format}: {error.__cause__ or error}. "
            "Check that each column is of one type in all rows."
        ) from error


def _load_file(path: str, format: PostFormat, options: dict[str, Any]) -> Dataset:
    load = partial(load_dataset, format, data_files=glob.escape(path), split="train", **options)
    try:
        return load()
    except DatasetGenerationError:
        if format == "parquet":
            raise
        # Types are told from the first chunk alone: a column that is blank in it, or begins later, needs the whole.
        return load(chunksize=os.path.getsize(path))


def _refuse_unreadable_lines(path: str, expected: int) -> None:
    """Arrow takes whatever bytes a JSON file has for UTF-8, and fails only where a text is first looked at."""
    with open(path, "rb") as file:
        if len(list(islice(filter(bytes.strip, file), expected))) < expected:
            raise ValueError(f"{path} holds no posts.")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if not _is_utf8(line):
                raise ValueError(f"{path}, line {number}: not UTF-8. Save the file in that encoding.")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refuse_ragged_csv(path: str, delimiter: str) -> None:
    """pandas fills a short row with nulls and takes the first column of a long one for an index, in silence."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, delimiter=delimiter)
        try:
            width = len(next(rows, ()))
            for fields in rows:
                if fields and len(fields) != width:
                    raise ValueError(f"{len(fields)} fields where the header has {width}")
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}.") from error


def _refuse_malformed_json(path: str) -> None:
    """Names the line at fault, which datasets' reader does not."""
    with open(path, "rb") as file:
        if file.read(1000).lstrip(b"\xef\xbb\xbf\t\r\n ").startswith(b"["):
            return  # one list over many lines: the reader's error tells the position in it
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if fault := _json_fault(line.strip()):
                raise ValueError(f"{path}, line {number}: {fault}.")


def _json_fault(line: bytes) -> str | None:
    try:
        return None if not line or isinstance(json.loads(line), dict) else "expected an object in braces"
    except ValueError as error:
        return str(error)


def _find_metadata(folder: Path, split: str) -> str:
    """
    The metadata file of an imagefolder's split, whose reading needs no look at the pictures; datasets' own reader of
    imagefolders first lists and stats them all, which takes minutes at a million.
    """
    places = (folder / split, folder) if split == "train" else (folder / split,)
    metadata = next((place / name for place in places for name in _METADATA if (place / name).is_file()), None)
    if metadata is None:
        found = ", ".join(sorted({path.parent.name for name in _METADATA for path in folder.glob(f"*/{name}")}))
        raise ValueError(
            f"{folder} is no imagefolder with a {' or '.join(_METADATA)} for split {split!r} "
            f"({f'there are {found}' if found else 'there is none for any split'})."
        )
    return str(metadata)


def _read_saved(source: str, split: str) -> Dataset:
    try:
        saved = load_from_disk(source)
    except (DatasetsError, ValueError, OSError) as error:
        raise ValueError(f"{source} was not written by Dataset.save_to_disk, or is damaged: {error}") from error
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; its splits are {', '.join(splits)}.")
    return splits[split]


def _read_hub(source: str, split: str) -> Dataset:
    try:
        return load_dataset(source, split=split)
    except ConnectionError as error:
        raise ConnectionError(
            f"{source} is no file or folder here, and as a dataset on the Hub it cannot be reached: {error}. Offline, "
            "give the folder that Dataset.save_to_disk has written where there is a network."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{source} is neither a file or folder here nor a dataset on the Hub: {error}"
        ) from error
    except (DatasetsError, ValueError) as error:
        raise ValueError(f"The dataset {source} of the Hub cannot be read: {error.__cause__ or error}") from error


def _name_columns(table: Dataset, source: str, image_column: str, text_column: str) -> Dataset:
    """Calls the two columns `image` and `text`, and refuses what cannot be that."""
    missing = {image_column, text_column}.difference(table.column_names)
    if missing:
        raise ValueError(
            f"{source} has no column {' and no column '.join(map(repr, sorted(missing)))}; its columns are "
            f"{', '.join(map(repr, table.column_names))}. Say which to take by image_column and text_column."
        )
    for column, name in ((image_column, "image"), (text_column, "text")):
        if name in set(table.column_names) - {image_column, text_column}:
            raise ValueError(
                f"{source}: column {column!r} cannot become {name!r}, as there is another column {name!r}."
            )
    table = table.rename_columns({image_column: "image", text_column: "text"})

    image, text, row = (table.features.get(name) for name in ("image", "text", "row"))
    if not _is_string(text):
        raise ValueError(f"{source}: column {text_column!r} holds {text}, not texts.")
    if _is_image(image):
        table = table.cast_column("image", Image(decode=False))
    elif not _is_string(image):
        raise ValueError(f"{source}: column {image_column!r} holds {image}, not images or their paths.")
    if row is not None:
        is_number = row == Value("int64") and pc.count_distinct(table.data.column("row")).as_py() == len(table)
        if not is_number:
            raise ValueError(
                f"{source}: column 'row' has to be the posts' numbers, each once (int64); rename this one."
            )
    return table


def _is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "null")


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):  # how an image is stored where the feature's type was not kept
        return feature.keys() == {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))
