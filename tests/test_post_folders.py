"""The folders of TumEmo and MVSA: both layouts, merged labels, and an index that says where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pacl.training.post_folders import merge_labels
from pacl.training.posts import read_posts
from pacl.training.rejections import Rejections


def make_images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)


def make_mvsa(folder: Path, lines: list[str]) -> Path:
    make_images(folder / "data", [f"{line.split()[0]}.jpg" for line in lines])
    for line in lines:
        (folder / "data" / f"{line.split()[0]}.txt").write_text(f"post {line.split()[0]}")
    header = "\t".join(["ID", *["text,image"] * (len(lines[0].split("\t")) - 1)])
    (folder / "labelResultAll.txt").write_text("\n".join([header, *lines, ""]))
    return folder


@pytest.mark.parametrize("posts", [".", "all_data"])
def test_tumemo_release_is_read(tmp_path, posts):
    make_images(tmp_path / posts, [f"{i}.jpg" for i in range(3)])
    (tmp_path / posts / "0.txt").write_bytes("caf\xe9 \n".encode("iso-8859-1"))
    (tmp_path / posts / "1.txt").write_bytes("café ♥".encode())
    (tmp_path / posts / "2.txt").write_text("  \n")
    (tmp_path / "all_data_id_and_label.txt").write_text("id label\n0 Angry\n1 Love\n2 Sad\n")
    rejections = Rejections()
    read = read_posts(tmp_path, rejections=rejections)
    assert read["text"][:] == ["café", "café ♥"]
    assert read["label"][:] == ["Angry", "Love"]
    assert read["id"][:] == ["0", "1"]
    assert set(read.column_names) == {"image", "text", "row", "id", "label"}
    assert list(rejections) == [
        {"row": 2, "reason": "empty text", "stage": "read", "image": str(tmp_path / posts / "2.jpg")}
    ]


def test_tumemo_as_the_papers_code_has_it_is_read(tmp_path):
    make_images(tmp_path / "dataset_image", ["7.jpg", "8.jpg"])
    (tmp_path / "dataset_image" / "7.txt").write_text("hello")
    labels = [{"id": "7", "image_text": "Love"}, {"id": "8", "image_text": "Sad"}]
    (tmp_path / "labelProcessed.json").write_text(json.dumps(labels, indent=2))
    rejections = Rejections()
    posts = read_posts(tmp_path, rejections=rejections)
    assert posts.remove_columns("image").to_list() == [{"text": "hello", "row": 0, "id": "7", "label": "Love"}]
    assert rejections.by_reason() == {"text file not found": 1}


def test_mvsa_single_is_read_and_contradictions_are_counted(tmp_path):
    lines = ["1\tneutral,positive", "2\tpositive,negative", "3\tnegative,neutral", "5\tneutral,neutral"]
    rejections = Rejections()
    posts = read_posts(make_mvsa(tmp_path, lines), rejections=rejections)
    assert posts["label"][:] == ["positive", "negative", "neutral"]
    assert posts["row"][:] == [0, 2, 3]
    assert posts["text"][:] == ["post 1", "post 3", "post 5"]
    (rejection,) = rejections
    assert rejection["row"] == 1
    assert rejection["reason"] == "contradictory labels: text positive, image negative"


def test_mvsa_multiple_takes_the_majority_of_each_modality_first(tmp_path):
    lines = [
        "1\tpositive,neutral\tpositive,neutral\tnegative,negative",
        "2\tpositive,neutral\tneutral,neutral\tnegative,neutral",
        "3\tpositive,negative\tpositive,negative\tneutral,neutral",
    ]
    rejections = Rejections()
    posts = read_posts(make_mvsa(tmp_path, lines), rejections=rejections)
    assert posts["label"][:] == ["positive"]
    assert rejections.by_reason() == {"no majority label": 1, "contradictory labels": 1}


@pytest.mark.parametrize(
    ("pair", "label"),
    [
        (("positive", "positive"), "positive"),
        (("neutral", "negative"), "negative"),
        (("positive", "neutral"), "positive"),
        (("negative", "positive"), None),
    ],
)
def test_labels_of_two_modalities_are_merged_as_usual(pair, label):
    assert merge_labels([pair])[0] == label


def test_folder_can_be_given_relative_to_where_one_is(tmp_path, monkeypatch):
    make_mvsa(tmp_path / "mvsa", ["1\tneutral,neutral"])
    monkeypatch.chdir(tmp_path)
    assert read_posts("mvsa")["text"][:] == ["post 1"]


def test_a_changed_text_file_is_read_anew_and_changes_the_fingerprint(tmp_path):
    folder = make_mvsa(tmp_path, ["1\tneutral,neutral"])
    first = read_posts(folder)._fingerprint
    (folder / "data" / "1.txt").write_text("changed")
    changed = read_posts(folder)
    assert changed["text"][:] == ["changed"]
    assert changed._fingerprint != first


@pytest.mark.parametrize(
    ("index", "content", "message"),
    [
        ("all_data_id_and_label.txt", "id label\n1 Angry\n2\n", "line 3: expected '<id> <Label>', found '2'"),
        ("labelResultAll.txt", "ID\ttext,image\n1\tneutral,happy\n", "line 2: expected .*found '1\\\\tneutral,happy'"),
        ("labelResultAll.txt", "ID\ttext,image\n1\tneutral\n", "line 2: expected"),
        ("labelProcessed.json", '[{"id": "1"}]', 'entry 0: expected {"id", "image_text"}'),
        ("labelProcessed.json", '[{"id": "1"', "labelProcessed.json: "),
        ("labelResultAll.txt", "ID\ttext,image\n", "labelResultAll.txt: it holds no posts"),
        ("labelProcessed.json", "[]", "labelProcessed.json: it holds no posts"),
    ],
)
def test_malformed_index_names_file_and_place(tmp_path, index, content, message):
    (tmp_path / index).write_text(content)
    for posts in ("data", "dataset_image"):
        (tmp_path / posts).mkdir()
    with pytest.raises(ValueError, match=message):
        read_posts(tmp_path)


def test_index_without_its_folder_of_posts_is_a_clear_error(tmp_path):
    (tmp_path / "labelResultAll.txt").write_text("ID\ttext,image\n1\tneutral,neutral\n")
    with pytest.raises(
        FileNotFoundError, match="labelResultAll.txt is there, but the folder .*data with its posts is not"
    ):
        read_posts(tmp_path)


def test_folder_that_is_said_to_be_one_of_them_and_is_not_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no labelResultAll.txt"):
        read_posts(tmp_path, format="mvsa")
    with pytest.raises(FileNotFoundError, match="has neither all_data_id_and_label.txt nor labelProcessed.json"):
        read_posts(tmp_path, format="tumemo")
