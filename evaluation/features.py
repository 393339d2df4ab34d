"""Pooled features of a frozen backbone over a dataset of pictures, computed once and kept on disk.

Every protocol that leaves the backbone frozen (probes, linear evaluation, zero-shot) starts from here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from PIL.Image import DecompressionBombError
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from .backbones import Backbone

SMALL = 512  # pictures; below it, starting worker processes costs more than they bring

# Pictures per forward pass. On the CPU larger batches only leave its cache: with MobileNetV2, 64 took 4.7 times as
# long as 8.
CPU_BATCH, DEVICE_BATCH = 8, 64


def default_cache_dir() -> Path:
    """Where features go unless told otherwise: `pacl-features` inside the cache of `datasets`."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "pacl-features"


def pictures_fingerprint(dataset: Dataset, image_column: str = "image") -> str:
    """Hexadecimal digest of the pictures in their order, whatever other columns the dataset has.

    Embedded pictures count by their bytes; files by path, size and time of modification, so that a replaced
    file isn't answered from the cache.

    Raises:
        ValueError: if the column is missing or holds no pictures.
        FileNotFoundError: if a picture's file is missing, with its row.
    """
    digest = hashlib.blake2b(digest_size=16)
    row = 0
    for batch in undecoded(dataset, image_column).with_format("arrow").iter(batch_size=256):
        for picture in batch[image_column].to_pylist():
            digest.update(_identity(picture, row))
            row += 1
    return digest.hexdigest()


def extract_features(
    backbone: Backbone,
    dataset: Dataset,
    *,
    image_column: str = "image",
    batch_size: int | None = None,
    num_workers: int | None = None,
    cache_dir: str | Path | None = None,
) -> np.ndarray:
    """Pooled features of every picture, from the cache where the same backbone has seen the same pictures.

    Under `accelerate launch` every process has to call it; each takes its share of whole batches, so that the
    features are those of a single process. The cache folder must be visible to all of them.

    Args:
        backbone ([`Backbone`]): runs in evaluation mode, without gradient, in the dtype of its weights.
        dataset (`datasets.Dataset`): has a column of pictures.
        image_column (`str`, *optional*, defaults to `"image"`): its name.
        batch_size (`int`, *optional*): pictures per forward pass; by default 64, and 8 on the CPU.
        num_workers (`int`, *optional*): processes that decode and transform pictures; by default one per core
            for large datasets and none for small ones.
        cache_dir (`str` or `Path`, *optional*): by default [`default_cache_dir`].

    Returns:
        `np.ndarray` of shape `(len(dataset), dim)` and dtype float32: a read-only memory map.

    Raises:
        ValueError: for a dataset without pictures, or a picture that cannot be decoded, with its row.
        FileNotFoundError: for a picture whose file is missing, with its row.
    """
    if len(dataset) == 0:
        raise ValueError("there are no features to extract: the dataset has no rows")
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    key = hashlib.blake2b(digest_size=16)
    key.update(f"{backbone.fingerprint} {pictures_fingerprint(dataset, image_column)}".encode())
    path = folder / f"{key.hexdigest()}.npy"
    state = PartialState()
    # One process decides for all: a file that appears between two looks must not split them.
    (cached,) = broadcast_object_list([path.is_file()])
    if not cached:
        batch_size = batch_size or (CPU_BATCH if state.device.type == "cpu" else DEVICE_BATCH)
        pictures = _Pictures(undecoded(dataset, image_column), image_column, backbone.image_processor)
        batches = [range(i, min(i + batch_size, len(dataset))) for i in range(0, len(dataset), batch_size)]
        loader: DataLoader = DataLoader(
            pictures,
            batch_size=None,  # a "sample" is a whole batch already
            sampler=batches[state.process_index :: state.num_processes],
            num_workers=_workers(len(dataset), state.num_processes) if num_workers is None else num_workers,
            pin_memory=state.device.type == "cuda",
        )
        _fill(backbone, loader, path, len(dataset))
    return np.load(path, mmap_mode="r")


class PictureTable:
    """The distinct picture files of several datasets, so that each goes through a backbone once.

    Splits of several seeds, the persons of one picture, and the levels of one dataset all share a table's features.

    Args:
        parts (`Iterable[datasets.Dataset]`): have their pictures as files in a column `image`.
    """

    def __init__(self, parts: Iterable[Dataset]) -> None:
        self.paths = np.unique(np.concatenate([_paths(part) for part in parts]))
        self.dataset = Dataset.from_dict({"image": self.paths.tolist()}).cast_column("image", datasets.Image())

    def rows(self, part: Dataset) -> np.ndarray:
        """Where the pictures of a dataset stand in the table, int64 of shape `(rows,)`."""
        paths = _paths(part)
        rows = np.minimum(np.searchsorted(self.paths, paths), len(self.paths) - 1)
        if len(unknown := paths[self.paths[rows] != paths]):
            raise ValueError(f"{len(unknown)} pictures are not in the table, such as {unknown[0]}")
        return rows


