"""A training step of PACL with text features at hand, against the bare vision tower's step, and against the method as
its authors released it: the frozen text tower run at every step, a forward pass for each partition, masks by loops.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from _table import HEADER, keep_freed_memory, ratios, row
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, RobertaConfig, RobertaModel, ViTConfig

from pacl import PACLConfig, PACLModel
from pacl.training import pacl_loss

BATCH, TOKENS, WIDTH = 64, 77, 1024
TOWERS = {"ResNet-50": ResNetConfig(), "ViT-B/16": ViTConfig()}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEP_TARGET = 1.03 if DEVICE == "cuda" else 1.05


def make_model(name: str, text_layers: int = 1) -> PACLModel:
    """The tower with random weights, beside a text tower of SKEP's width that does not run."""
    text = text_tower_config(text_layers)
    torch.manual_seed(0)
    model = PACLModel(PACLConfig(vision_config=TOWERS[name].to_dict(), text_config=text.to_dict()))
    return model.train().to(DEVICE, memory_format=torch.channels_last)  # as `PACLTrainer` lays it out


def text_tower_config(layers: int) -> RobertaConfig:
    """RoBERTa-large's, with so many of its 24 layers."""
    return RobertaConfig(
        vocab_size=50_265, hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=4096,
        max_position_embeddings=514,
    )  # fmt: skip


def make_batch() -> dict[str, Tensor]:
    """Pictures, ready text features, tokens and labels: a quarter of the pairs in each partition."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(BATCH, 3, 224, 224, generator=generator),
        "text_features": torch.randn(BATCH, WIDTH, generator=generator),
        "input_ids": torch.randint(5, 50_000, (BATCH, TOKENS), generator=generator),
        "partition": torch.arange(BATCH) % 4,
        "factual": torch.randint(2, (BATCH,), generator=generator),
        "emotional": torch.randint(2, (BATCH,), generator=generator),
    }
    batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    return {key: value.to(DEVICE) for key, value in batch.items()}


def stepper(parameters: list[nn.Parameter], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One whole step: forward (on a GPU in bf16), backward, optimiser."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            value = loss()
        value.backward()
        optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


def pacl_step(model: PACLModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    """The step of `PACLTrainer`."""
    labels = batch["partition"], batch["factual"], batch["emotional"]

    def loss() -> Tensor:
        output = model(pixel_values=batch["pixel_values"], text_features=batch["text_features"])
        return pacl_loss(output.image_embeds, output.text_embeds, *labels).loss

    return stepper([p for p in model.parameters() if p.requires_grad], loss)


def bare_step(model: PACLModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    """The vision tower alone, under the cheapest of losses."""
    return stepper(list(model.vision_model.parameters()), lambda: model.encode_image(batch["pixel_values"]).mean())


def released_step(model: PACLModel, batch: dict[str, Tensor]) -> Callable[[], None]:
    """The released method, after its description: nothing is cached, each partition goes its own way."""
    text_tower = RobertaModel(text_tower_config(24), add_pooling_layer=False).eval().to(DEVICE)

    def partition_loss(partition: int) -> Tensor:
        rows = (batch["partition"] == partition).nonzero().flatten()
        with torch.no_grad():
            features = text_tower(batch["input_ids"][rows]).last_hidden_state[:, 0]
        output = model(pixel_values=batch["pixel_values"][rows], text_features=features)
        similarity = output.image_embeds @ output.text_embeds.t() / 0.07
        best_text, best_image = similarity.argmax(dim=1), similarity.argmax(dim=0)
        mask = torch.ones_like(similarity)
        factual, emotional = batch["factual"][rows], batch["emotional"][rows]
        for i in range(len(rows)):
            for j in range(len(rows)):
                same_fact = partition in (1, 3) and factual[i] == factual[best_image[j]]
                same_emotion = partition in (2, 3) and emotional[j] == emotional[best_text[i]]
                if i != j and (same_fact or same_emotion):
                    mask[i, j] = 0
        similarity = similarity.masked_fill(mask == 0, -1e4)
        own = torch.arange(len(rows), device=rows.device)
        return functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.t(), own)

    parameters = [p for p in model.parameters() if p.requires_grad]
    return stepper(parameters, lambda: torch.stack([partition_loss(p) for p in range(4)]).sum())


def main() -> None:
    """Prints a row for each tower and rival; names of towers on the command line choose among them."""
    keep_freed_memory()
    print(HEADER)
    batch = make_batch()
    for name in sys.argv[1:] or TOWERS:
        model = make_model(name)
        measured = ratios(pacl_step(model, batch), bare_step(model, batch), repeats=5)
        row(f"training step, {name}, batch {BATCH}", "the bare tower's step", measured, at_most=STEP_TARGET)
        if name == "ResNet-50":
            speedups = ratios(released_step(model, batch), pacl_step(model, batch), repeats=3)
            target = 3 if DEVICE == "cuda" else 2
            row(f"the same, {name}: how many times faster", "the method as released", speedups, at_least=target)


if __name__ == "__main__":
    main()
