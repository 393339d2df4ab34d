"""Twitter-I: pictures from tweets, positive or negative by human label, as the original release or a plain table."""

from __future__ import annotations

from pathlib import Path

from .benchmark import Benchmark, Rows, classes
from .dropped import Dropped
from .folder import find_file, not_this_dataset, pictures_by_stem, read_table, require_columns

AGREEMENT = {3: "three", 4: "four", 5: "five"}

SENTIMENT = {"positive": "positive", "negative": "negative", "1": "positive", "0": "negative"}


def read_twitter(folder: Path, dropped: Dropped, *, agreement: int = 5) -> Rows:
    """
    Reads `labels.csv` (image, sentiment; image paths relative to the folder), or the original release:
    `twitter_five_agrees.txt` and its like (lines `<file> <0 or 1>`) beside `Agg_AMT_Candidates/`.

    Args:
        agreement (`int`, *optional*, defaults to 5): the least number of the five annotators that agree (3, 4 or 5):
            chooses among the original release's lists. `labels.csv` is one list, of which nothing can be chosen.
    """
    if agreement not in AGREEMENT:
        raise ValueError(f"Twitter-I's agreement must be 3, 4 or 5, not {agreement!r}.")
    number = AGREEMENT[agreement]
    originals = [f"{start}{number}_agree{end}.txt" for start in ("twitter_", "") for end in ("s", "")]
    table = find_file([folder, folder / "ground_truth"], "labels.csv", *originals)
    if table is None:
        raise not_this_dataset("Twitter-I", folder, f"labels.csv or {originals[0]}, and a folder of pictures")
    is_plain = table.name.lower() == "labels.csv"
    if is_plain and agreement != 5:
        raise ValueError(f"{table} does not say how many annotators agree, so agreement={agreement} cannot be chosen.")
    pairs = _plain_pairs(table) if is_plain else _original_pairs(table, folder, dropped)
    rows = []
    for file, sentiment in pairs:
        if sentiment.lower() in SENTIMENT:
            row = {"image": str(folder / file), "id": file, "label": SENTIMENT[sentiment.lower()]}
            rows.append(row)
        else:
            dropped.add(file, "unknown sentiment")
    return {"all": rows}


def _plain_pairs(table: Path) -> list[tuple[str, str]]:
    rows = read_table(table)
    require_columns(table, rows, ("image", "sentiment"))
    return [(row["image"], row["sentiment"]) for row in rows]


def _original_pairs(table: Path, folder: Path, dropped: Dropped) -> list[tuple[str, str]]:
    pictures = pictures_by_stem(folder)
    pairs = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        match line.split():
            case [file, sentiment]:
                found = pictures.get(Path(file).stem.lower())
                pairs.append((file if found is None else found.relative_to(folder).as_posix(), sentiment))
            case []:
                pass
            case _:
                dropped.add(f"{table.name}:{number}", "line is not `<file> <0 or 1>`")
    return pairs


TWITTER1 = Benchmark(
    name="twitter1",
    title="Twitter-I",
    task="single_label",
    columns={"label": classes("negative", "positive")},
    reader=read_twitter,
    citation="You, Luo, Jin, Yang: Robust Image Sentiment Analysis Using Progressively Trained and Domain Transferred "
    "Deep Networks, AAAI 2015",
)
