"""Gradient caching: the gradient of the large batch at the memory of a chunk."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from conftest import make_pairs
from pacl.chunking import encode_in_chunks
from pacl.training.losses import pacl_loss
from test_trainer import Gradients, trainer_for


def gradients(model, batch, labels, chunk_size):
    """Loss and every parameter's gradient; the same random numbers for every call."""
    model.zero_grad()
    torch.manual_seed(1)
    outputs = model(**batch, chunk_size=chunk_size)
    loss = pacl_loss(outputs.image_embeds, outputs.text_embeds, *labels).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def random_batch(size, side, generator):
    labels = torch.arange(size) % 4, *(torch.randint(2, (size,), generator=generator) for _ in range(2))
    batch = {
        "pixel_values": torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64),
        "text_features": torch.randn(size, 24, generator=generator, dtype=torch.float64),
    }
    return batch, labels


def test_a_batch_of_2048_in_chunks_of_64_gives_the_gradient_of_the_whole(model):
    model = model.double().train()
    side = model.config.vision_config.image_size
    batch, labels = random_batch(2048, side, torch.Generator().manual_seed(0))
    whole_loss, whole = gradients(model, batch, labels, None)
    loss, found = gradients(model, batch, labels, 64)
    torch.testing.assert_close(loss, whole_loss, rtol=1e-12, atol=0)
    assert found.keys() == whole.keys()
    # Some gradients are 0 but for rounding (attention does not see the bias of its keys).
    rounding = 1e-15 * max(gradient.norm() for gradient in whole.values())
    for name, gradient in whole.items():
        assert (found[name] - gradient).norm() <= 1e-10 * gradient.norm() + rounding, name


def test_a_chunk_that_runs_twice_drops_the_same_units():
    """Dropout of another draw in the second pass would give the gradient of another network."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Tanh(), nn.Linear(40, 3)).double()
    x = torch.randn(10, 6, dtype=torch.float64)

    def run(encode):
        torch.manual_seed(3)
        tower.zero_grad()
        out = encode()
        (out**2).sum().backward()
        return out.detach(), [p.grad.clone() for p in tower.parameters()]

    plain = run(lambda: torch.cat([tower(chunk) for chunk in x.split(4)]))
    cached = run(lambda: encode_in_chunks(tower, tower, 4, input=x))
    torch.testing.assert_close(cached, plain, rtol=1e-12, atol=0)


def test_running_statistics_of_batch_normalisation_are_updated_once():
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh())
    plain = copy.deepcopy(tower)
    x = torch.randn(12, 4)
    for chunk in x.split(5):
        plain(chunk)
    encode_in_chunks(tower, tower, 5, input=x).sum().backward()
    torch.testing.assert_close(dict(tower.named_buffers()), dict(plain.named_buffers()))


def test_only_a_chunks_activations_are_kept(model):
    model = model.double().train()
    batch, labels = random_batch(64, model.config.vision_config.image_size, torch.Generator().manual_seed(0))

    def peak(chunk_size):
        """Most bytes that were kept for the backward pass at any time; a tensor counts until it has been used."""
        now = most = 0

        class Kept:
            def __init__(self, tensor):
                nonlocal now, most
                self.tensor = tensor.detach()
                self.bytes = tensor.numel() * tensor.element_size()
                now += self.bytes
                most = max(most, now)

            def __del__(self):
                nonlocal now
                now -= self.bytes

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            gradients(model, batch, labels, chunk_size)
        return most

    assert peak(4) < 0.25 * peak(None)


def test_texts_without_features_go_through_in_chunks_too(model, processor):
    tokens = processor.tokenizer(["a photo", "happy cat in the rain", "sad"] * 2, padding=True, return_tensors="pt")
    pixel_values = torch.randn(6, 3, *[model.config.vision_config.image_size] * 2)
    model.eval()
    whole = model(pixel_values=pixel_values, **tokens)
    chunked = model(pixel_values=pixel_values, **tokens, chunk_size=4)
    torch.testing.assert_close(chunked.logits_per_image, whole.logits_per_image)


def test_a_chunk_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        model(pixel_values=torch.zeros(2, 3, 8, 8), text_features=torch.zeros(2, 24), chunk_size=0)


def test_nothing_runs_twice_where_one_chunk_holds_all():
    calls = []
    encode_in_chunks(
        nn.Identity(), lambda x: calls.append(len(x)) or x.sum(1), 4, x=torch.ones(4, 2, requires_grad=True)
    )
    assert calls == [4]


def test_chunks_are_no_obstacle_to_the_compiler(model):
    model = model.double().train()
    batch, labels = random_batch(8, model.config.vision_config.image_size, torch.Generator().manual_seed(0))
    whole = gradients(model, batch, labels, None)
    compiled = gradients(torch.compile(model, backend="aot_eager"), batch, labels, 3)
    torch.testing.assert_close(compiled[0], whole[0])
    for name, gradient in whole[1].items():
        torch.testing.assert_close(compiled[1][f"_orig_mod.{name}"], gradient)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_caches_gradients(model, processor, tmp_path, accumulation):
    found = {}
    for chunk_size in (None, 3):
        seen = Gradients()
        transformers.set_seed(0)
        trainer_for(
            copy.deepcopy(model),
            processor,
            tmp_path,
            make_pairs(48),
            [seen],
            max_steps=1,
            gradient_cache_chunk_size=chunk_size,
            gradient_accumulation_steps=accumulation,
        ).train()
        found[chunk_size] = seen.first
    torch.testing.assert_close(found[3], found[None], rtol=1e-4, atol=1e-6)
