"""WebEmo: pictures with emotions on three levels, 2, 7 (or 6) and 25 classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .benchmark import Benchmark, Row, Rows, classes
from .dropped import Dropped
from .folder import find_file, not_this_dataset, subfolders

#: The leaves in the order of their numbers, spelt as released, each with its middle class and its polarity.
LEAVES = {
    "affection": ("love", "positive"),
    "cheerfullness": ("joy", "positive"),
    "confusion": ("confusion", "negative"),
    "contentment": ("joy", "positive"),
    "disappointment": ("sadness", "negative"),
    "disgust": ("anger", "negative"),
    "enthrallment": ("joy", "positive"),
    "envy": ("anger", "negative"),
    "exasperation": ("anger", "negative"),
    "gratitude": ("love", "positive"),
    "horror": ("fear", "negative"),
    "irritabilty": ("anger", "negative"),
    "lust": ("love", "positive"),
    "neglect": ("sadness", "negative"),
    "nervousness": ("fear", "negative"),
    "optimism": ("joy", "positive"),
    "pride": ("joy", "positive"),
    "rage": ("anger", "negative"),
    "relief": ("joy", "positive"),
    "sadness": ("sadness", "negative"),
    "shame": ("sadness", "negative"),
    "suffering": ("sadness", "negative"),
    "surprise": ("surprise", "positive"),
    "sympathy": ("sadness", "negative"),
    "zest": ("joy", "positive"),
}

#: Those who report six middle classes count confusion as sadness.
SIX_OF_SEVEN = {"confusion": "sadness"}

PICTURE_FOLDERS = {"train": ("train", "train25"), "test": ("test", "test25")}


def webemo_reader(middle: str, merge: dict[str, str]) -> Callable[[Path, Dropped], Rows]:
    """
    A reader of `train25.txt` and `test25.txt` (lines `<url> <0..24>`), the pictures of which lie as
    `<folder>/<number>/<file>` or `<folder>/<number>_<file>`, the folder being `train`, `train25`, `test` or `test25`,
    under `images/` or not; `<file>` is the last part of the url.

    Args:
        middle (`str`): name of the middle level's column.
        merge (`dict[str, str]`): middle classes that count as others.
    """

    def read(folder: Path, dropped: Dropped) -> Rows:
        rows: Rows = {}
        for split, names in PICTURE_FOLDERS.items():
            table = find_file([folder], f"{split}25.txt")
            inside = {**subfolders(folder / "images"), **subfolders(folder)}
            pictures = next((inside[name] for name in names if name in inside), None)
            if table is None or pictures is None:
                expected = f"{split}25.txt, and its pictures in {names[0]}/ or images/{names[1]}/"
                raise not_this_dataset("WebEmo", folder, expected)
            rows[split] = list(_read_list(table, pictures, middle, merge, dropped))
        return rows

    return read


def _read_list(table: Path, pictures: Path, middle: str, merge: dict[str, str], dropped: Dropped) -> list[Row]:
    leaves = list(LEAVES)
    is_nested = any(name.isdigit() for name in subfolders(pictures))
    rows = []
    with table.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            url, _, leaf = line.strip().rpartition(" ")
            if not line.strip():
                continue
            if not leaf.isdigit() or int(leaf) >= len(leaves):
                dropped.add(f"{table.name}:{number}", "line is not `<url> <0 to 24>`")
                continue
            name = leaves[int(leaf)]
            group, sign = LEAVES[name]
            file = url.strip().rpartition("/")[2]
            rows.append(
                {
                    "image": str(pictures / leaf / file if is_nested else pictures / f"{leaf}_{file}"),
                    "id": f"{leaf}/{file}",
                    "label2": sign,
                    middle: merge.get(group, group),
                    "label25": name,
                }
            )
    return rows


def _benchmark(name: str, title: str, middle: str, merge: dict[str, str], of: str | None = None) -> Benchmark:
    groups = sorted({merge.get(group, group) for group, _ in LEAVES.values()})
    return Benchmark(
        name=name,
        title=title,
        of=of,
        task="hierarchical",
        columns={"label2": classes("negative", "positive"), middle: classes(*groups), "label25": classes(*LEAVES)},
        reader=webemo_reader(middle, merge),
        citation="Panda, Zhang, Li, Lee, Lu, Roy-Chowdhury: Contemplating Visual Emotions, ECCV 2018",
    )


WEBEMO = _benchmark("webemo", "WebEmo", "label7", {})
WEBEMO6 = _benchmark("webemo6", "WebEmo-6", "label6", SIX_OF_SEVEN, of="webemo")
