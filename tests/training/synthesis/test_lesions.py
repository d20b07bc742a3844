"""Lesions on their side, as dark and bright as their age makes them, and pushing or pulling what is around them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Generator

from bids_app.training.synthesis import lesions
from bids_app.training.synthesis.fields import sample
from bids_app.training.synthesis.recipe import Recipe
from bids_app.training.synthesis.tissue import FLAIR, T1W
from tests.training.heads import toy_head, toy_lesion
from tests.training.synthesis.calm import CALM, calm_tissue, side


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def stroke(stage: str, flip: bool = False, radius: float = 14.0) -> lesions.Stroke:
    return lesions.draw_stroke(toy_lesion(radius=radius), toy_head(), seeded(1), flip=flip, stage=stage)


def test_left_stays_left_unless_flipped():
    for flip, sign in ((False, -1), (True, 1)):
        mask = lesions.place_lesion(stroke("chronic", flip), calm_tissue(), seeded(1))
        assert mask.sum() > 100 and np.sign(side(mask)) == sign


def test_lesion_takes_its_volume_and_place_through_the_matrix():
    matrix = lesions.lesion_matrix(toy_lesion(), flip=True, rng=seeded(2))
    middle = (np.array(toy_lesion().mask.shape[::-1]) - 1) / 2
    in_mni = np.linalg.inv(matrix) @ [*middle, 1]
    assert np.allclose(in_mni[:3], (35, -20, 10), atol=15) and in_mni[0] > 0
    assert 0.6 < np.linalg.det(matrix[:3, :3]) / -1 < 1.7


def test_healthy_scans_come_as_often_as_asked():
    strata, rng = lesions.stratify([toy_lesion()]), seeded(0)
    counts = [len(lesions.draw_lesions(strata, Recipe(), rng)) for _ in range(400)]
    assert np.mean(np.equal(counts, 0)) == pytest.approx(Recipe.healthy, abs=0.07) and max(counts) == 3


def test_strata_favour_large_lesions():
    masks = [toy_lesion(-35, 5, "a"), toy_lesion(-35, 14, "b"), toy_lesion(-30, 20, "c"), toy_lesion(-20, 30, "d")]
    strata, rng = lesions.stratify(masks), seeded(0)
    drawn = [lesions.pick_lesion(strata, rng).name for _ in range(600)]
    assert len(strata) == 4 and drawn.count("a") < drawn.count("c") and drawn.count("a") > 30


def test_stages_come_by_their_chance():
    rng = seeded(0)
    drawn = [lesions.draw_stage(rng) for _ in range(1000)]
    assert sum(chance for _, chance in lesions.STAGES) == pytest.approx(1)
    for stage, chance in lesions.STAGES:
        assert drawn.count(stage) / 1000 == pytest.approx(chance, abs=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_a_cavity_is_dark_in_both_and_its_rim_bright_in_the_flair(seed: int):
    tissue = calm_tissue(seed)
    mask = lesions.place_lesion(stroke("chronic", radius=18.0), tissue, seeded(seed))
    painted = lesions.paint_lesion(tissue.image, mask, "chronic", tissue, seeded(seed))
    inside = mask[0, 0] > 0.9
    before, after = tissue.image[0, T1W][inside].mean(), painted[0, T1W][inside].mean()
    assert after < 0.75 * before
    flair = painted[0, FLAIR] - tissue.image[0, FLAIR]
    assert flair[mask[0, 0] > 0.3].max() > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_a_fresh_lesion_is_bright_in_the_flair_and_hardly_seen_in_the_t1w(seed: int):
    tissue = calm_tissue(seed)
    mask = lesions.place_lesion(stroke("acute"), tissue, seeded(seed))
    painted = lesions.paint_lesion(tissue.image, mask, "acute", tissue, seeded(seed))
    change = ((painted - tissue.image) * mask).sum(dim=(0, 2, 3, 4)) / mask.sum()
    assert change[FLAIR] > 0.1 and -0.4 < change[T1W] <= 0


def test_what_cannot_be_seen_in_a_contrast_is_not_in_its_mask():
    tissue = calm_tissue()
    mask = lesions.place_lesion(stroke("acute"), tissue, seeded(0))
    only_flair = tissue.image.clone()
    only_flair[:, FLAIR:] += 0.5 * mask
    assert lesions.shows(tissue.image, only_flair, mask, tissue) == (False, True)
    assert lesions.shows(tissue.image, tissue.image, mask, tissue) == (False, False)
    drawn = lesions.add_lesions(tissue.image, tissue, [stroke("subacute")], seeded(2))
    assert drawn.visible.shape == tissue.image.shape and drawn.visible[:, FLAIR].sum() > 100


def volume_near(stage: str, reach: float) -> float:
    """Root mean square displacement, mm, signed: positive where points move towards the lesion."""
    tissue, big = calm_tissue(), stroke(stage, radius=18.0)
    recipe = dataclasses.replace(CALM, mass_effect_mm=reach)
    for seed in range(20):  # some are left without by chance
        moved = lesions.mass_effect(tissue.points, big, recipe, seeded(seed)) - tissue.points
        if moved.abs().max() > 0:
            break
    center = torch.tensor([-35.0, -20.0, 10.0])
    inward = torch.nn.functional.normalize(center - tissue.points, dim=-1)
    along = (moved * inward).sum(dim=-1)
    return float(along[along.abs() > 0.3].mean())


def test_fresh_lesions_push_and_old_ones_pull():
    assert volume_near("acute", 5.0) > 0.3, "a point beside it shows what lay nearer to the lesion"
    assert volume_near("chronic", 5.0) < -0.3


def test_mass_effect_lies_around_the_lesion():
    tissue, big = calm_tissue(), stroke("acute", radius=18.0)
    mask = sample(torch.from_numpy(big.lesion.mask).float()[None, None], tissue.points, big.matrix)[:, 0, ..., None]
    moved = (lesions.mass_effect(tissue.points, big, CALM, seeded(s)) - tissue.points for s in range(20))
    strongest = max((shift.norm(dim=-1, keepdim=True) for shift in moved), key=torch.max)
    places = [(weight * tissue.points).sum(dim=(0, 1, 2, 3)) / weight.sum() for weight in (mask, strongest)]
    assert strongest.max() > 1 and (places[0] - places[1]).norm() < 1


def test_mass_effect_stays_within_its_limit_and_does_not_fold():
    tissue = calm_tissue()
    for seed in range(6):
        moved = lesions.mass_effect(tissue.points, stroke("acute", radius=18.0), CALM, seeded(seed))
        assert (moved - tissue.points).norm(dim=-1).max() <= CALM.mass_effect_mm + 1e-3
        for axis, component in ((2, 0), (1, 1), (0, 2)):
            assert (moved[0, ..., component].diff(dim=axis) > 0).all()


def test_small_lesions_move_nothing():
    tissue = calm_tissue()
    moved = lesions.mass_effect(tissue.points, stroke("acute", radius=6.0), CALM, seeded(0))
    assert torch.equal(moved, tissue.points)
