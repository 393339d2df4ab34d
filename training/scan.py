"""One pass over the posts for Stages 1 and 2: every picture decoded once, every distinct encoder run once.

`partition.py` and `cluster.py` say which columns they want; what a killed pass has finished is found again. Under a
launcher the processes share out the posts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets.utils import tqdm
from PIL import Image
from torch import Tensor

from .features import Encoding, TextEncoder, TowerEncoders, content_key
from .images import ImageError, ImageValue, decode_image
from .rejections import Rejections
from .shards import cache_folder, map_in_shards, shard_rows

logger = logging.getLogger(__name__)

# Part of every cache key: raise it whenever the same encoders would give other columns.
_VERSION = 1
# One read of the table holds so many batches, so that all but the first are decoded while models run.
_BATCHES_PER_READ = 8
_REASON = "rejection_reason"

Pixels: TypeAlias = Mapping[str, Mapping[str, Tensor]]


class Encoder(Protocol):
    """What runs on a batch: [`ImageEncoder`], [`TextEncoder`], or anything with the same keys."""

    @property
    def key(self) -> str: ...
    @property
    def backbone_key(self) -> str: ...
    @property
    def has_head(self) -> bool: ...
    def encode(self, inputs: Any, /) -> Encoding: ...


@runtime_checkable
class PictureEncoder(Encoder, Protocol):
    """An encoder of pictures, which makes its inputs of one picture at a time, in threads."""

    @property
    def pixels_key(self) -> str: ...
    def preprocess(self, picture: Image.Image, /) -> Mapping[str, Tensor]: ...


class PostBatch:
    """
    A batch of posts whose pictures are decoded and preprocessed, and in which every encoder runs at most once.

    Equal encoders are the same encoder here, and a bare tower is served by a model that bears a head on it.

    Args:
        texts (`Sequence[str]`):
            The posts' texts.
        pixels (`Sequence[Mapping]`):
            For each post its picture's tensors by `ImageEncoder.pixels_key`.
        runners (`Mapping[str, Encoder]`):
            From an encoder's key to the encoder that runs for it, as `choose_runners` finds them.
        rows (`Sequence[int]`):
            The posts' `row`, for messages.
    """

    def __init__(
        self, texts: Sequence[str], pixels: Sequence[Pixels], runners: Mapping[str, Encoder], rows: Sequence[int]
    ):
        self.texts = list(texts)
        self.rows = list(rows)
        self._pixels = pixels
        self._runners = runners
        self._encodings: dict[str, Encoding] = {}

    @classmethod
    def from_posts(cls, images: Sequence[ImageValue], texts: Sequence[str], encoders: Sequence[Encoder]) -> PostBatch:
        """
        Make a batch of pictures (paths, PIL images or what `datasets` stores) and texts, to try a judge on.

        Raises:
            [`ImageError`]: a picture cannot be decoded.
        """
        runners = choose_runners(encoders)
        processors = _processors(runners)
        pixels = [_preprocess(decode_image(image), processors) for image in images]
        return cls(texts, pixels, runners, range(len(texts)))

    def __len__(self) -> int:
        return len(self.texts)

    def encode_images(self, encoder: PictureEncoder) -> Encoding:
        """The pictures' [`Encoding`] under an encoder that was announced; the model runs on the first call only."""
        runner = self._runner(encoder)
        if runner.key not in self._encodings:
            self._encodings[runner.key] = runner.encode([tensors[runner.pixels_key] for tensors in self._pixels])
        return self._encodings[runner.key]

    def encode_texts(self, encoder: TextEncoder) -> Encoding:
        """The same for the posts' texts."""
        runner = self._runner(encoder)
        if runner.key not in self._encodings:
            self._encodings[runner.key] = runner.encode(self.texts)
        return self._encodings[runner.key]

    def _runner(self, encoder: Any) -> Any:
        if encoder.key not in self._runners:
            raise ValueError("a judge uses an encoder that is missing from its `encoders`")
        return self._runners[encoder.key]


@dataclass(frozen=True)
class ScanColumn:
    """
    A column that a scan is to write.

    Args:
        name (`str`): Its name.
        key (`str`): Hash of everything its values depend on, besides the posts.
        encoders (`tuple`): What `compute` runs on a batch.
        compute (`Callable`): From a [`PostBatch`] of B posts to float32 of shape `(B,)` or float16 of shape `(B, D)`.
    """

    name: str
    key: str
    encoders: tuple[Encoder, ...]
    compute: Callable[[PostBatch], np.ndarray]


