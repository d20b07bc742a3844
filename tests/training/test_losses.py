"""Losses that feel what is missed and what is falsely marked, for the right contrast."""

from __future__ import annotations

import pytest
import torch

from bids_app.training import losses
from bids_app.training.losses import (
    HARDEST_FROM,
    HARDEST_UNTIL,
    HARDEST_WEIGHT,
    LESION_WEIGHT,
    hardest_weight,
    lesion_loss,
)
from bids_app.training.series import Batch
from bids_app.training.synthesis.scan import BOTH
from bids_app.training.synthesis.tissue import FLAIR, T1W
from tests.networks.test_architectures import build

SHAPE = (48, 48, 48)


def logits_of(mask: torch.Tensor) -> torch.Tensor:
    """Confident logits that say exactly this mask."""
    return 8 * torch.cat([1 - 2 * mask, 2 * mask - 1], dim=1)


@pytest.mark.parametrize("hardest", [0.0, 0.5])
def test_loss_feels_what_is_missed_and_what_is_falsely_marked(hardest: float):
    empty, sick = torch.zeros(2, 1, *SHAPE), torch.zeros(2, 1, *SHAPE)
    sick[0, :, 8:24, 8:24, 8:24] = 1

    def loss(mask: torch.Tensor, truth: torch.Tensor) -> float:
        levels = [mask, mask[..., ::2, ::2, ::2]]
        return float(lesion_loss([logits_of(level) for level in levels], [truth, truth[..., ::2, ::2, ::2]], hardest))

    right = loss(sick, sick)
    assert right < -0.9
    assert loss(empty, sick) > right + 0.45 and loss(1 - empty, sick) > right + 0.9
    both = sick.clone()
    both[1, :, 4:10, 4:10, 4:10] = 1
    assert loss(both, sick) > right + 0.25, "a false lesion in the healthy scan of the batch counts"
    small = torch.zeros(2, 1, *SHAPE)
    small[0], small[1, :, 4:12, 4:12, 4:12] = sick[0], 1
    missed = loss(torch.stack([sick[0], empty[0]]), small) - loss(small, small)
    assert missed > 0.4, "a small lesion counts as much as the large one in the same batch"


def test_a_lesion_that_a_sure_network_misses_still_has_a_gradient():
    truth = torch.zeros(1, 1, *SHAPE)
    truth[..., 4:8, 4:8, 4:8] = 1
    logits = (-4 * torch.cat([-torch.ones_like(truth), torch.ones_like(truth)], dim=1)).requires_grad_()
    lesion_loss([logits], [truth], 0.0).backward()
    assert -logits.grad[0, 1][truth[0, 0] > 0].sum() > 0.9 * LESION_WEIGHT


def test_hardest_voxels_come_in_later():
    assert hardest_weight(0) == hardest_weight(HARDEST_FROM) == 0
    assert hardest_weight((HARDEST_FROM + HARDEST_UNTIL) // 2) == pytest.approx(HARDEST_WEIGHT / 2)
    assert hardest_weight(10 * HARDEST_UNTIL) == HARDEST_WEIGHT


def test_anatomy_counts_only_where_it_is_known():
    anatomy = torch.zeros(2, 5, 4, 4, 4)
    anatomy[0, 2] = 1
    right = torch.where(anatomy > 0, 9.0, -9.0)
    assert losses.anatomy_loss(right, anatomy) < 0.01
    nonsense = right.clone()
    nonsense[1] = 9.0
    assert losses.anatomy_loss(nonsense, anatomy) < 0.01
    assert losses.anatomy_loss(nonsense, anatomy * 0) == 0


@pytest.mark.parametrize(
    ("name", "channels"), [("t1w", [T1W]), ("flair", [FLAIR]), ("early", [BOTH]), ("late", [T1W, FLAIR, BOTH])]
)
def test_each_output_is_judged_by_its_own_target(name: str, channels: list[int]):
    network = build(name, extra=5, deep=True)
    contrasts = {"t1w": ("T1w",), "flair": ("FLAIR",)}.get(name, ("T1w", "FLAIR"))
    image = torch.randn(1, 2, 16, 16, 16)
    outputs = losses.judged_outputs(network, image, contrasts)
    assert [output.channel for output in outputs] == channels
    with_anatomy = [channel for output, channel in zip(outputs, channels, strict=True) if output.anatomy is not None]
    assert with_anatomy == (channels[:2] if name == "late" else channels)


def test_the_fusion_leaves_its_branches_alone():
    network = build("late", extra=5, deep=True)
    batch = Batch(torch.randn(1, 2, 16, 16, 16), [], torch.zeros(1, 5, 8, 8, 8))
    fused = losses.judged_outputs(network, batch.image, ("T1w", "FLAIR"))[-1]
    fused.logits[0].sum().backward()
    assert network.fusion.weight.grad is not None
    assert all(weights.grad is None for weights in network.branches.parameters())
