"""The demo without a browser: shares, bars, maps, comparison, what it says where it cannot, and the Space."""

from __future__ import annotations

import re
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from conftest import random_pictures, tiny_vit_config
from demo_fixtures import POSTS, THRESHOLDS, make_posts, make_run
from pacl.hub_cards.demo import DemoError, Sources, main
from pacl.hub_cards.demo.markup import bars, figure, gallery, shortened
from pacl.hub_cards.demo.partitions import PartitionedPosts, partition_codes, shares_of
from pacl.pooling import pool_vision
from pacl.training.partition import PARTITION_NAMES
from pacl.training.synthetic import asset_path

gradio = pytest.importorskip("gradio", reason="the demo's extra is not installed: gradio")
pytest.importorskip("pytorch_grad_cam", reason="the demo's extra is not installed: grad-cam")

from pacl.evaluation.backbones import Backbone  # noqa: E402
from pacl.hub_cards.demo import dataset_tab, emotions_tab  # noqa: E402
from pacl.hub_cards.demo.app import example_files, measured  # noqa: E402
from pacl.hub_cards.demo.attention import look, overlay, shown_pixels  # noqa: E402
from pacl.hub_cards.demo.comparison import Comparison  # noqa: E402
from pacl.hub_cards.demo.reading import Reader  # noqa: E402
from pacl.hub_cards.demo.space import write_space  # noqa: E402


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def reader(run_folder):
    return Reader(str(run_folder / "dual_encoder"))


@pytest.fixture(scope="module")
def posts():
    return PartitionedPosts(make_posts())


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (-1.0, 0.2), (0.3, 9.0), (9.0, 9.0)])
def test_shares_are_those_of_counting_post_by_post(posts, thresholds):
    at = dict(zip(("factual", "emotional"), thresholds, strict=True))
    counted = dict.fromkeys(PARTITION_NAMES, 0)
    for post in posts.dataset:
        fact, emotion = post["factual_score"] > thresholds[0], post["emotional_score"] > thresholds[1]
        name = "strong" if fact and emotion else "partial_factual" if fact else "partial_emotional"
        counted[name if fact or emotion else "weak"] += 1
    assert shares_of(posts.codes(at)) == pytest.approx({name: count / POSTS for name, count in counted.items()})


def test_a_score_equal_to_the_threshold_does_not_match():
    scores = {"factual": np.float32([0.5, 0.6]), "emotional": np.float32([0.5, 0.5])}
    assert partition_codes(scores, {"factual": 0.5, "emotional": 0.5}).tolist() == [3, 2]


def test_the_sliders_start_where_the_dataset_was_partitioned(posts):
    assert shares_of(posts.codes(posts.start)) == shares_of(posts.as_saved)
    assert posts.start["factual"] == pytest.approx(THRESHOLDS[0], abs=0.1)
    for side, value in posts.start.items():
        low, high = posts.bounds(side)
        assert low <= value <= high


def test_at_the_ends_of_the_sliders_all_or_none_match(posts):
    ends = [dict(zip(posts.scores, end, strict=True)) for end in zip(*map(posts.bounds, posts.scores), strict=True)]
    assert shares_of(posts.codes(ends[0]))["strong"] == 1
    assert shares_of(posts.codes(ends[1]))["weak"] == 1


def test_a_side_that_has_no_scores_matches_everywhere():
    dataset = make_posts().remove_columns("emotional_score")
    found = PartitionedPosts(dataset)
    assert set(found.scores) == {"factual"}
    assert set(np.unique(found.codes({"factual": 0.5}))) == {0, 1}


def test_pages_hold_the_partition_in_the_order_asked_for_and_stay_within_it(posts):
    at = (0.2, 0.2)
    cards, number, where = dataset_tab.show_page(posts, 999, "strong", "best match in emotion first", *at)
    rows = posts.members(dict(zip(posts.scores, at, strict=True)), "strong", "best match in emotion first")
    last = rows[(number - 1) * dataset_tab.PAGE_SIZE :]
    assert f"Page {number} of {number}, {len(rows)} posts" in where
    assert [int(row) for row in re.findall(r"Picture of post (\d+)", cards)] == last.tolist()
    assert (np.diff(posts.scores["emotional"][rows]) <= 0).all()
    assert dataset_tab.show_page(posts, -3, "weak", "as in the dataset", *at)[1] == 1
    assert "No post is in this partition" in dataset_tab.show_page(posts, 1, "weak", "as in the dataset", -1, -1)[0]


def test_a_slider_that_tells_its_value_twice_does_not_turn_the_page_back(posts):
    values = ("strong", "as in the dataset", 0.2, 0.2)
    selected, *_, number, _ = dataset_tab.show_selected(posts, None, *values)
    assert (selected, number) == (values, 1)
    assert dataset_tab.show_selected(posts, selected, *values) == gradio.skip()
    assert dataset_tab.show_selected(posts, selected, *values[:3], 0.3) != gradio.skip()


