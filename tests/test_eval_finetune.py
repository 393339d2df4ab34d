"""Fine-tuning through Trainer, PDANet's head and loss, and EmotionCLIP's checkpoint as a backbone."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import default_collate
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    DefaultFlowCallback,
    Dinov2Config,
    MobileNetV2Config,
    SwinConfig,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from eval_fixtures import save_backbone, tiny_backbone, write_oasis, write_twitter
from pacl.evaluation import BENCHMARKS, EvaluationArguments, evaluate, load_benchmark, run
from pacl.evaluation.backbones import Backbone
from pacl.evaluation.emotionclip import load_emotionclip
from pacl.evaluation.finetune import (
    BackboneWithHeads,
    FineTuner,
    LabelledPictures,
    default_backbone_learning_rate,
    finetune,
)
from pacl.evaluation.pdanet import (
    ChannelAndSpatialAttention,
    PDANetHeads,
    PolarityConsistentLoss,
    class_polarity,
)
from pacl.evaluation.tasks import ClassHead, RatingHead, TagHead, Task, task_of
from pacl.towers import build_vision_tower

FI = task_of(BENCHMARKS["fi"])


def arguments(tmp_path, **changes) -> EvaluationArguments:
    fields = {
        "backbone": [str(tmp_path / "backbone")],
        "dataset": ["twitter1"],
        "data_dir": [str(tmp_path / "twitter1")],
        "output_dir": str(tmp_path / "out"),
        "protocol": "finetune",
        "num_train_epochs": 2,
        "batch_size": 16,
        "seeds": [0],
        "use_cpu": True,
        "disable_tqdm": True,
        "figures": False,
        "features_dir": str(tmp_path / "features"),
    }
    return EvaluationArguments(**fields | changes)


@pytest.mark.parametrize("heads", ["linear", "pdanet"])
def test_finetuning_moves_the_backbones_copy_and_predicts_every_test_picture(tmp_path, heads):
    write_twitter(tmp_path / "twitter1")
    backbone, task = tiny_backbone(), task_of(BENCHMARKS["twitter1"])
    before = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    splits = load_benchmark("twitter1", tmp_path / "twitter1")
    model, predictions, epoch = finetune(
        backbone, task, splits, arguments(tmp_path, heads=heads), heads=heads, backbone_learning_rate=1e-2
    )
    assert predictions["label"].shape == (len(splits["test"]),)
    assert epoch in (1, 2)
    torch.testing.assert_close(backbone.model.state_dict(), before)
    moved = {name for name, value in model.backbone.named_parameters() if not torch.equal(value, before[name])}
    assert len(moved) == len(list(model.backbone.parameters()))


def test_backbone_and_heads_have_their_own_learning_rates(tmp_path):
    model = BackboneWithHeads(tiny_backbone(), FI)
    untested = without_validation(arguments(tmp_path))
    trainer = FineTuner(model, untested, backbone_learning_rate=1e-4)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in model.backbone.parameters()} == {1e-4}
    assert {rates[id(p)] for p in model.heads.parameters()} == {1e-2}
    assert len(rates) == len(list(model.parameters()))


def test_default_learning_rates_are_the_papers():
    assert default_backbone_learning_rate(tiny_backbone()) == 1e-4
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    assert default_backbone_learning_rate(Backbone(vit, ViTImageProcessor(), "vit")) == 1e-5


def test_finetuning_of_ratings_through_the_whole_evaluation_runs_once(tmp_path, monkeypatch):
    write_oasis(tmp_path / "oasis")
    save_backbone(tmp_path / "backbone")
    asked = arguments(tmp_path, dataset=["oasis"], data_dir=[str(tmp_path / "oasis")], num_train_epochs=1)
    (record,) = evaluate(asked).results()
    assert record["protocol"] == "finetune"
    assert set(record["metrics"]) == {"mean_mse", "mean_r2"}
    monkeypatch.setattr(run, "_run", lambda *_: pytest.fail("the run was repeated"))
    again = arguments(tmp_path, dataset=["oasis"], data_dir=[str(tmp_path / "oasis")], num_train_epochs=1)
    assert evaluate(again).results() == [record]


TOKENS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TOKENS |= {"image_size": 16, "patch_size": 8}
BACKBONES = {
    "vit": ViTConfig(**TOKENS),
    "clip": CLIPVisionConfig(**TOKENS),
    "dinov2": Dinov2Config(**TOKENS),
    "swin": SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
    "convnext": ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], image_size=32),
    "mobilenet": MobileNetV2Config(depth_multiplier=0.25, image_size=32),
    "timm cnn": TimmWrapperConfig(architecture="test_resnet"),
    "timm vit": TimmWrapperConfig(architecture="test_vit"),
}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("heads", ["linear", "pdanet"])
def test_every_kind_of_backbone_trains_under_either_heads(kind, heads):
    torch.manual_seed(0)
    tower = build_vision_tower(BACKBONES[kind])
    model = BackboneWithHeads(Backbone(tower, ViTImageProcessor(), kind), FI, heads)
    side = 160 if "timm" in kind else BACKBONES[kind].image_size
    outputs = model(torch.randn(2, 3, side, side), {"label": torch.tensor([0, 1])})
    outputs["loss"].backward()
    assert outputs["logits"]["label"].shape == (2, 8)
    assert all(parameter.grad is not None for parameter in model.heads.parameters())
    first = next(model.backbone.parameters())
    assert first.grad is not None or kind in ("dinov2",)  # whose first parameter is a mask token


def test_accumulated_steps_give_the_weights_of_one_large_step(tmp_path):
    write_twitter(tmp_path / "twitter1")
    splits = load_benchmark("twitter1", tmp_path / "twitter1")
    train = splits["train"].select(range(16))
    predictions = []
    for steps in (1, 4):
        asked = arguments(
            tmp_path,
            output_dir=str(tmp_path / f"out{steps}"),
            batch_size=16,
            gradient_accumulation_steps=steps,
            optim="sgd",
            num_train_epochs=1,
            learning_rate=1.0,
        )
        model = finetune_model(asked, {**splits, "train": train})
        predictions.append(model.heads["label"].weight.detach())
    torch.testing.assert_close(*predictions)


def without_validation(asked):
    changed = copy.copy(asked)
    changed.eval_strategy, changed.save_strategy, changed.load_best_model_at_end = "no", "no", False
    return changed


def finetune_model(asked, splits):
    """The trained model; batch normalisation stands still, which would see other batches."""
    backbone, task = tiny_backbone(), task_of(BENCHMARKS["twitter1"])
    torch.manual_seed(0)
    model = BackboneWithHeads(backbone, task)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train = lambda mode=True, layer=layer: layer
            layer.training = False
    parts = {name: LabelledPictures(splits[name], task, backbone, augment=False) for name in ("train", "validation")}
    trainer = FineTuner(
        model,
        without_validation(asked),
        train_dataset=parts["train"],
        data_collator=default_collate,
        backbone_learning_rate=0.1,
    )
    trainer.train()
    return model


def test_pdanets_heads_take_maps_and_tokens_alike():
    heads = PDANetHeads(FI, dim=6)
    feature_map = torch.randn(2, 6, 3, 5)
    channels_last, tokens = feature_map.permute(0, 2, 3, 1), feature_map.flatten(2).transpose(1, 2)
    torch.testing.assert_close(heads(feature_map)["label"], heads(tokens)["label"])
    torch.testing.assert_close(heads(feature_map)["label"], heads(channels_last)["label"])
    assert heads(feature_map)["label"].shape == (2, 8)
    with pytest.raises(ValueError, match="built for 6 channels"):
        heads(torch.randn(2, 5, 3, 5))


def test_spatial_attention_looks_where_it_has_learnt_to():
    attention = ChannelAndSpatialAttention(2)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.feature.weight.copy_(torch.eye(2))
        attention.place_key.weight.copy_(torch.tensor([[50.0, 0.0], [0.0, 0.0]]))
        attention.place_score.weight.copy_(torch.tensor([[50.0, 0.0]]))
    tokens = torch.tensor([[[1.0, 3.0], [0.0, 7.0]]])  # the first place is the one to see
    torch.testing.assert_close(attention(tokens)[0, 2:], torch.tensor([1.0, 3.0]))


def test_channel_attention_weighs_a_channel_by_its_gate_over_all_places():
    attention = ChannelAndSpatialAttention(2)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.feature.weight.copy_(torch.eye(2))
        attention.channel_gate.bias.copy_(torch.tensor([50.0, -50.0]))
    tokens = torch.tensor([[[1.0, 1.0], [3.0, 3.0]]])
    expected = 2 * (1 + torch.tensor([1.0, 0.0]).sigmoid())
    torch.testing.assert_close(attention(tokens)[0, :2], expected)


def test_channel_weights_take_part_in_where_the_spatial_attention_looks():
    torch.manual_seed(0)
    attention, tokens = ChannelAndSpatialAttention(4), torch.randn(1, 5, 4)
    before = attention(tokens)[0, 4:]
    with torch.no_grad():
        attention.channel_gate.bias += 5
    assert not torch.allclose(attention(tokens)[0, 4:], before, atol=1e-4)


def test_mistakes_of_polarity_cost_more():
    criterion = PolarityConsistentLoss(FI, weight=0.5)
    names = FI.heads[0].outputs
    joyful, sad = names.index("amusement"), names.index("sadness")
    logits = torch.zeros(1, 8)
    logits[0, joyful] = 1
    for true, factor in ((names.index("awe"), 1.0), (sad, 1.5)):
        target = torch.tensor([true])
        expected = factor * functional.cross_entropy(logits, target)
        torch.testing.assert_close(criterion({"label": logits}, {"label": target}), expected)


def test_each_rating_on_the_wrong_side_of_the_middle_costs_twice():
    task = Task("regression", (RatingHead("ratings", ("valence", "arousal"), (1, 9)),))
    criterion = PolarityConsistentLoss(task)
    target = {"ratings": torch.tensor([[6.0, 2.0]])}
    assert criterion({"ratings": torch.tensor([[5.5, 2.5]])}, target).item() == pytest.approx((0.25 + 0.25) / 2)
    assert criterion({"ratings": torch.tensor([[4.5, 2.5]])}, target).item() == pytest.approx((2 * 2.25 + 0.25) / 2)


def test_every_class_benchmark_has_polarities_and_others_are_refused():
    for name in ("fi", "fi2", "emotion6", "unbiasedemo", "webemo", "emoset", "twitter1"):
        for head in task_of(BENCHMARKS[name]).heads:
            assert 0 < class_polarity(head).sum() < len(head.outputs)
    with pytest.raises(ValueError, match="not known of boredom"):
        class_polarity(ClassHead("label", ("joy", "boredom")))
    with pytest.raises(ValueError, match="classes or ratings"):
        PolarityConsistentLoss(Task("multi_label", (TagHead("tags", ("joy",)),)))


class OpenCLIPBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, 1)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})

    def forward(self, tokens):
        normed = self.ln_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(tokens))))


class OpenCLIPVision(nn.Module):
    """The released checkpoint's tower, written from its description, with a zero person token."""

    def __init__(self, width=8, patch=4, grid=2):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([OpenCLIPBlock(width) for _ in range(2)])})
        self.proj = nn.Parameter(torch.randn(width, 5))

    def forward(self, pictures):
        patches = self.conv1(pictures).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pictures), 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positional_embedding
        tokens = self.ln_pre(torch.cat([tokens, torch.zeros_like(tokens[:, :1])], dim=1)).transpose(0, 1)
        for block in self.transformer["resblocks"]:
            tokens = block(tokens)
        return self.ln_post(tokens[0])


