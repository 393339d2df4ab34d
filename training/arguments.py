"""The dataclasses behind `train.py` and the recipes, and how a YAML file and the command line fill them."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from transformers import HfArgumentParser

from .posts import PostFormat
from .training_arguments import PACLTrainingArguments

BUILT_IN = "built-in"
PACKAGE = "package:"
TOKENS = ("hub_token", "push_to_hub_token")


class RecipeError(ValueError):
    """A recipe or a command line that cannot be followed; says which field is wrong and why."""


@dataclass
class PostsArguments:
    """Where the image-text posts come from."""

    posts: str = field(
        default=BUILT_IN,
        metadata={
            "help": "Folder, file or Hub id of the posts (see read_posts), or built-in for the generated corpus."
        },
    )
    posts_format: str | None = field(
        default=None,
        metadata={"help": "Format of the posts, where it is not detected.", "choices": list(get_args(PostFormat))},
    )
    image_column: str = field(default="image", metadata={"help": "Column of the pictures."})
    text_column: str = field(default="text", metadata={"help": "Column of the texts."})
    posts_split: str = field(default="train", metadata={"help": "Split of a dataset that has several."})
    num_posts: int | None = field(
        default=None, metadata={"help": "Use the first so many posts; of the built-in corpus, make so many (3,000)."}
    )
    prepare: bool = field(
        default=False, metadata={"help": "Store the pictures once, at the size of training, before Stage 3."}
    )


@dataclass
class ModelArguments:
    """The two towers and the space that both are projected into (PACLConfig)."""

    vision_tower: str = field(
        default=f"{PACKAGE}pacl.training/assets/vision_tower",
        metadata={"help": "The backbone to enhance: a Hub id (also timm/…) or a folder."},
    )
    text_tower: str = field(
        default=f"{PACKAGE}pacl.training/assets/text_tower",
        metadata={"help": "The sentiment text tower, which stays frozen: a Hub id or a folder."},
    )
    vision_pooling: str = field(default="auto", metadata={"help": "auto, first or mean."})
    text_pooling: str | None = field(default=None, metadata={"help": "first, mean or pooler; by default the tower's."})
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Keep the running statistics of the vision tower's batch normalisation."}
    )
    projection_dim: int = field(default=768, metadata={"help": "Width of the shared space."})
    temperature: float = field(default=0.07, metadata={"help": "τ of the contrastive loss."})


@dataclass
class JudgeArguments:
    """
    Stage 1's judges of fact and of emotion. Either is a dual encoder, which compares the picture with the text, or a
    tagger with a text encoder, which compares the picture's tags with the text.
    """

    factual_judge: str = field(
        default="dual_encoder", metadata={"help": "Kind of judge.", "choices": ["dual_encoder", "tags"]}
    )
    factual_model: str = field(
        default=f"{PACKAGE}pacl.training/assets/factual_judge",
        metadata={"help": "CLIP-like model of a dual encoder; of a tagger its image model."},
    )
    factual_scale: str = field(
        default="clipscore",
        metadata={
            "help": "Scale of a dual encoder's score (method.md, reading 1).",
            "choices": ["clipscore", "cosine"],
        },
    )
    factual_tagger: str = field(
        default="classifier",
        metadata={"help": "Kind of tagger.", "choices": ["classifier", "zero_shot", "sentibank", "neighbours"]},
    )
    factual_vocabulary: str | None = field(
        default=None, metadata={"help": "Tags of a zero_shot tagger (a file); references of a neighbours tagger."}
    )
    factual_text_encoder: str | None = field(default=None, metadata={"help": "Text encoder of the tags judge."})
    factual_text_pooling: str | None = field(default=None, metadata={"help": "Its pooling: first, mean or pooler."})

    emotional_judge: str = field(
        default="tags", metadata={"help": "Kind of judge.", "choices": ["dual_encoder", "tags"]}
    )
    emotional_model: str = field(
        default=f"{PACKAGE}pacl.training/assets/anp_tagger",
        metadata={"help": "Image model of the tagger, folder of DeepSentiBank, or a CLIP-like model."},
    )
    emotional_scale: str = field(
        default="cosine", metadata={"help": "Scale of a dual encoder's score.", "choices": ["clipscore", "cosine"]}
    )
    emotional_tagger: str = field(
        default="classifier",
        metadata={"help": "Kind of tagger.", "choices": ["classifier", "zero_shot", "sentibank", "neighbours"]},
    )
    emotional_vocabulary: str | None = field(
        default=None, metadata={"help": "Tags of a zero_shot tagger (a file); references of a neighbours tagger."}
    )
    emotional_text_encoder: str | None = field(
        default=f"{PACKAGE}pacl.training/assets/emotion_text_encoder",
        metadata={"help": "Text encoder of the tags judge (the paper's is BERTweet)."},
    )
    emotional_text_pooling: str | None = field(default=None, metadata={"help": "Its pooling: first, mean or pooler."})
    top_k: int = field(default=3, metadata={"help": "Tags of a picture that are compared with its text."})
    reference_share: float = field(
        default=1.0,
        metadata={"help": "Share of the reference names that a neighbours tagger uses; probes test on the others."},
    )


@dataclass
class PartitionArguments:
    """How scores become partitions (Stage 1) and features become clusters (Stage 2)."""

    threshold: list[float] = field(
        default_factory=lambda: [0.7],
        metadata={"help": "θ: one number, or one for the factual and one for the emotional score."},
    )
    matched_shares: list[str] | None = field(
        default=None,
        metadata={
            "help": "Calibrate the thresholds instead: shares of factual- and emotional-matched pairs, or paper."
        },
    )
    partition_by: str = field(
        default="both",
        metadata={
            "help": "Scores that partition (paper, Table 4).",
            "choices": ["both", "factual", "emotional", "none"],
        },
    )
    clusters: list[int] = field(
        default_factory=lambda: [2], metadata={"help": "K: one number, or one of pictures and one of texts."}
    )
    scoring_batch_size: int = field(default=64, metadata={"help": "Posts that judges and towers see at once."})


@dataclass
class MeasureArguments:
    """What the run measures on the backbone before and after."""

    probes: list[str] = field(
        default_factory=lambda: [BUILT_IN],
        metadata={"help": "Linear probes: built-in, oasis=FOLDER, twitter1=FOLDER, or posts=COLUMN of the posts."},
    )
    probe_seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the probes' splits."}
    )


@dataclass
class RunArguments(PACLTrainingArguments):
    """Stage 3's arguments; `output_dir` is the folder of the whole run, and `runs/NAME` by default."""

    overwrite: bool = field(
        default=False, metadata={"help": "Discard what an earlier run of another recipe left in output_dir."}
    )


