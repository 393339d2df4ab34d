"""`PACLModel`: every tower builds, trains, saves and loads; the text tower stays frozen; the Auto classes work."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

from conftest import make_tokenizer, random_pictures, tiny_roberta_config, tiny_vit_config
from pacl import PACLConfig, PACLModel, PACLProcessor
from pacl.pooling import pool_text, pool_vision

VISION_CONFIGS = {
    "vit": tiny_vit_config(),
    "resnet": transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
    "swin": transformers.SwinConfig(
        image_size=32, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4, patch_size=2
    ),
    "clip": transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    ),
    "mobilenet_v2": transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.35),
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], image_size=32),
    "dinov2": transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    ),
    "timm resnet": transformers.TimmWrapperConfig(architecture="resnet10t", model_args={}),
    "timm vit": transformers.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 32, "patch_size": 8},
    ),
    "timm swin": transformers.TimmWrapperConfig(
        architecture="swin_tiny_patch4_window7_224",
        model_args={"depths": (1, 1), "num_heads": (2, 2), "embed_dim": 16, "img_size": 32, "window_size": 4},
    ),
}

_TEXT_SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT_CONFIGS = {
    "roberta (SKEP)": tiny_roberta_config(),
    "bert": transformers.BertConfig(vocab_size=60, max_position_embeddings=40, **_TEXT_SIZES),
    "distilbert": transformers.DistilBertConfig(vocab_size=60, dim=24, n_layers=2, n_heads=2, hidden_dim=48),
    "bertweet": tiny_roberta_config(max_position_embeddings=130, type_vocab_size=1, vocab_size=64),
    "clip": transformers.CLIPTextConfig(
        vocab_size=60, max_position_embeddings=40, eos_token_id=2, bos_token_id=0, pad_token_id=1, **_TEXT_SIZES
    ),
}


def build(vision=None, text=None, **kwargs) -> PACLModel:
    vision, text = vision or VISION_CONFIGS["vit"], text or TEXT_CONFIGS["roberta (SKEP)"]
    torch.manual_seed(0)
    return PACLModel(
        PACLConfig(**{"vision_config": vision.to_dict(), "text_config": text.to_dict(), "projection_dim": 16} | kwargs)
    )


def texts(number=5, length=7):
    input_ids = torch.randint(4, 20, (number, length), generator=torch.Generator().manual_seed(1))
    input_ids[:, -1] = 2
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def check_tower(model: PACLModel, folder) -> None:
    """Forward with more texts than pictures, backward, save, load, same outputs."""
    pixel_values = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model.train()
    output = model(pixel_values=pixel_values, **texts())
    assert output.logits_per_image.shape == (3, 5)
    assert output.logits_per_text.shape == (5, 3)
    assert output.image_embeds.shape == (3, 16)
    torch.testing.assert_close(output.image_embeds.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(output.logits_per_image * 0.07, output.image_embeds @ output.text_embeds.t())

    output.logits_per_image.pow(2).sum().backward()
    assert all(parameter.grad is None for parameter in model.text_model.parameters())
    vision_gradients = [parameter.grad for parameter in model.vision_model.parameters() if parameter.grad is not None]
    assert len(vision_gradients) >= len(list(model.vision_model.parameters())) - 1, "one mask token may be unused"
    assert any(gradient.abs().sum() > 0 for gradient in vision_gradients)

    model.eval().save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    loaded = transformers.AutoModel.from_pretrained(folder)
    assert isinstance(loaded, PACLModel)
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        expected = model(pixel_values=pixel_values, **texts())[name]
        torch.testing.assert_close(loaded(pixel_values=pixel_values, **texts())[name], expected)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("name", VISION_CONFIGS)
def test_vision_towers(name, tmp_path):
    check_tower(build(vision=VISION_CONFIGS[name]), tmp_path)


@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_text_towers(name, tmp_path):
    model = build(text=TEXT_CONFIGS[name])
    assert model.config.text_pooling == ("pooler" if name == "clip" else "first")
    check_tower(model, tmp_path)


@pytest.mark.parametrize("name", VISION_CONFIGS)
def test_pretrained_towers_keep_their_weights(name, tmp_path):
    torch.manual_seed(0)
    vision = transformers.AutoModel.from_config(VISION_CONFIGS[name])
    text = transformers.AutoModel.from_config(tiny_roberta_config())
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    model = PACLModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"), projection_dim=8)
    for tower, original in ((model.vision_model, vision), (model.text_model, text)):
        weights = original.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in tower.state_dict().items())


def test_dual_encoders_lend_one_side(tmp_path):
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=VISION_CONFIGS["clip"].to_dict(), text_config=TEXT_CONFIGS["clip"].to_dict()
        )
    )
    clip.save_pretrained(tmp_path)
    model = PACLModel.from_vision_text_pretrained(str(tmp_path), str(tmp_path), projection_dim=8).eval()
    pixel_values = torch.rand(2, 3, 32, 32)
    expected = clip.eval().vision_model(pixel_values).pooler_output
    torch.testing.assert_close(model.encode_image(pixel_values), expected)
    torch.testing.assert_close(model.encode_text(**texts()), clip.text_model(**texts()).pooler_output)


def test_the_text_tower_is_frozen_and_in_evaluation_mode_also_while_training(model):
    model.train()
    assert model.vision_model.training
    assert not any(module.training for module in model.text_model.modules())
    assert not any(parameter.requires_grad for parameter in model.text_model.parameters())
    assert all(parameter.requires_grad for parameter in model.vision_model.parameters())
    assert not model.logit_scale.requires_grad


def test_the_text_tower_can_be_trained_when_asked():
    model = build(freeze_text=False).train()
    assert model.text_model.training
    assert all(parameter.requires_grad for parameter in model.text_model.parameters())


def test_batch_normalisation_can_keep_its_statistics():
    model = build(vision=VISION_CONFIGS["resnet"], freeze_batch_norm=True).train()
    norms = [module for module in model.vision_model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model(pixel_values=torch.rand(4, 3, 32, 32), **texts()).logits_per_image.sum().backward()
    assert model.vision_model.training
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
    assert all(norm.weight.grad is not None for norm in norms)
    model = build(vision=VISION_CONFIGS["resnet"]).train()
    assert all(module.training for module in model.vision_model.modules())


def test_ready_text_features_replace_the_text_tower(model):
    pixel_values = torch.rand(2, 3, 32, 32)
    features = model.encode_text(**texts())
    by_ids = model(pixel_values=pixel_values, **texts())
    model.text_model = None
    assert torch.equal(
        model(pixel_values=pixel_values, text_features=features).logits_per_image, by_ids.logits_per_image
    )
    half = model(pixel_values=pixel_values, text_features=features.half())
    torch.testing.assert_close(half.logits_per_image, by_ids.logits_per_image, rtol=1e-2, atol=2e-2)


def test_features_are_projected_but_not_normalised(model):
    pixel_values = torch.rand(2, 3, 32, 32)
    output = model(pixel_values=pixel_values, **texts())
    image = model.get_image_features(pixel_values).pooler_output
    text = model.get_text_features(**texts()).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(image, dim=-1), output.image_embeds)
    torch.testing.assert_close(torch.nn.functional.normalize(text, dim=-1), output.text_embeds)


def test_weights_load_into_vision_text_dual_encoder():
    """Where both towers are transformers' own and pool by themselves, the parameter names are the same."""
    model = build(vision=VISION_CONFIGS["clip"], text=TEXT_CONFIGS["bert"], text_pooling="pooler").eval()
    twin = transformers.VisionTextDualEncoderModel(
        transformers.VisionTextDualEncoderConfig(
            vision_config=VISION_CONFIGS["clip"].to_dict(),
            text_config=TEXT_CONFIGS["bert"].to_dict(),
            projection_dim=16,
        )
    ).eval()
    twin.load_state_dict(model.state_dict())
    pixel_values = torch.rand(2, 3, 32, 32)
    ours, theirs = model(pixel_values=pixel_values, **texts()), twin(pixel_values=pixel_values, **texts())
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image)