def test_a_page_decodes_only_its_own_pictures(posts, monkeypatch):
    decoded = []
    decode = datasets.Image.decode_example
    monkeypatch.setattr(
        datasets.Image, "decode_example", lambda self, *args, **kw: decoded.append(1) or decode(self, *args, **kw)
    )
    dataset_tab.show_page(posts, 1, "strong", "as in the dataset", -1, -1)
    assert len(decoded) == dataset_tab.PAGE_SIZE


def test_bars_tell_names_and_shares_and_sum_up_the_rest():
    html = bars({"joy": 0.6, "<fear>": 0.3, "awe": 0.06, "love": 0.04}, top=2)
    assert re.findall(r'bar-name">(.*?)</span>', html) == ["joy", "&lt;fear&gt;"]
    assert re.findall(r'bar-value">(.*?)</span>', html) == ["60%", "30%"]
    assert "width:60.00%" in html
    assert "2 more together: 10%" in html


def test_texts_of_posts_are_shown_and_never_run():
    post = {"row": 3, "image": random_pictures(1)[0], "text": "<script>alert(1)</script>", "scores": {"factual": 0.5}}
    assert "<script" not in gallery([post])
    assert "fact 0.50" in gallery([post])
    assert shortened("word " * 100, 20) == "word word word word …"


def test_big_pictures_become_thumbnails():
    html = figure(Image.new("RGB", (3000, 2000)), 'a "big" picture')
    assert len(html) < 20_000
    assert 'alt="a &quot;big&quot; picture"' in html


def small_swin():
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 2]}
    return transformers.SwinModel(transformers.SwinConfig(**sizes, window_size=4))


def small_timm(name, **options):
    config = transformers.TimmWrapperConfig(architecture=name, num_classes=0, model_args=options)
    return transformers.TimmWrapperModel(config)


TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TINY_CLIP = {k: v for k, v in tiny_vit_config().to_dict().items() if k.endswith(("size", "layers", "heads"))}
TOWERS = {
    "resnet": lambda: transformers.AutoModel.from_pretrained(asset_path("vision_tower")),
    "vit": lambda: transformers.ViTModel(tiny_vit_config(), add_pooling_layer=False),
    "swin": small_swin,
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY_CLIP)),
    "timm resnet": lambda: small_timm("resnet18"),
    "timm vit": lambda: small_timm("vit_tiny_patch16_224", **TINY_VIT),
    "timm convnext": lambda: small_timm("convnext_atto"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_kind_of_tower_has_a_map_of_the_pictures_shape(name):
    torch.manual_seed(0)
    tower = TOWERS[name]().eval().requires_grad_(False)
    size = 64 if "resnet" in name or "convnext" in name else 32

    def score(pixels):
        features = pool_vision(tower(pixel_values=pixels, return_dict=True))[0]
        return features @ features.detach()

    heat = look(tower, torch.randn(1, 3, size, size), score)
    assert heat.shape == (size, size)
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1)
    assert not any(module._forward_hooks for module in tower.modules()), "hooks were left behind"


def test_the_map_lies_where_the_score_comes_from():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    nn.init.constant_(model[0].weight, 0.1)
    pixels = torch.zeros(1, 3, 16, 16)
    pixels[..., :8] = 1.0  # bright on the left
    left = look(model, pixels, lambda given: model(given).sum())
    assert left[1:-1, 1:7].min() > 0.6
    assert left[:, 9:].max() == pytest.approx(0, abs=1e-6)


def test_a_model_without_places_has_no_map():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    assert look(model, torch.randn(1, 3, 4, 4), lambda given: model(given)[0, 0]) is None


def test_the_picture_under_the_map_is_the_one_that_was_given():
    picture = random_pictures(1, size=32)[0]
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    shown = shown_pixels(processor(images=picture, return_tensors="pt")["pixel_values"], processor)
    assert np.abs(np.asarray(shown, int) - np.asarray(picture, int)).max() <= 1
    assert overlay(shown, np.zeros((32, 32))).size == (320, 320)


def test_a_reading_is_that_of_the_pipeline(reader):
    picture = random_pictures(1, size=64)[0]
    words, prompts = ["joy", "fear", "love"], ["so [C]"]
    reading = reader.read(picture, words, prompts)
    expected = reader.pipe(picture, candidate_labels=words, prompts=prompts)
    assert reading.scores == pytest.approx({entry["label"]: entry["score"] for entry in expected})
    assert list(reading.scores) == [entry["label"] for entry in expected]
    assert reading.unknown == ()
    assert reader.read(picture, ["joy", "qwertz"], prompts).unknown == ("qwertz",)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pictures_of_every_mode_are_read(reader, mode):
    html = emotions_tab.read(reader, Image.new(mode, (50, 30)), "ekman6", "", "both", "")
    assert len(re.findall(r'class="bar-name"', html)) == 6


