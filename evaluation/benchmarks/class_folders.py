"""Datasets whose folders name the classes: FI (8 and 2 classes), Emotion-6 and UnbiasedEmo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .benchmark import Benchmark, Row, Rows, classes
from .dropped import Dropped
from .folder import nested, not_this_dataset, subfolders, walk_pictures

#: Mikels' eight emotions and their polarity.
MIKELS = {
    "amusement": "positive",
    "anger": "negative",
    "awe": "positive",
    "contentment": "positive",
    "disgust": "negative",
    "excitement": "positive",
    "fear": "negative",
    "sadness": "negative",
}

#: The six emotions of Panda et al. 2018.
SIX = ("anger", "fear", "joy", "love", "sadness", "surprise")

SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def class_folder_reader(
    title: str, label_of: Mapping[str, str], wrappers: tuple[str, ...]
) -> Callable[[Path, Dropped], Rows]:
    """
    A reader of `<class>/…/<picture>` at any depth, or of `train/`, `test/` and perhaps `val/` above the class folders.

    Args:
        title (`str`): the dataset's name in error messages.
        label_of (`Mapping[str, str]`): each class folder's label.
        wrappers (`tuple[str, ...]`): lower-case names of folders that the release wraps around the class folders.
    """

    def read(folder: Path, dropped: Dropped) -> Rows:
        for root in nested(folder, wrappers):
            inside = subfolders(root)
            if all(name in inside for name in label_of):
                return {"all": _read_classes(root, folder, label_of, dropped)}
            splits = {
                split: inside[name] for split, names in SPLIT_FOLDERS.items() for name in names if name in inside
            }
            complete = all(name in subfolders(part) for part in splits.values() for name in label_of)
            if "train" in splits and "test" in splits and complete:
                return {split: _read_classes(part, folder, label_of, dropped) for split, part in splits.items()}
        expected = f"the class folders {', '.join(label_of)}, or train/ and test/ with all of these in each"
        raise not_this_dataset(title, folder, expected)

    return read


def _read_classes(root: Path, folder: Path, label_of: Mapping[str, str], dropped: Dropped) -> list[Row]:
    rows: list[Row] = []
    for name, class_folder in subfolders(root).items():
        place = class_folder.relative_to(folder).as_posix()
        if name not in label_of:
            dropped.add(place, "folder is none of the classes")
            continue
        pictures = list(walk_pictures(class_folder, folder, dropped))
        if not pictures:
            dropped.add(place, "class folder without a picture")
        rows += [
            {"image": str(file), "id": file.relative_to(root).as_posix(), "label": label_of[name]} for file in pictures
        ]
    return rows


def _identity(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}


_FI_PAPER = "You, Luo, Jin, Yang: Building a Large Scale Dataset for Image Emotion Recognition, AAAI 2016"
_PANDA_PAPER = "Panda, Zhang, Li, Lee, Lu, Roy-Chowdhury: Contemplating Visual Emotions, ECCV 2018"

FI = Benchmark(
    name="fi",
    title="FI",
    task="single_label",
    columns={"label": classes(*MIKELS)},
    reader=class_folder_reader("FI", _identity(tuple(MIKELS)), ("emotion_dataset",)),
    citation=_FI_PAPER,
)

FI2 = Benchmark(
    name="fi2",
    title="FI-2",
    of="fi",
    task="single_label",
    columns={"label": classes("negative", "positive")},
    reader=class_folder_reader("FI", MIKELS, ("emotion_dataset",)),
    citation=_FI_PAPER,
)

EMOTION6 = Benchmark(
    name="emotion6",
    title="Emotion-6",
    task="single_label",
    columns={"label": classes(*SIX)},
    reader=class_folder_reader("Emotion-6", _identity(SIX), ("emotion-6", "images")),
    citation=_PANDA_PAPER,
)

UNBIASED_EMO = Benchmark(
    name="unbiasedemo",
    title="UnbiasedEmo",
    task="single_label",
    columns={"label": classes(*SIX)},
    reader=class_folder_reader("UnbiasedEmo", _identity(SIX), ("unbiasedemo", "images")),
    citation=_PANDA_PAPER,
)
