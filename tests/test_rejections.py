"""The list of refused posts: nothing in it is lost, and its counts are by kind of reason."""

from __future__ import annotations

import json

from pacl.training.rejections import Rejections


def filled() -> Rejections:
    rejections = Rejections()
    rejections.add(7, "truncated: 27 bytes not processed", "partition", image="images/7.jpg")
    rejections.add(3, "empty text", "read")
    rejections.add(9, "truncated: 3 bytes not processed", "partition", image="images/ü.jpg")
    return rejections


def test_counts_are_by_kind_of_reason_and_not_by_its_details():
    assert filled().by_reason() == {"truncated": 2, "empty text": 1}


def test_summary_is_one_line_with_the_most_frequent_first():
    assert filled().summary() == "3 posts rejected: 2 × truncated, 1 × empty text"
    assert Rejections().summary() == "no post rejected"


def test_saved_lines_hold_row_reason_stage_and_place(tmp_path):
    filled().save(tmp_path / "rejected.jsonl")
    lines = (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"row": 7, "reason": "truncated: 27 bytes not processed", "stage": "partition", "image": "images/7.jpg"},
        {"row": 3, "reason": "empty text", "stage": "read"},
        {"row": 9, "reason": "truncated: 3 bytes not processed", "stage": "partition", "image": "images/ü.jpg"},
    ]


def test_saving_no_rejection_leaves_an_empty_file(tmp_path):
    Rejections().save(tmp_path / "rejected.jsonl")
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""


def test_rows_from_numpy_can_be_saved(tmp_path):
    import numpy as np

    rejections = Rejections()
    rejections.add(np.int64(5), "empty text", "read")
    rejections.save(tmp_path / "rejected.jsonl")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["row"] == 5


def test_lists_can_be_joined():
    rejections, more = filled(), Rejections()
    more.add(1, "file not found", "read")
    rejections.extend(more)
    assert len(rejections) == 4
    assert list(rejections)[-1] == {"row": 1, "reason": "file not found", "stage": "read"}
