"""A brain is brought to a template: rigidly to the models' pose, then in full, with its lesion left out of the cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from bids_app.images import Image, data, like, masked, on_affine, resample, voxel_volume_mm3, world
from bids_app.measures.overlap import dice
from bids_app.preprocessing import normalization
from bids_app.preprocessing.checks import POSE_LIMITS
from bids_app.preprocessing.linear import translation
from bids_app.preprocessing.normalization import check_transform, normalize, to_pose
from bids_app.preprocessing.transforms import (
    apply_itk,
    apply_itk_to_points,
    apply_linear,
    apply_to_points,
    write_itk_linear,
)
from tests.conftest import stored_as
from tests.preprocessing.phantoms import (
    MARK,
    Phantom,
    blob,
    brain_points,
    distance,
    elsewhere,
    flair_of,
    rigid,
    thing,
)

pytestmark = pytest.mark.usefixtures("frugal")

MOVED = rigid((8, -12, 15), (10, -8, 12))


@pytest.fixture(scope="module")
def straight(phantom, template, frugal):
    return to_pose(phantom.brain, phantom.mask, template)


@pytest.fixture(scope="module")
def normalized(phantom, template, straight, tmp_path_factory):
    folder = tmp_path_factory.mktemp("normalized")
    return normalize(phantom.brain, phantom.mask, None, template, straight.matrix, folder / "new")


@pytest.fixture(scope="module")
def flair_brain(phantom) -> tuple[Image, Image]:
    """The same brain in a FLAIR of thicker slices, and its mask there."""
    flair = flair_of(phantom)
    mask = resample(phantom.mask, flair, order=0)
    return masked(flair, mask), mask


# ------------------------------------------------------------------------------------------------- the pose


def test_the_pose_does_not_depend_on_position_and_storage(phantom, template, straight, orientation):
    brain, mask = (stored_as(elsewhere(image, MOVED), orientation) for image in (phantom.brain, phantom.mask))
    found = to_pose(brain, mask, template)
    assert found.check.status == "accepted"
    assert distance(found.matrix @ MOVED, straight.matrix, brain_points(phantom)) < 0.7
    np.testing.assert_allclose(found.matrix[:3, :3] @ found.matrix[:3, :3].T, np.eye(3), atol=1e-6)  # rigid


def test_the_pose_brings_left_to_left(phantom, template, straight):
    """The mark stays on the left, and the brain lies over the template's."""
    assert apply_to_points(np.array([MARK]), straight.matrix)[0, 0] < -12
    moved = data(apply_linear(phantom.mask, straight.matrix, template.brain_mask, order=0)) > 0
    assert dice(moved, data(template.brain_mask) > 0) > 0.94


def test_a_brain_on_its_side_is_found_at_the_second_try(phantom, template, straight, quick, monkeypatch):
    monkeypatch.setattr(normalization, "ANY_DEGREES", (-90.0, 0.0, 90.0))
    wrong = rigid((0, 90, 0), (0, 0, 50))
    found = to_pose(elsewhere(phantom.brain, wrong), elsewhere(phantom.mask, wrong), template)
    assert found.check.status == "accepted"
    assert distance(found.matrix @ wrong, straight.matrix, brain_points(phantom)) < 1.5


def test_the_pose_of_a_flair_is_that_of_the_t1w(phantom, template, straight, flair_brain, orientation):
    brain, mask = (stored_as(elsewhere(image, MOVED), orientation) for image in flair_brain)
    found = to_pose(brain, mask, template)
    assert found.check.status == "accepted"
    assert distance(found.matrix @ MOVED, straight.matrix, brain_points(phantom)) < 1.5


@pytest.mark.parametrize("kind", ["noise", "another object", "zeros", "constant"])
def test_what_is_no_brain_fails_in_a_sentence(phantom, template, kind, quick):
    shape, inside = phantom.head.shape, data(phantom.mask) > 0
    values = {
        "noise": np.random.default_rng(0).normal(100, 20, shape),
        "another object": data(thing(phantom)),
        "zeros": np.zeros(shape),
        "constant": np.full(shape, 7.0),
    }[kind]
    found = to_pose(like(phantom.head, np.where(inside, values, 0).astype(np.float32)), phantom.mask, template)
    assert found.check.status == "failed"
    assert found.check.sentence.startswith("brain to the model's pose: failed")
    assert np.isfinite(found.matrix).all()


def test_the_mask_of_something_else_is_told(phantom, template, quick):
    """Half of the brain is missing from the mask: what is there fits, and it is told what to look at."""
    half = data(phantom.mask).copy()
    half[:, :30] = 0
    check = to_pose(phantom.brain, like(phantom.mask, half), template).check
    assert check.status != "accepted"
    assert check.overlap < POSE_LIMITS.overlap
    assert "do not overlap well" in check.sentence


# ------------------------------------------------------------------------------------------------- standard space


