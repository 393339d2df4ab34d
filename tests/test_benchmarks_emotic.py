"""Emotic is read person by person from its MATLAB release and from tables, whole pictures or crops."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pacl.evaluation.benchmarks import Dropped, load_benchmark

NAN = float("nan")


def person(categories: list[str], vad: tuple[float, float, float], box: tuple[int, ...] = (1, 1, 5, 7)) -> dict:
    return {"box": box, "categories": categories, "vad": vad}


#: By split: picture, and the people in it.
PEOPLE = {
    "train": {
        "a.jpg": [
            person(["Peace"], (6, 3, 7)),
            person(["Disquitement", "Doubt/Confuzion"], (4, 5, NAN), (4, 2, 9, 8)),
        ],
        "b.jpg": [person(["Happiness", "Esteem", "Affection"], (8, 6, 5), (-3, -2, 4, 99))],
    },
    "val": {"c.jpg": [person(["Fear"], (2, 9, 1)), person([], (5, 5, 5))]},
    "test": {"d.jpg": [person(["Doubt/Confusion"], (5.5, 4.25, 6)), person(["Anger", "Pain"], (2, 8, 3))]},
}


def structs(*records: dict) -> np.ndarray:
    """A MATLAB struct array of shape 1 x n."""
    array = np.empty((1, len(records)), dtype=[(name, object) for name in records[0]])
    for i, record in enumerate(records):
        array[0, i] = tuple(record.values())
    return array


def cells(values: list[str]) -> np.ndarray:
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def mat_person(record: dict, combined: bool) -> dict:
    continuous = structs(dict(zip(("valence", "arousal", "dominance"), map(float, record["vad"]), strict=True)))
    note = structs({"categories": cells(record["categories"])})
    fields = {"body_bbox": np.array(record["box"]), "annotations_categories": note}
    if combined:
        other = structs({"categories": cells(["Engagement"])})
        fields["annotations_categories"] = np.concatenate([note, other], axis=1)
        fields["combined_categories"] = cells(record["categories"]) if record["categories"] else np.zeros((0, 0))
    fields["annotations_continuous"] = np.concatenate([continuous] * 2, axis=1) if combined else continuous
    if combined:
        fields["combined_continuous"] = continuous
    return fields | {"gender": "Male", "age": "Adult"}


def write_mat(path: Path) -> None:
    content = {}
    for split, pictures in PEOPLE.items():
        records = [
            {
                "filename": file,
                "folder": "mscoco/images",
                "image_size": structs({"n_col": 10, "n_row": 8}),
                "original_database": structs({"name": "mscoco"}),
                "person": structs(*[mat_person(record, split != "train") for record in people]),
            }
            for file, people in pictures.items()
        ]
        content[split] = structs(*records)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def write_tables(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = ["Index", "Folder", "Filename", "Image Size", "BBox", "Categorical_Labels", "Continuous_Labels"]
    for split, pictures in PEOPLE.items():
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([*header, "Gender", "Age"])
            for file, people in pictures.items():
                for record in people:
                    box, vad = list(record["box"]), [float(number) for number in record["vad"]]
                    writer.writerow([0, "mscoco/images", file, [10, 8], box, record["categories"], vad, "Male", "Kid"])


@pytest.fixture(params=["mat", "cvpr17", "tables", "tables beside"])
def emotic(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / ("cvpr_emotic" if request.param == "cvpr17" else "emotic") / "mscoco" / "images"
    root.mkdir(parents=True)
    for i, file in enumerate("abcd"):
        Image.new("RGB", (10, 8), (50 * i, 0, 0)).save(root / f"{file}.jpg")
    if request.param == "mat":
        write_mat(tmp_path / "Annotations" / "Annotations.mat")
    elif request.param == "cvpr17":
        write_mat(tmp_path / "CVPR17_Annotations.mat")
    else:
        write_tables(tmp_path / ("emotic_pre" if request.param == "tables" else "annotations_pre"))
    return tmp_path


def test_categories_are_read_per_person_and_variant_spellings_count_as_one(emotic: Path) -> None:
    dropped = Dropped()
    data = load_benchmark("Emotic", emotic, dropped=dropped)
    feature = data["train"].features["categories"].feature
    assert len(feature.names) == 26
    read = {row["id"]: feature.int2str(row["categories"]) for part in data.values() for row in part}
    assert read == {
        "mscoco/images/a.jpg#1": ["Peace"],
        "mscoco/images/a.jpg#2": ["Disquietment", "Doubt/Confusion"],
        "mscoco/images/b.jpg#1": ["Happiness", "Esteem", "Affection"],
        "mscoco/images/c.jpg#1": ["Fear"],
        "mscoco/images/d.jpg#1": ["Doubt/Confusion"],
        "mscoco/images/d.jpg#2": ["Anger", "Pain"],
    }
    assert data["validation"]["id"] == ["mscoco/images/c.jpg#1"]
    assert dropped.entries == [{"row": "mscoco/images/c.jpg#2", "reason": "person without categories"}]


def test_vad_keeps_the_person_without_categories_and_drops_the_one_with_a_missing_rating(emotic: Path) -> None:
    dropped = Dropped()
    data = load_benchmark("Emotic-VAD", emotic, dropped=dropped)
    assert data["validation"]["id"] == ["mscoco/images/c.jpg#1", "mscoco/images/c.jpg#2"]
    row = data["test"][0]
    assert [row[column] for column in ("valence", "arousal", "dominance")] == [5.5, 4.25, 6.0]
    assert row["bbox"] == [1, 1, 5, 7]
    assert dropped.entries == [{"row": "mscoco/images/a.jpg#2", "reason": "dominance is missing"}]


def test_the_picture_is_the_whole_one_unless_crops_are_asked_for(emotic: Path, tmp_path: Path) -> None:
    whole = load_benchmark("emotic", emotic)
    assert {picture.size for picture in whole["train"]["image"]} == {(10, 8)}
    crops = load_benchmark("emotic", emotic, crop_dir=tmp_path / "crops")
    assert [picture.size for picture in crops["train"]["image"]] == [(4, 6), (5, 6), (4, 8)]
    written = sorted((tmp_path / "crops").rglob("*"))
    times = [path.stat().st_mtime_ns for path in written]
    assert not any(path.suffix == ".part" for path in written)
    load_benchmark("emotic", emotic, crop_dir=tmp_path / "crops")
    assert [path.stat().st_mtime_ns for path in written] == times, "crops are written once"


def test_people_that_cannot_be_cropped_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = {"a.jpg": [person(["Peace"], (5, 5, 5)), person(["Peace"], (5, 5, 5), (20, 1, 30, 5))]}
    monkeypatch.setitem(PEOPLE, "train", outside | {"gone.jpg": [person(["Fear"], (5, 5, 5))]})
    root = tmp_path / "mscoco" / "images"
    root.mkdir(parents=True)
    for file in "acd":
        Image.new("RGB", (10, 8)).save(root / f"{file}.jpg")
    write_tables(tmp_path)
    dropped = Dropped()
    data = load_benchmark("emotic", tmp_path, crop_dir=tmp_path / "crops", dropped=dropped)
    assert data["train"]["id"] == ["mscoco/images/a.jpg#1"]
    assert [(entry["row"], entry["reason"]) for entry in dropped.entries] == [
        ("mscoco/images/a.jpg#2", "body box lies outside the picture"),
        ("mscoco/images/gone.jpg#1", "picture file not found"),
        ("mscoco/images/c.jpg#2", "person without categories"),
    ]


def test_an_unknown_category_is_listed_and_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEOPLE, "train", {"a.jpg": [person(["Peace"], (5, 5, 5)), person(["Joyfulness"], (5, 5, 5))]})
    root = tmp_path / "emotic" / "mscoco" / "images"
    root.mkdir(parents=True)
    for file in "acd":
        Image.new("RGB", (10, 8)).save(root / f"{file}.jpg")
    write_mat(tmp_path / "Annotations.mat")
    dropped = Dropped()
    load_benchmark("emotic", tmp_path, dropped=dropped)
    assert {"row": "mscoco/images/a.jpg#2", "reason": "unknown category"} in dropped.entries


def test_annotations_that_are_no_matlab_file_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mscoco" / "images").mkdir(parents=True)
    (tmp_path / "Annotations.mat").write_bytes(b"<html>not found</html>" * 20)
    with pytest.raises(ValueError, match=r"Annotations\.mat cannot be read as a MATLAB file"):
        load_benchmark("emotic", tmp_path)
    savemat(tmp_path / "Annotations.mat", {"train": structs({"filename": "a.jpg"})})
    with pytest.raises(ValueError, match=r"lacks the key\(s\) val, test"):
        load_benchmark("emotic", tmp_path)
