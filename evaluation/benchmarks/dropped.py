"""The one list of rows that a benchmark reader could not use: every reader writes here what it leaves out and why,
so that a score can always be read beside what it was not computed on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Dropped:
    """
    Rows that were left out, in reading order.

    Args:
        entries (`list[dict[str, str]]`, *optional*): each `{"row", "reason"}`; `row` is the picture's id, its path
            inside the folder, or `table:line` where a line has no usable id. `reason` is a short constant phrase.
    """

    entries: list[dict[str, str]] = field(default_factory=list)

    def add(self, row: str, reason: str) -> None:
        """Notes that `row` is left out for `reason`."""
        self.entries.append({"row": row, "reason": reason})

    def __len__(self) -> int:
        return len(self.entries)

    def by_reason(self) -> Counter[str]:
        """How many rows were left out, by reason."""
        return Counter(entry["reason"] for entry in self.entries)

    def summary(self) -> str:
        """One line: the number of rows left out, by reason, with one example each."""
        examples = {entry["reason"]: entry["row"] for entry in reversed(self.entries)}
        reasons = (f"{count} {reason} (e.g. {examples[reason]})" for reason, count in self.by_reason().most_common())
        return f"{len(self)} rows dropped: " + "; ".join(reasons) if self.entries else "no row dropped"

    def save(self, path: str | Path) -> None:
        """Writes the list as JSON lines, one `{"row", "reason"}` each."""
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.entries)
        Path(path).write_text("".join(lines), encoding="utf-8")
