"""`PACLTrainer`: phases, logs, learning rates, accumulation, resuming, precision, evaluation, augmentation."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from transformers import TrainerCallback

from conftest import make_pairs
from pacl.training.collator import PACLCollator, PairDataset, training_transform
from pacl.training.losses import pacl_loss
from pacl.training.partition import Partition
from pacl.training.sampler import PartitionBatchSampler
from pacl.training.trainer import PACLTrainer
from pacl.training.training_arguments import PACLTrainingArguments, paper_learning_rate


def arguments(folder, **kwargs):
    defaults = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return PACLTrainingArguments(str(folder), **(defaults | kwargs))


def trainer_for(model, processor, folder, pairs, callbacks=None, eval_dataset=None, **kwargs):
    return PACLTrainer(
        model,
        arguments(folder, **kwargs),
        train_dataset=pairs,
        eval_dataset=eval_dataset,
        processing_class=processor,
        callbacks=callbacks,
    )


class Gradients(TrainerCallback):
    """Keeps the gradients and the batch sizes of the first optimizer step."""

    def __init__(self):
        self.first = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.first is None:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_phases_bring_in_the_partitions_and_the_log_shows_each(model, processor, tmp_path):
    pairs = make_pairs(48)
    trainer = trainer_for(model, processor, tmp_path, pairs)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = [p.name.lower() for p in Partition]
    active = [[name for name in names if f"loss_{name}" in entry] for entry in history]
    assert active[0] == names[:1]
    assert names[:3] in active
    assert active[-1] == names
    for entry in history:
        assert entry["loss"] == pytest.approx(sum(entry[key] for key in entry if key.startswith("loss_")), rel=1e-4)
        assert sum(entry[key] for key in entry if key.startswith("pairs_")) == 8
    # An epoch ends when its largest partition is through: the lengths differ, and the Trainer counts them all.
    lengths = [trainer._batches_in_epoch(epoch) for epoch in range(3)]
    assert len(set(lengths)) > 1
    assert trainer.state.global_step == trainer.state.max_steps == sum(lengths) == len(history)
    assert trainer.state.epoch == 3


def test_training_changes_the_vision_tower_and_projections_only(model, processor, pairs, tmp_path):
    before = copy.deepcopy(model.state_dict())
    trainer_for(model, processor, tmp_path, pairs).train()
    changed = {
        name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"vision_model", "visual_projection", "text_projection"}


def test_the_text_tower_does_not_run_where_text_features_are_there(model, processor, tmp_path):
    model.text_model.forward = None  # a call would fail
    trainer = trainer_for(model, processor, tmp_path, make_pairs(24), max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_without_text_features_the_frozen_tower_reads_the_texts(model, processor, tmp_path):
    before = copy.deepcopy(model.text_model.state_dict())
    trainer_for(model, processor, tmp_path, make_pairs(24, text_width=None), max_steps=2).train()
    assert all(torch.equal(value, before[name]) for name, value in model.text_model.state_dict().items())


def test_the_optimizer_holds_no_state_for_the_text_tower_and_three_kinds_of_groups(model, processor, pairs, tmp_path):
    trainer = trainer_for(
        model, processor, tmp_path, pairs, max_steps=1, learning_rate=1e-4, projection_learning_rate=1e-2
    )
    trainer.train()
    frozen = {id(p) for p in model.text_model.parameters()}
    projections = {id(model.visual_projection.weight), id(model.text_projection.weight)}
    groups = trainer.optimizer.param_groups
    assert not frozen & {id(p) for group in groups for p in group["params"]}
    for group in groups:
        is_projection = {id(p) in projections for p in group["params"]}
        assert len(is_projection) == 1
        assert group["initial_lr"] == (1e-2 if is_projection.pop() else 1e-4)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert {group["weight_decay"] for group in groups} == {0.0, 0.01}


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (transformers.ResNetConfig(), 1e-3),
        (transformers.MobileNetV2Config(), 1e-3),
        (transformers.SwinConfig(), 2e-5),
        (transformers.ViTConfig(), 1e-5),
        (transformers.CLIPVisionConfig(), 1e-5),
        (transformers.TimmWrapperConfig(architecture="resnet50"), 1e-3),
        (transformers.TimmWrapperConfig(architecture="swin_s3_base_224"), 2e-5),
        (transformers.TimmWrapperConfig(architecture="vit_base_patch16_224"), 1e-5),
    ],
)
def test_default_learning_rates_are_the_papers(config, rate):
    assert paper_learning_rate(config) == rate


def test_two_halves_of_the_same_pairs_give_the_gradient_of_one_batch_of_both(model, processor, tmp_path, monkeypatch):
    """
    Accumulating 2 × 16 averages the gradients of the halves. In the strong partition a batch that holds every pair
    twice has, for each anchor, its negatives twice and its own text once more: ℓ grows by log 2, its gradient stays.
    So where both halves hold the same pairs, 1 × 32 and 2 × 16 must have equal gradients and losses log 2 apart.
    """
    pairs = make_pairs(16, partitions=(0,)).select([*range(16), *range(16)])
    half = list(range(16))
    whole, loss_of_whole = first_step(model, processor, tmp_path, monkeypatch, pairs, [half + half])
    halves, loss_of_halves = first_step(model, processor, tmp_path, monkeypatch, pairs, [half, half])
    for name, expected in whole.items():
        torch.testing.assert_close(halves[name], expected, rtol=1e-4, atol=1e-5)
    assert loss_of_whole - loss_of_halves == pytest.approx(math.log(2), abs=1e-4)


def test_accumulation_averages_the_gradients_of_its_batches(model, processor, tmp_path, monkeypatch):
    pairs = make_pairs(32)
    batches = [list(range(16)), list(range(16, 32))]
    first, second, both = (
        first_step(model, processor, tmp_path, monkeypatch, pairs, chosen)[0]
        for chosen in (batches[:1], batches[1:], batches)
    )
    for name, accumulated in both.items():
        torch.testing.assert_close(accumulated, (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-5)


def first_step(model, processor, folder, monkeypatch, pairs, batches):
    """Gradients and loss of one optimizer step that accumulates these batches."""
    fix_batches(monkeypatch, batches)
    keep = Gradients()
    trainer = trainer_for(
        copy.deepcopy(model), processor, folder, pairs, callbacks=[keep], augmentation="none", max_grad_norm=0,
        gradient_accumulation_steps=len(batches), max_steps=1,
    )  # fmt: skip
    trainer.train()
    return keep.first, trainer.state.log_history[0]["loss"]


def fix_batches(monkeypatch, batches):
    """Let every epoch consist of these batches."""
    monkeypatch.setattr(PartitionBatchSampler, "num_batches", lambda self, epoch: len(batches))
    monkeypatch.setattr(PartitionBatchSampler, "__iter__", lambda self: iter(batches))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_mid_epoch_ends_with_equal_weights(model, processor, tmp_path, workers):
    """Also where the checkpoint's parameter names are ViT's historical ones, and with another number of workers."""
    pairs, twin = make_pairs(60), copy.deepcopy(model)
    straight = trainer_for(model, processor, tmp_path / "a", pairs, save_strategy="steps", save_steps=1)
    straight.train()
    lengths = [straight._updates_in_epoch(epoch) for epoch in range(3)]
    middle = lengths[0] + lengths[1] + 2
    assert middle < sum(lengths)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    resumed = trainer_for(twin, processor, tmp_path / "b", pairs, dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{middle}"))
    assert resumed.state.global_step == straight.state.global_step
    for name, value in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_the_best_checkpoint_is_loaded_at_the_end(model, processor, pairs, tmp_path):
    trainer = trainer_for(
        model, processor, tmp_path, pairs, eval_dataset=make_pairs(16, seed=1), eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    best = type(model).from_pretrained(trainer.state.best_model_checkpoint)
    assert trainer.state.best_metric == min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in best.state_dict().items())


def test_evaluation_counts_all_partitions_without_augmentation(model, processor, tmp_path):
    held_out = make_pairs(16, seed=1)
    trainer = trainer_for(model, processor, tmp_path, make_pairs(24), eval_dataset=held_out)
    metrics = trainer.evaluate()
    collator = PACLCollator(processor, training_transform(processor.image_processor, "none"))
    batch = collator(PairDataset(held_out).__getitems__(range(16)))
    labels = {name: batch.pop(name) for name in ("partition", "factual_cluster", "emotional_cluster")}
    with torch.no_grad():
        output = model(**batch)
        expected = pacl_loss(output.image_embeds, output.text_embeds, **labels)
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-4)
    assert metrics["eval_pairs_weak"] == expected.counts[3]
    assert metrics == trainer.evaluate() | {key: metrics[key] for key in metrics if "second" in key or "time" in key}


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_mixed_precision_and_gradient_checkpointing_train(model, processor, pairs, tmp_path, options):
    trainer = trainer_for(model, processor, tmp_path, pairs, max_steps=3, **options)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))


def test_logs_go_where_report_to_says(model, processor, pairs, tmp_path):
    pytest.importorskip("tensorboard")
    trainer_for(model, processor, tmp_path, pairs, max_steps=1, report_to=["tensorboard"]).train()
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_depends_on_seed_epoch_and_row_alone(processor, pairs, workers):
    def pictures(epoch, rows, seed=0):
        collator = PACLCollator(processor, training_transform(processor.image_processor), seed=seed)
        collator.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(
            PairDataset(pairs), batch_sampler=[rows], collate_fn=collator, num_workers=workers
        )
        return next(iter(loader))["pixel_values"]

    first = pictures(0, [3, 4])
    assert torch.equal(first[1], pictures(0, [4, 9, 1])[0])
    assert not torch.equal(first, pictures(1, [3, 4]))
    assert not torch.equal(first, pictures(0, [3, 4], seed=1))


def test_no_augmentation_shows_the_same_picture_in_every_epoch(processor, pairs):
    collator = PACLCollator(processor, training_transform(processor.image_processor, "none"))
    rows = PairDataset(pairs).__getitems__([0, 1])
    first = collator(rows)["pixel_values"]
    collator.set_epoch(1)
    assert torch.equal(first, collator(rows)["pixel_values"])
    expected = processor.image_processor(pairs[0]["image"], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(first[0], expected, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sample_usage": "some"}, "sample_usage must be one of"),
        ({"batch_shares": "fair"}, "batch_shares must be one of"),
        ({"augmentation": "rotate"}, "augmentation must be one of"),
        ({"crop_scale": 0.0}, "crop_scale"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches must not be True"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **kwargs)


def test_a_dataset_without_stage_one_is_refused(model, processor, pairs, tmp_path):
    with pytest.raises(ValueError, match="lacks partition.*partition_dataset"):
        trainer_for(model, processor, tmp_path, pairs.remove_columns("partition"))


def test_no_strong_pair_is_an_error_before_any_step(model, processor, tmp_path):
    with pytest.raises(ValueError, match="phase one has nothing to train on"):
        trainer_for(model, processor, tmp_path, make_pairs(12, partitions=(1, 2, 3))).train()
