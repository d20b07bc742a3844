"""Preprocessing of whole heads of the right size: minutes a head, and only where the scans are at hand."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import pytest

from bids_app.images import Image, data, like, masked, voxel_volume_mm3, world
from bids_app.measures.overlap import dice
from bids_app.preprocessing.bias import correct_bias
from bids_app.preprocessing.brain import BrainExtractor, is_skull_stripped, stripped_brain_mask
from bids_app.preprocessing.coregistration import register_flair
from bids_app.preprocessing.headers import clean
from bids_app.preprocessing.normalization import normalize, to_pose
from bids_app.preprocessing.templates import load_template
from bids_app.preprocessing.transforms import apply_itk, apply_itk_to_points
from bids_app.settings import DEFAULT_SPACE
from tests.conftest import stored_as
from tests.preprocessing.phantoms import distance, elsewhere, rigid

pytestmark = pytest.mark.slow

CLINICAL = "paired_clinical/TCGA-FG-6692_T1.nii.gz"
HEADS = {
    "whole_head/chris_t1.nii.gz": (1300, 1650),
    "whole_head/studyforrest_sub02_T1w_1mm.nii.gz": (1500, 1900),
    CLINICAL: (1200, 1700),
}
FLAIRS = {"whole_head/synthsr_FLAIR.nii.gz": (1400, 1650), CLINICAL.replace("T1", "FLAIR"): (1500, 1750)}


@dataclass(frozen=True)
class Head:
    """A head, its brain mask, and the volume in mL that the mask should have."""

    image: Image
    mask: Image
    possible_ml: tuple[float, float]

    @property
    def points(self) -> np.ndarray:
        return world(self.mask, np.argwhere(data(self.mask) > 0)[::997])


def load_head(folder, path: str) -> Head:
    if not (folder / path).exists():
        pytest.skip(f"no {path} in {folder}")
    image = clean(folder / path).image
    return Head(image, BrainExtractor()(image), (HEADS | FLAIRS)[path])


@pytest.fixture(scope="module", params=HEADS)
def head(request, test_data) -> Head:
    return load_head(test_data, request.param)


def test_the_brain_is_found_however_the_head_is_stored(head):
    """And what remains after stripping is seen as stripped."""
    assert not is_skull_stripped(head.image)
    low, high = head.possible_ml
    assert low < np.count_nonzero(data(head.mask)) * voxel_volume_mm3(head.mask) / 1000 < high
    again = stored_as(BrainExtractor()(stored_as(head.image, "LIA")), "".join(nib.aff2axcodes(head.image.affine)))
    assert dice(data(again) > 0, data(head.mask) > 0) > 0.995
    stripped = like(head.image, np.where(data(head.mask) > 0, data(head.image), 0))
    assert is_skull_stripped(stripped)
    assert dice(data(stripped_brain_mask(stripped)) > 0, data(head.mask) > 0) > 0.99


@pytest.mark.parametrize("path", FLAIRS)
def test_the_brain_of_a_flair_is_found_and_taken_to_its_pose(test_data, path):
    """Though brain extraction learned from T1w, and the template is one."""
    flair = load_head(test_data, path)
    low, high = flair.possible_ml
    assert low < np.count_nonzero(data(flair.mask)) * voxel_volume_mm3(flair.mask) / 1000 < high
    brain = masked(correct_bias(flair.image, flair.mask), flair.mask)
    assert to_pose(brain, flair.mask, load_template(DEFAULT_SPACE)).check.status == "accepted"


def test_the_brain_reaches_mni(head, tmp_path):
    """It passes at the first try, lies over MNI's, and ends in the same pose however the patient lay."""
    template, corrected = load_template(DEFAULT_SPACE), correct_bias(head.image, head.mask)
    brain = like(corrected, np.where(data(head.mask) > 0, data(corrected), 0))
    pose = to_pose(brain, head.mask, template)
    assert pose.check.status == "accepted"
    moved = rigid((10, -12, 14), (10, 15, -20))
    again = to_pose(*(stored_as(elsewhere(each, moved), "LIA") for each in (brain, head.mask)), template)
    assert distance(again.matrix @ moved, pose.matrix, head.points) < 1.5
    found = normalize(brain, head.mask, None, template, pose.matrix, tmp_path)
    assert found.check.status == "accepted"
    there = data(apply_itk(head.mask, found.forward, template.t1w, "nearest")) > 0
    assert dice(there, data(template.brain_mask) > 0) > 0.95
    points = world(template.t1w, np.argwhere(data(template.brain_mask) > 0)[::9973])
    back = apply_itk_to_points(apply_itk_to_points(points, found.forward), found.inverse)
    assert np.linalg.norm(back - points, axis=1).mean() < 0.3


@pytest.fixture(scope="module")
def clinical(test_data) -> Head:
    return load_head(test_data, CLINICAL)


def test_the_clinical_flair_ends_in_one_place_from_anywhere(clinical, test_data):
    flair = clean(test_data / CLINICAL.replace("T1", "FLAIR")).image
    straight = register_flair(flair, clinical.image, clinical.mask)
    assert straight.check.status == "accepted"
    for degrees, shift in (((12, -15, 10), (15, -20, 10)), ((0, 0, 0), (0, 0, 50)), ((90, 0, 0), (0, 30, 0))):
        wrong = rigid(degrees, shift)
        found = register_flair(stored_as(elsewhere(flair, wrong), "LIA"), clinical.image, clinical.mask)
        assert found.check.usable
        assert distance(found.matrix @ wrong, straight.matrix, clinical.points) < 1.5


def test_another_persons_flair_is_refused(clinical, test_data):
    other = clean(test_data / "whole_head" / "synthsr_FLAIR.nii.gz").image
    assert register_flair(other, clinical.image, clinical.mask).check.status == "failed"
