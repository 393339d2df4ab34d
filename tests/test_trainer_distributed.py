"""`PACLTrainer` on two and four processes against one process that is given the same global batches, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from conftest import make_pairs, tiny_roberta_config, tiny_vit_config
from launch_helpers import launch
from pacl import PACLConfig, PACLModel
from pacl.training.partition import Partition
from pacl.training.trainer import PACLTrainer
from pacl.training.training_arguments import PACLTrainingArguments

NAMES = [p.name.lower() for p in Partition]
HELD_OUT = 37  # rows, in global batches of 16: 13, 12 and 12, of which no process count divides the first
GLOBAL_EVALUATION_BATCH = 16


def double_model():
    torch.manual_seed(0)
    towers = {"vision_config": tiny_vit_config().to_dict(), "text_config": tiny_roberta_config().to_dict()}
    return PACLModel(PACLConfig(**towers, projection_dim=16)).double()


class DoubleTrainer(PACLTrainer):
    """Pictures in float64, as the model; everything else is what users run."""

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return inputs | {"pixel_values": inputs["pixel_values"].double()}


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = getattr(model, "module", model).named_parameters()
        self.steps.append({name: whole(p.grad).clone() for name, p in named if p.grad is not None})


def whole(tensor):
    """A tensor of which this process may hold no more than a part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def trainer_for(folder, processor, model=None, pairs=None, callbacks=None, **kwargs):
    defaults = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
        "projection_learning_rate": 0.02,
        "optim": "sgd",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return DoubleTrainer(
        model or double_model(),
        PACLTrainingArguments(str(folder), **(defaults | kwargs)),
        train_dataset=pairs or make_pairs(96),
        eval_dataset=make_pairs(HELD_OUT, seed=1),
        processing_class=processor,
        callbacks=callbacks,
    )


def trained(folder, processor, **kwargs):
    """Gradients of every step, the log and the weights of a training."""
    keep = Gradients()
    trainer = trainer_for(folder, processor, callbacks=[keep], **kwargs)
    trainer.train()
    log = [
        {name: entry[name] for name in entry if "loss" in name or "pairs" in name}
        for entry in trainer.state.log_history
    ]
    weights = {name: whole(tensor).clone() for name, tensor in trainer.model.state_dict().items()}
    return {"gradients": keep.steps, "log": log, "weights": weights}


def evaluated(folder, processor, batch_size):
    """What `evaluate` and `predict` say of the held-out pairs."""
    trainer = trainer_for(folder, processor, per_device_eval_batch_size=batch_size)
    predicted = trainer.predict(trainer.eval_dataset)
    return {"metrics": trainer.evaluate(), "images": predicted.predictions[0], "labels": predicted.label_ids}


def on_each_process(folder, processor, num_processes):
    results = {
        "trained": trained(folder, processor),
        "evaluated": evaluated(folder, processor, GLOBAL_EVALUATION_BATCH // num_processes),
    }
    if num_processes == 2:
        results["of_few"] = trained(folder, processor, pairs=make_pairs(5, partitions=(0,)))
        results["accumulated"] = trained(folder, processor, gradient_accumulation_steps=2)
        results["cached"] = trained(folder, processor, gradient_cache_chunk_size=3)
        results["straight"], results["resumed"] = resumed_in_mid_epoch(folder, processor)
    return results


def resumed_in_mid_epoch(folder, processor):
    """Weights of a run, and of one that is taken up from its checkpoint in the middle of the second epoch."""
    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20}
    straight = trainer_for(folder, processor, **options)
    straight.train()
    first, second, _ = (straight._updates_in_epoch(epoch) for epoch in range(3))
    assert second > 1
    other = double_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    resumed = trainer_for(folder, processor, model=other, **(options | {"save_strategy": "no"}))
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{first + 1}"))
    return straight.model.state_dict(), resumed.model.state_dict()


@pytest.fixture(scope="module", params=[2, 4], ids=["2_processes", "4_processes"])
def processes(request, tmp_path_factory, processor):
    return request.param, launch(
        on_each_process, request.param, tmp_path_factory.mktemp("runs"), processor, request.param
    )