def test_brain_and_template_agree_after_normalization(phantom, template, straight, normalized):
    assert normalized.check.status == "accepted"
    assert normalized.check.similarity > 0.5
    moved = data(apply_itk(phantom.mask, normalized.forward, template.brain_mask, "nearest")) > 0
    inside = data(template.brain_mask) > 0
    assert dice(moved, inside) > 0.97

    def likeness(image: Image) -> float:
        return np.corrcoef(data(image)[inside], data(template.t1w)[inside])[0, 1]

    rigidly = apply_linear(phantom.brain, straight.matrix, template.t1w)
    assert likeness(apply_itk(phantom.brain, normalized.forward, template.t1w)) > likeness(rigidly) + 0.05


def test_forward_and_inverse_undo_each_other(template, normalized):
    points = world(template.brain_mask, np.argwhere(data(template.brain_mask) > 0)[::53])
    for there, back in ((normalized.forward, normalized.inverse), (normalized.inverse, normalized.forward)):
        error = np.linalg.norm(apply_itk_to_points(apply_itk_to_points(points, there), back) - points, axis=1)
        assert error.mean() < 0.15
        assert error.max() < 1


def test_an_image_goes_there_and_back(phantom, template, normalized):
    there = apply_itk(phantom.mask, normalized.forward, template.t1w, "nearest")
    back = apply_itk(there, normalized.inverse, phantom.head, "nearest")
    assert dice(data(back) > 0, data(phantom.mask) > 0) > 0.95


def test_the_deformation_does_not_fold(template, normalized):
    field = sitk.TransformToDisplacementField(
        sitk.ReadTransform(str(normalized.forward)), sitk.sitkVectorFloat64, (50, 59, 48), (49, 67, -36), (2, 2, 2),
        (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    )  # fmt: skip
    assert sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).min() > 0


def test_a_flair_alone_goes_where_the_t1w_goes(phantom, template, straight, normalized, flair_brain, tmp_path):
    """Taken for a T1w it would go elsewhere, by 4 mm."""
    found = normalize(*flair_brain, None, template, straight.matrix, tmp_path, "FLAIR")
    assert found.check.status == "accepted"
    points = brain_points(phantom)
    there, here = (apply_itk_to_points(points, each.inverse) for each in (normalized, found))
    assert np.linalg.norm(there - here, axis=1).mean() < 1.3
    assert apply_itk_to_points(np.array([MARK]), found.inverse)[0, 0] < -12


def test_normalization_does_not_depend_on_storage(phantom, template, straight, tmp_path, quick):
    """A patient who lay elsewhere: the left mark stays left, and both directions go through the rotation."""
    points = world(template.brain_mask, np.argwhere(data(template.brain_mask) > 0)[::53])
    initial = straight.matrix @ np.linalg.inv(MOVED)
    went = {}
    for axcodes in ("RAS", "LAS", "LIA"):
        brain, mask = (stored_as(elsewhere(image, MOVED), axcodes) for image in (phantom.brain, phantom.mask))
        found = normalize(brain, mask, None, template, initial, tmp_path / axcodes)
        mark = apply_to_points(np.array([MARK]), MOVED)
        assert apply_itk_to_points(mark, found.inverse)[0, 0] < -12
        went[axcodes] = apply_itk_to_points(points, found.forward)
        back = apply_itk_to_points(went[axcodes], found.inverse)
        assert np.linalg.norm(back - points, axis=1).max() < 1
    for axcodes in ("LAS", "LIA"):
        apart = np.linalg.norm(went[axcodes] - went["RAS"], axis=1)
        assert np.median(apart) < 0.3
        assert np.percentile(apart, 95) < 1.5


@pytest.mark.parametrize(("millimetres", "status"), [(0, "accepted"), (8, "doubtful")])
def test_transforms_made_elsewhere_are_judged_by_where_the_brain_arrives(
    phantom, template, straight, tmp_path, millimetres, status
):
    off = translation(np.array([0.0, millimetres, 0.0])) @ straight.matrix
    path = write_itk_linear(off, tmp_path / "there.txt")
    check = check_transform(phantom.brain, phantom.mask, None, template, path)
    assert check.status == status
    assert ("it fits better" in check.sentence) is (status == "doubtful")


def test_a_failed_registration_writes_nothing(phantom, template, tmp_path, quick):
    noise = np.random.default_rng(0).normal(100, 20, phantom.head.shape).astype(np.float32)
    brain = like(phantom.head, np.where(data(phantom.mask) > 0, noise, 0))
    found = normalize(brain, phantom.mask, None, template, np.eye(4), tmp_path / "new")
    assert (found.forward, found.inverse, found.check.status) == (None, None, "failed")
    assert not (tmp_path / "new").exists()


def test_an_empty_brain_fails_in_words(phantom, template, tmp_path, quick):
    brain = like(phantom.head, np.zeros(phantom.head.shape, np.float32))
    found = normalize(brain, phantom.mask, None, template, np.eye(4), tmp_path)
    assert found.check.status == "failed"
    assert found.check.sentence.startswith("scan to standard space: failed")


# ------------------------------------------------------------------------------------------------- the lesion

