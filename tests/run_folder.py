"""A run's folder as the main job leaves it, of tiny random towers and invented figures, made without training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import torch
import yaml
from transformers import ResNetConfig, TimmWrapperConfig, ViTImageProcessor

from conftest import make_pairs, make_tokenizer, random_pictures, tiny_roberta_config, tiny_vit_config

SHARES = {"strong": 0.25, "partial_emotional": 0.3, "partial_factual": 0.2, "weak": 0.25}
RECIPE = {
    "posts": "someone/tumemo-posts",
    "vision_tower": "microsoft/resnet-50",
    "text_tower": "Yaxin/roberta-large-ernie2-skep-en",
    "emotional_text_encoder": "finiteautomata/bertweet-base-sentiment-analysis",
    "num_train_epochs": 3,
    "output_dir": "/".join(["", "home", "me", "runs", "mine"]),
}


def spread(mean: float) -> dict:
    return {"values": [mean], "mean": mean, "std": 0.01}


def make_report() -> dict:
    log = [{"loss": 4.0 - i / 10, "loss_strong": 3.0 - i / 10, "epoch": i / 10} for i in range(20)]
    difference = {"mean": 0.25, "low": 0.2, "high": 0.3}
    probe = {
        "examples": 90,
        "seeds": [0, 1, 2],
        "before": {"accuracy": spread(0.5)},
        "after": {"accuracy": spread(0.75)},
    }
    return {
        "name": "mine",
        "asked": RECIPE,
        "environment": {"device": "cpu", "threads": 2, "torch": "2.15", "python": "3.11"},
        "seconds": {"partition": 3.5, "train": 61.0},
        "partition": {
            "posts": 48,
            "rejected": {"empty text": 2},
            "thresholds": {"factual": 0.7, "emotional": 0.6},
            "shares": SHARES,
            "paper_shares": {"strong": 0.22, "partial": 0.51, "weak": 0.27},
        },
        "training": {"steps": 20, "epochs": 2.0, "parameters": 1000, "log": log},
        "probes": {"emotion": {**probe, "difference": {"accuracy": difference}}},
        "zero_shot": {
            "emotion": {"classes": ["joy", "fear"], "examples": 90, "prompts": {"ensemble": {"accuracy": 0.6}}}
        },
    }


def evaluated(backbone: str, protocol: str, metric: str, value: float, seed: int = 0) -> dict:
    names = {"backbone": backbone, "dataset": "fi", "task": "fi", "protocol": protocol, "seed": seed, "split": "test"}
    return {**names, "metrics": {metric: value}}


def make_results(run: Path) -> tuple[list[dict], list[dict]]:
    """What `pacl evaluate` says of the run's models, of the tower before, and of somebody else's model."""
    own, before = str(run / "backbone"), "microsoft/resnet-50"
    results = [evaluated(before, "linear", "accuracy", value, seed) for seed, value in enumerate((0.5, 0.52))]
    results += [evaluated(own, "linear", "accuracy", value, seed) for seed, value in enumerate((0.58, 0.6))]
    results += [evaluated("someone/else", "linear", "accuracy", 0.99)]
    results += [evaluated(str(run / "dual_encoder"), "zero_shot", "A photo with [C] emotion./accuracy", 0.31)]
    compared = {"before": before, "after": own, "dataset": "fi", "protocol": "linear", "metric": "accuracy"}
    return results, [{**compared, "mean": 0.08, "low": 0.05, "high": 0.11}]


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_run(folder: Path, *, vision: str = "resnet") -> Path:
    """
    Args:
        folder (`Path`): where to.
        vision (`str`): `resnet`; `vit`, whose dense pooler PACL does not use; or `timm`.
    """
    from pacl import PACLConfig, PACLModel, PACLProcessor

    torch.manual_seed(0)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    timm = TimmWrapperConfig(architecture="test_resnet", pretrained_cfg={"input_size": [3, 32, 32], "num_classes": 0})
    tower = {"resnet": resnet, "vit": tiny_vit_config(), "timm": timm}[vision]
    texts = tiny_roberta_config().to_dict()
    model = PACLModel(PACLConfig(vision_config=tower.to_dict(), text_config=texts, projection_dim=16)).eval()
    processor = PACLProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), make_tokenizer())
    model.vision_model.save_pretrained(folder / "backbone")
    processor.image_processor.save_pretrained(folder / "backbone")
    model.save_pretrained(folder / "dual_encoder")
    processor.save_pretrained(folder / "dual_encoder")
    make_posts().save_to_disk(folder / "dataset")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    write_json(folder / "report.json", make_report())
    results, comparisons = make_results(folder)
    write_json(folder / "evaluation" / "results.json", results)
    write_json(folder / "evaluation" / "comparisons.json", comparisons)
    return folder


def make_posts() -> datasets.Dataset:
    posts = make_pairs(48)
    scores = datasets.Value("float32")
    posts = posts.add_column("factual_score", [0.5] * len(posts), feature=scores)
    return posts.add_column("emotional_score", [0.4] * len(posts), feature=scores)


def make_trainer(model, processor, folder: Path, **arguments):
    """A trainer of a few quick steps."""
    from pacl.training import PACLTrainer, PACLTrainingArguments

    arguments = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "logging_steps": 1, **arguments}
    settings = PACLTrainingArguments(str(folder), use_cpu=True, report_to="none", save_strategy="no", **arguments)
    return PACLTrainer(model, settings, train_dataset=make_pairs(), processing_class=processor)


def in_fresh_python(script: str, folder: Path, *, with_pacl: bool = False, **environment: str) -> str:
    """
    Run a script as somebody else would: in a new process, with empty caches, where `pacl` cannot be imported.

    Args:
        script (`str`): what to run; `picture.jpg` lies where it runs.
        folder (`Path`): where it runs.
        with_pacl (`bool`): whether `pacl` can be imported after all.
        environment: variables such as `HF_ENDPOINT`.

    Returns:
        `str`: what it printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random_pictures(1)[0].save(folder / "picture.jpg")
    start = "" if with_pacl else "import sys\nsys.modules['pacl'] = None\n"
    (folder / "script.py").write_text(start + "import torch\ntorch.set_num_threads(1)\n" + script)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    cache = {"HOME": str(folder), "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**kept, **cache, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr
