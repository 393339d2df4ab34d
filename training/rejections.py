"""The one list of refused posts: every stage adds what it cannot use, and the run writes it to `rejected.jsonl`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rejections:
    """
    Collects the posts that a run leaves out, each with the reason.

    One object goes through all stages: [`read_posts`] adds posts without a usable picture or text, Stage 1 those whose
    picture turns out to be damaged behind its header. An empty list is false, as any empty list; test for `is None`.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, row: int, reason: str, stage: str, **where: Any) -> None:
        """
        Adds one post.

        Args:
            row (`int`): The post's `row` column: its index in the source, from 0.
            reason (`str`): Why it is refused; details follow a colon, as in `"truncated: 27 bytes not processed"`.
            stage (`str`): Who refuses it: `"read"`, `"partition"`, ...
            **where: What helps to find the post, such as `image="images/7.jpg"`; anything that JSON can hold.
        """
        self._rows.append({"row": int(row), "reason": reason, "stage": stage, **where})

    def extend(self, others: Rejections) -> None:
        """Adds all of another list."""
        self._rows.extend(others)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def by_reason(self) -> Counter[str]:
        """Number of posts for each kind of reason, which is what stands before the reason's first colon."""
        return Counter(rejection["reason"].partition(":")[0] for rejection in self._rows)

    def summary(self) -> str:
        """One line such as `"3 posts rejected: 2 × file not found, 1 × empty text"`."""
        if not self._rows:
            return "no post rejected"
        kinds = ", ".join(f"{count:,} × {reason}" for reason, count in self.by_reason().most_common())
        return f"{len(self):,} post{'s' if len(self) > 1 else ''} rejected: {kinds}"

    def save(self, path: str | Path) -> None:
        """Writes one JSON object a line, with `row`, `reason`, `stage` and what was given beside; no line if none."""
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(rejection, ensure_ascii=False) + "\n" for rejection in self._rows)
