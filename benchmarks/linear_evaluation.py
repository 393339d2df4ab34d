"""Linear evaluation on cached features against the same 40 epochs with the frozen backbone in the loop.

Both sides decode the same pictures, run the same backbone in batches of the same size and memory layout, train the
same head with the same seed, and must end with the same score. In the loop, every epoch shows the backbone the
training pictures (8 of 10) and the validation pictures (1 of 10); for the cache it sees each picture once. Counted in
pictures that is 40 × 0.9 + 0.1 = 36.1 times as many; the head and the cache cost a little of it, and timings scatter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from _table import HEADER, row
from PIL import Image
from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

from pacl.evaluation.backbones import Backbone
from pacl.evaluation.features import CPU_BATCH, decode_picture, extract_features, undecoded
from pacl.evaluation.linear import FeatureSource, Split, from_memory, predict, train_heads
from pacl.evaluation.tasks import ClassHead, Task

PICTURES, SIDE, REPEATS, TARGET = 200, 224, 3, 30
CLASSES = ("a", "b", "c", "d")
TASK = Task("single_label", (ClassHead("label", CLASSES),))


def make_pictures(folder: Path) -> datasets.Dataset:
    """JPEGs of noise, brighter by class."""
    generator = np.random.default_rng(0)
    paths, labels = [], []
    for number in range(PICTURES):
        label = number % len(CLASSES)
        pixels = generator.integers(0, 160, (SIDE, SIDE, 3)) + 30 * label
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        labels.append(label)
    return datasets.Dataset.from_dict({"image": paths, "label": labels}).cast_column("image", datasets.Image())


def in_the_loop(backbone: Backbone, dataset: datasets.Dataset) -> FeatureSource:
    """A source that decodes and encodes the asked rows whenever they are asked for."""
    stored = undecoded(dataset, "image")

    def encode(rows: np.ndarray) -> torch.Tensor:
        images = [decode_picture(stored[int(row)]["image"], int(row)) for row in rows]
        pixel_values = backbone.image_processor(images, return_tensors="pt")["pixel_values"]
        return backbone.pooled(pixel_values.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def source(rows: np.ndarray) -> torch.Tensor:
        return torch.cat([encode(rows[start : start + CPU_BATCH]) for start in range(0, len(rows), CPU_BATCH)])

    return source


def timed(function: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what the function returned."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    """Prints what each repeat took, and the row."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic")
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    backbone = Backbone(ResNetModel(config).eval(), processor, "ResNet-18")
    backbone.model.to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as place:
        dataset = make_pictures(Path(place))
        labels = np.asarray(dataset["label"][:])
        order = np.random.default_rng(0).permutation(PICTURES)
        parts = np.split(order, (PICTURES * 8 // 10, PICTURES * 9 // 10))
        train, validation, test = (Split(rows, {"label": labels[rows]}) for rows in parts)

        def evaluate(source: FeatureSource) -> float:
            heads, _ = train_heads(TASK, source, backbone.embed_dim, train, validation, seed=0)
            return TASK.score(predict(TASK, heads, source, test.rows), test.targets)["accuracy"]

        evaluate(from_memory(extract_features(backbone, dataset, cache_dir=f"{place}/warm", num_workers=0)))
        ratios = []
        for repeat in range(REPEATS):
            fast, score = timed(
                lambda cache=f"{place}/{repeat}": evaluate(
                    from_memory(extract_features(backbone, dataset, cache_dir=cache, num_workers=0))
                )
            )
            slow, expected = timed(lambda: evaluate(in_the_loop(backbone, dataset)))
            if score != expected:
                raise SystemExit(f"the two ways end with different scores: {score} and {expected}")
            ratios.append(slow / fast)
            print(
                f"# repeat {repeat + 1}: in the loop {slow:.1f} s, cached {fast:.2f} s, accuracy {score:.3f} both ways"
            )
    print(HEADER)
    what = f"linear evaluation, ResNet-18, {PICTURES} pictures: how many times faster"
    row(what, "40 epochs with the backbone in the loop", ratios, at_least=TARGET)


if __name__ == "__main__":
    main()
