"""Tiny random towers, a processor and a partitioned dataset, made once and copied by the tests that change them."""

from __future__ import annotations

import os
import shutil

# Before any import of the libraries that read them: no test reaches the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from post_fixtures import make_images, rows_of, write_jsonl

WORDS = [
    *("a", "photo", "with", "emotion", "makes", "me", "feel", "so", "the", "of", "this", "is"),
    *("joy", "sad", "happy", "angry", "fear", "love", "cat", "dog", "house", "rain", "sun"),
]


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """Caches of a test run are its own, and gone with it."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets_cache")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real posts, ratings and weights; tests that need it are skipped where it is not set."""
    folder = os.environ.get("PACL_REAL_DATA")
    if not folder:
        pytest.skip("PACL_REAL_DATA is not set")
    return Path(folder)


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer of some twenty words, with RoBERTa's special tokens."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=32,
    )


def tiny_roberta_config(**changes) -> transformers.RobertaConfig:
    """RoBERTa, 2 layers of 24."""
    defaults = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return transformers.RobertaConfig(**(defaults | changes))


def tiny_vit_config(**changes) -> transformers.ViTConfig:
    """ViT, 2 layers of 32 on pictures of 32 pixels."""
    defaults = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    return transformers.ViTConfig(**(defaults | changes))


@pytest.fixture(scope="session")
def processor():
    from pacl import PACLProcessor

    return PACLProcessor(transformers.ViTImageProcessor(size={"height": 32, "width": 32}), make_tokenizer())


@pytest.fixture
def model():
    from pacl import PACLConfig, PACLModel

    torch.manual_seed(0)
    config = PACLConfig(
        vision_config=tiny_vit_config().to_dict(), text_config=tiny_roberta_config().to_dict(), projection_dim=16
    )
    return PACLModel(config).eval()


@pytest.fixture
def posts_file(tmp_path) -> Path:
    """Five good posts."""
    make_images(tmp_path, [row["image"] for row in rows_of(5)])
    return write_jsonl(tmp_path / "posts.jsonl", rows_of(5))


def random_pictures(number: int, seed: int = 0, size: int = 40) -> list[Image.Image]:
    """Pictures of random noise."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(number)]


def make_pairs(number: int = 48, partitions=(0, 1, 2, 3), seed: int = 0, text_width: int | None = 24):
    """A dataset as Stages 1 and 2 leave it: random pictures, texts, partitions and clusters."""
    rng = np.random.default_rng(seed)
    columns = {
        "image": random_pictures(number, seed),
        "text": [" ".join(rng.choice(WORDS, 5)) for _ in range(number)],
        "partition": [int(p) for p in rng.choice(partitions, number)],
        "factual_cluster": rng.integers(0, 2, number).tolist(),
        "emotional_cluster": rng.integers(0, 2, number).tolist(),
    }
    features = {
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "partition": datasets.ClassLabel(names=["strong", "partial_emotional", "partial_factual", "weak"]),
        "factual_cluster": datasets.Value("int32"),
        "emotional_cluster": datasets.Value("int32"),
    }
    if text_width:
        columns["text_features"] = list(rng.normal(size=(number, text_width)).astype(np.float16))
        features["text_features"] = datasets.List(datasets.Value("float16"), length=text_width)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="session")
def pairs():
    return make_pairs()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """A run's folder with all that it leaves; not to be changed."""
    from run_folder import make_run

    return make_run(tmp_path_factory.mktemp("finished") / "mine")


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(finished_run, tmp_path / "mine")
