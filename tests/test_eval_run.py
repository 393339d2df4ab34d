"""The whole evaluation: command line, what it writes, reuse, comparisons, two processes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from safetensors import safe_open

from eval_fixtures import save_backbone, tiny_backbone, write_oasis, write_twitter
from pacl.emotions import PROMPTS
from pacl.evaluation import EvaluationArguments, data, evaluate, extract_features, load_benchmark, run
from pacl.evaluation.__main__ import main
from pacl.evaluation.backbones import Backbone
from pacl.evaluation.report import Evaluation, read_paper_table
from pacl.evaluation.results import Run, compare


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two backbones and two benchmarks."""
    place = tmp_path_factory.mktemp("evaluation")
    for seed, name in enumerate(("before", "after")):
        save_backbone(place / name, seed)
    write_twitter(place / "data" / "twitter1")
    write_oasis(place / "data" / "oasis")
    return place


def asked(place, out, **changes) -> EvaluationArguments:
    fields = {
        "backbone": [str(place / "before"), str(place / "after")],
        "dataset": ["oasis", "Twitter-I"],
        "data_dir": [str(place / "data")],
        "output_dir": str(out),
        "seeds": [0, 1],
        "num_train_epochs": 3,
        "use_cpu": True,
        "features_dir": str(place / "features"),
    }
    return EvaluationArguments(**fields | changes)


def command(arguments: EvaluationArguments) -> list[str]:
    names = ("backbone", "dataset", "data_dir", "output_dir", "protocol", "seeds", "num_train_epochs", "use_cpu")
    words = []
    for name in names:
        value = getattr(arguments, name)
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def test_command_writes_results_tables_and_pictures(place, tmp_path, capsys):
    main([*command(asked(place, tmp_path / "out")), "--features_dir", str(place / "features")])
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(records) == 8
    assert set(records[0]) == {"backbone", "dataset", "task", "protocol", "seed", "split", "metrics"}
    assert set(records[0]["metrics"]) == {"mean_mse", "mean_r2"}
    details = json.loads((tmp_path / "out" / "details.json").read_text())
    assert {entry["dataset"]: [row["name"] for row in entry["outputs"]] for entry in details} == {
        "oasis": ["valence", "arousal"],
        "twitter1": ["negative", "positive"],
    }
    comparisons = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    assert {(c["dataset"], c["metric"]) for c in comparisons} == {
        ("oasis", "mean_mse"),
        ("oasis", "mean_r2"),
        ("twitter1", "accuracy"),
        ("twitter1", "weighted_f1"),
    }
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "Twitter-I accuracy" in table
    pictures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert pictures == {
        "confusion-twitter1-linear.png",
        "gains-twitter1-linear.png",
        "ratings-oasis-linear.png",
        "features-oasis.png",
        "features-twitter1.png",
    }


def test_second_call_reuses_runs_and_computes_only_what_is_new(place, tmp_path, monkeypatch):
    first = evaluate(asked(place, tmp_path, figures=False))
    computed = []
    original = run._run
    monkeypatch.setattr(run, "_run", lambda *args: computed.append(args[3]) or original(*args))
    again = evaluate(asked(place, tmp_path, figures=False))
    assert computed == []
    assert again.results() == first.results()
    evaluate(asked(place, tmp_path, figures=False, seeds=[0, 1, 2], dataset=["oasis"]))
    assert computed == [2, 2]
    evaluate(asked(place, tmp_path, figures=False, seeds=[0], dataset=["oasis"], learning_rate=0.1))
    assert computed == [2, 2, 0, 0]


def test_backbone_sees_each_picture_once_for_all_seeds_and_epochs(place, tmp_path, monkeypatch):
    seen = []
    original = Backbone.pooled
    monkeypatch.setattr(Backbone, "pooled", lambda self, pixels: seen.append(len(pixels)) or original(self, pixels))
    fields = {"backbone": [str(place / "before")], "dataset": ["oasis"], "features_dir": str(tmp_path / "features")}
    evaluate(asked(place, tmp_path / "out", seeds=[0, 1, 2], **fields))
    assert sum(seen) == 60


