"""Keeps a frozen text tower that does not run out of memory while the vision tower is trained on ready features."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pacl import PACLModel


class ParkedTextTower:
    """
    Takes a model's text tower away, until `restore`; its weights lie in a file that is mapped, not read.

    Data parallelism then neither moves nor broadcasts it, and no memory, of the device or the host, is held for it.
    The file has no name any more once it is mapped: it is gone with the process, however that ends.

    Args:
        model ([`PACLModel`]): The model, not yet wrapped for several processes.
        folder (`str` or `os.PathLike`): Where there is room for the weights; the same for all processes of a machine.
    """

    def __init__(self, model: PACLModel, folder: str | os.PathLike[str]):
        self.model = model
        self.folder = Path(folder)
        self.park()

    def park(self) -> None:
        """Take the tower away."""
        self.tower = self.model.text_model
        self.device = self.tower.device
        parameters = dict(self.tower.named_parameters())
        for parameter, mapped in zip(parameters.values(), _mapped(parameters, self.folder), strict=True):
            parameter.data = mapped
        self.model.text_model = nn.Module()  # type: ignore[assignment]

    def restore(self) -> None:
        """Put the tower back where it was, on the device where it was."""
        self.model.text_model = self.tower.to(self.device)  # type: ignore[arg-type]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is whole for a while, to be saved; the tower's weights stay on disk until they are read."""
        parked, self.model.text_model = self.model.text_model, self.tower
        try:
            yield
        finally:
            self.model.text_model = parked


def _mapped(parameters: dict[str, nn.Parameter], folder: Path) -> list[Tensor]:
    """The same values, in the same order, backed by a file."""
    folder.mkdir(parents=True, exist_ok=True)
    state = PartialState()
    first_here = state.process_index - state.local_process_index
    path = folder / f".text_tower-{first_here}.safetensors"  # machines may share the folder
    if state.is_local_main_process:
        save_file({name: p.data.cpu().contiguous() for name, p in parameters.items()}, path)
    state.wait_for_everyone()
    mapped = load_file(path)
    state.wait_for_everyone()
    if state.is_local_main_process:
        path.unlink()
    return [mapped[name] for name in parameters]
