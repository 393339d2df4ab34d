"""A frozen text tower whose features are ready is out of memory during training, and whole in whatever is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback

from conftest import make_pairs
from pacl import PACLModel
from pacl.training.parking import ParkedTextTower
from test_trainer import trainer_for


class TextParameters(TrainerCallback):
    """Counts the text tower's parameters at every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(sum(p.numel() for p in model.text_model.parameters()))


def train(model, processor, folder, pairs, **kwargs):
    seen = TextParameters()
    trainer = trainer_for(model, processor, folder, pairs, [seen], max_steps=3, **kwargs)
    trainer.train()
    return trainer, seen.seen


def test_no_text_tower_during_training_and_the_same_one_after(model, processor, pairs, tmp_path):
    before = copy.deepcopy(model.text_model.state_dict())
    tower = model.text_model
    trainer, seen = train(model, processor, tmp_path, pairs, save_strategy="steps", save_steps=2)
    assert seen == [0, 0, 0]
    assert model.text_model is tower
    torch.testing.assert_close(tower.state_dict(), before, rtol=0, atol=0)
    assert not list(tmp_path.glob(".text_tower*"))
    # Every checkpoint is whole, with the text tower as it was and what has been learnt.
    saved = PACLModel.from_pretrained(tmp_path / "checkpoint-3")
    torch.testing.assert_close(saved.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert trainer._parked is None


def test_training_goes_on_from_a_checkpoint_and_evaluates_meanwhile(model, processor, pairs, tmp_path):
    fresh = copy.deepcopy(model)
    settings = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    train(model, processor, tmp_path, pairs, eval_dataset=pairs, **settings)
    again = trainer_for(fresh, processor, tmp_path, pairs, eval_dataset=pairs, max_steps=3, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(fresh.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_best_checkpoint_is_loaded_while_the_tower_rests(model, processor, pairs, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer, _ = train(model, processor, tmp_path, pairs, eval_dataset=pairs, load_best_model_at_end=True, **settings)
    best = PACLModel.from_pretrained(trainer.state.best_model_checkpoint)
    torch.testing.assert_close(model.state_dict(), best.state_dict(), rtol=0, atol=0)


def test_the_tower_stays_where_texts_or_its_own_gradients_need_it(model, processor, pairs, tmp_path):
    texts = make_pairs(text_width=None)
    parameters = sum(p.numel() for p in model.text_model.parameters())
    assert train(copy.deepcopy(model), processor, tmp_path, texts)[1] == [parameters] * 3
    assert train(copy.deepcopy(model), processor, tmp_path, pairs, eval_dataset=texts)[1] == [parameters] * 3
    model.config.freeze_text = False
    assert train(model, processor, tmp_path, pairs)[1] == [parameters] * 3


def test_the_tower_is_back_when_training_fails(model, processor, pairs, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("stopped")

    tower = model.text_model
    with pytest.raises(RuntimeError, match="stopped"):
        trainer_for(model, processor, tmp_path, pairs, [Stop()]).train()
    assert model.text_model is tower


def test_whoever_saves_meanwhile_saves_the_whole_model(model, processor, pairs, tmp_path):
    class Saves(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            model.save_pretrained(tmp_path / "saved")

    trainer_for(model, processor, tmp_path, pairs, [Saves()], max_steps=1).train()
    saved = PACLModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(saved.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert "save_pretrained" not in vars(model)


def test_who_runs_a_parked_tower_is_told_what_to_do(model, processor, pairs, tmp_path):
    class EmbedsTexts(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.get_text_features(torch.tensor([[0, 5, 2]]))

    with pytest.raises(RuntimeError, match="park_text_tower=False"):
        trainer_for(model, processor, tmp_path, pairs, [EmbedsTexts()]).train()
    trainer_for(model, processor, tmp_path, pairs, [EmbedsTexts()], max_steps=1, park_text_tower=False).train()


def test_parked_weights_are_those_of_a_file_without_a_name(model, tmp_path):
    ids = torch.tensor([[0, 5, 2]])
    before = model.encode_text(ids)
    parked = ParkedTextTower(model, tmp_path)
    assert not list(tmp_path.iterdir())
    with parked.in_place():
        torch.testing.assert_close(model.encode_text(ids), before, rtol=0, atol=0)
    assert not list(model.text_model.parameters())
    parked.restore()
    torch.testing.assert_close(model.encode_text(ids), before, rtol=0, atol=0)