def _paths(dataset: Dataset) -> np.ndarray:
    batches = undecoded(dataset, "image").with_format("arrow").iter(batch_size=10_000)
    paths = [path for batch in batches for path in batch["image"].combine_chunks().field("path").to_pylist()]
    if None in paths:
        raise ValueError(f"row {paths.index(None)} has no picture file")
    return np.asarray(paths, dtype=np.str_)


class _Pictures(torch.utils.data.Dataset):
    """Maps a range of rows to its start and its pixel values; decoding happens here, in the workers."""

    def __init__(self, undecoded: Dataset, image_column: str, image_processor: BaseImageProcessor) -> None:
        self.undecoded = undecoded
        self.image_column = image_column
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.undecoded)

    def __getitem__(self, rows: range) -> tuple[int, torch.Tensor]:
        pictures = self.undecoded[rows.start : rows.stop][self.image_column]
        images = [decode_picture(picture, row) for row, picture in zip(rows, pictures, strict=True)]
        return rows.start, self.image_processor(images, return_tensors="pt")["pixel_values"]


def decode_picture(picture: dict[str, Any], row: int) -> Any:
    """RGB `PIL.Image` of a stored picture, upright by its EXIF orientation.

    Raises:
        ValueError: if it cannot be decoded, with its row.
    """
    try:
        return datasets.Image(mode="RGB").decode_example(picture)
    except (OSError, SyntaxError, ValueError, DecompressionBombError) as error:
        where = picture["path"] or "stored in the dataset"
        raise ValueError(
            f"the picture in row {row} ({where}) cannot be decoded: {error}; a benchmark read with check_pixels "
            "leaves such pictures out"
        ) from error


def undecoded(dataset: Dataset, image_column: str) -> Dataset:
    """The column of pictures alone, as stored (`{"bytes", "path"}`).

    Raises:
        ValueError: if the column is missing or holds no pictures.
    """
    feature = dataset.features.get(image_column)
    if not isinstance(feature, datasets.Image):
        raise ValueError(
            f"column {image_column!r} holds no pictures (it is {feature}); the dataset has "
            f"{', '.join(dataset.column_names)}: name the column or cast it to datasets.Image()"
        )
    return dataset.select_columns(image_column).cast_column(image_column, datasets.Image(decode=False))


def _identity(picture: dict[str, Any] | None, row: int) -> bytes:
    if picture is None or (picture["bytes"] is None and picture["path"] is None):
        raise ValueError(f"row {row} has no picture")
    if picture["bytes"] is not None:
        return hashlib.blake2b(picture["bytes"], digest_size=16).digest()
    try:
        status = os.stat(picture["path"])
    except FileNotFoundError:
        raise FileNotFoundError(f"the picture in row {row} is missing: {picture['path']}") from None
    return f"{picture['path']}\0{status.st_size}\0{status.st_mtime_ns}\n".encode()


def _workers(pictures: int, processes: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if pictures < SMALL else max(1, min(8, cores // processes))


@torch.inference_mode()
def _fill(backbone: Backbone, loader: DataLoader, path: Path, size: int) -> None:
    """Runs the backbone over this process's batches and writes the file that all processes share."""
    state = PartialState()
    # Convolutions run up to twice as fast on this layout, on the CPU too; attention doesn't mind.
    layout = torch.channels_last
    model = backbone.model.to(state.device, memory_format=layout)
    was_training = model.training
    model.eval()
    (token,) = broadcast_object_list([uuid4().hex])
    partial = path.with_suffix(f".{token}.partial")
    try:
        if state.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (size, backbone.embed_dim)
            np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape).flush()
        state.wait_for_everyone()
        stored = np.lib.format.open_memmap(partial, mode="r+")
        for start, pixel_values in tqdm(
            loader, desc=f"features of {backbone.name}", disable=not state.is_main_process
        ):
            features = backbone.pooled(pixel_values.to(state.device, memory_format=layout, non_blocking=True))
            stored[start : start + len(features)] = features.float().cpu().numpy()
        stored.flush()
        state.wait_for_everyone()
        if state.is_main_process:
            os.replace(partial, path)
        state.wait_for_everyone()
    finally:
        model.train(was_training)
        if state.is_main_process:
            partial.unlink(missing_ok=True)
