"""What is no lesion changes the contrasts as it does in life, and leaves most of the brain alone."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from bids_app.training.synthesis import distractors
from bids_app.training.synthesis.tissue import BRAIN, FLAIR, T1W
from tests.training.synthesis.calm import calm_tissue

DARKER, BRIGHTER = -1, 1


@pytest.mark.parametrize(
    ("name", "t1w", "flair"),
    [
        ("atrophy", DARKER, DARKER),
        ("leukoaraiosis", DARKER, BRIGHTER),
        ("ependymal_lining", 0, BRIGHTER),
        ("pulsation", 0, BRIGHTER),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_direction_in_each_contrast(name: str, t1w: int, flair: int, seed: int):
    tissue = calm_tissue(seed)
    changed = getattr(distractors, name)(tissue.image, tissue, Generator().manual_seed(seed))
    difference = changed - tissue.image
    for contrast, sign in ((T1W, t1w), (FLAIR, flair)):
        part = difference[:, contrast]
        assert (part.abs() if sign == 0 else -sign * part).max() < 1e-5, f"{name} in contrast {contrast}"
    brain = tissue.share(BRAIN)[:, 0] > 0.9
    assert float((difference[:, T1W][brain] < -0.1).float().mean()) < 0.35


def test_each_effect_changes_something():
    tissue = calm_tissue()
    for effect, chance in distractors.EFFECTS:
        changed = effect(tissue.image, tissue, Generator().manual_seed(3))
        assert 0 < chance < 1 and changed.shape == tissue.image.shape
        assert not torch.equal(changed, tissue.image), effect.__name__


def test_towards_moves_one_way_only_where_told():
    image = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1, 1)
    goal, share = torch.full_like(image, 0.5), torch.full_like(image, 0.5)
    assert distractors.towards(image, goal, share).flatten().tolist() == pytest.approx([0.35, 0.65])
    down = distractors.per_contrast(-1, -1)
    assert distractors.towards(image, goal, share, down).flatten().tolist() == pytest.approx([0.2, 0.65])
