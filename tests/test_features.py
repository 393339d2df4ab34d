"""Encoders: backbone and head in one forward pass, and keys that are equal exactly when the outputs would be."""

from __future__ import annotations

import pytest
import torch
import transformers

from conftest import WORDS, make_tokenizer, random_pictures, tiny_vit_config
from pacl import PACLModel, PACLProcessor
from pacl.training.features import ImageEncoder, TextEncoder, TowerEncoders, content_key, load_dual_encoder
from stage_helpers import Counter, clip_encoders, small_processor, tiny_clip, tiny_resnet, tiny_roberta

TEXTS = ["joy", "a photo of the happy dog with love", "sad rain", "a cat"]


def encode(encoder, number=3):
    return encoder.encode([encoder.preprocess(picture) for picture in random_pictures(number)])


def timm_classifier(name):
    config = transformers.TimmWrapperConfig(
        architecture=name, num_labels=5, model_args={"img_size": 32} if "vit" in name else None
    )
    torch.manual_seed(0)
    return transformers.TimmWrapperForImageClassification(config).eval()


def mobilenet():
    torch.manual_seed(0)
    config = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=5)
    return transformers.MobileNetV2ForImageClassification(config).eval()


def vit():
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(tiny_vit_config(num_labels=5)).eval()


CLASSIFIERS = {
    "resnet": tiny_resnet,
    "mobilenet": mobilenet,
    "vit": vit,
    "timm_resnet": lambda: timm_classifier("test_resnet"),
    "timm_vit": lambda: timm_classifier("test_vit"),
}