def test_heads_of_linear_evaluation_are_kept_with_what_they_stand_for(place, tmp_path):
    fields = {"figures": False, "dataset": ["twitter1"], "backbone": [str(place / "before")], "seeds": [0]}
    (answered,) = evaluate(asked(place, tmp_path, **fields)).runs
    (file,) = (tmp_path / "models").iterdir()
    with safe_open(file, "pt") as heads:
        facts, weight, bias = heads.metadata(), heads.get_tensor("label.weight"), heads.get_tensor("label.bias")
    assert (facts["task"], facts["dataset"], facts["pooling"]) == ("single_label", "twitter1", "auto")
    assert json.loads(facts["outputs"]) == {"label": ["negative", "positive"]}
    backbone = Backbone.load(place / "before")
    test = load_benchmark("twitter1", place / "data" / "twitter1")["test"]
    features = extract_features(backbone, test, cache_dir=tmp_path / "features")
    logits = torch.from_numpy(np.array(features)) @ weight.T + bias
    assert logits.argmax(dim=1).tolist() == answered.predictions[""].tolist()


def test_relabelled_data_is_not_answered_from_old_runs(place, tmp_path):
    write_twitter(tmp_path / "data")
    fields = {"figures": False, "dataset": ["twitter1"], "data_dir": [str(tmp_path / "data")], "seeds": [0]}
    evaluate(asked(place, tmp_path / "out", **fields))
    table = tmp_path / "data" / "labels.csv"
    table.write_text(table.read_text().replace("000.png,negative", "000.png,positive"))
    evaluate(asked(place, tmp_path / "out", **fields))
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4


def test_folder_is_read_once_for_all_backbones_seeds_and_folds(place, tmp_path, monkeypatch):
    read = []
    original = data.read_benchmark
    monkeypatch.setattr(data, "read_benchmark", lambda *args, **kw: (original(*args, **kw), read.append(args[0]))[0])
    evaluate(asked(place, tmp_path, figures=False, cross_validate=True, num_train_epochs=1))
    assert read == ["oasis", "twitter1"]


def test_rows_of_one_picture_are_drawn_together(tmp_path):
    persons = data.BenchmarkData("emotic", [tmp_path])
    files = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "a.jpg")]
    part = Dataset.from_dict({"image": files, "id": ["1", "2", "3"]}).cast_column("image", Image())
    persons.parts = {"test": part}
    first, second, third = persons.units(part)
    assert first == third != second


