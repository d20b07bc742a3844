"""The networks of this project: what they return, what they start as, and that left is told from right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from bids_app.networks.architectures import LateFusion, MirrorUNet, fold_voxels, unfold_voxels
from bids_app.training import plans
from bids_app.training.plans import FUSIONS, NetworkSize

TINY = NetworkSize(features=(4, 6, 8), encoder_convs=(1, 1, 1), decoder_convs=(1, 1))
SHAPE = (16, 24, 16)


def build(name: str, size: NetworkSize | None = TINY, extra: int = 0, deep: bool = False) -> torch.nn.Module:
    """The network of a fusion, as nnU-Net builds it from the plans."""
    torch.manual_seed(0)
    fusion = FUSIONS[name] if size is None else replace(FUSIONS[name], size=size)
    described = plans.architecture(fusion, extra)
    arguments = (described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"])
    return get_network_from_plans(*arguments, len(fusion.contrasts), 2, deep_supervision=deep).eval()


def scan(channels: int) -> torch.Tensor:
    return torch.randn(2, channels, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_folding_is_undone_by_unfolding_and_keeps_neighbours_together():
    volume = torch.arange(2 * 3 * 8 * 6 * 4.0).view(2, 3, 8, 6, 4)
    folded = fold_voxels(volume)
    assert folded.shape == (2, 24, 4, 3, 2)
    assert torch.equal(unfold_voxels(folded), volume)
    assert set(folded[0, :8, 1, 1, 1].tolist()) == set(volume[0, 0, 2:4, 2:4, 2:4].flatten().tolist())


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_gives_logits_of_the_size_of_the_scan(name: str):
    channels = len(FUSIONS[name].contrasts)
    with torch.no_grad():
        assert build(name)(scan(channels)).shape == (2, 2, *SHAPE)
        levels = build(name, deep=True)(scan(channels))
    assert [tuple(level.shape[2:]) for level in levels] == [SHAPE, tuple(n // 2 for n in SHAPE)]


@pytest.mark.parametrize("name", FUSIONS)
def test_full_size_stays_under_nine_hundred_thousand_parameters_a_network(name: str):
    network = build(name, None)
    parts = network.branches if name == "late" else [network]
    for part in parts:
        assert 700_000 < sum(weights.numel() for weights in part.parameters()) < 900_000


@pytest.mark.parametrize("name", FUSIONS)
def test_nnunet_switches_deep_supervision(name: str):
    network = build(name)
    network.decoder.deep_supervision = True
    assert isinstance(network(scan(len(FUSIONS[name].contrasts))), list)


def test_a_mirrored_scan_does_not_just_mirror_the_answer():
    network = build("t1w")
    with torch.no_grad():
        straight, mirrored = network(scan(1)), network(scan(1).flip(-1)).flip(-1)
    assert not torch.allclose(straight, mirrored, atol=1e-3), "it could not tell a lesion from its mirror image"


def test_the_answer_depends_on_the_other_side():
    network, volume = build("t1w"), scan(1)
    changed = volume.clone()
    changed[..., -2:] += 3
    with torch.no_grad():
        difference = (network(volume) - network(changed)).abs()
    assert difference[..., :2].max() > 1e-3


def test_extra_outputs_come_at_half_the_resolution_and_are_not_in_the_answer():
    network = build("t1w", extra=5)
    with torch.no_grad():
        logits, extra = network.with_extra(scan(1))
        assert torch.equal(logits, network(scan(1)))
    assert extra.shape == (2, 5, *(n // 2 for n in SHAPE))


def test_late_fusion_starts_as_the_mean_of_its_branches():
    network = build("late")
    both = scan(2)
    with torch.no_grad():
        parts = [branch(both[:, i : i + 1]) for i, branch in enumerate(network.branches)]
        assert torch.allclose(network(both), (parts[0] + parts[1]) / 2, atol=1e-5)
    assert isinstance(network, LateFusion) and all(isinstance(branch, MirrorUNet) for branch in network.branches)


def test_intermediate_fusion_uses_both_contrasts_and_holds_no_weight_twice():
    network, both = build("intermediate"), scan(2)
    with torch.no_grad():
        answer = network(both)
        for channel in (0, 1):
            changed = both.clone()
            changed[:, channel] *= 2
            assert not torch.allclose(network(changed), answer, atol=1e-4)
    assert not any("decoder.encoder" in name for name in network.state_dict())
