"""The built-in corpus: posts whose picture and text agree in subject and in emotion as seldom as real ones do.

It stands where a user's own posts would, at the very beginning, and keeps the truth aside for scoring; the tiny models
that go with it are trained by `synthetic_models.py` and lie ready-made in `assets/`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from datasets import ClassLabel, Dataset, Features, Image, Value
from datasets.fingerprint import Hasher

from .drawing import EMOTIONS, SUBJECTS, draw_picture
from .partition import PARTITION_NAMES, Partition
from .writing import write_post

ASSETS = ("vision_tower", "text_tower", "factual_judge", "anp_tagger", "emotion_text_encoder")

# The paper's shares at its threshold of 0.7, strong 22 % and weak 27 %; the 51 % of both partial partitions are
# divided as independent agreement in fact (40 %) and in emotion (55 %) would have it.
PARTITION_SHARES = dict(zip(PARTITION_NAMES, (0.22, 0.33, 0.18, 0.27), strict=True))

# What keeps the random streams of posts and of probing pictures apart, whatever the seeds.
_POSTS, _PICTURES = 0, 1


class Corpus(NamedTuple):
    """What [`make_corpus`] returns.

    Attributes:
        posts (`Dataset`): `id`, `image`, `text`; all that the method may see.
        truth (`Dataset`): `id`, `image_subject`, `image_emotion`, `text_subject`, `text_emotion`, `partition`; row i
            is that of post i. For scoring only.
    """

    posts: Dataset
    truth: Dataset


def make_corpus(num_posts: int = 3000, seed: int = 0, *, cache_dir: str | None = None) -> Corpus:
    """Makes the built-in corpus.

    The posts are generated once into the cache of `datasets`, memory-mapped from there, and carry a fingerprint that
    depends on the arguments and on the code that draws and writes, so that whatever is cached by fingerprint is found
    again by another process and never outlives a change of the corpus.

    Args:
        num_posts (`int`, *optional*, defaults to 3000): How many posts; some 1.5 ms each when made first.
        seed (`int`, *optional*, defaults to 0): The same seed gives the same corpus.
        cache_dir (`str`, *optional*): Where to keep it instead of in the cache folder of `datasets`.

    Returns:
        [`Corpus`]: The posts, and the truth about them.

    Raises:
        ValueError: If `num_posts` is less than 1 or `seed` is negative.
    """
    plan = _plan_posts(_at_least("num_posts", num_posts, 1), _at_least("seed", seed, 0))
    subject, emotion = ClassLabel(names=list(SUBJECTS)), ClassLabel(names=list(EMOTIONS))
    features = Features(
        {
            "id": Value("string"),
            "image_subject": subject,
            "image_emotion": emotion,
            "text_subject": subject,
            "text_emotion": emotion,
            "partition": ClassLabel(names=PARTITION_NAMES),
        }
    )
    posts = Dataset.from_generator(
        _generate_posts,
        features=Features({"id": Value("string"), "image": Image(), "text": Value("string")}),
        cache_dir=cache_dir,
        gen_kwargs={"num_posts": num_posts, "seed": seed},
        fingerprint=_fingerprint("posts", num_posts, seed),
    )
    columns = {"id": [_post_id(index) for index in range(num_posts)], **plan}
    return Corpus(posts, Dataset.from_dict({name: columns[name] for name in features}, features=features))


def make_pictures(num: int = 1200, seed: int = 0, *, cache_dir: str | None = None) -> Dataset:
    """Makes pictures with their labels, to probe what a vision tower knows.

    Independent of every corpus, also of that with the same seed; cached as [`make_corpus`] does.

    Args:
        num (`int`, *optional*, defaults to 1200): How many pictures.
        seed (`int`, *optional*, defaults to 0): The same seed gives the same pictures.
        cache_dir (`str`, *optional*): Where to keep them instead of in the cache folder of `datasets`.

    Returns:
        `Dataset`: `image`, `subject` (8 classes) and `emotion` (6 classes), which are independent of each other.

    Raises:
        ValueError: If `num` is less than 1 or `seed` is negative.
    """
    subject, emotion = ClassLabel(names=list(SUBJECTS)), ClassLabel(names=list(EMOTIONS))
    _at_least("num", num, 1)
    _at_least("seed", seed, 0)
    return Dataset.from_generator(
        _generate_pictures,
        features=Features({"image": Image(), "subject": subject, "emotion": emotion}),
        cache_dir=cache_dir,
        gen_kwargs={"num": num, "seed": seed},
        fingerprint=_fingerprint("pictures", num, seed),
    )


def asset_path(name: str) -> Path:
    """Folder of one of the ready-made tiny models.

    Args:
        name (`str`): One of `ASSETS`.

    Returns:
        `Path`: A folder for `from_pretrained`.

    Raises:
        ValueError: If there is no model of that name.
        FileNotFoundError: If it is not in this installation.
    """
    if name not in ASSETS:
        raise ValueError(f"There is no built-in model called {name!r}; there are {', '.join(ASSETS)}.")
    folder = Path(str(resources.files(__package__) / "assets" / name))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The built-in model {name!r} is not in {folder}; `python -m pacl.training.synthetic_models` rebuilds it."
        )
    return folder


def _at_least(name: str, value: int, minimum: int) -> int:
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, but is {value}.")
    return value


def _fingerprint(kind: str, num: int, seed: int) -> str:
    """Hash of what the rows follow from: the arguments, the code, and the libraries that turn it into bytes."""
    code = [(Path(__file__).parent / name).read_bytes() for name in ("synthetic.py", "drawing.py", "writing.py")]
    return Hasher.hash((kind, num, seed, code, PIL.__version__, np.__version__))


def _plan_posts(num_posts: int, seed: int) -> dict[str, np.ndarray]:
    """Draws what every post shows and tells; columns of class indices, each of shape (num_posts,)."""
    rng = np.random.default_rng([_POSTS, seed])
    bounds = np.cumsum(list(PARTITION_SHARES.values()))[:-1]
    partition = rng.permutation(np.digitize((np.arange(num_posts) + 0.5) / num_posts, bounds))
    columns = {}
    for name, classes, matched in (
        ("subject", len(SUBJECTS), (Partition.STRONG, Partition.PARTIAL_FACTUAL)),
        ("emotion", len(EMOTIONS), (Partition.STRONG, Partition.PARTIAL_EMOTIONAL)),
    ):
        shown = rng.integers(classes, size=num_posts)
        shift = np.where(np.isin(partition, matched), 0, rng.integers(1, classes, size=num_posts))
        columns[f"image_{name}"], columns[f"text_{name}"] = shown, (shown + shift) % classes
    return {**columns, "partition": partition}


def _post_id(index: int) -> str:
    return f"post-{index:07d}"


def _generate_posts(num_posts: int, seed: int) -> Iterator[dict[str, Any]]:
    plan = _plan_posts(num_posts, seed)
    for index in range(num_posts):
        rng = np.random.default_rng([_POSTS, seed, index])
        row = {column: int(values[index]) for column, values in plan.items()}
        image = draw_picture(SUBJECTS[row["image_subject"]], EMOTIONS[row["image_emotion"]], rng)
        text = write_post(SUBJECTS[row["text_subject"]], EMOTIONS[row["text_emotion"]], rng)
        yield {"id": _post_id(index), "image": _encode(image), "text": text}


def _generate_pictures(num: int, seed: int) -> Iterator[dict[str, Any]]:
    for index in range(num):
        rng = np.random.default_rng([_PICTURES, seed, index])
        subject, emotion = int(rng.integers(len(SUBJECTS))), int(rng.integers(len(EMOTIONS)))
        yield {
            "image": _encode(draw_picture(SUBJECTS[subject], EMOTIONS[emotion], rng)),
            "subject": subject,
            "emotion": emotion,
        }


def _encode(image: PIL.Image.Image) -> dict[str, Any]:
    """As a JPEG, as posts come, in the form in which `datasets` stores images."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=90)
    return {"bytes": buffer.getvalue(), "path": None}
