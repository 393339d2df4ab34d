"""Zero-shot classification: the same answer as the model by hand, prompts, and what is refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizerFast, CLIPConfig, CLIPModel, ResNetConfig, ViTImageProcessor

from pacl import PACLConfig, PACLModel, PACLProcessor
from pacl.emotions import PROMPTS
from pacl.evaluation.zero_shot import ENSEMBLE, read_prompts, zero_shot

EMOTIONS = ["anger", "deep_joy", "fear"]


@pytest.fixture(scope="module", params=["pacl", "clip"])
def dual_encoder(request, tmp_path_factory):
    words = " ".join(PROMPTS).replace("[C]", " ".join(EMOTIONS)).replace("_", " ").lower()
    for mark in ".!":
        words = words.replace(mark, f" {mark}")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words.split())]
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(vocabulary))
    text = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    vision = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    model = PACLModel(PACLConfig.from_vision_text_configs(vision, text, projection_dim=6))
    if request.param == "clip":
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text_sizes = {**sizes, "vocab_size": len(vocabulary), "eos_token_id": vocabulary.index("[SEP]")}
        config = CLIPConfig(
            text_config=text_sizes, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=6
        )
        model = CLIPModel(config)
    processor = PACLProcessor(ViTImageProcessor(size={"height": 8, "width": 8}), BertTokenizerFast(str(path)))
    return model.eval(), processor


@pytest.fixture
def dataset():
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(9)]
    features = datasets.Features({"image": datasets.Image(), "emotion": datasets.ClassLabel(names=EMOTIONS)})
    labels = [0, 1, 2, 0, 1, 2, 0, 1, None]
    return datasets.Dataset.from_dict({"image": images, "emotion": labels}, features=features)


def test_each_prompt_scores_as_the_model_called_by_hand(dual_encoder, dataset, tmp_path):
    model, processor = dual_encoder
    result = zero_shot(model, processor, dataset, "emotion", cache_dir=tmp_path)
    for prompt in PROMPTS:
        texts = [prompt.replace("[C]", name.replace("_", " ")) for name in EMOTIONS]
        inputs = processor(text=texts, images=list(dataset["image"]), return_tensors="pt", padding=True)
        inputs.pop("token_type_ids")
        with torch.no_grad():
            by_hand = model(**inputs).logits_per_image.argmax(dim=1)[:8]
        np.testing.assert_array_equal(result.predictions[prompt], by_hand)


def test_confusion_counts_every_labelled_picture_and_missing_labels_are_said(dual_encoder, dataset, tmp_path):
    result = zero_shot(*dual_encoder, dataset, "emotion", cache_dir=tmp_path)
    assert result.confusion().sum(axis=1).tolist() == [3, 3, 2]
    assert result.missing == 1
    summary = result.summary()["prompts"][ENSEMBLE]
    assert summary["accuracy"] == pytest.approx(np.trace(result.confusion()) / 8)


def test_ensemble_of_one_prompt_is_that_prompt(dual_encoder, dataset, tmp_path):
    result = zero_shot(*dual_encoder, dataset, "emotion", prompts=PROMPTS[:1], cache_dir=tmp_path)
    np.testing.assert_array_equal(result.predictions[ENSEMBLE], result.predictions[PROMPTS[0]])


def test_prompt_without_a_place_for_the_class_is_refused(dual_encoder, dataset, tmp_path):
    with pytest.raises(ValueError, match="has no place for the emotion"):
        zero_shot(*dual_encoder, dataset, "emotion", prompts=["A photo."], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="3 classes need as many names; got 1"):
        zero_shot(*dual_encoder, dataset, "emotion", class_names=["joy"], cache_dir=tmp_path)
    with pytest.raises(ValueError, match="needs a ClassLabel column"):
        zero_shot(*dual_encoder, dataset, "image", cache_dir=tmp_path)


def test_prompt_file_skips_comments_and_names_itself_in_errors(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\nI feel [C].\n  Pure [C]  \n")
    assert read_prompts(path) == ("I feel [C].", "Pure [C]")
    path.write_text("nothing here\n")
    with pytest.raises(ValueError, match=r"prompts\.txt.*nothing here"):
        read_prompts(path)