def relative_error(gradients, expected):
    """Worst error of a gradient, relative to the largest entry of its parameter's (of any, where all are rounding)."""
    floor = 1e-6 * max(gradient.abs().max() for gradient in expected.values())
    return max(
        ((gradients[name] - gradient).abs().max() / max(gradient.abs().max(), floor)).item()
        for name, gradient in expected.items()
    )


def assert_same_training(trainings, expected):
    for ours in trainings:
        errors = [relative_error(*pair) for pair in zip(ours["gradients"], expected["gradients"], strict=True)]
        print(f"worst relative error of a gradient in {len(errors)} steps: {max(errors):.1e}")
        assert max(errors) < 1e-10
        for entry, other in zip(ours["log"], expected["log"], strict=True):
            assert entry.keys() == other.keys()
            for name in entry:
                # The Trainer itself adds up the whole loss in float32.
                precision = 0 if "pairs" in name else 1e-10 if "loss_" in name else 1e-6
                assert entry[name] == pytest.approx(other[name], rel=precision), name
        for name, value in expected["weights"].items():
            torch.testing.assert_close(ours["weights"][name], value, rtol=1e-10, atol=1e-11)


def test_every_step_of_every_phase_has_the_loss_and_gradient_of_one_process(processes, processor, tmp_path):
    """One with as many times the batch: it is given the very same global batches."""
    num_processes, ranks = processes
    expected = trained(tmp_path, processor, per_device_train_batch_size=8 * num_processes)
    assert_same_training([rank["trained"] for rank in ranks], expected)
    steps = [entry for entry in expected["log"] if "loss" in entry]
    phases = {tuple(name for name in NAMES if f"loss_{name}" in entry) for entry in steps}
    assert phases == {tuple(NAMES[:1]), tuple(NAMES[:3]), tuple(NAMES)}


@pytest.mark.parametrize("processes", [2], indirect=True, ids=["2_processes"])
def test_accumulation_is_the_same_on_several_processes(processes, processor, tmp_path):
    _, ranks = processes
    expected = trained(tmp_path, processor, per_device_train_batch_size=16, gradient_accumulation_steps=2)
    assert_same_training([rank["accumulated"] for rank in ranks], expected)


@pytest.mark.parametrize("processes", [2], indirect=True, ids=["2_processes"])
def test_gradient_caching_is_the_same_on_several_processes(processes, processor, tmp_path):
    _, ranks = processes
    assert_same_training(
        [rank["cached"] for rank in ranks], trained(tmp_path, processor, per_device_train_batch_size=16)
    )


@pytest.mark.parametrize("processes", [2], indirect=True, ids=["2_processes"])
def test_a_batch_of_five_pairs_is_three_and_two_of_them(processes, processor, tmp_path):
    """Neither lost nor filled up, though the processes' parts are of uneven length."""
    _, ranks = processes
    few = make_pairs(5, partitions=(0,))
    assert_same_training([rank["of_few"] for rank in ranks], trained(tmp_path, processor, pairs=few))
    for rank in ranks:
        assert [entry["pairs_strong"] for entry in rank["of_few"]["log"] if "loss" in entry] == [5, 5, 5]


@pytest.mark.parametrize("processes", [2], indirect=True, ids=["2_processes"])
def test_a_run_resumed_in_mid_epoch_on_two_processes_ends_with_equal_weights(processes):
    _, ranks = processes
    for rank in ranks:
        for name, value in rank["straight"].items():
            assert torch.equal(rank["resumed"][name], value), name


def test_evaluation_sees_every_row_once_in_order_and_gives_the_loss_of_one_process(processes, processor, tmp_path):
    _, ranks = processes
    expected = evaluated(tmp_path, processor, GLOBAL_EVALUATION_BATCH)
    for rank in ranks:
        ours = rank["evaluated"]
        assert ours["labels"].tolist() == make_pairs(HELD_OUT, seed=1)["partition"]
        np.testing.assert_allclose(ours["images"], expected["images"], rtol=1e-10, atol=1e-12)
        for name, value in expected["metrics"].items():
            if "loss" in name:
                assert ours["metrics"][name] == pytest.approx(value, rel=1e-10), name
            elif "pairs" in name:
                assert ours["metrics"][name] == value, name
        assert sum(ours["metrics"][f"eval_pairs_{name}"] for name in NAMES) == HELD_OUT
