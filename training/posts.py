"""Reads image-text posts from whatever a user has into one `datasets.Dataset`; every later stage starts from that.

Tables come from datasets' own readers and stay memory-mapped. What cannot be used is refused here, row by row, before
any model runs: a picture that is missing, empty or no image, and a text that is missing or blank.
"""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import pyarrow as pa
from datasets import Dataset, Features, Image, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from .images import check_image
from .post_tables import PostFormat, open_table
from .rejections import Rejections

logger = logging.getLogger(__name__)

_BATCH_SIZE = 2000
# The threads wait for disks and not for a core: on a network file system they hide the latency of many small reads.
_THREADS = 16


def read_posts(
    source: str | os.PathLike[str],
    *,
    format: PostFormat | None = None,
    image_column: str = "image",
    text_column: str = "text",
    split: str = "train",
    limit: int | None = None,
    rejections: Rejections | None = None,
) -> Dataset:
    """
    Reads image-text posts.

    Args:
        source (`str` or `os.PathLike`):
            A JSON, JSONL, CSV, TSV or Parquet file, an imagefolder with metadata, a folder saved by datasets, a TumEmo
            or MVSA folder, or the id of a dataset on the Hub. Image paths in a table are absolute or relative to its
            folder.
        format (`str`, *optional*):
            `"json"`, `"csv"`, `"parquet"`, `"imagefolder"`, `"saved"`, `"tumemo"`, `"mvsa"` or `"hub"`; by default
            what `source` looks like.
        image_column, text_column (`str`, defaults to `"image"` and `"text"`):
            What the two columns are called in the source.
        split (`str`, defaults to `"train"`):
            Which split to read, where the source has several.
        limit (`int`, *optional*):
            Read only the first so many usable posts, and look at few more of the source than that takes.
        rejections ([`Rejections`], *optional*):
            Where the posts that cannot be used are put, as stage `"read"`. By default their counts are logged.

    Returns:
        `datasets.Dataset`: Columns `image` (`Image`; picture files stay where they are), `text` (`string`), `row`
        (`int64`, the post's index in the source; a source that already has this column, such as a dataset saved by an
        earlier stage, keeps it) and all others of the source. Its fingerprint changes with the table and with the size
        or date of any file it points to.

    Raises:
        `FileNotFoundError`: If the source does not exist.
        `ValueError`: If its format is not recognised, a column is missing, the table is malformed (says the line), or
            not one of its posts can be used.
        `ConnectionError`: If the dataset should come from the Hub and that cannot be reached.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}.")
    opened = open_table(os.fspath(source), format, image_column, text_column, split)
    table = opened.table

    # A little more than asked for, as some will be unusable; more than that only if it does not suffice.
    window = len(table) if limit is None else min(limit + limit // 10 + 100, len(table))
    while True:
        head = table if window == len(table) else table.select(range(window))
        checked = _check_posts(head, opened.folder, opened.in_files)
        is_usable = np.asarray(checked.data.column("reason").is_null())
        if limit is None or window == len(table) or is_usable.sum() >= limit:
            break
        window = min(2 * window, len(table))

    usable = np.flatnonzero(is_usable)[:limit]
    examined = usable[-1] + 1 if len(usable) == limit else window
    posts = _join(head, checked)
    refused = np.flatnonzero(~is_usable[:examined])
    _report(opened.name, posts.select(refused), checked.select(refused)["reason"][:], len(usable), rejections)
    return posts if len(usable) == len(posts) else posts.select(usable)


def _check_posts(table: Dataset, folder: str, in_files: bool) -> Dataset:
    """
    Looks at every post once; the verdicts are cached, keyed by the table and the state of every file it points to.

    Returns:
        `Dataset`: `reason` (null where nothing is wrong), and those of `image`, `text` and `row` that the table does
        not yet hold as they should be.
    """
    features = Features({"reason": Value("string")})
    if isinstance(table.features["image"], Value):
        features["image"] = Image()
    if in_files or table.features["text"] != Value("string"):
        features["text"] = Value("string")
    if "row" not in table.features:
        features["row"] = Value("int64")

    columns = ["image", "text", *(["reason"] if in_files else [])]
    view = table.select_columns(columns).with_format("arrow")
    with ThreadPoolExecutor(_THREADS) as pool:
        files = _state_of_files(view, folder, in_files, pool)
        # PIL's version, because a newer one may read what this one cannot.
        fingerprint = Hasher.hash((table._fingerprint, folder, files, PIL.__version__, version("pacl")))
        checked = view.map(
            partial(_check_batch, folder=folder, in_files=in_files, features=features, pool=pool),
            batched=True,
            batch_size=_BATCH_SIZE,
            with_indices=True,
            remove_columns=columns,
            features=features,
            new_fingerprint=fingerprint,
            # Not beside the table, where a saved dataset may be read-only.
            cache_file_name=str(Path(datasets.config.HF_DATASETS_CACHE, "pacl_posts", f"{fingerprint}.arrow")),
            desc="Checking posts",
        )
    return checked.with_format(None)


def _state_of_files(view: Dataset, folder: str, in_files: bool, pool: ThreadPoolExecutor) -> str:
    """A digest of size and date of every file that the table points to."""
    digest = hashlib.sha256()
    for batch in view.iter(batch_size=_BATCH_SIZE):
        paths = [image["path"] for image in _stored_images(batch["image"], folder) if image["bytes"] is None]
        paths += batch["text"].to_pylist() if in_files else []
        for states in pool.map(_stat_files, _shares(paths)):
            digest.update(states)
    return digest.hexdigest()


def _stat_files(paths: list[str | None]) -> bytes:
    return np.array([_stat_file(path) for path in paths], dtype=np.int64).tobytes()


def _stat_file(path: str | None) -> tuple[int, int]:
    try:
        state = os.stat(path or "")
    except (OSError, ValueError):  # the check will tell what is wrong with it
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _check_batch(
    batch: pa.Table,
    rows: list[int],
    *,
    folder: str,
    in_files: bool,
    features: Features,
    pool: ThreadPoolExecutor,
) -> pa.Table:
    images = _stored_images(batch["image"], folder)
    texts = batch["text"].to_pylist()
    reasons = batch["reason"].to_pylist() if in_files else [None] * len(rows)
    shares = _shares(list(zip(images, texts, reasons, strict=True)))
    results = list(chain.from_iterable(pool.map(partial(_check_share, in_files=in_files), shares)))
    columns = {
        "reason": pa.array([reason for reason, _ in results], pa.string()),
        "image": Image().cast_storage(pa.array([image["path"] for image in images], pa.string())),
        "text": pa.array([text for _, text in results], pa.string()),
        "row": pa.array(rows, pa.int64()),
    }
    return pa.table({name: columns[name] for name in features})


def _check_share(posts: list[tuple[dict[str, Any], str | None, str | None]], in_files: bool) -> list[tuple]:
    """For each post, why it cannot be used (`None` if it can) and its text."""
    results = []
    for image, text, reason in posts:
        if in_files and reason is None:
            text, reason = _read_text(str(text))
        if reason is None:
            reason = _check_text(text) or check_image(image)
        results.append((reason, text))
    return results


def _read_text(path: str) -> tuple[str | None, str | None]:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None, "text file not found"
    except OSError as error:
        return None, f"text file not readable: {error}"
    try:
        return content.decode("utf-8-sig").strip(), None
    except UnicodeDecodeError:  # TumEmo's and most of MVSA's are ISO-8859-1, which never fails and so comes second
        return content.decode("iso-8859-1").strip(), None


def _check_text(text: str | None) -> str | None:
    if text is None:
        return "no text"
    return None if text.strip() else "empty text"


def _stored_images(column: pa.ChunkedArray, folder: str) -> list[dict[str, Any]]:
    """The images as `datasets.Image` stores them, but with absolute paths, and bytes as views that copy nothing."""
    if not pa.types.is_struct(column.type):
        return [{"bytes": None, "path": os.path.join(folder, path) if path else None} for path in column.to_pylist()]
    images = []
    for chunk in column.chunks:
        fields = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
        images += [
            {"bytes": data.as_buffer(), "path": path.as_py()}
            for data, path in zip(fields["bytes"], fields["path"], strict=True)
        ]
    return images


def _shares(items: list) -> list[list]:
    """One share for each thread, as a task for each item would cost more than the item."""
    size = -(-len(items) // _THREADS) or 1
    return [items[start : start + size] for start in range(0, len(items), size)]


def _join(table: Dataset, checked: Dataset) -> Dataset:
    made = [name for name in checked.column_names if name != "reason"]
    kept = [name for name in table.column_names if name not in checked.column_names]
    posts = concatenate_datasets([table.select_columns(kept), checked.select_columns(made)], axis=1)
    posts = posts.cast_column("image", Image())
    first = ["image", "text", "row"]
    return posts.select_columns([*first, *(name for name in posts.column_names if name not in first)])


def _report(source: str, refused: Dataset, reasons: list[str], usable: int, rejections: Rejections | None) -> None:
    found = Rejections()
    stored = refused.select_columns(["row", "image"]).cast_column("image", Image(decode=False))
    for post, reason in zip(stored, reasons, strict=True):
        path = (post["image"] or {}).get("path")
        found.add(post["row"], reason, "read", **({"image": path} if path else {}))
    if rejections is not None:
        rejections.extend(found)
    elif len(found):
        logger.warning("%s: %s. Pass rejections=Rejections() to see which.", source, found.summary())
    if not usable:
        raise ValueError(f"{source}: not one post can be used; {found.summary()}.")