def test_zero_shot_pipeline_gives_the_scores_of_a_call_by_hand(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = random_pictures(1)[0]
    labels = ["joy", "sad", "fear"]
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path))
    scores = pipe(picture, candidate_labels=labels, hypothesis_template="a photo with {} emotion")

    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, PACLProcessor)
    prompts = [f"a photo with {label} emotion" for label in labels]
    inputs = loaded(images=picture, text=prompts, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0]
    by_label = {entry["label"]: entry["score"] for entry in scores}
    torch.testing.assert_close(torch.tensor([by_label[label] for label in labels]), expected)


def test_backbone_loads_in_a_python_without_pacl(tmp_path):
    model = build(vision=VISION_CONFIGS["resnet"]).eval()
    model.vision_model.save_pretrained(tmp_path)
    pixel_values = torch.full((1, 3, 32, 32), 0.5)
    script = (
        "import sys; sys.modules['pacl'] = None\n"
        "import json, torch, transformers\n"
        f"model = transformers.AutoModel.from_pretrained({str(tmp_path)!r}).eval()\n"
        "features = model(torch.full((1, 3, 32, 32), 0.5)).pooler_output.flatten().tolist()\n"
        "print(json.dumps([type(model).__name__, features]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    name, features = json.loads(result.stdout.splitlines()[-1])
    assert name == "ResNetModel"
    torch.testing.assert_close(torch.tensor(features), model.encode_image(pixel_values)[0].detach())


def test_pooling_by_hand():
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    outputs = BaseModelOutput(last_hidden_state=hidden)
    assert torch.equal(pool_text(outputs, mask, "first"), hidden[:, 0])
    torch.testing.assert_close(pool_text(outputs, mask, "mean")[1], hidden[1, :2].mean(0))
    assert torch.equal(pool_vision(outputs), hidden[:, 0])
    feature_map = BaseModelOutput(last_hidden_state=torch.ones(2, 5, 3, 3))
    assert pool_vision(feature_map).shape == (2, 5)
    with pytest.raises(ValueError, match="feature map"):
        pool_vision(feature_map, "first")
    with pytest.raises(ValueError, match="no pooler"):
        pool_text(outputs, mask, "pooler")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.ones(1, 3, dtype=torch.long)}, "pixel_values are missing"),
        ({"pixel_values": torch.rand(1, 3, 32, 32)}, "either as input_ids or as text_features"),
    ],
)
def test_missing_inputs_are_named(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"text_pooling": "last"}, "text_pooling must be one of first, mean, pooler"),
        ({"vision_pooling": "max"}, "vision_pooling"),
    ],
)
def test_wrong_configurations_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        PACLConfig(**fields)