def test_emotionclips_vision_side_gives_the_same_features_as_its_own_tower(tmp_path):
    torch.manual_seed(0)
    tower = OpenCLIPVision().eval()
    state = {f"backbone.visual.{name}": value for name, value in tower.state_dict().items()}
    torch.save({"model": {**state, "logit_scale": torch.tensor(1.0)}}, tmp_path / "emotionclip.pt")
    backbone = Backbone.load(tmp_path / "emotionclip.pt")
    pictures = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(backbone.pooled(pictures), tower(pictures), atol=1e-5, rtol=1e-5)
    assert backbone.image_processor.crop_size == {"height": 8, "width": 8}


def test_file_that_is_no_emotionclip_checkpoint_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt is no EmotionCLIP checkpoint"):
        load_emotionclip(tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.pt is no PyTorch checkpoint"):
        load_emotionclip(tmp_path / "text.pt")


class Interrupted(Exception):
    pass


def test_interrupted_finetuning_goes_on_to_the_same_predictions(tmp_path, monkeypatch):
    write_twitter(tmp_path / "twitter1")
    save_backbone(tmp_path / "backbone")
    fields = {"num_train_epochs": 3, "learning_rate": 1e-1}
    (whole,) = evaluate(arguments(tmp_path, output_dir=str(tmp_path / "whole"), **fields)).runs

    def interrupt(self, args, state, control, **kwargs):
        if state.epoch == 2:
            raise Interrupted

    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(DefaultFlowCallback, "on_epoch_begin", interrupt, raising=False)
        with pytest.raises(Interrupted):
            evaluate(arguments(tmp_path, **fields))
    monkeypatch.setattr(
        DefaultFlowCallback, "on_step_begin", lambda self, args, state, control, **_: steps.append(state.global_step)
    )
    (resumed,) = evaluate(arguments(tmp_path, **fields)).runs
    assert min(steps) == 6  # two epochs of three steps lay in the checkpoint
    assert resumed.record() == whole.record()
    assert not list((tmp_path / "out" / "checkpoints").iterdir())  # what the run needed to go on is gone


def test_finetuned_model_is_kept_where_asked_for(tmp_path):
    write_twitter(tmp_path / "twitter1")
    save_backbone(tmp_path / "backbone")
    (run_,) = evaluate(arguments(tmp_path, num_train_epochs=1, save_models=True)).runs
    (folder,) = (tmp_path / "out" / "models").iterdir()
    heads = load_file(folder / "heads.safetensors")
    backbone = Backbone.load(folder)
    test = load_benchmark("twitter1", tmp_path / "twitter1")["test"]
    pixels = backbone.image_processor([row["image"] for row in test], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = backbone.pooled(pixels) @ heads["label.weight"].T + heads["label.bias"]
    assert logits.argmax(dim=1).tolist() == run_.predictions[""].tolist()
