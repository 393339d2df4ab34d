"""Ready classifiers: backbone and head in one model, with the logits of both."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, pipeline

from conftest import random_pictures, tiny_vit_config
from eval_fixtures import save_backbone, write_twitter
from pacl.evaluation import EvaluationArguments, evaluate, load_benchmark
from pacl.hub_cards.classifier import export_classifier, read_head
from pacl.hub_cards.export_base import ExportError, noise
from pacl.pooling import pool_vision

CLASSES = ["amusement", "awe", "sadness"]
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = {
    "vit": tiny_vit_config(),
    "deit": transformers.DeiTConfig(**TINY, image_size=32, patch_size=8),
    "beit": transformers.BeitConfig(**TINY, image_size=32, patch_size=8),
    "dinov2": transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8
    ),
    "resnet": transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "regnet": transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8),
    "swin": transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    "mobilenet": transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32),
    "efficientnet": transformers.EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128),
    "clip": transformers.CLIPVisionConfig(**TINY, image_size=32, patch_size=8),
    "timm resnet": transformers.TimmWrapperConfig(architecture="resnet10t", model_args={}),
    "timm vit": transformers.TimmWrapperConfig(
        architecture="test_vit", model_args={"img_size": 32, "patch_size": 8, "depth": 2}
    ),
}
PROCESSOR = transformers.ViTImageProcessor(size={"height": 32, "width": 32})


def make_tower(name):
    """A tower with random weights, normalisation and biases included."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    tower = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    if hasattr(getattr(tower, "pooler", None), "dense"):
        tower.pooler = None
    if name.startswith("timm"):
        tower.config.pretrained_cfg = {**tower.timm_model.pretrained_cfg, "input_size": (3, 32, 32)}
    return tower.eval()


def make_heads(path, dim, names=("emotion",), task="single_label", pooling="auto", classes=CLASSES):
    torch.manual_seed(1)
    tensors = {}
    for name in names:
        tensors |= {f"{name}.weight": torch.randn(len(classes), dim), f"{name}.bias": torch.randn(len(classes))}
    outputs = json.dumps(dict.fromkeys(names, classes))
    metadata = {"task": task, "dataset": "fi", "outputs": outputs, "pooling": pooling}
    save_file(tensors, path, metadata=metadata)
    return path, tensors


def width(tower, pooling="auto"):
    with torch.no_grad():
        return pool_vision(tower(noise(PROCESSOR, 1)), pooling).shape[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_backbone_and_head(name, tmp_path):
    tower = make_tower(name)
    path, tensors = make_heads(tmp_path / "heads.safetensors", width(tower))
    export = export_classifier(tower, path, tmp_path / "out", processor=PROCESSOR)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    pixels = noise(PROCESSOR, seed=7)
    with torch.no_grad():
        expected = pool_vision(tower(pixels)) @ tensors["emotion.weight"].T + tensors["emotion.bias"]
        torch.testing.assert_close(loaded(pixels).logits, expected, atol=1e-4, rtol=1e-4)
    assert loaded.config.id2label == dict(enumerate(CLASSES))
    assert export.difference < 1e-5


@pytest.mark.parametrize("name", ["vit", "timm resnet", "clip"])
@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_the_stock_pipeline_gives_probabilities_by_name(name, task, tmp_path):
    tower = make_tower(name)
    path, tensors = make_heads(tmp_path / "heads.safetensors", width(tower), task=task)
    export_classifier(tower, path, tmp_path / "out", processor=PROCESSOR)
    classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    (picture,) = random_pictures(1)
    pixels = classify.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, PROCESSOR(images=[picture], return_tensors="pt")["pixel_values"])
    with torch.no_grad():
        logits = pool_vision(tower(pixels)) @ tensors["emotion.weight"].T + tensors["emotion.bias"]
    expected = logits.sigmoid() if task == "multi_label" else logits.softmax(-1)
    answer = {entry["label"]: entry["score"] for entry in classify(picture)}
    assert answer == pytest.approx(dict(zip(CLASSES, expected[0].tolist(), strict=True)), abs=1e-4)


