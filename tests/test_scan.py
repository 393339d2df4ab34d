"""The pass over the posts: nothing decoded or run twice, nothing lost, nothing done again after a kill."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch

from conftest import make_tokenizer
from pacl.training import scan
from pacl.training.columns import column_to_numpy
from pacl.training.evaluators import DualEncoderJudge, TagJudge
from pacl.training.features import ImageEncoder, TextEncoder, TowerEncoders
from pacl.training.partition import partition_dataset
from pacl.training.rejections import Rejections
from pacl.training.scan import PostBatch, ScanColumn, feature_columns, scan_posts
from pacl.training.taggers import ClassifierTagger
from stage_helpers import (
    BrightnessJudge,
    Counter,
    LengthJudge,
    clip_encoders,
    make_posts,
    small_processor,
    tiny_clip,
    tiny_resnet,
    tiny_roberta,
    truncate,
)


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that are decoded, in order."""
    seen = []
    decode = scan.decode_image

    def counted(image):
        seen.append(image)
        return decode(image)

    monkeypatch.setattr(scan, "decode_image", counted)
    return seen


def judges_and_towers():
    """A factual judge of CLIP, an emotional one on a classifier, and towers that are copies of what they use."""
    roberta = TextEncoder(tiny_roberta(), make_tokenizer())
    factual = DualEncoderJudge(*clip_encoders())
    emotional = TagJudge(ClassifierTagger(ImageEncoder(tiny_resnet(), small_processor())), roberta)
    towers = TowerEncoders(
        ImageEncoder(tiny_resnet().resnet, small_processor()), TextEncoder(tiny_roberta(), make_tokenizer())
    )
    return factual, emotional, towers


def test_each_picture_is_decoded_once_for_both_judges_and_stage_2(tmp_path, decoded):
    posts = make_posts(tmp_path, 10)
    partition_dataset(posts, *judges_and_towers()[:2], towers=judges_and_towers()[2], cache_dir=tmp_path / "c")
    assert len(decoded) == 10


def test_models_with_equal_weights_run_once(tmp_path):
    factual, emotional, towers = judges_and_towers()
    classifier = Counter(emotional.tagger.encoder.model)
    text_judge, text_tower = Counter(emotional.text_encoder.model), Counter(towers.text.model)
    vision_tower, clip = Counter(towers.image.model), Counter(factual.images.model.vision_model)

    posts = make_posts(tmp_path, 10)
    result = partition_dataset(posts, factual, emotional, towers=towers, cache_dir=tmp_path / "c")

    assert classifier.rows == 10
    assert vision_tower.rows == 0, "the classifier's backbone has these features"
    tags = 10
    assert text_judge.rows + text_tower.rows <= 10 + tags
    assert text_judge.rows + text_tower.rows > 10
    assert clip.rows == 10
    alone = towers.image.encode([towers.image.preprocess(post["image"]) for post in posts]).features
    np.testing.assert_array_equal(column_to_numpy(result, "vision_features"), alone.numpy().astype(np.float16))


def test_preprocessing_that_is_equal_is_done_once(tmp_path, monkeypatch):
    prepared = []
    preprocess = ImageEncoder.preprocess
    monkeypatch.setattr(
        ImageEncoder, "preprocess", lambda self, picture: prepared.append(1) or preprocess(self, picture)
    )
    factual, emotional, towers = judges_and_towers()
    partition_dataset(make_posts(tmp_path, 4), factual, emotional, towers=towers, cache_dir=tmp_path / "c")
    assert len(prepared) == 4


