"""Keeps a frozen text tower that does not run out of memory while the vision tower is trained on ready features."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

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
        parameters = dict(self.tower.named_parameters())
        for parameter, mapped in zip(parameters.values(), _mapped(parameters, self.folder), strict=True):
            parameter.data = mapped
        self.tower.to("cpu")  # its buffers; the weights are there
        self.model.text_model = _Resting(self.tower.config)  # type: ignore[assignment]
        self.model.save_pretrained = self._save_whole  # type: ignore[method-assign]

    def restore(self) -> None:
        """Put the tower back where it was, on the device of the others."""
        del self.model.save_pretrained
        self.model.text_model = self.tower.to(self.model.visual_projection.weight.device)  # type: ignore[arg-type]

    def _save_whole(self, *args: Any, **kwargs: Any) -> None:
        # Whoever saves, Trainer or a callback, gets the whole model.
        with self.in_place():
            type(self.model).save_pretrained(self.model, *args, **kwargs)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is whole for a while, to be saved; the tower's weights stay on disk until they are read."""
        parked, self.model.text_model = self.model.text_model, self.tower
        try:
            yield
        finally:
            self.model.text_model = parked


class _Resting(nn.Module):
    """Stands where the tower was, and says so to those who would run it."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            "the text tower is out of memory during training, since the text features are ready; a callback that runs "
            "it needs PACLTrainingArguments(park_text_tower=False)"
        )


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
