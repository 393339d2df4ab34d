"""The PACL loss, forward and backward, against one plain CLIP loss of the same size on the same embeddings."""

from __future__ import annotations

import torch
from _table import HEADER, ratios, row
from torch import Tensor
from torch.nn import functional

from pacl.training import pacl_loss

SIZES, WIDTH, TARGET = (64, 256, 1024, 4096, 8192), 768, 1.5


def clip_loss(images: Tensor, texts: Tensor) -> Tensor:
    """Symmetric cross-entropy over the whole similarity matrix."""
    logits = images @ texts.t() / 0.07
    own = torch.arange(len(images))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.t(), own)) / 2


def main() -> None:
    """Prints a row for each batch size; every partition has about a quarter of the pairs, two clusters a side."""
    print(HEADER)
    for size in SIZES:
        generator = torch.Generator().manual_seed(0)
        images, texts = (
            functional.normalize(torch.randn(size, WIDTH, generator=generator), dim=-1).requires_grad_() for _ in "vt"
        )
        partition = torch.arange(size) % 4
        factual, emotional = torch.randint(2, (2, size), generator=generator)
        # Several calls at a time where one is too short for the clock.
        calls = max(1, 20_000 // size**2 * 50)

        def ours(pair=(images, texts), labels=(partition, factual, emotional), calls=calls) -> None:
            for _ in range(calls):
                pacl_loss(*pair, *labels).loss.backward()

        def theirs(pair=(images, texts), calls=calls) -> None:
            for _ in range(calls):
                clip_loss(*pair).backward()

        measured = ratios(ours, theirs, repeats=5)
        row(f"loss, batch {size}", "plain CLIP loss", measured, at_most=TARGET)


if __name__ == "__main__":
    main()