def test_second_scan_runs_no_model_and_decodes_nothing(tmp_path, decoded):
    posts = make_posts(tmp_path, 6)
    factual, emotional, towers = judges_and_towers()
    first = partition_dataset(posts, factual, emotional, towers=towers, cache_dir=tmp_path / "c")
    decoded.clear()
    factual, emotional, towers = judges_and_towers()  # other objects, the same content
    counters = [Counter(model) for model in (factual.images.model, emotional.tagger.encoder.model, towers.text.model)]
    second = partition_dataset(posts, factual, emotional, towers=towers, threshold=0.1, cache_dir=tmp_path / "c")

    assert not decoded
    assert [counter.rows for counter in counters] == [0, 0, 0]
    assert second["emotional_score"][:] == first["emotional_score"][:]
    assert second._fingerprint != first._fingerprint


def test_other_weights_are_not_served_from_the_cache(tmp_path):
    posts = make_posts(tmp_path, 4)
    scores = [
        partition_dataset(posts, DualEncoderJudge(*clip_encoders(seed)), LengthJudge(), cache_dir=tmp_path / "c")[
            "factual_score"
        ][:]
        for seed in (0, 1)
    ]
    assert scores[0] != scores[1]


def test_killed_scan_goes_on_behind_its_last_finished_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "shard_rows", lambda posts, batch_size: 4)
    posts = make_posts(tmp_path, 10)
    with pytest.raises(KeyboardInterrupt):
        partition_dataset(posts, BrightnessJudge(fail_at=9), LengthJudge(), batch_size=2, cache_dir=tmp_path / "c")
    assert len(list((tmp_path / "c").glob("*.arrow"))) == 2

    judge = BrightnessJudge()
    result = partition_dataset(posts, judge, LengthJudge(), batch_size=2, cache_dir=tmp_path / "c")

    assert judge.encoder.rows == 2
    whole = BrightnessJudge()(PostBatch.from_posts(posts["image"][:], posts["text"][:], judge.encoders))
    np.testing.assert_allclose(column_to_numpy(result, "factual_score"), whole)
    assert list(result.features) == [*posts.features, "factual_score", "emotional_score", "partition"]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 48, 500])
@pytest.mark.parametrize("posts", [1, 31, 300, 3000, 100_000, 1_000_000, 30_000_000])
def test_shards_are_whole_batches_and_neither_too_many_nor_too_few(posts, batch_size):
    rows = scan.shard_rows(posts, batch_size)
    assert rows % batch_size == 0
    assert -(-posts // rows) <= 128
    assert rows < 2 * posts / 32 + batch_size, "every one of some processes has work"
    assert rows < max(512, posts / 128 + 512) + batch_size, "not much is lost when a pass is killed"


def test_shards_are_found_again_by_a_smaller_batch(tmp_path, decoded):
    posts = make_posts(tmp_path, 40)
    for batch_size in (4, 2, 1):
        partition_dataset(
            posts, BrightnessJudge(), LengthJudge(), batch_size=batch_size, cache_dir=tmp_path / f"{batch_size < 4}"
        )
    assert len(decoded) == 80


def test_rows_out_of_their_order_are_put_in_order_in_the_cache_folder(tmp_path):
    shuffled = make_posts(tmp_path, 6).shuffle(seed=0)
    result = partition_dataset(shuffled, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    assert result["row"][:] == shuffled["row"][:]
    assert len(list((tmp_path / "c").glob("rows-*.arrow"))) == 1


def test_fingerprint_of_the_result_is_the_same_each_time(tmp_path):
    posts = make_posts(tmp_path, 4)
    truncate(posts, 1)
    results = [
        partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / str(i)) for i in range(2)
    ]
    assert results[0]._fingerprint == results[1]._fingerprint


@pytest.mark.parametrize("bad", [[0], [3, 4, 9], [0, 1, 2, 3]])
def test_truncated_pictures_are_rejected_with_row_and_reason_and_the_others_stay_aligned(tmp_path, bad):
    posts = make_posts(tmp_path, 10)
    whole = partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "whole")
    expected = dict(zip(whole["row"], whole["factual_score"], strict=True))
    paths = [truncate(posts, position) for position in bad]

    for _ in range(2):  # the second time from the cache
        rejections = Rejections()
        result = partition_dataset(
            posts, BrightnessJudge(), LengthJudge(), batch_size=4, rejections=rejections, cache_dir=tmp_path / "cut"
        )
        found = [(entry["row"], entry["stage"], entry["image"]) for entry in rejections]
        assert found == [(100 * i, "partition", path) for i, path in zip(bad, paths, strict=True)]
        assert rejections.by_reason() == {"truncated": len(bad)}
        assert result["row"][:] == [100 * i for i in range(10) if i not in bad]
        assert dict(zip(result["row"], result["factual_score"], strict=True)) == {
            row: score for row, score in expected.items() if row // 100 not in bad
        }
        assert result["emotional_score"][:] == [len(text) for text in result["text"]]


