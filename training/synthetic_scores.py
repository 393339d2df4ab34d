"""Measures the tiny models that `synthetic_models.py` has trained, and writes `assets/README.md`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .drawing import EMOTIONS, SUBJECTS
from .evaluators import DualEncoderJudge, TagJudge
from .features import ImageEncoder, TextEncoder, TowerEncoders
from .partition import partition_dataset, partition_shares
from .synthetic import ASSETS, PARTITION_SHARES, make_corpus
from .taggers import ClassifierTagger

# Of a corpus that the models have not learnt from and that no run takes by default.
SCORE_SEED = 20_241_101

_README = """\
# The ready-made tiny models of the built-in corpus

With them the main job runs offline in minutes. All are plain transformers checkpoints (float32 safetensors) that
`AutoModel`, `AutoImageProcessor` and `AutoTokenizer` load (the factual judge, a `PACLModel`, after `import pacl`);
`pacl.training.synthetic.asset_path(name)` says where they lie. They learnt from pictures and texts drawn from a seed
of their own, and have seen neither a corpus nor its truth.

| folder | what it is | stands for | kB |
| --- | --- | --- | --- |
{models}

The pooling of both text encoders is `"first"`: the first token of the last hidden state.

Measured on {posts:,} posts of another seed:

| what | accuracy | by chance |
| --- | --- | --- |
{accuracies}

Probes are logistic regressions on standardised pooled features, five-fold. The affective gap is what lies between the
vision tower's emotion probe and the tagger's accuracy, for both have the same architecture and see the same pictures.

Shares of the partitions at a threshold of 0.7 for both scores, unfitted:

| partition | found | true |
| --- | --- | --- |
{shares}

`python -m pacl.training.synthetic_models` rebuilds all this, offline, from the seed.
"""

_WHAT = {
    "vision_tower": ("ResNet that has learnt to name subjects under any light", "an ImageNet backbone"),
    "text_tower": ("DistilBERT that has learnt subject and emotion", "SKEP"),
    "factual_judge": ("PACLModel that has learnt which texts name a picture's subject", "CLIP ViT-B/32"),
    "anp_tagger": ("ResNet that has learnt to classify pictures into 96 adjective-noun pairs", "DeepSentiBank"),
    "emotion_text_encoder": ("DistilBERT that has learnt emotion only", "BERTweet"),
}

_CHANCE = {"subject": 1 / len(SUBJECTS), "emotion": 1 / len(EMOTIONS)}


def write_scores(folder: Path, num_posts: int = 2000) -> None:
    """Measures the models in `folder` on a corpus of `num_posts` unseen posts, and writes `README.md` beside them."""
    posts, truth = make_corpus(num_posts, seed=SCORE_SEED)
    scored = _score(folder, posts)
    labels = {name: np.asarray(truth[name]) for name in truth.column_names if name != "id"}
    accuracies = _probes(scored, labels) | _tags(folder, posts, labels) | _judgements(scored, labels)
    found = partition_shares(scored)
    sizes = {name: sum(file.stat().st_size for file in (folder / name).iterdir()) // 1000 for name in ASSETS}
    text = _README.format(
        posts=num_posts,
        models="\n".join(f"| {name} | {' | '.join(_WHAT[name])} | {sizes[name]} |" for name in ASSETS),
        accuracies="\n".join(
            f"| {what} | {value:.1%} | {chance:.0%} |" for what, (value, chance) in accuracies.items()
        ),
        shares="\n".join(f"| {name} | {found[name]:.1%} | {true:.0%} |" for name, true in PARTITION_SHARES.items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _score(folder: Path, posts: Dataset) -> Dataset:
    """The posts with both scores, the partition and both towers' features."""
    text_encoder = TextEncoder.from_pretrained(str(folder / "emotion_text_encoder"), pooling="first")
    return partition_dataset(
        posts,
        DualEncoderJudge.from_pretrained(str(folder / "factual_judge")),
        TagJudge(ClassifierTagger.from_pretrained(str(folder / "anp_tagger")), text_encoder),
        towers=TowerEncoders(
            ImageEncoder.from_pretrained(str(folder / "vision_tower")),
            TextEncoder.from_pretrained(str(folder / "text_tower"), pooling="first"),
        ),
    )


def _probes(scored: Dataset, labels: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return {
        f"{tower}_tower, {target} probe": (
            float(cross_val_score(probe, np.asarray(scored[f"{tower}_features"]), labels[f"{of}_{target}"]).mean()),
            _CHANCE[target],
        )
        for tower, of in (("vision", "image"), ("text", "text"))
        for target in ("subject", "emotion")
    }


def _tags(folder: Path, posts: Dataset, labels: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """How often the tagger's first pair names the subject, and how often the emotion."""
    encoder = ClassifierTagger.from_pretrained(str(folder / "anp_tagger")).encoder
    pixels = [encoder.preprocess(image) for image in posts["image"]]
    heads = (encoder.encode(pixels[start : start + 64]).head for start in range(0, len(pixels), 64))
    logits = [head for head in heads if head is not None]
    first = torch.cat(logits).argmax(dim=1).numpy()
    # Pairs are ordered by emotion, adjective and subject.
    told = {"subject": first % len(SUBJECTS), "emotion": first // (2 * len(SUBJECTS))}
    return {
        f"anp_tagger, {target} of its first pair": (accuracy_score(labels[f"image_{target}"], told[target]), chance)
        for target, chance in _CHANCE.items()
    }


def _judgements(scored: Dataset, labels: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """How often a judge is right that a post matches or does not; chance is the more frequent of both."""
    accuracies = {}
    for judge, target in (("factual", "subject"), ("emotional", "emotion")):
        matched = labels[f"image_{target}"] == labels[f"text_{target}"]
        verdict = np.asarray(scored[f"{judge}_score"]) > 0.7
        accuracies[f"{judge} match at 0.7"] = (
            accuracy_score(matched, verdict),
            max(matched.mean(), 1 - matched.mean()),
        )
    partition = labels["partition"]
    most = np.bincount(partition).max() / len(partition)
    return accuracies | {"partition at 0.7": (accuracy_score(partition, np.asarray(scored["partition"])), most)}
