"""Whole synthetic scans: same seed same scan, lesions in the brain, intensities as nnU-Net makes them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Generator

from bids_app.training.synthesis.fields import PATCH
from bids_app.training.synthesis.lesions import stratify
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.scan import BOTH, SynthScan, synthesize, synthesize_with
from bids_app.training.synthesis.tissue import FLAIR, T1W, VENTRICLE, make_source
from tests.training.heads import toy_head, toy_lesion, toy_source


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scans() -> list[SynthScan]:
    return [synthesize_with(toy_source(), [toy_lesion()], Recipe(), seeded(seed)) for seed in range(5)]


def test_same_seed_same_scan():
    strata, recipe = stratify([toy_lesion()]), Recipe(healthy=0.0)
    first, again, other = (synthesize(toy_source(), strata, recipe, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.image, again.image) and torch.equal(first.target, again.target)
    assert not torch.equal(first.image, other.image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scans_are_made_on_a_gpu_too():
    scan = synthesize_with(make_source(toy_head(), "cuda"), [toy_lesion()], Recipe(), Generator("cuda").manual_seed(0))
    assert scan.image.is_cuda and torch.isfinite(scan.image).all() and scan.target.any()


def test_scan_is_what_nnunet_makes_of_one(scans):
    for scan in scans:
        assert scan.image.shape == (2, *PATCH) and scan.target.shape == (3, *PATCH)
        assert scan.image.dtype == torch.float32 and torch.isfinite(scan.image).all()
        for contrast in scan.image:
            inside = contrast[contrast != 0]
            assert 0.15 < inside.numel() / contrast.numel() < 0.6
            assert abs(float(inside.mean())) < 0.15 and float(inside.std()) == pytest.approx(1, abs=0.2)
            assert contrast[0, 0, 0] == contrast[-1, -1, -1] == 0


def test_bounding_box_is_in_the_middle(scans):
    for scan in scans:
        for axis, (size, jitter) in enumerate(zip(PATCH, Recipe.jitter_voxels, strict=True)):
            hit = torch.nonzero((scan.image[T1W].abs() > 1e-2).any(dim=[a for a in range(3) if a != axis]))
            assert abs(int(hit.min()) + int(hit.max()) - (size - 1)) <= 2 * jitter + 3


def test_lesion_lies_inside_the_brain(scans):
    for scan in scans:
        assert 2 < scan.lesion_ml < 30
        assert (scan.image[T1W][scan.target[BOTH] > 0] != 0).all()


def test_the_union_is_what_shows_in_either_contrast():
    recipe = dataclasses.replace(Recipe(), shifted=0.0)
    for seed in range(6):
        target = synthesize_with(toy_source(), [toy_lesion()], recipe, seeded(seed)).target
        assert torch.equal(target[BOTH], torch.maximum(target[T1W], target[FLAIR]))


def test_a_shifted_flair_takes_its_lesion_along():
    recipe = dataclasses.replace(Recipe(), shifted=1.0, shift_mm=20.0)
    moved = [synthesize_with(toy_source(), [toy_lesion()], recipe, seeded(seed)).target for seed in range(4)]
    assert any(not torch.equal(target[FLAIR], target[BOTH]) for target in moved)


def test_anatomy_is_that_of_the_head_without_lesion(scans):
    for scan in scans:
        assert scan.anatomy.shape == (5, *(n // 2 for n in PATCH))
        assert scan.anatomy.min() >= 0 and scan.anatomy.max() <= 1
        assert 0.5 < float(scan.anatomy[VENTRICLE].sum()) * 0.064 < 60
    image = toy_source().head.labels.clip(max=200)
    textured = dataclasses.replace(
        toy_source(), image=torch.from_numpy(image).int(), image_means=(24.0, 100.0, 150.0)
    )
    assert synthesize_with(textured, [], Recipe(), seeded(0)).anatomy.abs().sum() == 0


def test_a_healthy_scan_has_no_lesion():
    scan = synthesize_with(toy_source(), [], Recipe(), seeded(0))
    assert scan.target.sum() == 0 and scan.lesions == ()