def test_rejections_are_logged_when_nobody_collects_them(tmp_path, caplog):
    posts = make_posts(tmp_path, 3)
    truncate(posts, 1)
    partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    assert "1 post rejected: 1 × truncated" in caplog.text


def test_shard_without_one_good_picture_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "shard_rows", lambda posts, batch_size: 2)
    posts = make_posts(tmp_path, 6)
    for position in (2, 3):
        truncate(posts, position)
    _, _, towers = judges_and_towers()
    result = scan_posts(posts, feature_columns(towers), stage="cluster", cache_dir=tmp_path / "c")
    assert column_to_numpy(result, "vision_features").shape == (4, 16)


def test_posts_of_which_no_picture_can_be_used_are_refused(tmp_path):
    posts = make_posts(tmp_path, 2)
    for position in range(2):
        truncate(posts, position)
    with pytest.raises(ValueError, match="not one of 2 pictures can be used; the first: truncated"):
        partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")


def test_pictures_may_be_embedded_and_rows_filtered_and_shuffled(tmp_path):
    posts = make_posts(tmp_path / "p", 8)
    embedded = posts.map(lambda post: post, features=posts.features, load_from_cache_file=False).shuffle(seed=0)
    embedded = embedded.filter(lambda row: row != 300, input_columns="row")
    by_path = partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    result = partition_dataset(embedded, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    expected = dict(zip(by_path["row"], by_path["factual_score"], strict=True))
    assert result["row"][:] == embedded["row"][:]
    assert [expected[row] for row in result["row"]] == result["factual_score"][:]


def test_rows_are_counted_where_the_source_has_no_row_column(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "shard_rows", lambda posts, batch_size: 4)
    posts = make_posts(tmp_path, 10).remove_columns("row")
    truncate(posts, 6)
    rejections = Rejections()
    partition_dataset(
        posts, BrightnessJudge(), LengthJudge(), batch_size=1, rejections=rejections, cache_dir=tmp_path / "c"
    )
    assert [entry["row"] for entry in rejections] == [6]


def test_values_do_not_depend_on_the_batch_size(tmp_path):
    posts = make_posts(tmp_path, 9)
    factual, emotional, _ = judges_and_towers()
    results = [
        partition_dataset(posts, factual, emotional, batch_size=size, cache_dir=tmp_path / str(size))
        for size in (1, 4, 32)
    ]
    for result in results[1:]:
        for name in ("factual_score", "emotional_score"):
            np.testing.assert_allclose(
                column_to_numpy(result, name), column_to_numpy(results[0], name), atol=1e-5, rtol=0
            )


def test_features_are_fixed_length_half_precision_lists(tmp_path):
    _, _, towers = judges_and_towers()
    result = scan_posts(make_posts(tmp_path, 3), feature_columns(towers), stage="cluster", cache_dir=tmp_path / "c")
    assert result.features["vision_features"] == datasets.List(datasets.Value("float16"), length=16)
    assert result.features["text_features"] == datasets.List(datasets.Value("float16"), length=24)
    again = scan_posts(make_posts(tmp_path, 3), feature_columns(towers), stage="cluster", cache_dir=tmp_path / "c")
    assert again.features == result.features


def test_features_beyond_half_precision_are_refused(tmp_path):
    model = tiny_resnet().resnet
    with torch.no_grad():
        for stage in model.encoder.stages:
            for parameter in stage.parameters():
                parameter.mul_(1e4)
    towers = TowerEncoders(ImageEncoder(model, small_processor()), TextEncoder(tiny_roberta(), make_tokenizer()))
    with pytest.raises(ValueError, match="vision_features of row 0 are NaN or beyond float16"):
        scan_posts(make_posts(tmp_path, 2), feature_columns(towers), stage="cluster", cache_dir=tmp_path / "c")


def test_encoder_that_was_not_announced_is_refused():
    encoder = ImageEncoder(tiny_resnet(), small_processor())
    batch = PostBatch.from_posts([], [], ())
    with pytest.raises(ValueError, match="missing from its `encoders`"):
        batch.encode_images(encoder)


def test_head_serves_the_bare_tower_whichever_comes_first():
    bare, head = ImageEncoder(tiny_clip().vision_model, small_processor()), clip_encoders()[0]
    for encoders in ((bare, head), (head, bare)):
        assert scan.choose_runners(encoders) == {bare.key: head, head.key: head}


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"text": ["a"]}, "lack image"), ({"image": [], "text": []}, "there are no posts")],
)
def test_posts_without_what_a_scan_reads_are_refused(columns, message, tmp_path):
    posts = datasets.Dataset.from_dict(columns)
    with pytest.raises(ValueError, match=message):
        partition_dataset(posts, BrightnessJudge(), LengthJudge(), cache_dir=tmp_path)