LESION_AT = np.array([18.0, -10.0, 8.0])


@pytest.fixture(scope="module")
def lesion(phantom) -> Image:
    """A ball of 10 mm in the right hemisphere, which is a seventh of it."""
    inside = (blob(phantom.head.shape, phantom.head.affine, LESION_AT, 10) > 0.5) & (data(phantom.mask) > 0)
    return like(phantom.mask, inside)


@pytest.fixture(scope="module")
def injured(phantom, lesion) -> Phantom:
    """The phantom with an old lesion as dark as fluid."""
    values = np.where(data(lesion) > 0, 60, data(phantom.brain)).astype(np.float32)
    return replace(phantom, head=like(phantom.head, values))


@pytest.fixture(scope="module")
def with_and_without(injured, lesion, template, straight, tmp_path_factory):
    """The injured brain, normalized with and without its lesion as a cost-function mask."""
    folder = tmp_path_factory.mktemp("lesion")
    return tuple(
        normalize(injured.head, injured.mask, mask, template, straight.matrix, folder / name)
        for name, mask in (("with", lesion), ("without", None))
    )


def near_lesion(template, low: float, high: float) -> np.ndarray:
    """Points of the template's brain between two distances from the centre of the lesion."""
    points = world(template.brain_mask, np.argwhere(data(template.brain_mask) > 0))
    far = np.linalg.norm(points - LESION_AT, axis=1)
    return points[(far >= low) & (far < high)]


def test_a_masked_lesion_does_not_change_the_registration(template, normalized, with_and_without):
    """Around the lesion, where healthy tissue tells, the truth is the same brain before its lesion."""
    points = near_lesion(template, 12, 20)
    truth = apply_itk_to_points(points, normalized.forward)
    with_, without = (
        np.linalg.norm(apply_itk_to_points(points, each.forward) - truth, axis=1).mean() for each in with_and_without
    )
    assert with_ < 0.5
    assert with_ < 0.8 * without


def test_a_masked_lesion_keeps_its_volume(template, lesion, normalized, with_and_without):
    """Without mask the dark hole is drawn together, as if it were a ventricle or no lesion at all."""
    before, with_, without = (
        data(apply_itk(lesion, each.forward, template.t1w, "linear")).sum() * voxel_volume_mm3(template.t1w)
        for each in (normalized, *with_and_without)
    )
    assert with_ == pytest.approx(before, rel=0.12)
    assert abs(without - before) > 2 * abs(with_ - before)


def test_inside_the_mask_the_deformation_is_smooth(template, with_and_without):
    """Neighbouring points of the lesion go to neighbouring places."""
    points = near_lesion(template, 0, 9)
    steps = []
    for each in with_and_without:
        shift = apply_itk_to_points(points, each.forward) - points
        beside = apply_itk_to_points(points + [2.0, 0, 0], each.forward) - points - [2.0, 0, 0]
        steps.append(np.linalg.norm(beside - shift, axis=1).max())
    assert steps[0] < 0.5
    assert steps[0] < 0.6 * steps[1]


def test_an_empty_lesion_mask_is_no_mask(phantom, template, straight, normalized, tmp_path):
    empty = like(phantom.mask, np.zeros(phantom.mask.shape, np.uint8))
    assert normalization._Scans.of(phantom.brain, phantom.mask, empty, template).healthy is None


def test_the_margin_of_the_lesion_is_in_mm(phantom):
    """3 mm in all directions, also between thick slices."""
    point = np.zeros((21, 21, 9), np.uint8)
    point[10, 10, 4] = 1
    healthy = data(normalization._healthy(on_affine(point, np.diag([1.0, 1, 3, 1]))))
    assert healthy[:, 10, 4].tolist() == [1] * 7 + [0] * 7 + [1] * 7
    assert healthy[10, 10].tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1]


# ------------------------------------------------------------------------------------------------- preparations


def test_a_brain_at_the_border_gets_room_and_stays_in_place(phantom, orientation):
    box = np.s_[10:-10, 6:-6, 6:-6]
    brain, mask = (stored_as(image.slicer[box], orientation) for image in (phantom.brain, phantom.mask))
    boxed = normalization._boxed(brain, mask)
    rim = np.ones(boxed.shape, bool)
    rim[9:-9, 9:-9, 9:-9] = False
    assert not data(boxed)[rim].any()
    voxel = np.argwhere(data(mask) > 0)[1000]
    there = np.round(np.linalg.inv(boxed.affine) @ mask.affine @ [*voxel, 1]).astype(int)[:3]
    assert data(boxed)[tuple(there)] == data(brain)[tuple(voxel)]


def test_a_brain_cut_at_the_border_is_normalized(phantom, template, straight, tmp_path, quick):
    cut = np.s_[:, :, 8:]
    brain, mask = (image.slicer[cut] for image in (phantom.brain, phantom.mask))
    assert data(mask)[:, :, 0].any()
    assert normalize(brain, mask, None, template, straight.matrix, tmp_path).check.usable