def test_what_cannot_be_read_is_said_in_place_of_a_result(reader):
    picture = random_pictures(1)[0]
    assert emotions_tab.NO_PICTURE in emotions_tab.read(reader, None, "ekman6", "", "both", "")
    assert "at least two" in emotions_tab.read(reader, picture, "own", "calm, calm,", "both", "")
    assert "needs [C]" in emotions_tab.read(reader, picture, "own", "calm, tense", "own", "no place")
    assert emotions_tab.chosen_words("own", " calm,tense ,calm,\nawe") == ["calm", "tense", "awe"]


@pytest.mark.parametrize("content", ["text", "half", "empty"])
def test_a_file_that_is_no_picture_is_answered_with_what_to_do(reader, tmp_path, content):
    path = tmp_path / "notes.png"
    random_pictures(1)[0].save(path)
    whole = path.read_bytes()
    path.write_bytes({"text": b"no picture", "half": whole[: len(whole) // 2], "empty": b""}[content])
    given = gradio.data_classes.ImageData(path=str(path), orig_name="notes.png")
    found = emotions_tab.picture_input(label="Picture").preprocess(given)
    html = emotions_tab.read(reader, found, "ekman6", "", "both", "")
    assert "notes.png cannot be opened as a picture. Choose a JPEG" in html


def test_a_picture_is_nearest_to_itself_and_both_backbones_are_asked_alike(reader, run_folder):
    posts = datasets.load_from_disk(str(run_folder / "dataset"))
    after = Backbone(reader.model.vision_model, reader.pipe.image_processor, "after")
    comparison = Comparison.load(str(asset_path("vision_tower")), after, posts)
    before_view, after_view = (side.view(posts[7]["image"]) for side in (comparison.before, comparison.after))
    assert before_view.nearest[0] == after_view.nearest[0] == 7
    assert before_view.similarity[0] == pytest.approx(1, abs=1e-4)
    # Without training both are the same tower.
    assert before_view.nearest.tolist() == after_view.nearest.tolist()
    assert before_view.probe == {}
    html = emotions_tab.compare(comparison, posts[7]["image"])
    assert html.count("<h3>Before PACL</h3>") == html.count("<h3>After PACL</h3>") == 1


def test_a_backbone_that_is_not_there_is_named(reader):
    after = Backbone(reader.model.vision_model, reader.pipe.image_processor, "after")
    with pytest.raises(DemoError, match=r"no/such/tower, cannot be loaded"):
        Comparison.load("no/such/tower", after, make_posts())


def test_a_run_names_its_model_its_posts_and_its_backbone_before(run_folder, tmp_path):
    sources = Sources.find(str(run_folder))
    assert sources.model == str(run_folder / "dual_encoder")
    assert sources.before == str(asset_path("vision_tower"))
    assert sources.dataset == run_folder / "dataset"
    assert sources.built_in
    assert "emotion accuracy 0.250 before, 0.750 after" in measured(sources.report)
    model = Sources.find(str(run_folder / "dual_encoder"), dataset=str(run_folder / "dataset"), before="some/tower")
    assert (model.model, model.before, model.built_in) == (sources.model, "some/tower", False)
    assert len(example_files(make_posts(), 3)) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no run in .*make train"),
        (["runs/nowhere"], "there is no folder runs/nowhere"),
        (["."], ". is neither a run .* nor a model"),
        (["org/model", "--dataset", "nowhere"], "--dataset: nowhere is no saved dataset"),
        (["org/model"], "the model org/model cannot be used"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"demo: {message}"):
        main(words)


def test_a_dataset_that_is_not_partitioned_is_refused(tmp_path):
    make_posts().remove_columns("partition").save_to_disk(tmp_path / "posts")
    with pytest.raises(DemoError, match="it lacks partition"):
        PartitionedPosts.load(tmp_path / "posts")


def test_without_gradio_the_extra_is_named(monkeypatch, run_folder):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'gradio and pytorch_grad_cam not installed; pip install "pacl\[demo\]"'):
        main([str(run_folder), "--before", "some/tower"])


def test_posts_of_others_stay_out_of_a_space_unless_asked_for(run_folder, tmp_path):
    sources = Sources.find(str(run_folder / "dual_encoder"), dataset=str(run_folder / "dataset"))
    assert not (write_space(tmp_path / "without", sources) / "run" / "dataset").exists()
    assert (write_space(tmp_path / "with", sources, with_dataset=True) / "run" / "dataset").is_dir()
    with pytest.raises(DemoError, match="holds something already"):
        write_space(tmp_path / "with", sources)


@pytest.mark.slow
def test_a_space_runs_from_its_own_files(run_folder, tmp_path):
    folder = write_space(tmp_path / "space", Sources.find(str(run_folder)))
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\n")
    assert {"sdk: gradio", "app_file: app.py"} <= set(readme.splitlines())
    script = "import app, pacl; print(pacl.__file__, type(app.demo).__name__)"
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split()[-2:] == [str(folder / "pacl" / "__init__.py"), "Blocks"]
