"""The `zero-shot-emotion` pipeline: what it takes, what it returns, and on which models."""

from __future__ import annotations

import pytest
import torch
import transformers
from datasets import Dataset, Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from conftest import random_pictures, tiny_roberta_config, tiny_vit_config
from pacl import EmotionClassificationPipeline
from pacl.emotions import POLES, PROMPTS, VOCABULARIES
from pacl.hub_cards import export_dual_encoder

LABELS = ["joy", "sad", "angry"]


@pytest.fixture
def feel(model, processor):
    return pipeline(
        "zero-shot-emotion",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )


def scores(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def test_vocabularies_have_their_sizes_and_no_word_twice():
    sizes = {"mikels8": 8, "ekman6": 6, "parrott6": 6, "parrott25": 25, "emotic26": 26}
    assert {name: len(set(words)) for name, words in VOCABULARIES.items()} == sizes
    for words in VOCABULARIES.values():
        assert all(word.isalpha() and word.islower() for word in words)


def test_importing_pacl_registers_the_pipeline(feel):
    assert type(feel) is EmotionClassificationPipeline


def test_scores_are_the_softmax_over_the_normalised_mean_of_both_prompts(feel, model, processor):
    (picture,) = random_pictures(1)
    texts = [[prompt.replace("[C]", label) for label in LABELS] for prompt in PROMPTS]
    with torch.no_grad():
        outputs = [model(**processor(images=picture, text=t, return_tensors="pt", padding=True)) for t in texts]
    words = torch.nn.functional.normalize(sum(output.text_embeds for output in outputs), dim=-1)
    expected = (outputs[0].image_embeds @ words.T / model.config.temperature).softmax(-1)[0]
    assert scores(feel(picture, candidate_labels=LABELS)) == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5
    )


def test_one_prompt_gives_the_scores_of_the_stock_zero_shot_pipeline(feel, model, processor):
    stock = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    (picture,) = random_pictures(1)
    expected = stock(picture, candidate_labels=LABELS, hypothesis_template="a photo of {}")
    for prompt in ("a photo of {}", "a photo of [C]"):
        answer = feel(picture, candidate_labels=LABELS, prompts=prompt)
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
        assert scores(answer) == pytest.approx(scores(expected), abs=1e-5)


def test_a_vocabulary_is_chosen_by_name_and_top_k_keeps_the_best(feel):
    (picture,) = random_pictures(1)
    assert {entry["label"] for entry in feel(picture)} == set(VOCABULARIES["mikels8"])
    everything = feel(picture, vocabulary="parrott25")
    assert len(everything) == 25
    assert sum(scores(everything).values()) == pytest.approx(1, abs=1e-5)
    assert everything == sorted(everything, key=lambda entry: -entry["score"])
    assert feel(picture, vocabulary="parrott25", top_k=3) == everything[:3]


def test_every_kind_of_input_gives_the_same_answers(feel, tmp_path):
    pictures = random_pictures(3)
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    dataset = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    expected = [scores(feel(picture, candidate_labels=LABELS)) for picture in pictures]
    for inputs in (pictures, paths, (picture for picture in pictures), KeyDataset(dataset, "image")):
        answers = list(feel(inputs, candidate_labels=LABELS, batch_size=2))
        assert len(answers) == 3
        for answer, truth in zip(answers, expected, strict=True):
            assert scores(answer) == pytest.approx(truth, abs=1e-5)


def test_workers_load_the_pictures(feel):
    pictures = random_pictures(2)
    assert list(feel(pictures, num_workers=1)) == feel(pictures)


def test_texts_are_embedded_once_for_many_pictures(feel, model, monkeypatch):
    calls = []
    embed = model.get_text_features
    monkeypatch.setattr(model, "get_text_features", lambda **tokens: calls.append(1) or embed(**tokens))
    feel(random_pictures(4), candidate_labels=LABELS)
    feel(random_pictures(1), candidate_labels=LABELS)
    assert len(calls) == 1
    feel(random_pictures(1), candidate_labels=LABELS, prompts="a {}")
    assert len(calls) == 2


