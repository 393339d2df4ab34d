"""Opening what posts are in: every kind of table gives the same posts, and a faulty one says what and where."""

from __future__ import annotations

import json

import datasets
import pytest
from datasets import Dataset, DatasetDict

from pacl.training.posts import read_posts
from post_fixtures import assert_five_good_posts, make_images, rows_of, write_csv, write_jsonl


def test_jsonl_is_read_with_paths_relative_to_it_and_other_columns_passed_through(posts_file):
    posts = read_posts(posts_file)
    assert_five_good_posts(posts, {"label"})
    assert posts["label"][:] == list("ababa")
    stored = posts.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert stored == {"bytes": None, "path": str(posts_file.parent / "images" / "0.png")}


@pytest.mark.parametrize("suffix", [".json", ".csv", ".tsv", ".parquet"])
def test_other_tables_give_the_same_posts(posts_file, suffix):
    path = posts_file.with_suffix(suffix)
    if suffix == ".json":
        path.write_text(json.dumps(rows_of(5), indent=2))
    elif suffix == ".parquet":
        Dataset.from_list(rows_of(5)).to_parquet(path)
    else:
        write_csv(path, rows_of(5), "\t" if suffix == ".tsv" else ",")
    assert_five_good_posts(read_posts(path), {"label"})


def test_source_can_be_given_relative_to_where_one_is(posts_file, monkeypatch):
    monkeypatch.chdir(posts_file.parent)
    assert_five_good_posts(read_posts("posts.jsonl"), {"label"})


def test_absolute_paths_are_taken_as_they_are(posts_file, tmp_path):
    rows = [row | {"image": str(tmp_path / row["image"])} for row in rows_of(5)]
    assert_five_good_posts(read_posts(write_jsonl(tmp_path / "elsewhere" / "posts.jsonl", rows)), {"label"})


def test_csv_texts_that_look_like_numbers_or_missing_values_stay_texts(posts_file):
    texts = ["007", "NA", "None", 'two\nlines, "quoted"', "1.50"]
    rows = [row | {"text": text, "label": "null"} for row, text in zip(rows_of(5), texts, strict=True)]
    posts = read_posts(write_csv(posts_file.with_suffix(".csv"), rows))
    assert posts["text"][:] == texts
    assert posts["label"][:] == ["null"] * 5


def test_imagefolder_is_read_by_its_metadata(tmp_path):
    make_images(tmp_path / "data" / "sub", [f"{i}.png" for i in range(5)])
    rows = [{"file_name": f"sub/{i}.png", "caption": f"post {i}"} for i in range(5)]
    write_csv(tmp_path / "data" / "metadata.csv", rows)
    assert_five_good_posts(read_posts(tmp_path / "data", text_column="caption"), set())


def test_imagefolder_with_splits_gives_the_one_asked_for(tmp_path):
    for split in ("train", "test"):
        make_images(tmp_path / split, ["a.png"])
        write_jsonl(tmp_path / split / "metadata.jsonl", [{"file_name": "a.png", "text": split}])
    assert read_posts(tmp_path)["text"][:] == ["train"]
    assert read_posts(tmp_path, split="test")["text"][:] == ["test"]
    with pytest.raises(ValueError, match=r"split 'valid' \(there are test, train\)"):
        read_posts(tmp_path, split="valid")


def test_saved_dataset_dict_gives_the_split_asked_for(posts_file, tmp_path):
    posts = read_posts(posts_file)
    DatasetDict(train=posts.select([0]), test=posts.select([1, 2])).save_to_disk(tmp_path / "saved")
    assert len(read_posts(tmp_path / "saved", split="test")) == 2
    with pytest.raises(ValueError, match="no split 'valid'; its splits are train, test"):
        read_posts(tmp_path / "saved", split="valid")


def test_hub_dataset_is_asked_for_by_its_id(posts_file, monkeypatch):
    hub = read_posts(posts_file).remove_columns("row")
    monkeypatch.setattr(
        "pacl.training.post_tables.load_dataset", lambda name, split: {("owner/posts", "test"): hub}[name, split]
    )
    assert_five_good_posts(read_posts("owner/posts", split="test"), {"label"})


def test_hub_dataset_without_a_network_says_so():
    with pytest.raises(ConnectionError, match="nobody/nothing is no file or folder here, and as a dataset on the Hub"):
        read_posts("nobody/nothing")


def test_missing_columns_are_an_error_that_lists_those_found(posts_file):
    with pytest.raises(ValueError, match="no column 'caption'; its columns are 'image', 'text', 'label'"):
        read_posts(posts_file, text_column="caption")


def test_columns_can_be_named(posts_file):
    rows = [{"photo": row["image"], "caption": row["text"]} for row in rows_of(5)]
    path = write_jsonl(posts_file.with_name("named.jsonl"), rows)
    assert_five_good_posts(read_posts(path, image_column="photo", text_column="caption"), set())


def test_a_column_in_the_way_of_a_named_one_is_refused(posts_file):
    rows = [row | {"caption": "x"} for row in rows_of(5)]
    path = write_jsonl(posts_file.with_name("both.jsonl"), rows)
    with pytest.raises(ValueError, match="'caption' cannot become 'text', as there is another column 'text'"):
        read_posts(path, text_column="caption")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 5}, "column 'text' holds .*int64.*, not texts"),
        ({"text": ["a", "b"]}, "column 'text' holds .*, not texts"),
        ({"image": 5}, "column 'image' holds .*int64.*, not images or their paths"),
        ({"row": 3}, "column 'row' has to be the posts' numbers, each once"),
    ],
)
def test_columns_of_the_wrong_type_are_refused(posts_file, change, message):
    path = write_jsonl(posts_file.with_name("typed.jsonl"), [row | change for row in rows_of(2)])
    with pytest.raises(ValueError, match=message):
        read_posts(path)


