"""Trains the tiny models of the built-in corpus: `python -m pacl.training.synthetic_models` rebuilds `assets/`.

They stand where a user's pre-trained checkpoints would: two towers and the judges of Stage 1. They learn from pictures
and texts of a seed of their own, never from the posts of a corpus.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.utils import tqdm
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    ConvNextImageProcessor,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    get_cosine_schedule_with_warmup,
)

from pacl import PACLConfig, PACLModel, PACLProcessor

from .drawing import EMOTIONS, IMAGE_SIZE, SUBJECTS
from .synthetic import make_pictures
from .synthetic_scores import write_scores
from .writing import ANP_NAMES, vocabulary, write_post, write_tags

# Apart from every seed that a run is likely to choose for its corpus or its probes.
LESSON_SEED = 20_241_028
NUM_PICTURES, NUM_TEXTS, NUM_SCORED = 8000, 20_000, 2000
TEXT_LENGTH = 48
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)

_NO_LABEL = -100  # what cross-entropy ignores


class Pictures(NamedTuple):
    """Pictures of shape (N, 3, 64, 64), uint8, and their labels of shape (N,)."""

    pixels: Tensor
    subject: Tensor
    emotion: Tensor


class Texts(NamedTuple):
    """Token ids and mask of shape (N, L), and the labels of shape (N,), `_NO_LABEL` where a text leaves one open."""

    input_ids: Tensor
    attention_mask: Tensor
    subject: Tensor
    emotion: Tensor


# Lessons


def to_pictures(dataset: Dataset) -> Pictures:
    """Decodes the pictures of [`~pacl.training.synthetic.make_pictures`] into memory."""
    pixels = np.stack([np.asarray(image) for image in tqdm(dataset["image"], desc="Decoding pictures")])
    labels = (torch.tensor(dataset[name]) for name in ("subject", "emotion"))
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), *labels)


def make_tokenizer() -> BertTokenizer:
    """A word-level tokenizer over the corpus's vocabulary, in BERT's format; other words are `[UNK]`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(
        vocab={word: index for index, word in enumerate(special + vocabulary())},
        model_max_length=TEXT_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_texts(tokenizer: BertTokenizer, num: int, seed: int, *, labelled: float = 0.9) -> Texts:
    """Posts whose subject and emotion are each told in the share `labelled` of them."""
    rng = np.random.default_rng(seed)
    subject = np.where(rng.random(num) < labelled, rng.integers(len(SUBJECTS), size=num), _NO_LABEL)
    emotion = np.where(rng.random(num) < labelled, rng.integers(len(EMOTIONS), size=num), _NO_LABEL)
    texts = [
        write_post(SUBJECTS[s] if s >= 0 else None, EMOTIONS[e] if e >= 0 else None, rng)
        for s, e in tqdm(zip(subject, emotion, strict=True), total=num, desc="Writing texts")
    ]
    return _tokenize(tokenizer, texts, subject, emotion)


def make_tags(tokenizer: BertTokenizer, num: int, seed: int) -> Texts:
    """Adjective-noun pairs as Stage 1 writes a picture's top three, the labels those of the first pair."""
    rng = np.random.default_rng(seed)
    subject, emotion = rng.integers(len(SUBJECTS), size=num), rng.integers(len(EMOTIONS), size=num)
    pairs = tqdm(zip(subject, emotion, strict=True), total=num, desc="Writing tags")
    return _tokenize(tokenizer, [write_tags(EMOTIONS[e], SUBJECTS[s], rng) for s, e in pairs], subject, emotion)


def _tokenize(tokenizer: BertTokenizer, texts: list[str], subject: np.ndarray, emotion: np.ndarray) -> Texts:
    tokens = tokenizer(texts, padding="longest", truncation=True, return_tensors="pt")
    return Texts(tokens["input_ids"], tokens["attention_mask"], torch.from_numpy(subject), torch.from_numpy(emotion))


def normalise(pixels: Tensor) -> Tensor:
    """What the image processors do: 0…255 to −1…1, shape unchanged."""
    return (pixels.float() / 255 - PIXEL_MEAN[0]) / PIXEL_STD[0]


def recolour(pixels: Tensor) -> Tensor:
    """Puts every picture of a (B, 3, H, W) batch under a random light, mixing its colour channels at random.

    What is left are shapes. A tower that learns from such pictures has no reason to look at their mood.
    """
    size = len(pixels)
    mix = torch.randn(size, 3, 3)
    mix = mix / mix.abs().sum(dim=2, keepdim=True)
    grey = pixels.float() / 255
    contrast = torch.einsum("bij,bjhw->bihw", mix, grey - grey.mean(dim=(1, 2, 3), keepdim=True))
    light = torch.rand(size, 3, 1, 1) + contrast * (0.5 + 1.6 * torch.rand(size, 1, 1, 1))
    return light.clamp(0, 1) * 255


# Training


def _fit(
    name: str, modules: Iterable[nn.Module], loss_of: Callable[[], Tensor], steps: int, lr: float, decay: float = 0.05
) -> None:
    """Trains `modules` for `steps` steps on the losses that `loss_of` draws; leaves them in evaluation mode."""
    modules = list(modules)
    parameters = [parameter for module in modules for parameter in module.train().parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in (bar := tqdm(range(steps), desc=f"Training {name}")):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    for module in modules:
        module.eval()


def _rows(lessons: Pictures | Texts, size: int) -> Tensor:
    return torch.randint(len(lessons.subject), (size,))


def _photograph(pictures: Pictures, rows: Tensor) -> Tensor:
    """Pictures as training sees them: mirrored or not, and a little displaced. Shape (B, 3, 64, 64), uint8."""
    pixels = pictures.pixels[rows]
    pixels = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    across, down = torch.randint(-4, 5, (2,)).tolist()
    return pixels.roll((down, across), dims=(2, 3))


def make_anchors(classes: int, dim: int) -> Tensor:
    """Fixed orthonormal vectors of shape (classes, dim), one for each class that a judge is to tell apart."""
    return nn.init.orthogonal_(torch.empty(classes, dim))


def anchor_loss(features: Tensor, labels: Tensor, anchors: Tensor) -> Tensor:
    """Draws features (B, D) to the anchor of their class, by cross-entropy over cosines.

    What shares a class then has a cosine near 1 and what does not one near 0, with the doubtful between, so that
    Stage 1's boundaries (0.7, and for CLIPScore 0.7 / 2.5) part matched from mismatched pairs without being fitted.
    """
    return F.cross_entropy(12.0 * F.normalize(features, dim=1) @ anchors.T, labels)


def _resnet_config(**kwargs: Any) -> ResNetConfig:
    return ResNetConfig(embedding_size=24, hidden_sizes=[24, 48, 96], depths=[1, 1, 1], layer_type="basic", **kwargs)


def _distilbert(dim: int, layers: int, tokenizer: BertTokenizer) -> DistilBertModel:
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=TEXT_LENGTH,
        dim=dim,
        hidden_dim=2 * dim,
        n_layers=layers,
        n_heads=4,
    )
    return DistilBertModel(config)


def first_token(model: PreTrainedModel, texts: Texts, rows: Tensor | slice) -> Tensor:
    """Pooling "first" of the chosen texts, (B, D)."""
    mask = texts.attention_mask[rows]
    length = int(mask.sum(dim=1).max())
    ids = texts.input_ids[rows, :length]
    return model(input_ids=ids, attention_mask=mask[:, :length]).last_hidden_state[:, 0]


def train_vision_tower(pictures: Pictures, steps: int) -> ResNetModel:
    """Learns to name subjects under any light. The strong decay makes it forget what that does not need."""
    model, head = ResNetModel(_resnet_config()), nn.Linear(96, len(SUBJECTS))

    def loss() -> Tensor:
        rows = _rows(pictures, 64)
        features = model(normalise(recolour(_photograph(pictures, rows)))).pooler_output.flatten(1)
        return F.cross_entropy(head(features), pictures.subject[rows], label_smoothing=0.1)

    _fit("vision_tower", [model, head], loss, steps, lr=3e-3, decay=0.5)
    return model


def train_anp_tagger(pictures: Pictures, steps: int) -> ResNetForImageClassification:
    """Learns to name adjective-noun pairs; either adjective of a picture's emotion is right."""
    names = dict(enumerate(ANP_NAMES))
    model = ResNetForImageClassification(
        _resnet_config(id2label=names, label2id={name: index for index, name in names.items()})
    )

    def loss() -> Tensor:
        rows = _rows(pictures, 64)
        adjective = 2 * pictures.emotion[rows] + torch.randint(2, (64,))
        logits = model(normalise(_photograph(pictures, rows))).logits
        return F.cross_entropy(logits, adjective * len(SUBJECTS) + pictures.subject[rows])

    _fit("anp_tagger", [model], loss, steps, lr=3e-3)
    return model


def train_text_tower(tokenizer: BertTokenizer, texts: Texts, steps: int) -> DistilBertModel:
    """Learns to tell both subject and emotion from the first token."""
    model = _distilbert(96, 2, tokenizer)
    subject_head, emotion_head = nn.Linear(96, len(SUBJECTS)), nn.Linear(96, len(EMOTIONS))

    def loss() -> Tensor:
        rows = _rows(texts, 128)
        features = first_token(model, texts, rows)
        subject = F.cross_entropy(subject_head(features), texts.subject[rows], label_smoothing=0.05)
        return subject + F.cross_entropy(emotion_head(features), texts.emotion[rows], label_smoothing=0.05)

    _fit("text_tower", [model, subject_head, emotion_head], loss, steps, lr=2e-3)
    return model


def train_emotion_text_encoder(tokenizer: BertTokenizer, posts: Texts, tags: Texts, steps: int) -> DistilBertModel:
    """Learns to bring posts and adjective-noun pairs of one emotion together, whatever they are about."""
    model, anchors = _distilbert(64, 2, tokenizer), make_anchors(len(EMOTIONS), 64)

    def loss() -> Tensor:
        rows, tag_rows = _rows(posts, 64), _rows(tags, 64)
        of_posts = anchor_loss(first_token(model, posts, rows), posts.emotion[rows], anchors)
        return of_posts + anchor_loss(first_token(model, tags, tag_rows), tags.emotion[tag_rows], anchors)

    _fit("emotion_text_encoder", [model], loss, steps, lr=2e-3)
    return model


def train_factual_judge(
    tokenizer: BertTokenizer, tower: ResNetModel, pictures: Pictures, texts: Texts, steps: int
) -> PACLModel:
    """Learns to bring pictures and posts of one subject together, on the features of a tower that knows subjects."""
    text_model = _distilbert(64, 1, tokenizer)
    config = PACLConfig.from_vision_text_configs(tower.config, text_model.config, projection_dim=32, freeze_text=False)
    model = PACLModel(config, vision_model=tower, text_model=text_model)
    anchors = make_anchors(len(SUBJECTS), 32)
    with torch.no_grad():
        chunks = tqdm(pictures.pixels.split(250), desc="Encoding pictures")
        features = torch.cat([model.encode_image(normalise(chunk)) for chunk in chunks])

    def loss() -> Tensor:
        rows, text_rows = _rows(pictures, 128), _rows(texts, 128)
        of_pictures = anchor_loss(model.visual_projection(features[rows]), pictures.subject[rows], anchors)
        embeddings = model.text_projection(first_token(text_model, texts, text_rows))
        return of_pictures + anchor_loss(embeddings, texts.subject[text_rows], anchors)

    _fit("factual_judge", [model.visual_projection, model.text_projection, text_model], loss, steps, lr=2e-3)
    return model


# Rebuilding


def rebuild_assets(
    output_dir: Path,
    *,
    steps: int | None = None,
    num_pictures: int = NUM_PICTURES,
    num_texts: int = NUM_TEXTS,
    num_scored: int = NUM_SCORED,
) -> None:
    """Trains all ready-made models anew, measures them and writes them with their README.

    Args:
        output_dir (`Path`): Where the folders of the models go.
        steps (`int`, *optional*): At most so many steps for each model; for a trial.
        num_pictures (`int`, *optional*, defaults to 8000): Pictures to learn from.
        num_texts (`int`, *optional*, defaults to 20000): Texts to learn from, of each kind.
        num_scored (`int`, *optional*, defaults to 2000): Posts to measure the models on.
    """
    tokenizer = make_tokenizer()
    pictures = to_pictures(make_pictures(num_pictures, seed=LESSON_SEED))
    posts, tags = make_texts(tokenizer, num_texts, LESSON_SEED), make_tags(tokenizer, num_texts, LESSON_SEED)
    plain = make_texts(tokenizer, num_texts, LESSON_SEED + 1, labelled=1.0)
    resnet_processor = ConvNextImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_pct=1.0, image_mean=PIXEL_MEAN, image_std=PIXEL_STD
    )
    trained: dict[str, Any] = {}
    plan: dict[str, tuple[Callable[[int], PreTrainedModel], int, Any]] = {
        "vision_tower": (lambda n: train_vision_tower(pictures, n), 1500, resnet_processor),
        "text_tower": (lambda n: train_text_tower(tokenizer, posts, n), 400, tokenizer),
        "factual_judge": (
            lambda n: train_factual_judge(tokenizer, trained["vision_tower"], pictures, plain, n),
            400,
            PACLProcessor(resnet_processor, tokenizer),
        ),
        "anp_tagger": (lambda n: train_anp_tagger(pictures, n), 1000, resnet_processor),
        "emotion_text_encoder": (lambda n: train_emotion_text_encoder(tokenizer, plain, tags, n), 400, tokenizer),
    }
    for name, (train, wanted, processor) in plan.items():
        torch.manual_seed(LESSON_SEED)
        model = trained[name] = train(wanted if steps is None else min(steps, wanted))
        model.save_pretrained(output_dir / name)
        processor.save_pretrained(output_dir / name)
    write_scores(output_dir, num_scored)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m pacl.training.synthetic_models`."""
    parser = argparse.ArgumentParser(description="Rebuild the tiny models of the built-in corpus.")
    here = Path(str(resources.files("pacl.training") / "assets"))
    parser.add_argument("--output_dir", type=Path, default=here, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="train each model for at most so many steps, for a trial")
    parser.add_argument("--num_pictures", type=int, default=NUM_PICTURES, help="default: %(default)s")
    parser.add_argument("--num_texts", type=int, default=NUM_TEXTS, help="default: %(default)s")
    parser.add_argument("--num_scored", type=int, default=NUM_SCORED, help="default: %(default)s")
    rebuild_assets(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