def test_valence_is_the_probability_of_the_pleasant_words(feel):
    (picture,) = random_pictures(1)
    answer = feel(picture, candidate_labels=["happy", "sad"], prompts="a {}", valence=(["happy"], ["sad"]))
    assert answer["emotions"] == feel(picture, candidate_labels=["happy", "sad"], prompts="a {}")
    assert answer["valence"] == pytest.approx(scores(answer["emotions"])["happy"], abs=1e-6)
    turned = feel(picture, prompts="a {}", valence=(["sad"], ["happy"]))
    assert turned["valence"] == pytest.approx(1 - answer["valence"], abs=1e-6)


def test_valence_true_uses_the_built_in_words_and_works_in_batches(feel):
    pictures = random_pictures(3)
    answers = feel(pictures, valence=True, batch_size=2)
    alone = [feel(picture, valence=POLES)["valence"] for picture in pictures]
    assert [answer["valence"] for answer in answers] == pytest.approx(alone, abs=1e-6)


def test_what_is_set_when_it_is_made_holds_until_a_call_says_otherwise(model, processor):
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "device": "cpu"}
    feel = pipeline("zero-shot-emotion", model=model, **parts, vocabulary="ekman6", top_k=2)
    (picture,) = random_pictures(1)
    assert len(feel(picture)) == 2
    assert {entry["label"] for entry in feel(picture, candidate_labels=LABELS, top_k=9)} == set(LABELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary": "plutchik"}, "no emotion vocabulary 'plutchik'; choose from mikels8"),
        ({"prompts": "a happy photo"}, "'a happy photo' has no place for the emotion"),
        ({"prompts": []}, "at least one"),
        ({"candidate_labels": []}, "candidate_labels"),
        ({"candidate_labels": ["joy", "joy"]}, "different words, got joy, joy"),
        ({"candidate_labels": ["joy"], "vocabulary": "ekman6"}, "not both"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"valence": ["happy"]}, "a pair"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_wrong(feel, arguments, message):
    with pytest.raises(ValueError, match=message):
        feel(random_pictures(1)[0], **arguments)


def test_an_argument_that_does_not_exist_is_refused(feel):
    with pytest.raises(TypeError, match="got hypothesis"):
        feel(random_pictures(1)[0], hypothesis="a {}")


def test_a_backbone_is_refused_because_it_has_no_text_side(tmp_path, processor):
    transformers.ViTModel(tiny_vit_config()).save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTModel has no get_image_features"):
        pipeline("zero-shot-emotion", model=str(tmp_path), device="cpu")


def tiny_clip():
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**sides, "vocab_size": 40, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2}
    vision = {**sides, "image_size": 32, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def tiny_vision_text_dual_encoder():
    configs = (tiny_vit_config(), tiny_roberta_config())
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=8)
    return transformers.VisionTextDualEncoderModel(config)


@pytest.mark.parametrize("make", [tiny_clip, tiny_vision_text_dual_encoder])
def test_other_dual_encoders_give_their_own_logits(make, processor):
    torch.manual_seed(0)
    model = make().eval()
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, "device": "cpu"}
    feel = pipeline("zero-shot-emotion", model=model, **parts)
    (picture,) = random_pictures(1)
    inputs = processor(images=picture, text=["a " + label for label in LABELS], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0].tolist()
    assert scores(feel(picture, candidate_labels=LABELS, prompts="a {}")) == pytest.approx(
        dict(zip(LABELS, expected, strict=True)), abs=1e-5
    )


def test_an_exported_dual_encoder_needs_no_trust_where_pacl_is_installed(feel, model, processor, tmp_path):
    export_dual_encoder(model, tmp_path / "out", processor=processor)
    (picture,) = random_pictures(1)
    exported = pipeline("zero-shot-emotion", model=str(tmp_path / "out"), device="cpu")
    assert scores(exported(picture)) == pytest.approx(scores(feel(picture)), abs=1e-5)