def test_one_bar_is_shown_and_its_library_setting_left_as_it_was(tmp_path, capsys):
    datasets.enable_progress_bars()
    partition_dataset(make_posts(tmp_path, 3), BrightnessJudge(), LengthJudge(), cache_dir=tmp_path / "c")
    assert not datasets.are_progress_bars_disabled()
    shown = capsys.readouterr().err
    assert "Partition: 100%" in shown
    assert "Map" not in shown


def test_columns_are_read_without_a_copy_where_they_lie_in_one_piece():
    values = np.arange(12, dtype=np.float16).reshape(4, 3)
    features = datasets.Features(
        {"x": datasets.List(datasets.Value("float16"), length=3), "y": datasets.Value("int32")}
    )
    dataset = datasets.Dataset.from_dict({"x": values, "y": range(4)}, features=features)
    array = column_to_numpy(dataset, "x")
    np.testing.assert_array_equal(array, values)
    assert not array.flags.owndata
    np.testing.assert_array_equal(column_to_numpy(dataset.select([3, 1]), "x"), values[[3, 1]])
    np.testing.assert_array_equal(column_to_numpy(dataset.select(range(1, 3)), "x"), values[1:3])
    np.testing.assert_array_equal(column_to_numpy(dataset, "y"), range(4))
    with pytest.raises(ValueError, match="no column z"):
        column_to_numpy(dataset, "z")


def test_columns_with_gaps_or_ragged_lists_are_refused():
    dataset = datasets.Dataset.from_dict({"gap": [1.0, None], "ragged": [[1.0], [1.0, 2.0]]})
    with pytest.raises(ValueError, match="gap has 1 missing value"):
        column_to_numpy(dataset, "gap")
    with pytest.raises(ValueError, match="fixed-length"):
        column_to_numpy(dataset, "ragged")


def test_own_columns_can_be_scanned(tmp_path):
    column = ScanColumn(
        "words", "word-count", (), lambda batch: np.array([len(t.split()) for t in batch.texts], np.float32)
    )
    posts = make_posts(tmp_path, 3)
    result = scan_posts(posts, [column], stage="count", cache_dir=tmp_path / "c")
    assert result["words"][:] == [len(text.split()) for text in posts["text"]]
