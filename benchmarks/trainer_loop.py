"""`PACLTrainer`'s whole loop, every step logged, against a bare loop of the vision tower over the same loader."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import datasets
import numpy as np
from _table import HEADER, keep_freed_memory, row
from input_pipeline import make_processor
from PIL import Image
from training_step import BATCH, TOWERS, WIDTH, bare_step, make_model
from transformers import PrinterCallback, TrainerCallback

from pacl import PACLModel
from pacl.training import PACLTrainer, PACLTrainingArguments

STEPS = 3  # that are timed; one goes before them
REPEATS = 3


class Clock(TrainerCallback):
    """When each step was done, its entry in the log included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        self.ends[-1] = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of all steps but the first, with everything that lies between them."""
        return self.ends[STEPS] - self.ends[0]


def make_posts(number: int = 4 * BATCH) -> datasets.Dataset:
    """Pictures of noise with ready text features, a quarter of them in each partition."""
    rng = np.random.default_rng(0)
    labels = {
        "partition": np.arange(number) % 4,
        "factual_cluster": rng.integers(0, 2, number),
        "emotional_cluster": rng.integers(0, 2, number),
    }
    columns = {
        "image": [Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(number)],
        "text_features": list(rng.normal(size=(number, WIDTH)).astype(np.float16)),
        **labels,
    }
    features = {
        "image": datasets.Image(),
        "text_features": datasets.List(datasets.Value("float16"), length=WIDTH),
        **dict.fromkeys(labels, datasets.Value("int32")),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def make_trainer(model: PACLModel, folder: str, clock: Clock) -> PACLTrainer:
    """A trainer as a user would start it, which logs every step to TensorBoard."""
    arguments = PACLTrainingArguments(
        folder,
        num_train_epochs=3,  # a first phase of one step, which is not timed, and a second that the rest lies in
        max_steps=STEPS + 1,
        per_device_train_batch_size=BATCH,
        logging_steps=1,
        save_strategy="no",
        report_to=["tensorboard"],
        disable_tqdm=True,
    )
    processor = make_processor()
    trainer = PACLTrainer(model, arguments, train_dataset=make_posts(), processing_class=processor, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)  # the table alone is printed
    return trainer


def whole_loop(model: PACLModel) -> float:
    """Seconds of the steps under `PACLTrainer`."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(model, folder, clock).train()
    return clock.seconds


def bare_loop(model: PACLModel) -> float:
    """Seconds of as many steps of the tower alone, over the loader that the trainer uses."""
    clock, batch = Clock(), {}
    with tempfile.TemporaryDirectory() as folder:
        loader = make_trainer(model, folder, clock).get_train_dataloader()
    step = bare_step(model, batch)
    while len(clock.ends) <= STEPS:  # an epoch of phase one is a single batch or two
        for inputs in loader:
            batch |= inputs
            step()
            clock.on_step_end()
    return clock.seconds


def main() -> None:
    """Prints a row for each tower; names of towers on the command line choose among them."""
    keep_freed_memory()
    print(HEADER)
    for name in sys.argv[1:] or TOWERS:
        model = make_model(name)
        measured = [whole_loop(model) / bare_loop(model) for _ in range(REPEATS)]
        row(f"`PACLTrainer`'s loop, {name}, batch {BATCH}", "a bare loop over the same loader", measured, at_most=1.05)


if __name__ == "__main__":
    main()
