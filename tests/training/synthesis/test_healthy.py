"""Synthetic healthy brains: in the box, the right way round."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Generator

from bids_app.anomaly.slices import CENTRE_MM, SHAPE
from bids_app.training.reflect.embedded import all_slices
from bids_app.training.reflect.synthetic import grey_brain, make_brains
from bids_app.training.series import Material
from bids_app.training.synthesis.healthy import HealthyBrain, Misalignment, healthy_brain
from tests.training.heads import toy_source

NONE = Misalignment(scale=0, shear=0, rotation_deg=0, shift_mm=0, warp_mm=(0, 0))


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def brain() -> HealthyBrain:
    """A brain takes seconds to draw."""
    return healthy_brain(toy_source(), rng(), NONE)


def test_the_putamen_on_the_left_is_on_the_left_and_in_front(brain):
    """It lies at x = -30, y = 20 of the toy head, in white matter that is brighter in every T1w."""
    points = brain.points[0].numpy()
    x = int(np.abs(points[80, :, :, 0].mean(axis=0) + 30).argmin())
    y = int(np.abs(points[80, :, :, 1].mean(axis=1) - 20).argmin())
    image = brain.image.numpy()
    level = int(np.abs(points[:, 96, 80, 2]).argmin())
    putamen, mirrored = image[level, y, x], image[level, y, SHAPE[2] - 1 - x]
    assert x < SHAPE[2] / 2 and putamen < 0.9 * mirrored


def test_as_grey_values_rows_go_from_front_to_back(brain, monkeypatch):
    monkeypatch.setattr("bids_app.training.reflect.synthetic.healthy_brain", lambda source, rng: brain)
    grey = grey_brain(toy_source(), rng())
    assert grey.shape == SHAPE and grey.dtype == np.uint8
    inside = brain.mask.numpy()[:, ::-1]
    assert np.array_equal(grey > 0, inside)


def test_it_lies_in_the_middle_of_the_box(brain):
    places = brain.points[0].numpy()
    for axis, centre in enumerate(CENTRE_MM):
        middle = places[..., axis].mean()
        assert middle == pytest.approx(centre, abs=1.0)


def test_brains_are_made_once_and_alike_from_the_same_seed(tmp_path):
    material = Material([toy_source()], [], [], [], seed=1)
    brains = make_brains(material, 2, tmp_path / "brains.npy")
    assert brains.shape == (2, *SHAPE) and not np.array_equal(brains[0], brains[1])
    changed = np.load(tmp_path / "brains.npy")
    assert np.array_equal(make_brains(material, 2, tmp_path / "brains.npy"), changed)
    assert np.array_equal(make_brains(material, 2, tmp_path / "again.npy", workers=2), changed)
    slices = all_slices(brains)
    assert set(slices.subjects) == {"000", "001"} and ((slices.images > 0).sum(axis=(1, 2)) >= 400).all()
    lowest = np.flatnonzero((brains[0] > 0).sum(axis=(1, 2)) >= 400)[0]
    assert slices.heights[0] == CENTRE_MM[2] + lowest - (SHAPE[0] - 1) / 2
