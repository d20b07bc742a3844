"""Synthetic scans: same seed same scan, lesions in the brain and on their side, intensities as nnU-Net makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from bids_app.training import synthesis
from bids_app.training.synthesis import PATCH, Recipe
from tests.training.heads import toy_lesion, toy_source

CALM = Recipe(rotation_deg=0, shear=0, warp_mm=(0.1, 0.2), scale=(1, 1), axis_scale=(1, 1), jitter_voxels=0)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def side(target: torch.Tensor) -> float:
    """Mean position from left (-1) to right (1)."""
    x = torch.linspace(-1, 1, target.shape[-1])
    return float((target.float() * x).sum() / target.sum())


@pytest.fixture(scope="module")
def scans() -> list[synthesis.SynthScan]:
    return [synthesis.synthesize_with(toy_source(), [toy_lesion()], Recipe(), seeded(seed)) for seed in range(5)]


def test_same_seed_same_scan():
    strata = synthesis.stratify([toy_lesion()])
    first, again, other = (
        synthesis.synthesize(toy_source(), strata, Recipe(healthy=0.0), seeded(seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(first.image, again.image) and torch.equal(first.target, again.target)
    assert not torch.equal(first.image, other.image)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    synthesis.smooth_noise(10.0, seeded(0))
    assert torch.equal(torch.rand(1), expected)


def test_scan_is_what_nnunet_makes_of_one(scans):
    for scan in scans:
        assert scan.image.shape == scan.target.shape == (1, *PATCH)
        assert scan.image.dtype == torch.float32 and torch.isfinite(scan.image).all()
        inside = scan.image[scan.image != 0]
        assert 0.15 < inside.numel() / scan.image.numel() < 0.6
        assert abs(float(inside.mean())) < 0.15 and float(inside.std()) == pytest.approx(1, abs=0.2)
        assert scan.image[0, 0, 0, 0] == scan.image[0, -1, -1, -1] == 0


def test_bounding_box_is_in_the_middle(scans):
    for scan in scans:
        for axis, size in enumerate(PATCH):
            hit = torch.nonzero((scan.image[0].abs() > 1e-2).any(dim=[a for a in range(3) if a != axis]))
            assert abs(int(hit.min()) + int(hit.max()) - (size - 1)) <= 2 * Recipe.jitter_voxels + 3


def test_lesion_lies_inside_the_brain_and_is_darker(scans):
    for scan in scans:
        inside = scan.target > 0
        assert 2 < scan.lesion_ml < 30
        assert (scan.image[inside] != 0).all()
        assert scan.image[inside].mean() < 0.7


def test_left_stays_left_unless_flipped():
    tissue = synthesis.draw_tissue(toy_source(), CALM, seeded(0))
    for flip, sign in ((False, -1), (True, 1)):
        mask = synthesis.place_lesion(toy_lesion(), toy_source().head, tissue, seeded(1), flip=flip)
        assert mask.sum() > 100 and np.sign(side(mask)) == sign


def test_left_putamen_is_rendered_on_the_left():
    tissue = synthesis.draw_tissue(toy_source(), CALM, seeded(0))
    assert side(tissue.share(synthesis.DEEP)) < -0.2


def test_lesion_takes_its_volume_and_place_through_the_matrix():
    matrix = synthesis.lesion_matrix(toy_lesion(), flip=True, rng=seeded(2))
    middle = (np.array(toy_lesion().mask.shape[::-1]) - 1) / 2
    in_mni = np.linalg.inv(matrix) @ [*middle, 1]
    assert np.allclose(in_mni[:3], (35, -20, 10), atol=15) and in_mni[0] > 0
    assert 0.6 < np.linalg.det(matrix[:3, :3]) / -1 < 1.7


def test_healthy_scans_come_as_often_as_asked():
    strata = synthesis.stratify([toy_lesion()])
    rng = seeded(0)
    counts = [len(synthesis.draw_lesions(strata, Recipe(), rng)) for _ in range(400)]
    assert np.mean(np.equal(counts, 0)) == pytest.approx(0.25, abs=0.07) and max(counts) == 3


def test_a_healthy_scan_has_no_lesion():
    scan = synthesis.synthesize_with(toy_source(), [], Recipe(), seeded(0))
    assert scan.target.sum() == 0 and scan.lesions == ""


def test_strata_favour_large_lesions():
    lesions = [toy_lesion(-35, 5, "a"), toy_lesion(-35, 14, "b"), toy_lesion(-30, 20, "c"), toy_lesion(-20, 30, "d")]
    strata = synthesis.stratify(lesions)
    rng = seeded(0)
    drawn = [synthesis.pick_lesion(strata, rng).name for _ in range(600)]
    assert len(strata) == 4 and drawn.count("a") < drawn.count("c") and drawn.count("a") > 30


def test_tissue_order_is_that_of_a_t1w():
    for seed in range(20):
        rng = seeded(seed)
        means = synthesis.class_means(rng)
        table = synthesis.intensity_table(means, rng)
        assert table[4] < table[3] < table[2]
        assert table[3] - 0.1 < table[12] < table[2] + 0.1
        assert table[0] == 0 and (table[1:200] > 0).all()


@pytest.mark.parametrize("effect", ["atrophy", "leukoaraiosis", "perivascular_spaces"])
def test_distractors_only_darken_and_leave_most_of_the_brain(effect: str):
    tissue = synthesis.draw_tissue(toy_source(), CALM, seeded(1))
    changed = getattr(synthesis, effect)(tissue.image, tissue, seeded(2))
    difference = changed - tissue.image
    assert difference.max() < 0.02
    brain = tissue.share(synthesis.BRAIN) > 0.9
    assert float((difference[brain] < -0.1).float().mean()) < 0.35


def test_resize_equals_interpolate():
    volume = torch.rand(1, 2, 7, 9, 8, generator=seeded(0))
    for corners in (True, False):
        expected = F.interpolate(volume, (20, 18, 16), mode="trilinear", align_corners=corners)
        assert torch.allclose(synthesis.resize(volume, (20, 18, 16), corners), expected, atol=1e-5)


def test_blur_equals_scipy():
    from scipy.ndimage import gaussian_filter

    volume = torch.rand(1, 1, 14, 15, 16, generator=seeded(0))
    expected = gaussian_filter(volume[0, 0].numpy(), 1.2, mode="constant", radius=3)
    assert np.allclose(synthesis.blur(volume, 1.2)[0, 0].numpy(), expected, atol=1e-5)
    assert torch.equal(synthesis.blur(volume, 0.0), volume)


def test_sample_reads_voxel_centres_and_zero_outside():
    volume = torch.arange(24.0).view(1, 1, 2, 3, 4)
    points = torch.tensor([[1.0, 2.0, 1.0], [3.0, 0.0, 0.0], [9.0, 9.0, 9.0]]).view(1, 1, 1, 3, 3)
    assert synthesis.sample(volume, points).flatten().tolist() == pytest.approx([21.0, 3.0, 0.0])
    half = np.diag([0.5, 0.5, 0.5, 1])
    assert synthesis.sample(volume, 2 * points, half).flatten().tolist() == pytest.approx([21.0, 3.0, 0.0])


def test_warp_does_not_fold():
    warp = synthesis.random_warp(4.0, seeded(0))[0]
    assert warp.shape == (*PATCH, 3) and 0.5 < float(warp.norm(dim=-1).mean()) < 12
    moved = warp + synthesis.patch_points()[0]
    for axis, component in ((2, 0), (1, 1), (0, 2)):  # x grows along the last axis
        assert (moved[..., component].diff(dim=axis) > 0).all()


def test_zscore_fades_to_zero_outside():
    image = torch.rand(1, 1, 8, 8, 8, generator=seeded(0)) + 5
    mask = torch.zeros_like(image)
    mask[..., 2:6] = 1
    scaled = synthesis.zscore(image, mask)
    assert scaled[mask == 0].abs().sum() == 0
    assert float(scaled[mask > 0].mean()) == pytest.approx(0, abs=1e-4)


def test_recenter_moves_the_box_to_the_middle():
    mask = torch.zeros(1, 1, 10, 10, 10)
    mask[..., 0:4, 1:3, 5:9] = 1
    moved = synthesis.recenter(mask, mask, (0, 0, 0))
    assert moved[0, 0, 3:7, 4:6, 3:7].all() and moved.sum() == mask.sum()
