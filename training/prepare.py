"""Stores every picture once at the size that Stage 3 needs, so that each epoch decodes small pictures.

The run calls it before Stage 3 where the recipe says `prepare: true`. Under a launcher the processes share the work.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.utils import tqdm
from PIL import Image

from .collator import PictureTransform
from .features import content_key
from .images import ImageError, ImageValue, StoredImage
from .shards import cache_folder, map_in_shards, shard_rows

# Part of every cache key: raise it whenever the same settings would give other pictures.
_VERSION = 1
# Pictures in the threads at once, and in memory.
_BATCH_SIZE = 64


def prepare_pictures(
    dataset: datasets.Dataset,
    transform: PictureTransform,
    *,
    quality: int = 95,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """
    Shrink the pictures of a dataset to what training needs, and store them as JPEGs in Arrow.

    A picture becomes so small that the smallest crop that the transform may choose has the training size; none is
    enlarged. A JPEG that is no larger than that is stored byte for byte, undecoded. All others are made upright,
    opaque RGB. The random numbers being the same, crops of pictures whose size has changed are others than before.

    The work is done in threads, in shards of some hundred rows that are cached, so that a killed run goes on behind
    its last finished shards. Under a launcher all processes call it, with one cache folder; each takes its share of
    the shards, and all return the same dataset.

    Args:
        dataset (`datasets.Dataset`):
            With an `image` column; the other columns are passed on.
        transform ([`PictureTransform`]):
            Of training, from [`training_transform`].
        quality (`int`, *optional*, defaults to 95):
            Of the JPEGs, whose colours are stored at full resolution.
        cache_dir (`str` or `Path`, *optional*):
            Where the pictures are kept. By default the folder `pacl` in datasets' cache.

    Returns:
        `datasets.Dataset`: The same rows, with the new pictures.

    Raises:
        `ValueError`: there is no `image` column, or no row, or a picture cannot be decoded; the message names the row.

    Example:

    ```python
    transform = training_transform(processor.image_processor, crop_scale=0.5)
    small = prepare_pictures(posts, transform)
    ```
    """
    if "image" not in dataset.column_names:
        raise ValueError(f"the dataset has no column image; its columns are {', '.join(dataset.column_names)}")
    if not len(dataset):
        raise ValueError("the dataset has no rows, so there are no pictures to prepare")
    settings = (transform.size, transform.crop and (transform.crop.scale, transform.crop.ratio), quality)
    key = content_key(_VERSION, dataset._fingerprint, settings)
    stored = dataset.with_format(None).select_columns("image").cast_column("image", datasets.Image(decode=False))
    with ThreadPoolExecutor(thread_name_prefix="prepare") as pool:
        shrunk = map_in_shards(
            stored,
            partial(_prepare_batch, pool=pool, transform=transform, quality=quality),
            name="prepare",
            key=key,
            folder=cache_folder(cache_dir),
            rows=shard_rows(len(stored), _BATCH_SIZE),
            unit="pictures",
            batch_size=_BATCH_SIZE,
            features=stored.features,
        )
    feature = dataset.features["image"]
    pictures = shrunk.cast_column("image", feature if isinstance(feature, datasets.Image) else datasets.Image())
    return datasets.concatenate_datasets([dataset.remove_columns("image"), pictures], axis=1)


def _prepare_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    pool: ThreadPoolExecutor,
    transform: PictureTransform,
    quality: int,
    start: int,
    bar: tqdm,
) -> dict[str, list[Any]]:
    def prepare(value: dict[str, Any], index: int) -> dict[str, Any]:
        try:
            return {"bytes": _prepare(value, transform, quality), "path": value["path"]}
        except ImageError as error:
            where = f" ({value['path']})" if value["path"] else ""
            raise ValueError(f"the picture of row {start + index}{where} cannot be prepared: {error}") from error

    prepared = list(pool.map(prepare, batch["image"], indices))
    bar.update(len(prepared))
    return {"image": prepared}


def _prepare(value: ImageValue, transform: PictureTransform, quality: int) -> bytes:
    """The bytes of a JPEG that is as small as the transform allows."""
    picture = StoredImage(value)
    width, height = picture.size
    factor = transform.spare(width, height)
    if picture.is_jpeg and factor <= 1:
        return picture.read_bytes()
    # The decoder's own reduction is coarse: some resolution is left for the resize.
    image = picture.decode(reduce_by=factor / 2)
    if factor > 1:
        size = math.ceil(width / factor), math.ceil(height / factor)
        image = image.resize(size, Image.Resampling.LANCZOS, picture.box)  # which leaves out the decoder's padding
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()
