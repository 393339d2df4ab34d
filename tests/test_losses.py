"""`pacl_loss` against a brute-force version that is written from method.md's formulas, set by set and pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pacl.training.losses import pacl_loss
from pacl.training.partition import Partition


def brute_force_loss(images, texts, partition, factual, emotional, temperature):
    """Per-partition losses by sets of indices; knows nothing of matrices or masks."""
    losses = [0.0] * 4
    for p in range(4):
        members = [i for i in range(len(images)) if partition[i] == p]
        if not members:
            continue

        s = {(i, j): float(images[i] @ texts[j]) for i in members for j in members}
        best_text = {i: max((s[i, j], -j) for j in members)[1] * -1 for i in members}
        best_image = {j: max((s[i, j], -i) for i in members)[1] * -1 for j in members}
        m_f = {t: {v for v in members if factual[v] == factual[best_image[t]]} for t in members}
        m_e = {v: {t for t in members if emotional[t] == emotional[best_text[v]]} for v in members}
        m_f_inverse = {v: {t for t in members if v in m_f[t]} for v in members}
        m_e_inverse = {t: {v for v in members if t in m_e[v]} for t in members}
        nothing = {i: set() for i in members}
        of_image = {0: [nothing], 1: [m_f_inverse], 2: [m_e], 3: [m_f_inverse, m_e]}[p]
        of_text = {0: [nothing], 1: [m_f], 2: [m_e_inverse], 3: [m_f, m_e_inverse]}[p]

        total = 0.0
        for i in members:
            positive = best_text[i] if p == Partition.WEAK else i
            others = set(members) - {positive} - set.union(*(excluded[i] for excluded in of_image))
            total += anchor_loss(s[i, positive], [s[i, j] for j in others], temperature) / 2
            positive = best_image[i] if p == Partition.WEAK else i
            others = set(members) - {positive} - set.union(*(excluded[i] for excluded in of_text))
            total += anchor_loss(s[positive, i], [s[j, i] for j in others], temperature) / 2
        losses[p] = total / len(members)
    return torch.tensor(losses, dtype=torch.float64)


def anchor_loss(positive, negatives, temperature):
    numerator = math.exp(positive / temperature)
    return -math.log(numerator / (numerator + sum(math.exp(n / temperature) for n in negatives)))


def random_batch(seed, size=24, dim=8, clusters=2, partitions=(0, 1, 2, 3), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(size, dim, generator=g, dtype=dtype), dim=1) for _ in "vt"
    )
    partition = torch.tensor(partitions)[torch.randint(len(partitions), (size,), generator=g)]
    factual, emotional = torch.randint(clusters, (2, size), generator=g)
    return images, texts, partition, factual, emotional


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("clusters", [1, 2, 5, 40])
def test_loss_equals_brute_force(seed, clusters):
    batch = random_batch(seed, size=4 + seed, clusters=clusters)
    temperature = (0.07, 0.3, 1.0)[seed % 3]
    output = pacl_loss(*batch, temperature=temperature)
    expected = brute_force_loss(*batch, temperature)
    torch.testing.assert_close(output.per_partition, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(output.loss, expected.sum(), rtol=1e-10, atol=1e-12)
    assert output.counts.tolist() == batch[2].bincount(minlength=4).tolist()


@pytest.mark.parametrize("partitions", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_empty_partitions_have_zero_loss(partitions):
    batch = random_batch(3, partitions=partitions)
    output = pacl_loss(*batch)
    torch.testing.assert_close(output.per_partition, brute_force_loss(*batch, 0.07), rtol=1e-10, atol=1e-12)
    assert all(output.per_partition[p] == 0 for p in range(4) if p not in partitions)


def test_a_partition_of_one_pair_has_no_negatives_and_a_zero_gradient():
    images, texts, _, factual, emotional = random_batch(0, size=4)
    images.requires_grad_()
    output = pacl_loss(images, texts, torch.arange(4), factual, emotional)
    output.loss.backward()
    assert output.per_partition.tolist() == [0, 0, 0, 0]
    assert torch.equal(images.grad, torch.zeros_like(images))


@pytest.mark.parametrize("seed", range(10))
def test_ties_go_to_the_first_best_match(seed):
    """Corners of a cube: similarities are exact in binary, and many are equal."""
    g = torch.Generator().manual_seed(seed)
    images, texts = (torch.randint(2, (2, 20, 4), generator=g) - 0.5).double()
    _, _, partition, factual, emotional = random_batch(seed, size=20)
    batch = images, texts, partition, factual, emotional
    output = pacl_loss(*batch, temperature=0.5)
    torch.testing.assert_close(output.per_partition, brute_force_loss(*batch, 0.5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("partition", list(Partition))
def test_gradcheck(partition):
    images, texts, _, factual, emotional = random_batch(1, size=7, dim=3)
    partitions = torch.full((7,), int(partition))

    def loss(images, texts):
        return pacl_loss(images, texts, partitions, factual, emotional, temperature=0.5).loss

    assert torch.autograd.gradcheck(loss, (images.requires_grad_(), texts.requires_grad_()))


def test_gradcheck_of_a_mixed_batch():
    images, texts, partition, factual, emotional = random_batch(5, size=12, dim=3)
    assert torch.autograd.gradcheck(
        lambda v, t: pacl_loss(v, t, partition, factual, emotional, temperature=0.5).loss,
        (images.requires_grad_(), texts.requires_grad_()),
    )


def test_only_active_partitions_count():
    batch = random_batch(2)
    output = pacl_loss(*batch, active=[Partition.STRONG, Partition.WEAK])
    torch.testing.assert_close(output.loss, output.per_partition[0] + output.per_partition[3])
    torch.testing.assert_close(output.per_partition, pacl_loss(*batch).per_partition)


def test_strong_pairs_alone_are_the_clip_loss():
    images, texts, _, factual, emotional = random_batch(4)
    logits = images @ texts.t() / 0.07
    labels = torch.arange(len(images))
    clip = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.t(), labels)
    ) / 2
    torch.testing.assert_close(pacl_loss(images, texts, labels * 0, factual, emotional).loss, clip)


def test_weak_pairs_take_their_best_match_as_positive():
    """The picture is unlike its own text and like another's, which is pulled closer."""
    images = torch.eye(3)
    texts = torch.eye(3).roll(1, 0).clone()
    images.requires_grad_()
    clusters = torch.arange(3)
    pacl_loss(images, texts, torch.full((3,), 3), clusters, clusters, temperature=1.0).loss.backward()
    pull = -images.grad @ texts.t()
    assert torch.equal(pull.argmax(1), torch.tensor([1, 2, 0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_agree_with_float64(dtype):
    batch = random_batch(6, dtype=torch.float64)
    low = pacl_loss(batch[0].to(dtype), batch[1].to(dtype), *batch[2:], temperature=0.5)
    assert low.loss.dtype == torch.float32
    exact = pacl_loss(batch[0].to(dtype).double(), batch[1].to(dtype).double(), *batch[2:], temperature=0.5)
    torch.testing.assert_close(low.per_partition.double(), exact.per_partition, rtol=1e-5, atol=1e-5)


class CountOperations(TorchDispatchMode):
    """Counts the tensor operations that run inside it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_batch():
    counts = []
    for size in (8, 256):
        with CountOperations() as operations:
            pacl_loss(*random_batch(0, size=size))
        counts.append(operations.count)
    assert counts[0] == counts[1], "a Python loop over pairs would run more operations for more pairs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_embeds": torch.zeros(3, 4)}, "both have the shape"),
        ({"partition": torch.zeros(5, dtype=torch.long)}, "must have the shape"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_wrong_inputs_are_refused(change, message):
    inputs = {"image_embeds": torch.zeros(4, 4), "text_embeds": torch.zeros(4, 4)}
    inputs |= dict.fromkeys(("partition", "factual_cluster", "emotional_cluster"), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=message):
        pacl_loss(**(inputs | change))
