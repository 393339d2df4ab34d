"""Which partitions train when: the three phases of Stage 3 (method.md, Schedule over the epochs)."""

from __future__ import annotations

from dataclasses import dataclass

from pacl.configuration_pacl import require_choice

from .partition import Partition

PHASES: tuple[tuple[Partition, ...], ...] = (
    (Partition.STRONG,),
    (Partition.STRONG, Partition.PARTIAL_EMOTIONAL, Partition.PARTIAL_FACTUAL),
    tuple(Partition),
)

# The sample usages of the paper's Table 4, by the last phase that they reach.
SAMPLE_USAGES = {"strong": 0, "strong_partial": 1, "all": 2}


@dataclass(frozen=True)
class PhaseSchedule:
    """
    The phases by thirds of the epochs: first L_strong, then + L_partial, then + L_weak.

    Args:
        num_epochs (`float`):
            Length of the training. Epochs beyond it belong to the last phase.
        sample_usage (`str`, *optional*, defaults to `"all"`):
            `"strong"`, `"strong_partial"` or `"all"`: the partitions used at all (paper, Table 4). A phase that would
            add partitions outside of it goes on with those of the phase before.
    """

    num_epochs: float
    sample_usage: str = "all"

    def __post_init__(self) -> None:
        require_choice("sample_usage", self.sample_usage, SAMPLE_USAGES)
        if not self.num_epochs > 0:
            raise ValueError(f"num_epochs must be greater than 0, got {self.num_epochs}")

    def phase(self, epoch: int) -> int:
        """Index of the phase, 0 to 2, that an epoch (counted from 0) belongs to."""
        return min(int(len(PHASES) * epoch / self.num_epochs), len(PHASES) - 1)

    def active(self, epoch: int) -> tuple[Partition, ...]:
        """The partitions that train in an epoch."""
        return PHASES[min(self.phase(epoch), SAMPLE_USAGES[self.sample_usage])]