def feature_columns(towers: TowerEncoders) -> list[ScanColumn]:
    """`vision_features` and `text_features`: E_V(v) and E_T(t) before the projections, float16."""

    def column(name: str, encoder: Encoder, encode: Callable[[PostBatch], Encoding]) -> ScanColumn:
        def compute(batch: PostBatch) -> np.ndarray:
            features = encode(batch).features
            if features is None:
                raise ValueError(f"{name}: the tower gives no pooled features")
            with np.errstate(over="ignore"):  # refused below, by row
                rounded = features.numpy().astype(np.float16)
            if not np.isfinite(rounded).all():
                row = batch.rows[int(np.flatnonzero(~np.isfinite(rounded).all(axis=1))[0])]
                raise ValueError(f"{name} of row {row} are NaN or beyond float16 (±65,504); is the tower sound?")
            return rounded

        return ScanColumn(name, encoder.backbone_key, (encoder,), compute)

    return [
        column("vision_features", towers.image, lambda batch: batch.encode_images(towers.image)),
        column("text_features", towers.text, lambda batch: batch.encode_texts(towers.text)),
    ]


def scan_posts(
    dataset: datasets.Dataset,
    columns: Sequence[ScanColumn],
    *,
    stage: str,
    batch_size: int = 32,
    rejections: Rejections | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """
    Compute columns from pictures and texts in one pass and set them beside the others.

    The pass is done in shards of some hundred rows, each cached under the dataset's fingerprint and the columns'
    keys, so that a killed pass goes on behind its last finished shards and a repeated one runs no model. Memory does
    not grow with the dataset: tables are memory-mapped, and no more than some batches of pixels exist at a time.

    Under a launcher all processes call it, with one cache folder. Each takes its share of the missing shards, and all
    return the same dataset. They wait for each other at the end: when one fails, its launcher stops the others.

    Args:
        dataset (`datasets.Dataset`):
            Posts with `image` and `text`, and `row` where they come from [`read_posts`].
        columns (`Sequence[ScanColumn]`):
            What to compute. Columns of the same name are replaced.
        stage (`str`):
            Who asks; the description of the progress bar and the `stage` of rejections.
        batch_size (`int`, *optional*, defaults to 32):
            Posts that are decoded and encoded together.
        rejections ([`Rejections`], *optional*):
            Where posts go whose picture does not decode. They leave the dataset.
        cache_dir (`str` or `Path`, *optional*):
            Where results are kept. By default the folder `pacl` in datasets' cache.

    Raises:
        `ValueError`: the dataset is empty, lacks a column, or no picture of it decodes.
    """
    if lacking := [name for name in ("image", "text") if name not in dataset.column_names]:
        raise ValueError(
            f"the posts lack {' and '.join(lacking)}; their columns are {', '.join(dataset.column_names)}"
        )
    if not len(dataset):
        raise ValueError(f"{stage}: there are no posts")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    folder = cache_folder(cache_dir)
    key = content_key(_VERSION, dataset._fingerprint, [(column.name, column.key) for column in columns])
    if dataset._indices is not None:  # a join needs rows in their order on disk: once, and not beside the user's files
        with PartialState().main_process_first():
            dataset = dataset.flatten_indices(
                cache_file_name=str(folder / f"rows-{content_key(dataset._fingerprint)}.arrow"),
                new_fingerprint=dataset._fingerprint,
            )
    posts = _undecoded(dataset)
    with ThreadPoolExecutor(thread_name_prefix="decode") as pool:
        scanned = map_in_shards(
            posts,
            _Reader(columns, batch_size, pool),
            name=stage,
            key=key,
            folder=folder,
            rows=shard_rows(len(posts), batch_size),
            unit="posts",
            batch_size=batch_size * _BATCHES_PER_READ,
            remove_columns=posts.column_names,
        )
    return _join(dataset, scanned, key, stage, rejections)


def choose_runners(encoders: Sequence[Encoder]) -> dict[str, Encoder]:
    """From each encoder's key to the one that runs for it: a bare tower gives way to a head on equal weights."""
    bearing = {encoder.backbone_key: encoder for encoder in encoders if encoder.has_head}
    return {
        encoder.key: encoder if encoder.has_head else bearing.get(encoder.backbone_key, encoder)
        for encoder in encoders
    }


class _Reader:
    """What the shards are mapped with: decodes the next batch in threads while models run on this one."""

    def __init__(self, columns: Sequence[ScanColumn], batch_size: int, pool: ThreadPoolExecutor):
        self.columns = columns
        self.batch_size = batch_size
        self.pool = pool
        self.runners = choose_runners([encoder for column in columns for encoder in column.encoders])
        self.processors = _processors(self.runners)

    def __call__(self, posts: Mapping[str, list[Any]], indices: list[int], *, start: int, bar: tqdm) -> pa.Table:
        images, texts = posts["image"], posts["text"]
        rows = posts["row"] if "row" in posts else [start + i for i in indices]
        reasons: list[str | None] = []
        values: list[list[np.ndarray]] = []
        upcoming = self._submit(images[: self.batch_size])
        for first in range(0, len(texts), self.batch_size):
            after = first + self.batch_size
            pending, upcoming = upcoming, self._submit(images[after : after + self.batch_size])
            pictures = [future.result() for future in pending]
            reasons += [picture if isinstance(picture, str) else None for picture in pictures]
            good = [i for i, picture in enumerate(pictures) if not isinstance(picture, str)]
            if good:
                batch = PostBatch(
                    [texts[first + i] for i in good],
                    [pictures[i] for i in good],  # type: ignore[misc]
                    self.runners,
                    [rows[first + i] for i in good],
                )
                values.append([column.compute(batch) for column in self.columns])
            bar.update(len(pictures))
        return self._table(reasons, values)

    def _submit(self, images: Sequence[Any]) -> list[Future[Pixels | str]]:
        return [self.pool.submit(_read_picture, image, self.processors) for image in images]

    def _table(self, reasons: list[str | None], values: list[list[np.ndarray]]) -> pa.Table:
        """All rows of a read; those without a picture hold zeros until they are dropped."""
        good = np.array([reason is None for reason in reasons])
        if not values:  # a post that stands in tells widths and types
            encoders = [encoder for column in self.columns for encoder in column.encoders]
            blank = PostBatch.from_posts([Image.new("RGB", (64, 64))], ["blank"], encoders)
            values = [[column.compute(blank)[:0] for column in self.columns]]
        arrays = {}
        for column, parts in zip(self.columns, zip(*values, strict=True), strict=True):
            found = np.concatenate(parts)
            full = np.zeros((len(reasons), *found.shape[1:]), found.dtype)
            full[good] = found
            arrays[column.name] = _to_arrow(full)
        return pa.table({**arrays, _REASON: pa.array(reasons, pa.string())})


def _read_picture(image: Any, processors: Mapping[str, PictureEncoder]) -> Pixels | str:
    """Decode and preprocess at once, so that no more full-size pictures exist than threads; or say why not."""
    try:
        return _preprocess(decode_image(image), processors)
    except ImageError as error:
        return str(error)


def _preprocess(picture: Image.Image, processors: Mapping[str, PictureEncoder]) -> Pixels:
    return {key: encoder.preprocess(picture) for key, encoder in processors.items()}


def _processors(runners: Mapping[str, Encoder]) -> dict[str, PictureEncoder]:
    """One encoder for each distinct preprocessing."""
    return {runner.pixels_key: runner for runner in runners.values() if isinstance(runner, PictureEncoder)}


def _to_arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Only what a scan reads, with pictures as files or bytes."""
    names = [name for name in ("image", "text", "row") if name in dataset.column_names]
    posts = dataset.with_format(None).select_columns(names)
    if isinstance(posts.features["image"], datasets.Image):
        posts = posts.cast_column("image", datasets.Image(decode=False))
    return posts


def _join(
    dataset: datasets.Dataset, scanned: datasets.Dataset, key: str, stage: str, rejections: Rejections | None
) -> datasets.Dataset:
    """Set the new columns beside the others and drop the rejected rows, without copying a table."""
    reasons = scanned.select_columns([_REASON]).with_format("arrow")[:][_REASON]
    rejected = np.flatnonzero(reasons.is_valid().to_numpy())
    scanned = scanned.remove_columns(_REASON)
    old = [name for name in scanned.column_names if name in dataset.column_names]
    joined = datasets.concatenate_datasets([dataset.remove_columns(old), scanned], axis=1)
    if not len(rejected):
        return _with_fingerprint(joined, key)

    _report(_undecoded(joined).select(rejected), rejected, reasons.take(rejected).to_pylist(), stage, rejections)
    # Slices of the table: an index mapping would be flattened, pictures and all, by the next column that is added.
    bounds = [-1, *rejected.tolist(), len(joined)]
    kept = [joined.select(range(a + 1, b)) for a, b in pairwise(bounds) if b > a + 1]
    if not kept:
        raise ValueError(f"{stage}: not one of {len(joined):,} pictures can be used; the first: {reasons[0].as_py()}")
    return _with_fingerprint(datasets.concatenate_datasets(kept), content_key(key, rejected.tobytes()))


def _with_fingerprint(dataset: datasets.Dataset, fingerprint: str) -> datasets.Dataset:
    """What later stages find their results by: the content, and not the shards that it came in."""
    dataset._fingerprint = fingerprint
    return dataset


def _report(
    posts: datasets.Dataset, positions: np.ndarray, reasons: list[str], stage: str, rejections: Rejections | None
) -> None:
    found = Rejections() if rejections is None else rejections
    for post, position, reason in zip(posts, positions, reasons, strict=True):
        image = post["image"]
        path = image.get("path") if isinstance(image, dict) else image
        found.add(post.get("row", position), reason, stage, **({"image": path} if path else {}))
    if rejections is None and PartialState().is_main_process:
        logger.warning("%s: %s", stage, found.summary())