def test_pictures_that_cannot_be_used_are_listed(place, tmp_path):
    write_twitter(tmp_path / "data")
    (tmp_path / "data" / "images" / "007.png").write_bytes(b"")
    evaluate(asked(place, tmp_path / "out", figures=False, dataset=["twitter1"], data_dir=[str(tmp_path / "data")]))
    (line,) = (tmp_path / "out" / "dropped-twitter1.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == "images/007.png"


def test_cross_validation_tests_every_picture_once(place, tmp_path):
    evaluation = evaluate(asked(place, tmp_path, figures=False, cross_validate=True, seeds=[0], num_train_epochs=1))
    for result in evaluation.runs:
        assert result.split == "cross-validation"
        assert len(set(result.examples)) == len(result.examples) == 60
        assert len(result.best_epochs) == 10
    assert len(set(evaluation.of(evaluation.backbones[0], "oasis")[0].units)) == 30  # themes


def test_zero_shot_reports_each_prompt_and_their_ensemble(place, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "dual_encoder")
    processor.save_pretrained(tmp_path / "dual_encoder")
    fields = {"protocol": "zero_shot", "dataset": ["twitter1"], "backbone": [str(tmp_path / "dual_encoder")]}
    (record,) = evaluate(asked(place, tmp_path / "out", seeds=[0], **fields)).results()
    assert set(record["metrics"]) == {"accuracy", "weighted_f1"} | {
        f"{prompt}/{metric}" for prompt in PROMPTS for metric in ("accuracy", "weighted_f1")
    }
    assert (tmp_path / "out" / "figures" / "confusion-twitter1-zero_shot.png").is_file()


def test_prompts_come_from_a_file(place, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "dual_encoder")
    processor.save_pretrained(tmp_path / "dual_encoder")
    (tmp_path / "prompts.txt").write_text("this is [C]\n")
    fields = {"protocol": "zero_shot", "dataset": ["twitter1"], "backbone": [str(tmp_path / "dual_encoder")]}
    fields |= {"prompts": str(tmp_path / "prompts.txt"), "figures": False}
    (record,) = evaluate(asked(place, tmp_path / "out", seeds=[0], **fields)).results()
    assert "this is [C]/accuracy" in record["metrics"]


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(place, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "dual_encoder")
    processor.save_pretrained(tmp_path / "dual_encoder")
    fields = {"dataset": ["twitter1"], "backbone": [str(tmp_path / "dual_encoder")]}
    fields |= {"protocol": ["linear", "zero_shot"], "seeds": [0, 1, 2]}
    alone = evaluate(asked(place, tmp_path / "one", features_dir=str(tmp_path / "features"), **fields)).results()
    # `--multi_gpu` is accelerate's name for torchrun; without a GPU the processes join by gloo.
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]
    words = [*launcher, "-m", "pacl.evaluation", *command(asked(place, tmp_path / "two", **fields))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "evaluated on 2 processes" in done.stdout
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == alone
    assert (tmp_path / "two" / "figures" / "features-twitter1.png").is_file()


@pytest.mark.real
def test_real_weights_see_valence_in_real_pictures(real_data, tmp_path):
    arguments = EvaluationArguments(
        backbone=[str(real_data / "models" / "mobilenet_v2_1.0_224")],
        dataset=["oasis"],
        data_dir=[str(real_data)],
        output_dir=str(tmp_path / "out"),
        seeds=[0],
        cross_validate=True,
        features_dir=str(tmp_path / "features"),
    )
    (record,) = evaluate(arguments).results()
    assert 0.05 < record["metrics"]["mean_r2"] < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": []}, "--backbone is missing"),
        ({"dataset": ["oasys"]}, "Unknown benchmark 'oasys'"),
        ({"protocol": "quadratic"}, "--protocol must be one of linear"),
        ({"pooling": "cls"}, "--pooling must be one of auto, first, mean"),
        ({"lr_scheduler_type": "linear"}, "--lr_scheduler_type goes with --protocol finetune"),
        ({"per_device_train_batch_size": 16}, "--per_device_train_batch_size: give --batch_size"),
        ({"load_best_model_at_end": False}, "the epoch that is best on validation is what is tested"),
        ({"backbone": ["nowhere/at/all"]}, "nowhere/at/all"),
        ({"heads": "pdanet"}, "--heads goes with --protocol finetune"),
        ({"prompts": "x.txt"}, "--prompts goes with --protocol zero_shot"),
        ({"data_dir": ["a", "b", "c"]}, "2 datasets need one --data_dir or as many; got 3"),
        ({"protocol": "zero_shot"}, "zero-shot needs one class per picture, which OASIS doesn't have"),
        ({"protocol": "zero_shot", "dataset": ["twitter1"]}, "is no dual encoder"),
        ({"backbone": ["a", "b", "a"]}, "--backbone names a twice"),
        ({"dataset": ["Twitter-I", "twitter1"]}, "--dataset names twitter1 twice"),
        ({"dataset_options": ["emotic.crop_dir=x"]}, "--dataset_options emotic.crop_dir=x: expected"),
        ({"dataset_options": ["oasis.colour=red"]}, "OASIS has no option colour"),
    ],
)
def test_wrong_argument_is_refused_by_name(place, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(asked(place, tmp_path, figures=False, **changes))


def test_what_cannot_be_read_or_loaded_is_refused_before_anything_is_computed(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_run", lambda *_: pytest.fail("a run was computed"))
    places = [str(place / "data" / "oasis"), str(tmp_path / "nowhere")]
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        evaluate(asked(place, tmp_path, data_dir=places))
    with pytest.raises(OSError, match="no_backbone"):
        evaluate(asked(place, tmp_path, backbone=[str(place / "before"), str(tmp_path / "no_backbone")]))


def test_dataset_lies_in_the_folder_itself_or_under_its_name_or_its_siblings(place, tmp_path):
    def folders(*names):
        return asked(place, tmp_path, dataset=list(names), data_dir=[str(tmp_path)]).folders()

    for name in ("emotic", "fi"):
        (tmp_path / name).mkdir()
    assert folders("emotic") == {"emotic": [tmp_path, tmp_path / "emotic"]}
    assert folders("fi2", "emotic_vad", "oasis") == {
        "fi2": [tmp_path, tmp_path / "fi"],
        "emotic_vad": [tmp_path, tmp_path / "emotic"],
        "oasis": [tmp_path],
    }


def test_picture_that_ends_early_is_left_out_where_pixels_are_checked(place, tmp_path):
    write_twitter(tmp_path / "data")
    picture = tmp_path / "data" / "images" / "007.png"
    picture.write_bytes(picture.read_bytes()[:-80])
    fields = {"figures": False, "dataset": ["twitter1"], "data_dir": [str(tmp_path / "data")], "seeds": [0]}
    with pytest.raises(ValueError, match="007.png.*cannot be decoded.*check_pixels"):
        evaluate(asked(place, tmp_path / "out", **fields))
    evaluate(asked(place, tmp_path / "out", **fields, check_pixels=True))
    assert "images/007.png" in (tmp_path / "out" / "dropped-twitter1.jsonl").read_text()


def test_checkpoint_in_half_precision_is_evaluated(place, tmp_path):
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    backbone.image_processor.save_pretrained(tmp_path / "half")
    fields = {"figures": False, "dataset": ["oasis"], "backbone": [str(tmp_path / "half")], "seeds": [0]}
    protocols = ["linear", "finetune"]
    records = evaluate(asked(place, tmp_path / "out", **fields, num_train_epochs=1, protocol=protocols)).results()
    assert [record["protocol"] for record in records] == protocols


def test_several_protocols_make_a_table_each(place, model, processor, tmp_path):
    names = [str(tmp_path / name) for name in ("old", "new")]
    for name in names:
        model.save_pretrained(name)
        processor.save_pretrained(name)
    fields = {"dataset": ["twitter1"], "backbone": names}
    evaluation = evaluate(asked(place, tmp_path / "out", protocol=["linear", "zero_shot"], **fields))
    assert [line.split(",")[0] for line in evaluation.table().splitlines() if line.startswith("Protocol")] == [
        "Protocol linear",
        "Protocol zero_shot",
    ]
    assert {comparison.protocol for comparison in evaluation.comparisons} == {"linear", "zero_shot"}


def test_command_line_ends_with_one_line_on_a_wrong_folder(place, tmp_path):
    words = command(asked(place, tmp_path / "out", data_dir=[str(tmp_path / "nowhere")]))
    with pytest.raises(SystemExit, match=r"pacl\.evaluation: .*nowhere"):
        main(words)


def make_run(backbone: str, predictions: np.ndarray, dataset: str = "fi", protocol: str = "linear") -> Run:
    ids = np.array([f"p{number}" for number in range(len(predictions))])
    targets = {"": np.arange(len(predictions)) % 8}
    metrics = {"accuracy": float((predictions == targets[""]).mean())}
    outputs = {"": list("abcdefgh")}
    return Run(
        backbone,
        dataset,
        "single_label",
        protocol,
        0,
        "test",
        metrics,
        [3],
        outputs,
        ids,
        ids,
        targets,
        {"": predictions},
    )


def test_run_is_read_back_as_it_was_written(tmp_path):
    original = make_run("x", np.zeros(16, dtype=np.int64))
    original.save(tmp_path / "run.npz")
    back = Run.load(tmp_path / "run.npz")
    assert back.record() == original.record()
    assert back.outputs == original.outputs
    np.testing.assert_array_equal(back.predictions[""], original.predictions[""])
    np.testing.assert_array_equal(back.examples, original.examples)


def test_table_has_the_papers_figures_below_ours():
    right = np.arange(80) % 8
    table = Evaluation([make_run("mine", right), make_run("better", right)]).table()
    assert "| mine | 100.00 |" in table  # one seed has no spread to show
    assert "tested: FI 80; seeds 0." in table
    assert "| paper: ResNet-50 + PACL | 59.50 |" in table
    assert "no clear difference" in table


def test_finetuned_and_zero_shot_results_stand_beside_tables_2_and_3():
    right = np.arange(80) % 8
    table = Evaluation([make_run("mine", right, protocol="finetune")]).table()
    assert "| paper: ViT-clip + PACL | 80.55 |" in table
    assert "| paper: ViT-clip + PACL + PDANet (Table 2) | 80.83 |" in table
    zero_shot = make_run("mine", right, protocol="zero_shot")
    zero_shot.metrics[f"{PROMPTS[1]}/accuracy"] = 0.5
    assert "| paper: ResNet-50 + PACL |  | 31.72 |" in Evaluation([zero_shot]).table()


def test_better_backbone_is_called_better():
    right = np.arange(80) % 8
    table = Evaluation([make_run("old", right // 2), make_run("new", right)]).table()
    assert table.rstrip().endswith("| better |")


def test_backbones_tested_on_different_pictures_are_not_compared():
    with pytest.raises(ValueError, match="different test pictures"):
        compare([make_run("a", np.zeros(16))], [make_run("b", np.zeros(24))])


def test_papers_tables_ship_with_the_package():
    assert [len(read_paper_table(number)) for number in range(1, 6)] == [26, 12, 9, 9, 18]
