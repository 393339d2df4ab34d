"""Each emotion dataset is read from small faithful copies of the folders that its users have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pacl.evaluation.benchmarks import BENCHMARKS, Dropped, load_benchmark

MIKELS = ["amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness"]
SIX = ["anger", "fear", "joy", "love", "sadness", "surprise"]


def picture(path: Path, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None
    Image.new(mode, (8, 6)).save(path, format=form)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


def names(dataset, column: str = "label") -> list[str]:
    feature = dataset.features[column]
    return [feature.int2str(value) for value in dataset[column]]


def everything(data) -> dict[str, dict]:
    """All rows of all splits by id, pictures left undecoded."""
    return {row["id"]: row for part in data.values() for row in part.remove_columns("image")}


# --- class folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def fi(tmp_path: Path) -> Path:
    for emotion in MIKELS:
        for number in range(10):
            picture(tmp_path / "emotion_dataset" / emotion / f"{emotion}_{number}.{'JPG' if number % 2 else 'jpg'}")
    return tmp_path


def test_fi_without_a_split_folder_is_split_8_1_1_by_class(fi: Path) -> None:
    data = load_benchmark("FI", fi)
    assert {split: len(part) for split, part in data.items()} == {"train": 64, "validation": 8, "test": 8}
    assert sorted(names(data["test"])) == sorted(names(data["validation"])) == MIKELS
    assert data["train"].features["label"].names == MIKELS
    assert all(
        row_id.split("/")[0] == label for row_id, label in zip(data["train"]["id"], names(data["train"]), strict=True)
    )


def test_fi2_reads_the_same_pictures_by_their_polarity(fi: Path) -> None:
    data = load_benchmark("fi2", fi / "emotion_dataset")
    positive = {
        row_id.split("/")[0]
        for part in data.values()
        for row_id, label in zip(part["id"], names(part), strict=True)
        if label == "positive"
    }
    assert positive == {"amusement", "awe", "contentment", "excitement"}


@pytest.mark.parametrize("validation", ["val", "valid", None])
def test_fi_split_folders_stand_and_only_a_missing_validation_is_drawn(tmp_path: Path, validation: str | None) -> None:
    for split in filter(None, ("train", validation, "test")):
        for emotion in MIKELS:
            for number in range(10):
                picture(tmp_path / split / emotion.capitalize() / f"{split}{number}.png")
    data = load_benchmark("fi", tmp_path)
    sizes = {"train": 80, "validation": 80, "test": 80} if validation else {"train": 72, "validation": 8, "test": 80}
    assert {split: len(part) for split, part in data.items()} == sizes
    assert all("/test" in row_id for row_id in data["test"]["id"])


@pytest.mark.parametrize(
    ("name", "wrapper"), [("Emotion-6", "Emotion-6/images"), ("unbiasedemo", "UnBiasedEmo/images"), ("emotion6", ".")]
)
def test_emotion6_pictures_are_found_at_any_depth_and_labelled_by_the_first_folder(
    tmp_path: Path, name: str, wrapper: str
) -> None:
    for emotion in SIX:
        for number in range(8):
            picture(tmp_path / wrapper / emotion / "rage" / f"{number}.jpg")
        picture(tmp_path / wrapper / emotion / "deep" / "deeper" / "deepest" / "8.jpg")
        picture(tmp_path / wrapper / emotion / "9.JPEG")
    data = load_benchmark(name, tmp_path)
    rows = everything(data)
    assert len(rows) == 60
    label = data["train"].features["label"].int2str
    assert label(rows["love/deep/deeper/deepest/8.jpg"]["label"]) == "love"
    assert label(rows["fear/9.JPEG"]["label"]) == "fear"


def test_what_is_no_picture_or_no_class_or_empty_is_listed_as_dropped(fi: Path) -> None:
    root = fi / "emotion_dataset"
    write(root / "awe" / "readme.txt", "hello")
    write(root / "awe" / "Thumbs.db", "")
    write(root / "awe" / ".hidden.jpg", "")
    picture(root / "boredom" / "1.jpg")
    for file in (root / "fear").iterdir():
        file.unlink()
    dropped = Dropped()
    data = load_benchmark("fi", fi, dropped=dropped)
    assert {(entry["row"], entry["reason"]) for entry in dropped.entries} == {
        ("emotion_dataset/awe/readme.txt", "not a picture file"),
        ("emotion_dataset/boredom", "folder is none of the classes"),
        ("emotion_dataset/fear", "class folder without a picture"),
    }
    assert data["train"].features["label"].names == MIKELS


# --- WebEmo --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["nested", "flat"])
def webemo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    nested = request.param == "nested"
    write(tmp_path / "category.txt", "('affection', 'love', '+')\n")
    for split, count in (("train", 10), ("test", 1)):
        lines = []
        for leaf in range(25):
            for number in range(count):
                file = f"220_F_{leaf}_{number}.jpg"
                lines.append(f"https://as2.example.net/jpg/00/42/{file} {leaf}")
                folder = tmp_path / ("images/test25" if split == "test" and nested else split)
                picture(folder / str(leaf) / file if nested else folder / f"{leaf}_{file}")
        write(tmp_path / f"{split}25.txt", "\n".join(lines) + "\n")
    return tmp_path


def test_webemo_has_three_levels_that_agree_and_keeps_its_test(webemo: Path) -> None:
    data = load_benchmark("WebEmo", webemo)
    assert {split: len(part) for split, part in data.items()} == {"train": 225, "validation": 25, "test": 25}
    assert sorted(data["validation"]["label25"]) == sorted(data["test"]["label25"]) == list(range(25))
    assert [len(level) for level in BENCHMARKS["webemo"].class_names.values()] == [2, 7, 25]
    triples = set(zip(*(names(data["test"], column) for column in ("label2", "label7", "label25")), strict=True))
    assert {("negative", "confusion", "confusion"), ("negative", "anger", "disgust")} < triples
    assert {("positive", "joy", "cheerfullness"), ("positive", "surprise", "surprise")} < triples


def test_webemo6_counts_confusion_as_sadness(webemo: Path) -> None:
    data = load_benchmark("webemo-6", webemo)
    assert data["train"].features["label6"].names == SIX
    pairs = dict(zip(names(data["test"], "label25"), names(data["test"], "label6"), strict=True))
    assert pairs["confusion"] == pairs["shame"] == "sadness"
    assert pairs["horror"] == "fear"


def test_webemo_pictures_that_could_not_be_downloaded_and_bad_lines_are_listed(webemo: Path) -> None:
    next(path for path in webemo.rglob("*220_F_3_0.jpg") if "test" in str(path)).unlink()
    with (webemo / "test25.txt").open("a") as stream:
        stream.write("https://as2.example.net/a.jpg 25\nhttps://as2.example.net/b.jpg\n\n")
    dropped = Dropped()
    data = load_benchmark("webemo", webemo, dropped=dropped)
    assert len(data["test"]) == 24
    assert dropped.entries == [
        {"row": "test25.txt:26", "reason": "line is not `<url> <0 to 24>`"},
        {"row": "test25.txt:27", "reason": "line is not `<url> <0 to 24>`"},
        {"row": "3/220_F_3_0.jpg", "reason": "picture file not found"},
    ]


# --- IAPS ----------------------------------------------------------------------------------------------------------

IAPS_HEADER = "desc\tIAPS\tvalmn\tvalsd\taromn\tarosd\tdom1mn\tdom1sd\tdom2mn\tdom2sd\tset"


@pytest.mark.parametrize("preamble", [0, 5, 7])
def test_iaps_reads_decimal_ids_missing_values_and_any_preamble(tmp_path: Path, preamble: int) -> None:
    lines = [f'Line {i} of the "report"' for i in range(preamble)] + [IAPS_HEADER]
    for number in range(100):
        picture(tmp_path / "IAPS 1-20 Images" / f"{2000 + number}.JPG")
        lines.append(f"Thing\t{2000 + number}\t{1 + number * 0.08:.2f}\t1.1\t4.5\t2\t5.5\t2\t.\t.\t3")
    picture(tmp_path / "IAPS 1-20 Images" / "2034.1.jpg")
    lines += [
        'Café "Old\tshop"\t9999\t5\t1\t5\t1\t5\t1',
        "Café\t2034.1\t6.25\t1.1\t3.5\t2\t.\t.\t4.75\t2\t4",
        "Gone\t1111\t5.0\t1.1\t3.5\t2\t5.0\t2\t.\t.\t4",
        "NoRating\t2001\t.\t1.1\t3.5\t2\t5.0\t2\t.\t.\t4",
        "NoDominance\t2002\t5\t1.1\t3.5\t2\t.\t.\t.\t.\t4",
        "Again\t2003\t5\t1.1\t3.5\t2\t5\t2\t.\t.\t9",
        "",
    ]
    write(tmp_path / "IAPS Tech Report" / "AllSubjects_1-20.txt", "\r\n".join(lines), encoding="latin-1")
    dropped = Dropped()
    data = load_benchmark("iaps", tmp_path, dropped=dropped)
    rows = everything(data)
    assert len(rows) == 101
    assert [rows["2034.1"][column] for column in ("valence", "arousal", "dominance")] == [6.25, 3.5, 4.75]
    assert rows["2034.1"]["description"] == "Café"
    assert rows["2003"]["set"] == "3"
    assert dropped.by_reason() == {
        "line with too few cells": 1,
        "valence is missing": 1,
        "dominance is missing": 1,
        "picture file not found": 1,
        "listed twice": 1,
    }
    means = [sum(part["valence"]) / len(part) for part in data.values()]
    assert max(means) - min(means) < 0.8, "the splits are balanced by valence"


def test_iaps_table_without_its_header_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "AllSubjects_1-20.txt", "Thing\t2034\t5\t1\t5\t1\t5\t1\t.\t.\t3\n")
    with pytest.raises(ValueError, match=r"no header line.*iaps, valmn"):
        load_benchmark("iaps", tmp_path)


# --- EmoSet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_id", [True, False])
def test_emoset_reads_both_forms_of_its_rows(tmp_path: Path, with_id: bool) -> None:
    for split, start in (("train", 0), ("val", 100), ("test", 200)):
        rows: list = []
        for emotion in MIKELS:
            place = f"{emotion}/{emotion}_{start:05d}"
            picture(tmp_path / "image" / f"{place}.jpg")
            middle = [start] if with_id else []
            rows.append([emotion, *middle, f"image/{place}.jpg", f"annotation/{place}.json"])
        rows += [["joy", *([1] if with_id else []), "image/joy/1.jpg", "a.json"], ["fear"]]
        write(tmp_path / f"{split}.json", json.dumps(rows))
    dropped = Dropped()
    data = load_benchmark("EmoSet-118K", tmp_path, dropped=dropped)
    assert {split: names(part) for split, part in data.items()} == dict.fromkeys(
        ("train", "validation", "test"), MIKELS
    )
    assert data["validation"]["id"][0] == "image/amusement/amusement_00100.jpg"
    assert dropped.by_reason() == {"unknown emotion": 3, "row is not [emotion, (id,) image, annotation]": 3}


# --- OASIS and Twitter-I -------------------------------------------------------------------------------------------


def oasis_rows(count: int = 40) -> list[tuple[str, int, float, float]]:
    return [(f"Theme {i // 2}x", i % 2 + 1, 1.5 + 5 * i / count, 6.5 - 5 * i / count) for i in range(count)]


@pytest.mark.parametrize("layout", ["plain", "original"])
def test_oasis_is_read_from_both_layouts_and_split_by_theme(tmp_path: Path, layout: str) -> None:
    if layout == "plain":
        lines = ["image,theme,category,valence,arousal"]
        for theme, number, valence, arousal in oasis_rows():
            picture(tmp_path / "images" / f"{theme}_{number}.jpg")
            lines.append(f"images/{theme}_{number}.jpg,{theme},Object,{valence},{arousal}")
        write(tmp_path / "ratings.csv", "\n".join(lines))
    else:
        lines = [",Theme,Category,Source,Valence_mean,Valence_SD,Valence_N,Arousal_mean,Arousal_SD,Arousal_N"]
        for i, (theme, number, valence, arousal) in enumerate(oasis_rows()):
            picture(tmp_path / "Images" / f"{theme} {number}.jpg")
            lines.append(f"I{i},{theme} {number} ,Object,Pixabay,{valence},1,100,{arousal},1,100")
        write(tmp_path / "OASIS.csv", "\n".join(lines))
    data = load_benchmark("oasis", tmp_path)
    themes = [set(part["theme"]) for part in data.values()]
    assert sum(map(len, themes)) == len(set.union(*themes)) == 20
    rows = {(row["theme"], row["valence"]) for row in everything(data).values()}
    assert ("Theme 19x", 6.375) in rows
    assert data["test"].features["valence"].dtype == "float32"


def test_oasis_ratings_that_are_no_ratings_are_listed(tmp_path: Path) -> None:
    lines = ["image,theme,category,valence,arousal"]
    for theme, number, valence, arousal in oasis_rows():
        picture(tmp_path / f"{theme}_{number}.jpg")
        lines.append(f"{theme}_{number}.jpg,{theme},Object,{valence},{arousal}")
    lines += ["a.jpg,T,Object,NaN,3", "b.jpg,T,Object,3,8", "c.jpg,T,Object,3"]
    write(tmp_path / "ratings.csv", "\n".join(lines), encoding="utf-8-sig")
    dropped = Dropped()
    load_benchmark("oasis", tmp_path, dropped=dropped)
    assert [(entry["row"], entry["reason"]) for entry in dropped.entries] == [
        ("a.jpg", "valence is missing"),
        ("b.jpg", "arousal is outside 1 to 7"),
        ("c.jpg", "arousal is missing"),
    ]


def test_oasis_themes_that_only_train_are_never_tested(tmp_path: Path) -> None:
    lines = ["image,theme,category,valence,arousal"]
    for theme, number, valence, arousal in oasis_rows():
        picture(tmp_path / f"{theme}_{number}.jpg")
        lines.append(f"{theme}_{number}.jpg,{theme},Object,{valence},{arousal}")
    write(tmp_path / "ratings.csv", "\n".join(lines))
    write(tmp_path / "names.txt", "Theme 3x\nTheme 11x\n\n")
    tested: set[str] = set()
    for fold in range(10):
        data = load_benchmark("oasis", tmp_path, fold=fold, train_only=tmp_path / "names.txt")
        assert {"Theme 3x", "Theme 11x"} <= set(data["train"]["theme"])
        tested |= {*data["test"]["theme"], *data["validation"]["theme"]}
    assert len(tested) == 18
    assert not tested & {"Theme 3x", "Theme 11x"}
    write(tmp_path / "names.txt", "Theme 3\n")
    with pytest.raises(ValueError, match=r"names themes that .*ratings.csv doesn't have, such as 'Theme 3'"):
        load_benchmark("oasis", tmp_path, train_only=tmp_path / "names.txt")


def test_a_table_without_its_columns_is_refused_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv", "image,theme,valence\na.jpg,T,3\n")
    with pytest.raises(ValueError, match=r"lacks the column\(s\) category, arousal; it has image, theme, valence"):
        load_benchmark("oasis", tmp_path)
    (tmp_path / "ratings.csv").write_bytes(b"image,theme\n\xff\xfe")
    with pytest.raises(ValueError, match=r"ratings\.csv is not a comma-separated table in UTF-8"):
        load_benchmark("oasis", tmp_path)


def test_twitter_is_read_from_its_plain_table(tmp_path: Path) -> None:
    lines = ["image,sentiment"]
    for number in range(20):
        picture(tmp_path / "images" / f"{number:04d}.jpg")
        lines.append(f"images/{number:04d}.jpg,{'Positive' if number % 2 else 'negative'}")
    write(tmp_path / "labels.csv", "\n".join([*lines, "images/0001.jpg,mixed"]))
    dropped = Dropped()
    data = load_benchmark("Twitter-I", tmp_path, dropped=dropped)
    assert {row_id: row["label"] for row_id, row in everything(data).items()} == {
        f"images/{i:04d}.jpg": i % 2 for i in range(20)
    }
    assert dropped.entries == [{"row": "images/0001.jpg", "reason": "unknown sentiment"}]
    with pytest.raises(ValueError, match="agreement=3 cannot be chosen"):
        load_benchmark("twitter1", tmp_path, agreement=3)


def test_twitter_lists_of_the_original_release_are_chosen_by_agreement(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / "Agg_AMT_Candidates" / f"{number}.jpg")
    for agreement, count in (("five", 20), ("three", 40)):
        lines = [f"{number}.jpg {number % 2}" for number in range(count)]
        write(tmp_path / f"twitter_{agreement}_agrees.txt", "\n".join([*lines, "broken"]))
    dropped = Dropped()
    five = load_benchmark("twitter1", tmp_path, dropped=dropped)
    assert sum(map(len, five.values())) == 20
    assert names(five["train"])[:2] == ["negative", "positive"]
    assert dropped.entries == [{"row": "twitter_five_agrees.txt:21", "reason": "line is not `<file> <0 or 1>`"}]
    assert sum(map(len, load_benchmark("twitter1", tmp_path, agreement=3).values())) == 40
    with pytest.raises(ValueError, match="must be 3, 4 or 5, not 2"):
        load_benchmark("twitter1", tmp_path, agreement=2)
    with pytest.raises(FileNotFoundError, match=r"twitter_four_agrees\.txt"):
        load_benchmark("twitter1", tmp_path, agreement=4)