def test_timm_reads_a_timm_classifier(tmp_path):
    import timm

    tower = make_tower("timm resnet")
    path, tensors = make_heads(tmp_path / "heads.safetensors", width(tower))
    export_classifier(tower, path, tmp_path / "out", processor=PROCESSOR)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(model.get_classifier().weight, tensors["emotion.weight"])
    assert list(model.pretrained_cfg["label_names"]) == CLASSES


def test_a_level_of_a_hierarchy_is_chosen_by_its_name(tmp_path):
    tower = make_tower("vit")
    names = ("polarity", "leaf")
    path, tensors = make_heads(tmp_path / "heads.safetensors", 32, names, task="hierarchical")
    with pytest.raises(ExportError, match="choose one with head=: polarity, leaf"):
        export_classifier(tower, path, tmp_path / "out", processor=PROCESSOR)
    with pytest.raises(ExportError, match="no head 'root'; it has polarity, leaf"):
        read_head(path, "root")
    export_classifier(tower, path, tmp_path / "out", head="leaf", processor=PROCESSOR)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.classifier.weight, tensors["leaf.weight"])


def test_ratings_are_refused_with_the_reason(tmp_path):
    path, _ = make_heads(tmp_path / "heads.safetensors", 32, task="regression")
    with pytest.raises(ExportError, match="ratings"):
        export_classifier(make_tower("vit"), path, tmp_path / "out", processor=PROCESSOR)


@pytest.mark.parametrize(("name", "pooling"), [("vit", "mean"), ("clip", "mean")])
def test_a_pooling_that_no_class_has_is_refused(name, pooling, tmp_path):
    path, _ = make_heads(tmp_path / "heads.safetensors", 32, pooling=pooling)
    with pytest.raises(ExportError, match="does not pool as this head was trained .'mean'"):
        export_classifier(make_tower(name), path, tmp_path / "out", processor=PROCESSOR)
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_backbone_is_refused(tmp_path):
    path, _ = make_heads(tmp_path / "heads.safetensors", 48)
    with pytest.raises(ExportError, match="width 48, this backbone's .* have 32"):
        export_classifier(make_tower("vit"), path, tmp_path / "out", processor=PROCESSOR)


def test_a_broken_file_is_refused_with_its_name(tmp_path):
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file({"emotion.weight": torch.zeros(3, 32)}, tmp_path / "bare.safetensors")
    save_file(
        {"emotion.weight": torch.zeros(3, 32), "emotion.bias": torch.zeros(2)},
        tmp_path / "uneven.safetensors",
        metadata={"task": "single_label", "dataset": "fi", "pooling": "auto", "outputs": '{"emotion": ["a", "b"]}'},
    )
    messages = {
        "missing": "cannot be read",
        "text": "cannot be read",
        "bare": "no task, dataset",
        "uneven": "row for each of 2",
    }
    for name, message in messages.items():
        with pytest.raises(ExportError, match=f"{name}.safetensors.*{message}"):
            read_head(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("protocol", ["linear", "finetune"])
def test_an_evaluated_model_becomes_a_classifier_that_answers_as_it_did(protocol, tmp_path):
    write_twitter(tmp_path / "data")
    backbone = save_backbone(tmp_path / "backbone")
    asked = {
        "backbone": [backbone],
        "dataset": ["twitter1"],
        "data_dir": [str(tmp_path / "data")],
        "protocol": protocol,
    }
    asked |= {"output_dir": str(tmp_path / "out"), "seeds": [0], "num_train_epochs": 2, "figures": False}
    asked |= {"use_cpu": True, "features_dir": str(tmp_path / "features"), "save_models": protocol == "finetune"}
    (answered,) = evaluate(EvaluationArguments(**asked)).runs
    (kept,) = (tmp_path / "out" / "models").iterdir()
    source, heads = (kept, kept / "heads.safetensors") if kept.is_dir() else (backbone, kept)
    export_classifier(source, heads, tmp_path / "classifier")

    classify = pipeline("image-classification", model=str(tmp_path / "classifier"), device="cpu")
    test = load_benchmark("twitter1", tmp_path / "data")["test"]
    found = [answer[0]["label"] for answer in classify(list(test["image"]))]
    assert found == [test.features["label"].names[label] for label in answered.predictions[""]]
