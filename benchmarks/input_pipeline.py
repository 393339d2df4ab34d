"""The loader of `PACLTrainer` against a bare loop that decodes and augments the same files on the same cores; what
decoding JPEGs smaller and storing them at training size once gain; and whether the pictures or the model set the pace.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from _table import HEADER, ratios, row, seconds
from PIL import Image
from tokenizers import Tokenizer, models
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2
from transformers import PreTrainedTokenizerFast, ResNetConfig, RobertaConfig, ViTImageProcessor

from pacl import PACLConfig, PACLModel, PACLProcessor
from pacl.training import PACLTrainer, PACLTrainingArguments
from pacl.training.collator import training_transform
from pacl.training.prepare import prepare_pictures

BATCH, SIDE, TARGET = 32, 224, 0.95
# Width, height and number: pictures that are as small as they can be, of the web, and of a camera.
SIZES = {"small": (320, 240, 256), "web": (1024, 768, 128), "camera": (4000, 3000, 32)}
WORKERS, REPEATS = (0, 2), 3
CORES = torch.get_num_threads()


def make_files(folder: Path, size: str) -> list[str]:
    """JPEGs like photographs: smooth colours, edges and a little noise."""
    width, height, number = SIZES[size]
    generator = np.random.default_rng(0)
    paths = []
    for index in range(min(number, 16)):
        colours = generator.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = pixels + generator.normal(0, 4, (height, width, 1))
        for x, y in zip(generator.integers(0, width, 8), generator.integers(0, height, 8), strict=True):
            pixels[y : y + height // 4, x : x + width // 4] /= 2
        paths.append(str(folder / f"{size}{index}.jpg"))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return [paths[index % len(paths)] for index in range(number)]


def make_pairs(files: list[str]) -> datasets.Dataset:
    """The files as Stage 3 gets them: with text features, all in the partition of phase one."""
    generator, number = np.random.default_rng(0), len(files)
    features = list(generator.normal(size=(number, 1024)).astype(np.float16))
    columns = dict.fromkeys(("partition", "factual_cluster", "emotional_cluster"), [0] * number)
    dataset = datasets.Dataset.from_dict({"image": files, "text": ["a"] * number, **columns})
    dataset = dataset.add_column("text_features", features, feature=datasets.List(datasets.Value("float16"), 1024))
    return dataset.cast_column("image", datasets.Image())


def make_model() -> PACLModel:
    """ResNet-50 with random weights, beside a text tower that does not run."""
    text = RobertaConfig(hidden_size=1024, num_hidden_layers=1, num_attention_heads=16, intermediate_size=64)
    return PACLModel(PACLConfig(vision_config=ResNetConfig().to_dict(), text_config=text.to_dict())).train()


def make_processor() -> PACLProcessor:
    """224 pixels; the tokenizer is not used."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})), pad_token="a")
    return PACLProcessor(ViTImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer)


def pacl_loader(model: PACLModel, processor: PACLProcessor, pairs: datasets.Dataset, workers: int) -> DataLoader:
    """The loader as the trainer builds it."""
    arguments = PACLTrainingArguments(
        tempfile.gettempdir(), per_device_train_batch_size=BATCH, dataloader_num_workers=workers, use_cpu=True,
        report_to=[],
    )  # fmt: skip
    return PACLTrainer(model, arguments, train_dataset=pairs, processing_class=processor).get_train_dataloader()


class BareFiles(torch.utils.data.Dataset):
    """The least that gives the same kind of pictures: PIL opens, torchvision augments."""

    def __init__(self, files: list[str]):
        self.files = files
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIDE, scale=(0.5, 1.0), interpolation=InterpolationMode.BILINEAR, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5] * 3, [0.5] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def bare_loop(files: list[str], workers: int) -> Callable[[], None]:
    """A loop over the files; with workers, in as many of them, by a plain `DataLoader`."""
    pictures = BareFiles(files)

    def batches() -> Iterator[Tensor]:
        if workers:
            yield from DataLoader(pictures, BATCH, shuffle=True, num_workers=workers, collate_fn=torch.stack)
            return
        for start in range(0, len(pictures), BATCH):
            yield torch.stack([pictures[index] for index in range(start, start + BATCH)])

    return lambda: exhaust(batches())


def exhaust(batches: Iterator | DataLoader) -> None:
    """See all batches through."""
    for _ in batches:
        pass


def model_seconds(model: PACLModel) -> float:
    """Seconds per picture of the forward and backward pass."""
    pixels = torch.randn(BATCH, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    model.vision_model.to(memory_format=torch.channels_last)
    step = lambda: model.encode_image(pixels).mean().backward()  # noqa: E731
    step()
    return min(seconds(step) for _ in range(2)) / BATCH


def main() -> None:
    """Prints the rows, then which of the two, pictures or model, is the limit on this machine."""
    datasets.disable_progress_bars()
    model, processor = make_model(), make_processor()
    picture_seconds = {}
    print(HEADER)
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as place:
        for size, (width, height, number) in SIZES.items():
            files = make_files(Path(place), size)
            pairs = make_pairs(files)
            for workers in WORKERS if size != "camera" else WORKERS[:1]:
                loader, bare = pacl_loader(model, processor, pairs, workers), bare_loop(files, workers)
                measured = ratios(bare, lambda loader=loader: exhaust(loader), REPEATS)
                what = f"pictures/s of the loader, {width} × {height} JPEG, {workers} workers"
                row(what, "a bare loop", measured, at_least=TARGET)
            loader = pacl_loader(model, processor, pairs, 0)
            picture_seconds[size] = min(seconds(lambda a=loader: exhaust(a)) for _ in range(2)) / number
            if size == "small":  # nothing to shrink
                continue
            prepared = prepare_pictures(pairs, training_transform(processor.image_processor), cache_dir=place)
            small = pacl_loader(model, processor, prepared, 0)
            measured = ratios(lambda a=loader: exhaust(a), lambda b=small: exhaust(b), REPEATS)
            row(f"pictures/s after `prepare`, {width} × {height} JPEG", "the loader before", measured, at_least=1)
    torch.set_num_threads(CORES)
    limit = model_seconds(model)
    for size, (width, height, _) in SIZES.items():
        pace = CORES * limit / picture_seconds[size]
        print(
            f"# {width} × {height}: the loader gives {1 / picture_seconds[size]:,.0f} pictures/s per core; ResNet-50 "
            f"takes {1 / limit:.1f}/s forward and backward on all {CORES}. The limit is the "
            f"{'model' if pace > 1 else 'decoding'}, by {max(pace, 1 / pace):.0f} times."
        )


if __name__ == "__main__":
    main()
