"""Reads the index of a TumEmo or MVSA folder into a table of paths; `posts.py` then opens the files it points to."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

TUMEMO_INDEX = "all_data_id_and_label.txt"
PROCESSED_INDEX = "labelProcessed.json"
MVSA_INDEX = "labelResultAll.txt"

# `image` and `text` are paths here; `reason` is why the index itself rules a post out, null for all others.
_FEATURES = Features({column: Value("string") for column in ("image", "text", "id", "label", "reason")})
_POLARITIES = {"positive", "neutral", "negative"}


def read_tumemo_index(folder: Path) -> Dataset:
    """
    Reads the index of a TumEmo folder in either of its two layouts.

    One is the release: `all_data_id_and_label.txt` with `<id> <Label>` lines below a header, and the posts beside it
    or in a folder `all_data` or `data`. The other is that of the paper's released code: `labelProcessed.json`, a list
    of `{"id", "image_text"}` where `image_text` is the label, and the posts in `dataset_image`.

    Args:
        folder (`Path`): Where the index lies.

    Returns:
        `Dataset`: Columns `image` and `text` (paths), `id`, `label` and `reason` (always null).

    Raises:
        `FileNotFoundError`: If the folder has neither index.
        `ValueError`: If an entry of the index is not as above; says the line or the entry.
    """
    if (folder / TUMEMO_INDEX).is_file():
        places = (folder / "all_data", folder / "data", folder)
        return _read_index(_tumemo_rows, folder / TUMEMO_INDEX, next(place for place in places if place.is_dir()))
    if (folder / PROCESSED_INDEX).is_file():
        return _read_index(_processed_rows, folder / PROCESSED_INDEX, folder / "dataset_image")
    raise FileNotFoundError(f"{folder} is no TumEmo folder: it has neither {TUMEMO_INDEX} nor {PROCESSED_INDEX}.")


def read_mvsa_index(folder: Path) -> Dataset:
    """
    Reads the index of an MVSA-Single or MVSA-Multiple folder: `labelResultAll.txt` with lines such as
    `1<TAB>neutral,positive` (label of the text, label of the image; three such columns in Multiple) below a header,
    and the posts in `data`.

    The labels of a post are merged in the usual way (Xu and Mao, 2017): in Multiple the majority of each modality
    first; then equal labels stay, a neutral one yields to the other, and a post whose modalities contradict each other
    (or that has no majority) is ruled out.

    Args:
        folder (`Path`): Where the index lies.

    Returns:
        `Dataset`: Columns `image` and `text` (paths), `id`, `label` and `reason`; one of the last two is null.

    Raises:
        `FileNotFoundError`: If the folder has no such index.
        `ValueError`: If a line of the index is not as above; says which.
    """
    if not (folder / MVSA_INDEX).is_file():
        raise FileNotFoundError(f"{folder} is no MVSA folder: it has no {MVSA_INDEX}.")
    return _read_index(_mvsa_rows, folder / MVSA_INDEX, folder / "data")


def merge_labels(pairs: list[tuple[str, ...]]) -> tuple[str | None, str | None]:
    """
    Merges the annotators' `(text label, image label)` pairs of an MVSA post into one label.

    Returns:
        `tuple`: The label and `None`, or `None` and the reason why there is none.
    """
    majority = []
    for modality, labels in zip(("text", "image"), zip(*pairs, strict=True), strict=True):
        label, votes = Counter(labels).most_common(1)[0]
        if votes <= len(labels) / 2:
            return None, f"no majority label: {modality} {', '.join(labels)}"
        majority.append(label)
    text_label, image_label = majority
    if text_label == image_label or image_label == "neutral":
        return text_label, None
    if text_label == "neutral":
        return image_label, None
    return None, f"contradictory labels: text {text_label}, image {image_label}"


def _read_index(rows: Callable[[str, str], Iterator[dict[str, Any]]], index: Path, posts: Path) -> Dataset:
    """Streams an index into a cached Arrow table that is read anew when the index changes."""
    index, posts = index.absolute(), posts.absolute()
    if not posts.is_dir():
        raise FileNotFoundError(f"{index} is there, but the folder {posts} with its posts is not.")
    state = index.stat()
    fingerprint = Hasher.hash(
        (rows.__name__, str(index), str(posts), state.st_size, state.st_mtime_ns, version("pacl"))
    )
    arguments = {"index": str(index), "posts": str(posts)}
    try:
        return Dataset.from_generator(rows, features=_FEATURES, gen_kwargs=arguments, fingerprint=fingerprint)
    except DatasetGenerationError as error:
        raise ValueError(f"{index}: {error.__cause__ or error}") from error


def _row(posts: str, post_id: str, label: str | None, reason: str | None = None) -> dict[str, str | None]:
    stem = os.path.join(posts, post_id)
    return {"image": f"{stem}.jpg", "text": f"{stem}.txt", "id": post_id, "label": label, "reason": reason}


def _lines(index: str) -> Iterator[tuple[int, str]]:
    """The lines below the header, each with its number; blank ones are skipped."""
    with open(index, encoding="utf-8-sig") as file:
        next(file, None)
        is_empty = True
        for number, line in enumerate(file, start=2):
            if line.strip():
                is_empty = False
                yield number, line.strip()
    if is_empty:
        raise ValueError("it holds no posts.")


def _tumemo_rows(index: str, posts: str) -> Iterator[dict[str, Any]]:
    for number, line in _lines(index):
        fields = line.split()
        if len(fields) != 2:
            raise ValueError(f"line {number}: expected '<id> <Label>', found {line[:80]!r}.")
        yield _row(posts, *fields)


def _processed_rows(index: str, posts: str) -> Iterator[dict[str, Any]]:
    with open(index, encoding="utf-8-sig") as file:
        entries = json.load(file)
    if not entries:
        raise ValueError("it holds no posts.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"id", "image_text"} <= entry.keys():
            raise ValueError(f'entry {number}: expected {{"id", "image_text"}}, found {str(entry)[:80]}.')
        yield _row(posts, str(entry["id"]), str(entry["image_text"]))


def _mvsa_rows(index: str, posts: str) -> Iterator[dict[str, Any]]:
    for number, line in _lines(index):
        post_id, *annotations = line.split("\t")
        pairs = [tuple(label.strip().lower() for label in annotation.split(",")) for annotation in annotations]
        if len(pairs) not in (1, 3) or any(len(pair) != 2 or not set(pair) <= _POLARITIES for pair in pairs):
            raise ValueError(
                f"line {number}: expected '<id><TAB><text label>,<image label>', with the pair once or three times "
                f"and each label one of {', '.join(sorted(_POLARITIES))}; found {line[:80]!r}."
            )
        yield _row(posts, post_id, *merge_labels(pairs))
