"""Exports: what is saved loads in the ways that are promised, also where PACL is not installed, and gives the same."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
import transformers
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, pipeline

from conftest import random_pictures, tiny_roberta_config, tiny_vit_config
from pacl import PACLConfig, PACLModel, PACLProcessor
from pacl.hub_cards.export_base import ExportError, noise
from pacl.hub_cards.export_vision_text import export_vision_text_dual_encoder
from pacl.hub_cards.exports import export_backbone, export_dual_encoder
from pacl.hub_cards.onnx import export_onnx
from pacl.pooling import pool_vision
from pacl.towers import load_vision_tower

LABELS = ["joy", "sad", "angry", "fear"]
TEMPLATE = "a photo of {}"

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOWERS = {
    "vit": tiny_vit_config(),
    "deit": transformers.DeiTConfig(**TINY, image_size=32, patch_size=8),
    "resnet": transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic"
    ),
    "swin": transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    "mobilenet": transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32),
    "clip": transformers.CLIPVisionConfig(**TINY, image_size=32, patch_size=8),
    "timm resnet": transformers.TimmWrapperConfig(architecture="resnet10t", model_args={}),
    "timm vit": transformers.TimmWrapperConfig(
        architecture="test_vit", model_args={"img_size": 32, "patch_size": 8, "depth": 2}
    ),
}


def make_model(name="vit", text=None, **changes):
    """A dual encoder with random weights, each tower's as of a trained one: normalisation and biases included."""
    torch.manual_seed(0)
    text = text or tiny_roberta_config()
    vision = copy.deepcopy(TOWERS[name])  # which a model makes its own
    model = PACLModel(PACLConfig(vision_config=vision, text_config=text, projection_dim=16, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def processor_for(model, processor):
    """The session's processor; timm's own for a timm tower."""
    if not hasattr(model.vision_model, "timm_model"):
        return processor
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    config = {**model.vision_model.timm_model.pretrained_cfg, "input_size": (3, 32, 32)}
    config |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model.vision_model.config.pretrained_cfg = config
    return PACLProcessor(TimmWrapperImageProcessor(config, architecture="any"), processor.tokenizer)


OUTSIDE = """
import json, sys
sys.modules["pacl"] = None
import torch
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipeline
)
picture, labels, template = "picture.png", json.load(open("labels.json")), "a photo of {}"
pixels = AutoImageProcessor.from_pretrained("backbone")(images=[torch.load("picture.pt")], return_tensors="pt")
found = {"features": AutoModel.from_pretrained("backbone").eval()(**pixels).pooler_output.tolist()}
for folder, trust in (("remote", True), ("vision_text", None)):
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=trust, device="cpu")
    found[folder] = classify(picture, candidate_labels=labels, hypothesis_template=template)
feel = pipeline(model="remote", trust_remote_code=True, device="cpu")
found["task"], found["emotions"] = feel.task, feel(picture, candidate_labels=labels, valence=True)
autos = (AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor)
made = [type(auto.from_pretrained("remote", trust_remote_code=True)) for auto in autos]
found["classes"] = [f"{c.__module__.split('.')[0]} {c.__name__}" for c in made]
json.dump(found, open("found.json", "w"))
"""


@pytest.fixture(scope="module")
def outside(processor, tmp_path_factory):
    """A model, a picture, and what a fresh Python makes of its exports in which `import pacl` fails."""
    folder = tmp_path_factory.mktemp("outside")
    model = make_model("vit", temperature=0.002)  # so small that scores differ clearly
    export_backbone(model, folder / "backbone", processor=processor)
    export_dual_encoder(model, folder / "remote", processor=processor)
    export_vision_text_dual_encoder(model, folder / "vision_text", processor=processor)
    (picture,) = random_pictures(1, size=32)
    picture.save(folder / "picture.png")
    torch.save(pil_to_tensor(picture), folder / "picture.pt")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    process = subprocess.run([sys.executable, "-c", OUTSIDE], cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "newly initialized" not in process.stderr
    return model, picture, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", TOWERS)
def test_a_backbone_loads_as_its_own_kind_and_gives_the_trained_features(name, processor, tmp_path):
    model = make_model(name)
    processor = processor_for(model, processor)
    export = export_backbone(model, tmp_path / "out", processor=processor)
    loaded, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    (picture,) = random_pictures(1)
    pixels = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(image_processor(images=[picture], return_tensors="pt")["pixel_values"], pixels)
    with torch.no_grad():
        found = loaded.eval()(pixel_values=pixels).pooler_output.flatten(1)
        torch.testing.assert_close(found, model.encode_image(pixels), atol=1e-5, rtol=1e-5)
    assert type(loaded) is type(model.vision_model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert "pooler_output" in export.notes[0]
    assert not [path for path in tmp_path.iterdir() if path.name != "out"], "the working folder is left behind"


@pytest.mark.parametrize("name", ["timm resnet", "timm vit"])
def test_timm_itself_loads_a_timm_backbone(name, processor, tmp_path):
    import timm

    model = make_model(name)
    processor = processor_for(model, processor)
    assert export_backbone(model, tmp_path / "out", processor=processor).kind == "timm_backbone"
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    pixels = noise(processor.image_processor)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), model.encode_image(pixels), atol=1e-5, rtol=1e-5)
    assert tuple(loaded.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    assert not [key for key in loaded.state_dict() if key.startswith("timm_model")]


@pytest.mark.parametrize(("name", "pooling"), [("vit", "mean"), ("clip", "first"), ("resnet", "mean")])
def test_the_note_says_how_features_are_pooled_where_it_is_not_the_models_own_way(name, pooling, processor, tmp_path):
    model = make_model(name, vision_pooling=pooling)
    note = export_backbone(model, tmp_path / "out", processor=processor).notes[0]
    code = note.split("`")[1]
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    pixels = noise(processor.image_processor)
    with torch.no_grad():
        found = eval(code, {"model": loaded, "pixel_values": pixels})
        torch.testing.assert_close(found, model.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_a_backbone_is_found_in_a_runs_folder_its_parts_and_on_its_own(processor, tmp_path):
    model = make_model("vit")
    model.vision_model.save_pretrained(tmp_path / "run/backbone")
    processor.image_processor.save_pretrained(tmp_path / "run/backbone")
    model.save_pretrained(tmp_path / "run/dual_encoder")
    processor.save_pretrained(tmp_path / "run/dual_encoder")
    pixels = noise(processor.image_processor)
    for i, source in enumerate(["run", "run/backbone", "run/dual_encoder"]):
        export_backbone(tmp_path / source, tmp_path / f"out{i}")
        with torch.no_grad():
            found = AutoModel.from_pretrained(tmp_path / f"out{i}").eval()(pixels).pooler_output
            torch.testing.assert_close(found, pool_vision(model.vision_model(pixels)), atol=1e-5, rtol=1e-5)


def test_a_folder_with_something_in_it_is_kept_unless_told_otherwise(model, processor, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        export_backbone(model, tmp_path / "out", processor=processor)
    assert (tmp_path / "out/mine.txt").is_file()
    export_backbone(model, tmp_path / "out", processor=processor, overwrite=True)
    assert not (tmp_path / "out/mine.txt").exists()


@pytest.mark.parametrize("export", [export_backbone, export_dual_encoder, export_vision_text_dual_encoder])
def test_no_export_tells_where_its_author_keeps_models(export, processor, tmp_path):
    transformers.ViTModel(TOWERS["vit"], add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.RobertaModel(tiny_roberta_config()).save_pretrained(tmp_path / "roberta")
    model = PACLModel.from_vision_text_pretrained(str(tmp_path / "vit"), str(tmp_path / "roberta"))
    export(model, tmp_path / "out", processor=processor)
    for path in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name


def test_an_export_never_replaces_what_it_is_made_from(processor, model, tmp_path):
    model.save_pretrained(tmp_path / "run/dual_encoder")
    processor.save_pretrained(tmp_path / "run/dual_encoder")
    for folder in ("run", "run/dual_encoder"):
        with pytest.raises(ExportError, match="holds what is to be exported"):
            export_dual_encoder(tmp_path / "run/dual_encoder", tmp_path / folder, overwrite=True)
    assert (tmp_path / "run/dual_encoder/config.json").is_file()


def test_a_timm_backbone_keeps_an_image_processor_that_is_not_timms(processor, tmp_path):
    model = make_model("timm resnet")
    export_backbone(model, tmp_path / "out", processor=processor)
    loaded = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(processor.image_processor)
    assert torch.equal(noise(loaded), noise(processor.image_processor))


def test_an_exported_backbone_can_be_a_tower_again(processor, tmp_path):
    model = make_model("vit")
    export_backbone(model, tmp_path / "out", processor=processor)
    tower = load_vision_tower(str(tmp_path / "out")).eval()
    pixels = noise(processor.image_processor)
    with torch.no_grad():
        torch.testing.assert_close(pool_vision(tower(pixels)), model.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_what_is_no_model_is_refused(processor, model, tmp_path):
    with pytest.raises(ExportError, match="cannot be read as a vision model"):
        export_backbone(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ExportError, match="cannot be read as a PACL dual encoder"):
        export_dual_encoder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ExportError, match="processor is missing"):
        export_backbone(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def by_label(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def test_a_backbone_needs_no_pacl_to_load(outside, processor):
    model, picture, found = outside
    pixels = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.encode_image(pixels)
    torch.testing.assert_close(torch.tensor(found["features"]), expected, atol=1e-5, rtol=1e-5)


def test_all_three_ways_of_a_dual_encoder_give_the_same_scores(outside, processor, tmp_path):
    model, picture, found = outside
    inputs = processor(images=picture, text=[TEMPLATE.format(c) for c in LABELS], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = dict(zip(LABELS, model(**inputs).logits_per_image.softmax(-1)[0].tolist(), strict=True))
    assert max(expected.values()) > 1.2 * min(expected.values()), "too even to tell anything"
    export_dual_encoder(model, tmp_path / "registered", processor=processor, remote_code=False)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "registered"), device="cpu")
    found["registered"] = classify(picture, candidate_labels=LABELS, hypothesis_template=TEMPLATE)
    for way in ("registered", "remote", "vision_text"):
        assert by_label(found[way]) == pytest.approx(expected, abs=1e-5), way


def test_the_emotion_pipeline_travels_with_the_dual_encoder(outside, processor):
    model, picture, found = outside
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "device": "cpu"}
    expected = pipeline("zero-shot-emotion", model=model, **parts)(picture, candidate_labels=LABELS, valence=True)
    assert found["task"] == "zero-shot-emotion"
    assert found["emotions"]["valence"] == pytest.approx(expected["valence"], abs=1e-5)
    assert by_label(found["emotions"]["emotions"]) == pytest.approx(by_label(expected["emotions"]), abs=1e-5)


def test_every_auto_class_finds_the_code_that_travels(outside):
    names = ("PACLConfig", "PACLModel", "PACLModel", "PACLProcessor")
    assert outside[2]["classes"] == [f"transformers_modules {name}" for name in names]


@pytest.mark.parametrize("remote_code", [True, False])
def test_code_travels_only_when_it_is_to(remote_code, model, processor, tmp_path):
    export = export_dual_encoder(model, tmp_path / "out", processor=processor, remote_code=remote_code)
    names = {path.name for path in export.files}
    assert ("modeling_pacl.py" in names) is remote_code
    assert "__init__.py" not in names
    for file in ("config.json", "processor_config.json"):
        assert ("auto_map" in json.loads((tmp_path / "out" / file).read_text())) is remote_code


def test_a_timm_dual_encoder_keeps_its_preprocessing(processor, tmp_path):
    model = make_model("timm resnet")
    processor = processor_for(model, processor)
    export_dual_encoder(model, tmp_path / "out", processor=processor)
    (picture,) = random_pictures(1)
    loaded = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    expected = processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(loaded(images=[picture], return_tensors="pt")["pixel_values"], expected)


BERT = transformers.BertConfig(
    vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
)
CLIP_TEXT = transformers.CLIPTextConfig(
    vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, eos_token_id=2
)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "mobilenet", "clip", "timm vit"])
@pytest.mark.parametrize("text", [None, BERT, CLIP_TEXT], ids=["roberta", "bert", "clip_text"])
def test_vision_text_format_gives_the_same_logits(name, text, processor, tmp_path):
    model = make_model(name, text)
    processor = processor_for(model, processor)
    before = model.vision_model.config.to_dict()
    export = export_vision_text_dual_encoder(model, tmp_path / "out", processor=processor)
    loaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is transformers.VisionTextDualEncoderModel
    assert export.difference < 1e-5
    assert model.vision_model.config.to_dict() == before, "the exported model itself was changed"
    assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer


def test_vision_text_format_of_a_half_precision_model_is_exact(processor, tmp_path):
    model = make_model("vit").to(torch.bfloat16)
    export_vision_text_dual_encoder(model, tmp_path / "out", processor=processor)
    assert model.dtype == torch.bfloat16
    assert AutoModel.from_pretrained(tmp_path / "out").dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "text", "changes", "reason"),
    [
        ("resnet", None, {}, "ResNetModel is a map"),
        ("vit", None, {"vision_pooling": "mean"}, "vision_pooling is mean"),
        ("vit", None, {"text_pooling": "mean"}, "text_pooling is mean"),
        ("clip", None, {"vision_pooling": "first"}, "own poolers are not vision_pooling 'first'"),
        ("vit", "distilbert", {}, "DistilBertModel has no dense pooler"),
    ],
)
def test_vision_text_format_says_why_it_is_impossible(name, text, changes, reason, processor, tmp_path):
    text = text and transformers.DistilBertConfig(vocab_size=40, dim=24, n_layers=1, n_heads=2, hidden_dim=24)
    model = make_model(name, text, **changes)
    with pytest.raises(ExportError, match=reason):
        export_vision_text_dual_encoder(model, tmp_path / "out", processor=processor)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOWERS)
def test_onnx_gives_the_features_for_any_number_of_pictures(name, processor, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = make_model(name)
    processor = processor_for(model, processor)
    export = export_onnx(model, tmp_path / "backbone.onnx", processor=processor)
    assert export.difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "backbone.onnx"))
    pixels = noise(processor.image_processor, pictures=5, seed=3)
    features, _ = session.run(None, {"pixel_values": pixels.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(features), model.encode_image(pixels), atol=1e-4, rtol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.onnx"]


def test_without_the_extra_onnx_says_what_to_install(model, processor, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"needs onnxscript: pip install .pacl\[onnx\]"):
        export_onnx(model, tmp_path / "backbone.onnx", processor=processor)
