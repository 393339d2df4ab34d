"""The built-in corpus, its ready-made tiny models, and the command that rebuilds them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

from pacl import PACLModel
from pacl.training.drawing import EMOTIONS, SUBJECTS, draw_picture
from pacl.training.partition import PARTITION_NAMES
from pacl.training.synthetic import ASSETS, PARTITION_SHARES, asset_path, make_corpus, make_pictures
from pacl.training.writing import ANP_ADJECTIVES, SUBJECT_WORDS, vocabulary, write_post


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(100, seed=3)


def stored(dataset):
    """The rows as they lie in memory, pictures as bytes."""
    return dataset.with_format("arrow")[:].to_pylist()


def test_same_seed_gives_the_same_corpus_made_anew(corpus, tmp_path):
    again = make_corpus(100, seed=3, cache_dir=str(tmp_path))
    assert stored(again.posts) == stored(corpus.posts)
    assert stored(again.truth) == stored(corpus.truth)


def test_fingerprint_is_that_of_arguments(corpus, tmp_path):
    assert make_corpus(100, seed=3, cache_dir=str(tmp_path)).posts._fingerprint == corpus.posts._fingerprint
    assert make_corpus(100, seed=4).posts._fingerprint != corpus.posts._fingerprint


def test_another_seed_gives_another_corpus(corpus):
    other = make_corpus(100, seed=4)
    assert other.posts["text"] != corpus.posts["text"]
    assert other.truth["image_subject"] != corpus.truth["image_subject"]


def test_posts_hold_nothing_of_the_truth(corpus):
    assert corpus.posts.column_names == ["id", "image", "text"]
    assert corpus.posts["id"] == corpus.truth["id"]


def test_partitions_have_the_papers_shares(corpus):
    shares = np.bincount(corpus.truth["partition"], minlength=4) / len(corpus.truth)
    assert corpus.truth.features["partition"].names == PARTITION_NAMES
    np.testing.assert_allclose(shares, list(PARTITION_SHARES.values()), atol=0.01)


def test_partition_says_what_agrees(corpus):
    for row in corpus.truth:
        fact = row["image_subject"] == row["text_subject"]
        emotion = row["image_emotion"] == row["text_emotion"]
        assert (
            PARTITION_NAMES[row["partition"]]
            == {
                (True, True): "strong",
                (False, True): "partial_emotional",
                (True, False): "partial_factual",
                (False, False): "weak",
            }[fact, emotion]
        )


def test_texts_name_their_subject(corpus):
    for text, subject in zip(corpus.posts["text"], corpus.truth["text_subject"], strict=True):
        assert any(word in text for word in SUBJECT_WORDS[SUBJECTS[subject]])


def test_vocabulary_covers_posts_and_prompts():
    tokenizer = AutoTokenizer.from_pretrained(asset_path("text_tower"))
    rng = np.random.default_rng(0)
    texts = [write_post(s, e, rng) for s in (*SUBJECTS, None) for e in (*EMOTIONS, None)]
    texts += [f"A photo with {emotion} emotion." for emotion in EMOTIONS]
    texts += [
        f"The photo makes me feel so {word}!" for word in ("angry", "scared", "joyful", "loved", "sad", "surprised")
    ]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])
    assert 300 <= len(vocabulary()) <= 500


def test_pictures_are_small_rgb_of_every_class():
    pictures = make_pictures(60, seed=3)
    assert pictures.column_names == ["image", "subject", "emotion"]
    assert {picture.size for picture in pictures["image"]} == {(64, 64)}
    assert {picture.mode for picture in pictures["image"]} == {"RGB"}
    assert pictures.features["subject"].names == list(SUBJECTS)
    assert set(pictures["emotion"]) == set(range(len(EMOTIONS)))


def test_pictures_of_one_kind_vary():
    rng = np.random.default_rng(0)
    drawn = {draw_picture("boat", "joy", rng).tobytes() for _ in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize("make", [make_corpus, make_pictures])
@pytest.mark.parametrize(("arguments", "name"), [((0, 0), "num"), ((5, -1), "seed")])
def test_impossible_arguments_are_named(make, arguments, name):
    with pytest.raises(ValueError, match=name):
        make(*arguments)


def test_unknown_asset_is_named():
    with pytest.raises(ValueError, match=r"'tower'.*vision_tower"):
        asset_path("tower")


@pytest.mark.parametrize("name", ASSETS)
def test_assets_load_by_the_plain_auto_classes(name):
    """In a process where `pacl` cannot be imported, but for the one that is a PACL model itself."""
    reader = {"vision_tower": "AutoImageProcessor", "anp_tagger": "AutoImageProcessor"}.get(name, "AutoTokenizer")
    code = (
        ("import pacl\n" if name == "factual_judge" else "import sys; sys.modules['pacl'] = None\n")
        + f"from transformers import AutoModel, {reader}\n"
        f"AutoModel.from_pretrained({str(asset_path(name))!r}); {reader}.from_pretrained({str(asset_path(name))!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr


def test_assets_are_small():
    folder = asset_path("vision_tower").parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 4_000_000


def test_factual_judge_is_a_dual_encoder_that_knows_subjects():
    model = AutoModel.from_pretrained(asset_path("factual_judge"))
    processor = AutoProcessor.from_pretrained(asset_path("factual_judge"))
    pictures = make_pictures(120, seed=5)
    texts = [f"a {subject}" for subject in SUBJECTS]
    with torch.no_grad():
        inputs = processor(images=list(pictures["image"]), text=texts, return_tensors="pt", padding=True)
        found = model(**inputs).logits_per_image.argmax(dim=1)
    assert isinstance(model, PACLModel)
    assert (found == torch.tensor(pictures["subject"])).float().mean() > 0.85


def test_tagger_labels_are_adjective_noun_pairs():
    labels = AutoModelForImageClassification.from_pretrained(asset_path("anp_tagger")).config.id2label
    pairs = {
        f"{adjective} {s}" for adjectives in ANP_ADJECTIVES.values() for adjective in adjectives for s in SUBJECTS
    }
    assert set(labels.values()) == pairs
    assert len(labels) == 96


def test_shipped_tower_knows_subjects_and_hardly_emotions():
    pictures = make_pictures(400, seed=6)
    path = asset_path("vision_tower")
    inputs = AutoImageProcessor.from_pretrained(path)(images=list(pictures["image"]), return_tensors="pt")
    with torch.no_grad():
        features = AutoModel.from_pretrained(path)(**inputs).pooler_output.flatten(1).numpy()
    probe = LogisticRegression(max_iter=1000)
    assert cross_val_score(probe, features, pictures["subject"], cv=4).mean() > 0.85
    assert cross_val_score(probe, features, pictures["emotion"], cv=4).mean() < 0.5


def test_rebuild_command_writes_everything(tmp_path):
    from pacl.training.synthetic_models import main

    trial = ("--steps", "2", "--num_pictures", "96", "--num_texts", "200", "--num_scored", "120")
    main(["--output_dir", str(tmp_path), *trial])
    assert {path.name for path in tmp_path.iterdir()} == {*ASSETS, "README.md"}
    assert all(list((tmp_path / name).glob("*.safetensors")) for name in ASSETS)
    assert "partial_emotional" in (tmp_path / "README.md").read_text(encoding="utf-8")
