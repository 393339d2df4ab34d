"""What a benchmark is: its task, labels and citation, and the function that reads its folder. One `Benchmark` per
dataset and task stands in the registry; tasks and protocols read everything they need to know about the data here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from datasets import ClassLabel, Features, Image, List, Value

TaskKind = Literal["single_label", "hierarchical", "multi_label", "regression"]

#: One picture: `image` (its path), `id`, and the label columns.
Row = dict[str, Any]

#: A reader's rows by split: `train`, `test` and perhaps `validation`; or, where there is no official split, `all`, and
#: perhaps `train` for rows that must not be tested.
Rows = dict[str, list[Row]]


@dataclass(frozen=True, eq=False)
class Benchmark:
    """
    One dataset with one task.

    Args:
        name (`str`): the key in the registry.
        title (`str`): the name to print.
        task (`str`): "single_label", "hierarchical" (one class column per level, coarse to fine), "multi_label"
            (a list of classes per picture) or "regression".
        columns (`dict[str, Any]`): the label columns' `datasets` features, in the order of the task's outputs.
        reader (`Callable`): `reader(folder, dropped, **options)` returns the rows by split; see `Rows`.
        citation (`str`): the paper that introduced the data.
        extra_columns (`dict[str, Any]`, *optional*): features of further columns that the reader passes through.
        group_by (`str`, *optional*): column whose values must not be torn apart by a split.
        scale (`tuple[float, float]`, *optional*): lowest and highest possible rating of a regression.
        of (`str`, *optional*): name of the benchmark that this one is another task on the same folder of.
    """

    name: str
    title: str
    task: TaskKind
    columns: dict[str, Any]
    reader: Callable[..., Rows]
    citation: str
    extra_columns: dict[str, Any] = field(default_factory=dict)
    group_by: str | None = None
    scale: tuple[float, float] | None = None
    of: str | None = None

    @property
    def folder(self) -> str:
        """What its folder is called among those of other benchmarks."""
        return self.of or self.name

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns' names, in the order of the task's outputs."""
        return tuple(self.columns)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the classes of each label column; empty for a regression."""
        features = {column: getattr(feature, "feature", feature) for column, feature in self.columns.items()}
        return {column: tuple(f.names) for column, f in features.items() if isinstance(f, ClassLabel)}

    @property
    def stratify_by(self) -> str:
        """The column by which a split is balanced: the finest classes, or the first rating (valence)."""
        return self.label_columns[0 if self.task == "regression" else -1]

    @property
    def features(self) -> Features:
        """
        The typed columns of every split.

        Pictures stay paths and decode to RGB, whatever the file holds (palette, alpha, CMYK).
        """
        return Features({"image": Image(mode="RGB"), "id": Value("string"), **self.columns, **self.extra_columns})

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the reader's options."""
        parameters = inspect.signature(self.reader).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def ratings(*names: str) -> dict[str, Value]:
    """Float columns of these names."""
    return {name: Value("float32") for name in names}


def classes(*names: str) -> ClassLabel:
    """A class column with these names."""
    return ClassLabel(names=list(names))


def class_lists(*names: str) -> List:
    """A multi-label column: a list of any length of these classes."""
    return List(ClassLabel(names=list(names)))
