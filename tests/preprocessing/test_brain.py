"""What is a stripped brain, what its mask is, and what deepbet finds in a head."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_app.errors import UnavailableError, VisitError
from bids_app.images import Image, data, like, on_affine, same_grid, voxel_volume_mm3
from bids_app.measures.overlap import dice
from bids_app.preprocessing import brain
from bids_app.preprocessing.brain import (
    BrainExtractor,
    checked_volume,
    extract_brain,
    is_skull_stripped,
    stripped_brain_mask,
    weights_sha256,
)
from tests.conftest import stored_as
from tests.preprocessing import phantoms


@pytest.fixture(scope="module")
def whole() -> phantoms.Phantom:
    """A head of full size on 4 mm voxels."""
    return phantoms.patient(size=1.0)


@pytest.fixture(scope="module")
def stripped(whole) -> Image:
    return whole.brain


def volume_ml(mask: Image) -> float:
    return np.count_nonzero(data(mask)) * voxel_volume_mm3(mask) / 1000


def cut(image: Image, below: int) -> Image:
    """The scan without its lowest slices."""
    return image.slicer[:, :, below:]


# ------------------------------------------------------------------------------------------------- stripped or not


def test_a_brain_alone_is_stripped_and_a_head_is_not(whole, stripped, orientation):
    assert is_skull_stripped(stored_as(stripped, orientation))
    assert not is_skull_stripped(stored_as(whole.head, orientation))


def test_a_head_in_air_of_zero_is_not_stripped(whole):
    values = data(whole.head)
    assert not is_skull_stripped(like(whole.head, np.where(values > 100, values, 0)))


def test_a_background_that_is_not_zero_is_background(stripped):
    """Standardised intensities put the air below zero."""
    moved = like(stripped, (data(stripped) - 300) / 150)
    assert is_skull_stripped(moved)
    assert dice(data(stripped_brain_mask(moved)) > 0, data(stripped_brain_mask(stripped)) > 0) == 1


def test_a_stem_through_the_lower_face_is_still_stripped(stripped):
    """The field of view ends in the cerebellum; a third of the brain missing is another matter."""
    lowest = np.flatnonzero(data(stripped).any(axis=(0, 1)))[0]
    touching = cut(stripped, lowest + 2)
    assert data(touching)[:, :, 0].any()
    assert is_skull_stripped(touching)
    assert data(stripped_brain_mask(touching))[:, :, 0].any()
    assert not is_skull_stripped(cut(stripped, lowest + 15))


def test_a_defaced_head_is_not_stripped(whole):
    values = np.where(data(whole.head) > 100, data(whole.head), 0)
    values[:, 45:, :20] = 0
    assert not is_skull_stripped(like(whole.head, values))


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_is_not_stripped_and_has_no_mask(whole, value):
    constant = like(whole.head, np.full(whole.head.shape, value, np.float32))
    assert not is_skull_stripped(constant)
    with pytest.raises(VisitError, match="0 mL"):
        stripped_brain_mask(constant)


# ------------------------------------------------------------------------------------------------- the mask


def test_the_mask_of_a_stripped_brain(whole, stripped, orientation):
    mask = stripped_brain_mask(stored_as(stripped, orientation))
    assert mask.get_data_dtype() == np.uint8
    assert same_grid(mask, stored_as(stripped, orientation))
    assert dice(data(stored_as(mask, "RAS")) > 0, data(whole.mask) > 0) > 0.995


def test_holes_are_filled_crumbs_left_out_and_ringing_ignored(whole, stripped):
    values = data(stripped).copy()
    values[30:34, 35:38, 30:33] = 0  # fluid as dark as the background, or a cavity
    values[2:5, 2:5, 2:5] = 400  # a crumb of scalp
    rings = np.random.default_rng(0).normal(0, 0.05, values.shape)
    mask = data(stripped_brain_mask(like(stripped, (values + rings).astype(np.float32)))) > 0
    assert mask[30:34, 35:38, 30:33].all()
    assert not mask[2:5, 2:5, 2:5].any()
    assert dice(mask, data(whole.mask) > 0) > 0.99


def test_a_hole_that_opens_at_the_border_of_the_image_is_no_hole(stripped):
    """The way out goes through the face that the brain touches."""
    values = data(cut(stripped, np.flatnonzero(data(stripped).any(axis=(0, 1)))[0] + 2)).copy()
    column = np.argwhere(values[:, :, 0] > 0)[len(np.argwhere(values[:, :, 0] > 0)) // 2]
    values[column[0], column[1], :3] = 0
    mask = data(stripped_brain_mask(on_affine(values, stripped.affine)))
    assert mask[column[0], column[1], 0] == 0


@pytest.mark.parametrize(("ml", "possible"), [(599, False), (601, True), (2199, True), (2201, False), (0, False)])
def test_impossible_volumes_are_told(ml, possible):
    voxels = np.zeros((20, 20, 10), np.uint8)
    voxels.ravel()[:ml] = 1
    mask = on_affine(voxels, np.diag([10.0, 10, 10, 1]))
    if possible:
        assert checked_volume(mask) is mask
    else:
        with pytest.raises(VisitError, match=f"{ml} mL") as caught:
            checked_volume(mask)
        assert "--derivatives" in caught.value.hint


# ------------------------------------------------------------------------------------------------- deepbet


class FakeDeepbet:
    """In place of the networks: what is above a grey value, or deepbet's own errors."""

    def __init__(self, error: Exception | None = None):
        self.error = error

    def run(self, image):
        if self.error:
            raise self.error
        assert image.get_data_dtype() == np.float32
        return None, nib.Nifti1Image((data(image) > 100).astype(np.uint8), image.affine), None