@dataclass
class Settings:
    """Everything that a run is asked for."""

    name: str
    asked: dict[str, Any]
    posts: PostsArguments
    model: ModelArguments
    judges: JudgeArguments
    partition: PartitionArguments
    measure: MeasureArguments
    training: RunArguments


_GROUPS = (PostsArguments, ModelArguments, JudgeArguments, PartitionArguments, MeasureArguments, RunArguments)


def parse_settings(argv: Sequence[str]) -> Settings:
    """
    Read a recipe and the command line.

    Args:
        argv (`Sequence[str]`):
            `[RECIPE] [--field value …]`: a YAML file, or the name of a recipe that ships with the package; the
            built-in one when left out. A field on the command line wins over the recipe's. A recipe may start from
            another one, named in its field `extends` relative to its own folder. Strings may hold `${VARIABLE}` of
            the environment, and `package:NAME/PATH` for a file inside an installed package.

    Returns:
        [`Settings`]

    Raises:
        [`RecipeError`]: a file, a field or a value is wrong; the message names it.
    """
    argv = list(argv)
    recipe = _find_recipe(argv.pop(0) if argv and not argv[0].startswith("-") else "built_in")
    asked = read_recipe(recipe)
    groups: Any = _GROUPS
    parser = _Parser(groups, prog="train.py", description="Run PACL: posts in, enhanced backbone out.")
    known = {f.name for group in _GROUPS for f in fields(group) if f.init}
    for name in asked:
        if name not in known:
            raise RecipeError(f"{recipe}: there is no field {name!r}{_did_you_mean(name, known)}")
    asked |= _overrides(parser, argv, known)
    asked.setdefault("output_dir", str(Path("runs") / recipe.stem))
    try:
        groups = parser.parse_args_into_dataclasses(_as_command_line(asked), look_for_args_file=False)
    except RecipeError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(str(error)) from error
    for group in groups:
        for f in fields(group):
            if f.init:
                # argparse cannot be told of an empty list.
                value = [] if asked.get(f.name) == [] else getattr(group, f.name)
                setattr(group, f.name, resolve(f.name, value))
    # What was asked is written down in the run's folder, where a token must not be.
    asked = {name: value for name, value in asked.items() if name not in TOKENS}
    return Settings(recipe.stem, asked, *groups)