def test_unknown_backbones_are_refused(tmp_path):
    with pytest.raises((OSError, ValueError), match="no-such-folder"):
        PACLModel.from_vision_text_pretrained(str(tmp_path / "no-such-folder"), "also-missing")
    transformers.AutoModel.from_config(tiny_roberta_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no vision model"):
        PACLModel.from_vision_text_pretrained(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("name", ["vit", "clip", "timm resnet"])
def test_gradient_checkpointing_leaves_gradients_unchanged(name):
    model = build(vision=VISION_CONFIGS[name]).train()
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64) if "timm" in name else torch.rand(2, 3, 32, 32), **texts()}
    plain = gradients(model, inputs)
    model.activation_checkpointing_enable({"use_reentrant": False})
    for expected, actual in zip(plain, gradients(model, inputs), strict=True):
        torch.testing.assert_close(actual, expected)


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).logits_per_image.sum().backward()
    return [parameter.grad.clone() for parameter in model.vision_model.parameters()]


FULL_SIZE_VISION = {
    "ResNet-50": transformers.ResNetConfig(),
    "ViT-base": transformers.ViTConfig(),
    "Swin-base": transformers.SwinConfig(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=7, image_size=224
    ),
    "CLIP ViT-B/32": transformers.CLIPVisionConfig(),
    "timm ResNet-50": transformers.TimmWrapperConfig(architecture="resnet50", model_args={}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE_VISION)
def test_full_size_towers_take_a_training_step(name):
    """The paper's towers with random weights, RoBERTa-large standing for SKEP."""
    skep = transformers.RobertaConfig(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514,
    )  # fmt: skip
    model = PACLModel(PACLConfig(vision_config=FULL_SIZE_VISION[name].to_dict(), text_config=skep.to_dict())).train()
    assert model.text_projection.in_features == 1024
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    output = model(pixel_values=torch.rand(2, 3, 224, 224), **texts(2))
    torch.nn.functional.cross_entropy(output.logits_per_image, torch.arange(2)).backward()
    torch.optim.AdamW(trained, lr=1e-3).step()
    assert any(not torch.equal(old, new) for old, new in zip(before, trained, strict=True))


def test_processor_joins_two_checkpoints(tmp_path):
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vision")
    make_tokenizer().save_pretrained(tmp_path / "text")
    processor = PACLProcessor.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    inputs = processor(images=random_pictures(2), text=["a cat", "the sun of joy"], return_tensors="pt", padding=True)
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 6)


def test_processor_with_timms_image_processor_is_read_back(tmp_path):
    timm_processor = transformers.models.timm_wrapper.image_processing_timm_wrapper.TimmWrapperImageProcessor
    config = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    processor = PACLProcessor(timm_processor(config, architecture="any"), make_tokenizer())
    processor.save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    pictures = random_pictures(2)
    expected, found = (each.image_processor(pictures, return_tensors="pt") for each in (processor, loaded))
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"])