@pytest.fixture
def fake(monkeypatch):
    def make(error: Exception | None = None) -> BrainExtractor:
        extractor = BrainExtractor.__new__(BrainExtractor)
        extractor._networks = FakeDeepbet(error)
        return extractor

    return make


def test_what_deepbet_finds_is_one_piece_on_the_same_grid(whole, stripped, orientation, fake):
    mask = fake()(stored_as(stripped, orientation))
    assert same_grid(mask, stored_as(stripped, orientation))
    assert mask.get_data_dtype() == np.uint8
    assert dice(data(stored_as(mask, "RAS")) > 0, data(whole.mask) > 0) > 0.98


@pytest.mark.parametrize("error", [AssertionError("no brain"), ValueError("zero-size array")])
def test_deepbet_finding_nothing_is_told(stripped, fake, error):
    with pytest.raises(VisitError, match="No brain was found") as caught:
        fake(error)(stripped)
    assert "--derivatives" in caught.value.hint


def test_a_brain_of_impossible_size_is_told(stripped, fake):
    with pytest.raises(VisitError, match="mL"):
        fake()(like(stripped, data(stripped) * 0 + 500))


def test_without_deepbet_the_install_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepbet.bet", None)
    with pytest.raises(UnavailableError, match="deepbet") as caught:
        BrainExtractor()
    assert "pip install deepbet" in caught.value.hint


def test_the_device_is_the_one_that_was_decided(monkeypatch):
    """deepbet alone takes any GPU it sees."""
    placed = []
    network = SimpleNamespace(to=placed.append)

    class Networks:
        def __init__(self, no_gpu: bool):
            assert no_gpu
            self.model = self.bbox_model = network

    monkeypatch.setitem(sys.modules, "deepbet.bet", SimpleNamespace(BrainExtraction=Networks))
    BrainExtractor("cuda:1")
    assert placed == ["cuda:1", "cuda:1"]


def test_a_stripped_scan_does_not_go_through_deepbet(stripped, monkeypatch):
    monkeypatch.setattr(brain, "BrainExtractor", lambda device: pytest.fail("deepbet was asked"))
    assert volume_ml(extract_brain(stripped)) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_deepbet_itself_on_no_head_ends_in_words(whole, kind):
    values = np.full(whole.head.shape, 7, np.float32)
    if kind == "noise":
        values += np.random.default_rng(0).normal(0, 1, values.shape).astype(np.float32)
    with pytest.raises(VisitError):
        extract_brain(like(whole.head, values))


@pytest.mark.slow
def test_the_checksum_of_deepbets_weights():
    digest = weights_sha256()
    assert len(digest) == 64
    assert digest == weights_sha256()