def _find_recipe(name: str) -> Path:
    """A file, or one of the recipes that ship with the package."""
    shipped = Path(str(resources.files("pacl.recipes"))) / f"{name}.yaml"
    return shipped if shipped.is_file() and not Path(name).is_file() else Path(name)


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe's fields, those of the recipes it extends included."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        shipped = sorted(p.stem for p in Path(str(resources.files("pacl.recipes"))).glob("*.yaml"))
        raise RecipeError(f"there is no recipe {path}; those that ship are {', '.join(shipped)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{path} must hold fields with values, one `field: value` a line")
    base = content.pop("extends", None)
    return {**(read_recipe(path.parent / base) if base else {}), **content}


class _Parser(HfArgumentParser):
    """Raises instead of printing some two hundred options and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def _overrides(parser: _Parser, argv: list[str], known: set[str]) -> dict[str, Any]:
    """The command line's fields, as a recipe would give them."""
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])
    overrides: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in known:
                raise RecipeError(f"there is no field --{name}{_did_you_mean(name, known)}")
            overrides[name] = [value] if has_value else []
        elif name is None:
            raise RecipeError(f"{word!r} stands where a field --NAME is expected")
        else:
            overrides[name].append(word)
    # A switch without a value means true; a single word is no list of one, as in a recipe.
    return {key: True if not words else words[0] if len(words) == 1 else words for key, words in overrides.items()}


def _as_command_line(asked: dict[str, Any]) -> list[str]:
    """Fields as arguments, so that argparse converts and checks a recipe's values and the command line's alike."""
    argv: list[str] = []
    for name, value in asked.items():
        if value is None or value == []:
            continue
        words = [_as_word(v) for v in (value if isinstance(value, list) else [value])]
        argv += [f"--{name}={words[0]}"] if len(words) == 1 else [f"--{name}", *words]
    return argv


def _as_word(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _did_you_mean(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def resolve(name: str, value: Any) -> Any:
    """
    Fill in environment variables (`${VARIABLE}`) and places inside installed packages (`package:NAME/PATH`).

    Args:
        name (`str`):
            The recipe's field, for the error.
        value (*any*):
            What it holds: a string, or a list that may hold some; all else is returned as it is.

    Raises:
        [`RecipeError`]: a variable is not set, or a package is not installed.
    """
    if isinstance(value, list):
        return [resolve(name, item) for item in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if "${" in expanded:
        raise RecipeError(f"{name}: {value!r} names an environment variable that is not set")
    if not expanded.startswith(PACKAGE):
        return expanded
    package, _, inside = expanded.removeprefix(PACKAGE).partition("/")
    try:
        return str(resources.files(package).joinpath(inside))
    except ModuleNotFoundError:
        raise RecipeError(f"{name}: {value!r} needs the package {package}, which is not installed") from None