@pytest.mark.parametrize("build", CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
def test_classifier_and_its_bare_tower_have_the_same_features_and_share_a_backbone_key(build, tmp_path):
    classifier = build()
    classifier.save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    counter = Counter(classifier)
    with_head = ImageEncoder(classifier, small_processor())
    tower = ImageEncoder.from_pretrained(str(tmp_path))

    encoding, bare = encode(with_head), encode(tower)

    assert counter.passes == 1
    assert encoding.head.shape == (3, 5)
    assert bare.head is None
    torch.testing.assert_close(encoding.features, bare.features)
    assert encoding.features.dtype == torch.float32
    assert with_head.backbone_key == tower.backbone_key == tower.key
    assert with_head.key != tower.key


def test_dual_encoder_gives_pooled_features_and_projected_embeddings():
    images, texts = clip_encoders()
    model = images.model
    pixels = torch.cat([images.preprocess(picture)["pixel_values"] for picture in random_pictures(3)])

    encoding = encode(images)
    torch.testing.assert_close(encoding.features, model.vision_model(pixels).pooler_output)
    torch.testing.assert_close(encoding.head, model.get_image_features(pixels).pooler_output)
    tower = ImageEncoder(tiny_clip().vision_model, small_processor())
    assert tower.key == images.backbone_key
    assert texts.pooling == "pooler"
    text_tower = TextEncoder(tiny_clip().text_model, make_tokenizer())
    assert text_tower.key == texts.backbone_key
    torch.testing.assert_close(text_tower.encode(TEXTS).features, texts.encode(TEXTS).features)


def test_towers_encode_as_the_pacl_model_does(model, processor):
    towers = TowerEncoders.from_model(model, processor)
    inputs = processor(images=random_pictures(3), text=TEXTS[:3], return_tensors="pt", padding=True)

    torch.testing.assert_close(encode(towers.image).features, model.encode_image(inputs["pixel_values"]))
    expected = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(towers.text.encode(TEXTS[:3]).features, expected)


def test_model_can_be_trained_after_it_was_encoded_with(model, processor):
    towers = TowerEncoders.from_model(model, processor)
    encode(towers.image)
    model.train()
    pixels = torch.cat([towers.image.preprocess(picture)["pixel_values"] for picture in random_pictures(2)])
    model.encode_image(pixels).sum().backward()
    assert model.vision_model.embeddings.cls_token.grad is not None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_keys_are_the_same_after_saving_and_loading(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    before = TowerEncoders.from_model(model, processor)
    loaded = TowerEncoders.from_model(PACLModel.from_pretrained(tmp_path), PACLProcessor.from_pretrained(tmp_path))
    assert (loaded.image.key, loaded.text.key) == (before.image.key, before.text.key)


def test_key_does_not_depend_on_what_the_tokenizer_was_last_called_with():
    used, unused = TextEncoder(tiny_roberta(), make_tokenizer()), TextEncoder(tiny_roberta(), make_tokenizer())
    used.encode(TEXTS)
    used.tokenizer(TEXTS, truncation=True, max_length=7, padding="max_length")
    assert used.key == unused.key


def test_keys_change_with_weights_pooling_and_preprocessing():
    def image_key(model=None, **settings):
        return ImageEncoder(model or tiny_resnet(), settings.pop("processor", small_processor()), **settings)

    reference = image_key()
    head_changed, body_changed = tiny_resnet(), tiny_resnet()
    with torch.no_grad():
        head_changed.classifier[1].bias[0] += 1
        next(body_changed.resnet.parameters()).view(-1)[0] += 1e-3
    assert image_key().key == reference.key
    assert image_key(head_changed).key != reference.key
    assert image_key(head_changed).backbone_key == reference.backbone_key
    for other in (
        image_key(body_changed),
        image_key(pooling="mean"),
        image_key(processor=small_processor(resample=0)),
    ):
        assert other.backbone_key != reference.backbone_key
    texts = [TextEncoder(tiny_roberta(), make_tokenizer(), pooling=pooling).key for pooling in ("first", "mean")]
    assert texts[0] != texts[1]


def test_batch_norm_statistics_are_part_of_the_key():
    changed = tiny_resnet()
    changed.resnet.embedder.embedder.normalization.running_mean += 1
    assert ImageEncoder(changed, small_processor()).key != ImageEncoder(tiny_resnet(), small_processor()).key


def test_configuration_that_no_weight_shows_is_part_of_the_key():
    model = tiny_resnet()
    model.config.hidden_act = "gelu"
    assert (
        ImageEncoder(model, small_processor()).backbone_key
        != ImageEncoder(tiny_resnet(), small_processor()).backbone_key
    )


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_text_features_do_not_depend_on_the_rest_of_the_batch(pooling):
    encoder = TextEncoder(tiny_roberta(), make_tokenizer(), pooling=pooling)
    together = encoder.encode(TEXTS, batch_size=3).features
    alone = torch.cat([encoder.encode([text]).features for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_where_the_position_embeddings_end():
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10**30
    encoder = TextEncoder(tiny_roberta(), tokenizer)  # 40 positions, of which RoBERTa's first two are no positions
    assert encoder.max_length == 38
    assert torch.isfinite(encoder.encode([" ".join(WORDS * 9)]).features).all()
    assert TextEncoder(tiny_clip(), tokenizer).max_length == 20


def test_siglip_texts_are_padded_to_full_length():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config=sizes | {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 16, "projection_size": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    model, tokenizer = transformers.SiglipModel(config).eval(), make_tokenizer()
    encoding = TextEncoder(model, tokenizer).encode(["joy"])
    inputs = tokenizer(["joy"], padding="max_length", max_length=16, return_tensors="pt")
    torch.testing.assert_close(encoding.head, model.get_text_features(**inputs).pooler_output)
    assert encode(ImageEncoder(model, small_processor())).head.shape == (3, 16)


def test_loading_a_model_that_is_no_dual_encoder_says_so(tmp_path):
    tiny_resnet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ResNetModel is no CLIP-like model"):
        load_dual_encoder(str(tmp_path))


def test_unknown_encoder_is_refused():
    with pytest.raises(OSError, match="no-such-tower"):
        ImageEncoder.from_pretrained("./no-such-tower")


def test_content_key_tells_shapes_and_types_apart():
    ones = torch.ones(4)
    keys = {content_key(x) for x in (ones, ones.view(2, 2), ones.double(), ones.int(), torch.ones(()), "1", 1)}
    assert len(keys) == 7
