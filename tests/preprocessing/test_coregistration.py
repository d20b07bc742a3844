"""A FLAIR is brought to its T1w, wherever its header says it is, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_app.images import Image, data, like
from bids_app.preprocessing import coregistration
from bids_app.preprocessing.checks import FLAIR_LIMITS
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.transforms import apply_linear
from tests.conftest import stored_as
from tests.preprocessing.phantoms import MARK, brain_points, distance, elsewhere, flair_of, rigid, thing

pytestmark = pytest.mark.usefixtures("frugal")

MOVED = rigid((8, -12, 15), (10, -8, 12))
VOXEL_MM = 2.0


@pytest.fixture(scope="module")
def flair(phantom) -> Image:
    return flair_of(phantom)


@pytest.fixture
def only_once(monkeypatch):
    """The second try is a failure: for FLAIRs that the first must find."""
    monkeypatch.setattr(coregistration, "ANY_DEGREES", ())
    monkeypatch.setattr(coregistration, "SHIFTS_MM", ())


@pytest.fixture
def fewer_likely(monkeypatch):
    """Fewer starts for the first try, all for the second."""
    monkeypatch.setattr(coregistration, "LIKELY_DEGREES", (-8.0, 8.0))


def voxel_of(place: np.ndarray, image: Image) -> tuple[int, ...]:
    """The voxel at a place in world mm."""
    return tuple(np.round(np.linalg.inv(image.affine) @ [*place, 1])[:3].astype(int))


def error(registration, truth: np.ndarray, phantom) -> float:
    """Largest error over the brain in mm."""
    return distance(registration.matrix @ truth, np.eye(4), brain_points(phantom))


def test_a_turned_and_shifted_flair_is_found_however_both_are_stored(phantom, flair, orientation):
    t1w, mask = (stored_as(image, orientation) for image in (phantom.head, phantom.mask))
    moved = stored_as(elsewhere(flair, MOVED), {"RAS": "LIA", "LAS": "RAS", "LIA": "LAS"}[orientation])
    found = register_flair(moved, t1w, mask)
    assert found.check.status == "accepted"
    assert error(found, MOVED, phantom) < VOXEL_MM / 2
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-6)  # rigid
    # left is left: the dark mark of the FLAIR lands on that of the T1w
    on_t1w = data(apply_linear(moved, found.matrix, phantom.head))
    left, right = (voxel_of(np.array([side * MARK[0], *MARK[1:]]), phantom.head) for side in (1, -1))
    assert on_t1w[left] < 0.4 * on_t1w[right]


def test_a_header_wrong_by_50_mm_is_no_problem(phantom, flair, only_once):
    """The centres of mass are among the first starts."""
    wrong = rigid((0, 0, 0), (50, 0, -50))
    found = register_flair(elsewhere(flair, wrong), phantom.head, phantom.mask)
    assert found.check.status == "accepted"
    assert error(found, wrong, phantom) < VOXEL_MM / 2


def test_a_header_wrong_by_90_degrees_and_50_mm_is_found_at_the_second_try(phantom, flair, fewer_likely):
    wrong = rigid((0, 0, 90), (50, -20, 10))
    found = register_flair(elsewhere(flair, wrong), phantom.head, phantom.mask)
    assert found.check.status == "accepted"
    assert error(found, wrong, phantom) < VOXEL_MM / 2


def test_another_object_fails_in_a_sentence(phantom, fewer_likely):
    check = register_flair(thing(phantom), phantom.head, phantom.mask).check
    assert check.status == "failed"
    assert check.sentence.startswith("FLAIR to T1w: failed, ")
    assert "(tissue overlap" in check.sentence


def test_noise_fails(phantom, flair, quick):
    noise = np.random.default_rng(0).normal(100, 20, flair.shape).astype(np.float32)
    check = register_flair(like(flair, noise), phantom.head, phantom.mask).check
    assert check.status == "failed"


def test_a_flair_of_half_the_brain_fails_for_its_overlap(phantom, flair, quick, monkeypatch):
    """What is there fits; the rest of the brain was not scanned."""
    monkeypatch.setattr(coregistration, "SHIFTS_MM", ())
    check = register_flair(flair.slicer[:, :, 14:], phantom.head, phantom.mask).check
    assert check.status == "failed"
    assert check.overlap < FLAIR_LIMITS.least_overlap


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_flair_fails_in_words(phantom, flair, value, quick):
    found = register_flair(like(flair, np.full(flair.shape, value, np.float32)), phantom.head, phantom.mask)
    assert found.check.status == "failed"
    assert "could not be compared" in found.check.sentence
    np.testing.assert_array_equal(found.matrix, np.eye(4))


def test_an_empty_mask_fails_in_words(phantom, flair, quick):
    nothing = like(phantom.mask, np.zeros(phantom.mask.shape, np.uint8))
    check = register_flair(flair, phantom.head, nothing).check
    assert check.status == "failed"
    assert "0x" not in check.sentence  # an address in memory


def test_skull_stripped_scans_are_found_too(phantom, flair):
    """The brain touches the faces of the T1w: scans are often cut there when they are stripped."""
    mask = data(apply_linear(phantom.mask, np.eye(4), flair, order=0)) > 0
    brain = like(flair, np.where(mask, data(flair), 0))
    box = ndimage.find_objects(data(phantom.mask, np.uint8))[0]
    t1w, t1w_mask = (image.slicer[box] for image in (phantom.brain, phantom.mask))
    found = register_flair(elsewhere(brain, MOVED), t1w, t1w_mask)
    assert found.check.status == "accepted"
    assert error(found, MOVED, phantom) < VOXEL_MM