@pytest.mark.parametrize(
    ("bad_line", "message"),
    [
        ('{"image": "b.jpg", "te', "Unterminated string"),
        ("5", "expected an object in braces"),
        ("hello", "Expecting value"),
        ('{"image": "caf\xe9"}', "not UTF-8"),
    ],
)
def test_malformed_jsonl_names_file_and_line(posts_file, bad_line, message):
    lines = posts_file.read_text().splitlines()
    path = posts_file.with_name("bad.jsonl")
    path.write_bytes("\n".join([*lines[:2], bad_line, *lines[2:]]).encode("latin-1"))
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: .*{message}"):
        read_posts(path)


def test_malformed_json_list_is_a_clear_error(posts_file):
    path = posts_file.with_suffix(".json")
    path.write_text('[{"image": "a", "text": "b"}, {"image": ]')
    with pytest.raises(ValueError, match="posts.json cannot be read as json: .*position"):
        read_posts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png,one,b,too many", "line 3: 4 fields where the header has 3"),
        ("a.png,too few", "line 3: 2 fields where the header has 3"),
        ('a.png,"not closed,b', "fields where the header has 3"),
    ],
)
def test_ragged_csv_names_file_and_line(posts_file, line, message):
    path = posts_file.with_suffix(".csv")
    path.write_text(f"image,text,label\nimages/0.png,post 0,a\n{line}\nimages/1.png,post 1,b\n")
    with pytest.raises(ValueError, match=f"posts.csv, .*{message}"):
        read_posts(path)


def test_ragged_first_line_of_csv_does_not_shift_the_columns(posts_file):
    path = posts_file.with_suffix(".csv")
    path.write_text("image,text\nimages/0.png,post 0,a\nimages/1.png,post 1,b\n")
    with pytest.raises(ValueError, match="line 2: 3 fields where the header has 2"):
        read_posts(path)


@pytest.mark.parametrize("name", ["posts.jsonl", "posts.json", "posts.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_tables_hold_no_posts(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} holds no posts"):
        read_posts(tmp_path / name)


def test_csv_with_a_header_alone_holds_no_posts(tmp_path):
    (tmp_path / "posts.csv").write_text("image,text\n")
    with pytest.raises(ValueError, match="posts.csv holds no posts"):
        read_posts(tmp_path / "posts.csv")


@pytest.mark.parametrize("kind", ["blank at first", "of another type at first"])
def test_a_column_of_csv_whose_type_shows_late_is_read(posts_file, kind):
    first = {"blank at first": "", "of another type at first": 5}[kind]
    rows = [row | {"id": first if index < 11_000 else "x"} for index, row in enumerate(rows_of(1) * 11_001)]
    posts = read_posts(write_csv(posts_file.with_suffix(".csv"), rows))
    assert posts[-1]["id"] == "x"
    assert len(posts) == 11_001


@pytest.mark.parametrize("first", [{}, {"late": None}])
def test_a_key_of_jsonl_that_shows_late_is_read(posts_file, first):
    row = rows_of(1)[0]
    rows = [row | {"text": "long " * 1_000} | first] * 2_200 + [row | {"late": 1}]  # the reader's chunk is 10 MiB
    posts = read_posts(write_jsonl(posts_file, rows))
    assert posts["late"][:] == [None] * 2_200 + [1]


def test_unknown_folder_says_what_was_expected_and_what_was_found(posts_file):
    with pytest.raises(
        ValueError, match="(?s)Found in it: images, posts.jsonl; is .*posts.jsonl meant.*Posts are read from"
    ):
        read_posts(posts_file.parent)


def test_unknown_kind_of_file_says_what_was_expected(tmp_path):
    (tmp_path / "posts.xlsx").touch()
    with pytest.raises(ValueError, match="(?s)not a kind of file that posts are read from.*labelResultAll.txt"):
        read_posts(tmp_path / "posts.xlsx")


@pytest.mark.parametrize("source", ["/nowhere/posts.jsonl", "no/posts.jsonl", "nowhere"])
def test_missing_source_is_a_clear_error(source):
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
        read_posts(source)


def test_format_that_does_not_fit_is_refused(posts_file):
    with pytest.raises(ValueError, match="is a file, but format 'mvsa' is read from a folder"):
        read_posts(posts_file, format="mvsa")
    with pytest.raises(ValueError, match="Unknown format 'excel'; the known ones are json, csv"):
        read_posts(posts_file, format="excel")
    with pytest.raises(ValueError, match="was not written by Dataset.save_to_disk"):
        read_posts(posts_file.parent, format="saved")


def test_format_overrides_what_the_name_says(posts_file):
    assert_five_good_posts(read_posts(posts_file.rename(posts_file.with_suffix(".txt")), format="json"), {"label"})


def test_a_split_of_a_source_without_splits_is_refused(posts_file):
    with pytest.raises(ValueError, match="has no splits; leave split at 'train' instead of 'test'"):
        read_posts(posts_file, split="test")


def test_characters_that_mean_something_to_glob_are_allowed_in_paths(posts_file, tmp_path):
    make_images(tmp_path / "a[1]*", [row["image"] for row in rows_of(5)])
    assert_five_good_posts(read_posts(write_jsonl(tmp_path / "a[1]*" / "p[2].jsonl", rows_of(5))), {"label"})
