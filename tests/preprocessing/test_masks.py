"""One test for every row of the table in `bids_app.preprocessing.masks`."""

from __future__ import annotations

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.errors import VisitError
from bids_app.images import Grid, data, on_affine
from bids_app.measures.volumes import volume_ml
from bids_app.preprocessing import masks
from bids_app.preprocessing.masks import (
    MaskError,
    check_in_brain,
    check_kept,
    drawn_on,
    read_brain_mask,
    read_lesion_mask,
)
from bids_app.study.models import Severity
from tests.conftest import stored_as

SHAPE = (32, 36, 30)
SIZE = 5.0
#: Not symmetric about the middle of the world, unless a test says so.
OFFSET = (-71.0, -80.0, -60.0)
LESION = (slice(5, 9), slice(16, 20), slice(14, 18))
LESION_ML = 64 * SIZE**3 / 1000


def affine_of(offset=OFFSET, size: float = SIZE) -> np.ndarray:
    matrix = np.diag([size, size, size, 1])
    matrix[:3, 3] = offset
    return matrix


def lesion(dtype=np.uint8) -> np.ndarray:
    values = np.zeros(SHAPE, dtype)
    values[LESION] = 1
    return values


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.zeros(SHAPE, np.float32)
    values[4:28, 4:32, 4:26] = 50
    nib.save(on_affine(values, affine_of()), tmp_path / "sub-01_T1w.nii.gz")
    return tmp_path / "sub-01_T1w.nii.gz"


@pytest.fixture
def write(tmp_path: Path):
    def _write(values: np.ndarray | None = None, affine: np.ndarray | None = None, name="mask.nii.gz") -> Path:
        values = lesion() if values is None else values
        nib.save(on_affine(values, affine_of() if affine is None else affine), tmp_path / name)
        return tmp_path / name

    return _write


def codes(given: masks.GivenMask) -> list[tuple[str, Severity]]:
    return [(problem.code, problem.severity) for problem in given.problems]


def refused(path: Path, scan: Path) -> MaskError:
    with pytest.raises(MaskError) as caught:
        read_lesion_mask(path, scan)
    assert "\n" not in str(caught.value)
    return caught.value


def where(image) -> np.ndarray:
    return images.world(image, np.argwhere(data(image) > 0)).mean(axis=0)


def test_a_mask_of_0_and_1_on_the_grid_of_its_scan_is_taken_without_a_word(write, scan):
    given = read_lesion_mask(write(), scan)
    assert given.problems == ()
    assert (given.image.get_data_dtype(), volume_ml(given.image)) == (np.uint8, pytest.approx(LESION_ML))


# ------------------------------------------------------------------------------------------------------ values


def test_an_empty_mask_is_a_brain_without_lesion(write, scan):
    given = read_lesion_mask(write(np.zeros(SHAPE, np.uint8)), scan)
    assert codes(given) == [("empty-mask", Severity.INFO)]
    assert volume_ml(given.image) == 0


@pytest.mark.parametrize(("value", "told"), [(255, []), (2, ["mask-values"]), (0.9, ["mask-values"])])
def test_one_value_above_one_half_is_the_lesion(write, scan, value: float, told: list[str]):
    given = read_lesion_mask(write(lesion(np.float32) * np.float32(value)), scan)
    assert [problem.code for problem in given.problems] == told
    assert all(f"{value:g}" in problem.message for problem in given.problems)
    assert volume_ml(given.image) == pytest.approx(LESION_ML)


def test_scaled_integers_are_one_value(scan, tmp_path):
    image = on_affine(lesion() * 255, affine_of())
    image.header.set_slope_inter(1 / 255, 0)
    nib.save(image, tmp_path / "mask.nii.gz")
    assert read_lesion_mask(tmp_path / "mask.nii.gz", scan).problems == ()


@pytest.mark.parametrize("value", [0.4, 0.5, 0.01])
def test_a_mask_that_is_nowhere_above_one_half_is_refused(write, scan, value: float):
    error = refused(write(lesion(np.float32) * np.float32(value)), scan)
    assert error.code == "mask-values" and f"highest value is {value}" in error.message


@pytest.mark.parametrize("value", [-1.0, -1000.0])
def test_negative_values_are_refused(write, scan, value: float):
    assert refused(write(lesion(np.float32) * np.float32(value)), scan).code == "mask-values"


@pytest.mark.parametrize("overshoot", [0.0, 0.1])
def test_of_a_soft_mask_what_is_above_one_half_counts_and_is_told(write, scan, overshoot: float):
    values = lesion(np.float32)
    values[LESION] = 0.3
    values[5:7, 16:20, 14:18] = 0.6
    values[5, 16, 14] = 1 + overshoot
    values[0, 0, 0] = -overshoot
    given = read_lesion_mask(write(values), scan)
    assert codes(given) == [("mask-values", Severity.WARNING)]
    assert "50% of the voxels" in given.problems[0].message
    assert volume_ml(given.image) == pytest.approx(LESION_ML / 2)


def test_a_number_for_each_lesion_counts_as_one_mask_and_is_told(write, scan):
    values = lesion()
    values[20:22, 20:22, 20:22] = 2
    values[24, 8, 8] = 3
    given = read_lesion_mask(write(values), scan)
    assert codes(given) == [("mask-values", Severity.WARNING)]
    assert "1 to 3" in given.problems[0].message
    assert volume_ml(given.image) == pytest.approx((64 + 8 + 1) * SIZE**3 / 1000)


def _classes() -> np.ndarray:
    values = lesion()
    values[7:9, 16:20, 14:18] = 2  # touches what is 1
    return values


@pytest.mark.parametrize(
    "values",
    [_classes(), np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32), lesion() * 200 + _classes()],
    ids=["label map", "scan", "two values that touch"],
)
def test_scans_and_label_maps_are_refused(write, scan, values: np.ndarray):
    error = refused(write(values), scan)
    assert error.code == "mask-values" and "label map" in error.message


def test_nan_around_the_lesion_is_told_with_the_name_of_the_file(write, scan):
    values = np.where(lesion() > 0, 1, np.nan).astype(np.float32)
    given = read_lesion_mask(write(values), scan)
    assert codes(given) == [("header-nan-voxels", Severity.WARNING)]
    assert given.problems[0].message.startswith("mask.nii.gz: ")
    assert volume_ml(given.image) == pytest.approx(LESION_ML)


# -------------------------------------------------------------------------------------------------------- size


@pytest.mark.parametrize("values", [np.ones(SHAPE, np.uint8), 1 - lesion()], ids=["whole image", "inverted"])
def test_what_is_larger_than_a_lesion_can_be_is_refused(write, scan, values: np.ndarray):
    error = refused(write(values), scan)
    assert error.code == "mask-too-large"
    assert "is it a brain mask, a whole scan, or inverted?" in error.message


def test_what_is_larger_than_lesions_usually_are_is_told(write, scan):
    values = np.zeros(SHAPE, np.uint8)
    values[6:22, 8:24, 8:22] = 1  # 448 mL
    assert codes(read_lesion_mask(write(values), scan)) == [("mask-too-large", Severity.WARNING)]


@pytest.mark.parametrize(("depth", "error"), [(30, None), (12, "mask-too-large")])
def test_a_lesion_that_takes_most_of_the_brain_is_refused(depth: int, error: str | None):
    """Small brains have masks smaller than the largest lesion."""
    drawn, brain = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    drawn[4:14, 4:12, 4:14] = 1
    brain[4:14, 4:12, 4 : min(4 + depth, 30)] = 1
    image = on_affine(drawn, affine_of())
    if error is None:
        assert check_in_brain(image, on_affine(brain, affine_of()), "mask.nii.gz") == ()
        return
    with pytest.raises(MaskError, match=r"mask\.nii\.gz marks 83% of the brain") as caught:
        check_in_brain(image, on_affine(brain, affine_of()), "mask.nii.gz")
    assert caught.value.code == error


# ------------------------------------------------------------------------------------------------------- place


@pytest.mark.parametrize(("voxels", "told"), [(3, "75% of the lesion"), (10, "100% of the lesion")])
def test_a_lesion_outside_its_scan_is_refused(write, scan, voxels: int, told: str):
    values = np.zeros((40, 36, 30), np.uint8)  # another grid than the scan's, 8 voxels wider to the right
    values[32 - 4 + voxels : 32 + voxels, 16:20, 14:18] = 1
    error = refused(write(values), scan)
    assert error.code == "mask-elsewhere" and told in error.message


def test_a_lesion_that_reaches_out_of_its_scan_is_told(write, scan):
    values = np.zeros((40, 36, 30), np.uint8)
    values[29:33, 16:20, 14:18] = 1
    given = read_lesion_mask(write(values), scan)
    assert codes(given) == [("mask-grid", Severity.WARNING), ("mask-elsewhere", Severity.WARNING)]
    assert "25% of the lesion" in given.problems[1].message


@pytest.mark.parametrize(("covered", "told"), [(4, []), (3, ["lesion-outside-brain"]), (1, None)])
def test_a_lesion_outside_the_brain(covered: int, told: list[str] | None):
    brain = np.zeros(SHAPE, np.uint8)
    brain[5 : 5 + covered] = 1
    given, brain = on_affine(lesion(), affine_of()), on_affine(brain, affine_of())
    if told is None:
        with pytest.raises(MaskError, match=r"75% of the lesion in mask\.nii\.gz lies outside the brain") as caught:
            check_in_brain(given, brain, "mask.nii.gz")
        assert caught.value.code == "lesion-outside-brain"
    else:
        assert [problem.code for problem in check_in_brain(given, brain, "mask.nii.gz")] == told


def test_a_lesion_lost_between_the_voxels_of_the_scan_is_refused():
    small, nothing = np.zeros(SHAPE, np.uint8), on_affine(np.zeros(SHAPE, np.uint8), affine_of())
    small[5, 5, 5] = 1
    with pytest.raises(MaskError, match=r"Of the lesion in mask\.nii\.gz, 0\.125 mL, 0 mL are left"):
        check_kept(on_affine(small, affine_of()), nothing, "mask.nii.gz")
    check_kept(nothing, nothing, "mask.nii.gz")


# -------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("order", ["LAS", "LIA", "PSR"])
@pytest.mark.parametrize("of_mask", ["RAS", "SPL"])
def test_scan_and_mask_stored_in_one_order_agree_silently(tmp_path, order: str, of_mask: str):
    """So do two orders, if the number of voxels along the axes shows which is which."""
    shape = on_affine(lesion(), affine_of())
    scan, mask = tmp_path / "sub-01_T1w.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(stored_as(on_affine(np.ones(SHAPE, np.float32), affine_of()), order), scan)
    nib.save(stored_as(shape, order if of_mask == "RAS" else of_mask), mask)
    given = read_lesion_mask(mask, scan)
    assert given.problems == ()
    assert np.array_equal(data(given.image), lesion()) and np.allclose(given.image.affine, affine_of())


def test_another_grid_is_told_and_its_header_believed(write, scan):
    values = np.zeros((16, 18, 15), np.uint8)
    values[3:5, 8:10, 7:9] = 1
    mask = write(values, affine_of(size=10.0))
    given = read_lesion_mask(mask, scan)
    assert codes(given) == [("mask-grid", Severity.WARNING)]
    assert "16 x 18 x 15 voxels of 10 x 10 x 10 mm" in given.problems[0].message
    moved = images.resample(given.image, images.load(scan), order=0)
    assert where(moved) == pytest.approx(where(images.load(mask)), abs=SIZE)


@pytest.mark.parametrize("millimetres", [0.05, 7.0])
def test_the_grid_of_the_scan_moved_by_the_header_is_told(write, scan, millimetres: float):
    given = read_lesion_mask(write(affine=affine_of(np.array(OFFSET) + [millimetres, 0, 0])), scan)
    assert codes(given) == ([] if millimetres < 0.1 else [("mask-grid", Severity.WARNING)])
    assert all("moves it by up to 7.0 mm" in problem.message for problem in given.problems)


# -------------------------------------------------------------------------------------------------------- side


@pytest.mark.parametrize(
    ("flip", "words"),
    [
        ((-1, 1, 1), "exchanges left and right"),
        ((-1, -1, 1), "exchanges left and right, and front and back"),
        ((1, 1, -1), "exchanges top and bottom"),
    ],
)
def test_the_grid_of_the_scan_turned_to_another_place_is_refused(write, scan, flip: tuple[int, ...], words: str):
    error = refused(write(affine=np.diag([*flip, 1]) @ affine_of()), scan)
    assert error.code == "mask-side"
    assert "mask.nii.gz has the voxel grid of sub-01_T1w.nii.gz (32 x 36 x 30)" in error.message
    assert f"header {words} and puts it" in error.message
    assert "the grid of the scan, the place of another" in error.message
    assert "fslcpgeom SCAN MASK" in error.hint


def test_the_grid_of_the_scan_turned_within_its_own_box_is_told(tmp_path):
    """Both headers may be right then: a program may have stored the mask in another order."""
    symmetric = affine_of(-SIZE * (np.array(SHAPE) - 1) / 2)
    scan, mask = tmp_path / "sub-01_T1w.nii.gz", tmp_path / "mask.nii.gz"
    nib.save(on_affine(np.ones(SHAPE, np.float32), symmetric), scan)
    nib.save(on_affine(lesion(), np.diag([-1, 1, 1, 1]) @ symmetric), mask)
    given = read_lesion_mask(mask, scan)
    assert codes(given) == [("mask-side", Severity.WARNING)]
    assert "exchanges left and right (LAS, the scan RAS)" in given.problems[0].message
    assert where(given.image)[0] == pytest.approx(-where(on_affine(lesion(), symmetric))[0])


@pytest.mark.parametrize("axes", [(1, 1, 1), (-1, -1, 1), (SIZE, SIZE, SIZE)])
def test_a_header_that_knows_no_place_is_refused(write, scan, axes: tuple[float, ...]):
    """As programs write it that were given voxels alone."""
    error = refused(write(affine=np.diag([*axes, 1.0])), scan)
    assert error.code == "mask-side" and "does not say where it lies" in error.message


def test_axes_exchanged_under_the_header_of_the_scan_are_refused(write, scan):
    """As if the array came from SimpleITK."""
    error = refused(write(np.ascontiguousarray(lesion().T)), scan)
    assert error.code == "mask-side"
    assert "has the header of sub-01_T1w.nii.gz, but 30 x 36 x 32 voxels instead of 32 x 36 x 30" in error.message


def test_a_scan_that_knows_no_place_itself_is_no_reason_to_refuse_its_mask(tmp_path):
    nib.save(on_affine(np.ones(SHAPE, np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    nib.save(on_affine(lesion(), np.eye(4)), tmp_path / "mask.nii.gz")
    assert read_lesion_mask(tmp_path / "mask.nii.gz", tmp_path / "scan.nii.gz").problems == ()


@pytest.mark.parametrize(
    ("shape", "hint"),
    [(SHAPE, "It has the voxel grid of sub-01_T1w.nii.gz"), ((10, 12, 11), "has 10 x 12 x 11 voxels, and sub-01_T1w")],
)
def test_no_form_at_all_is_answered_with_what_to_do_about_a_mask(tmp_path, scan, shape: tuple[int, ...], hint: str):
    image = nib.Nifti1Image(np.ones(shape, np.uint8), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, tmp_path / "mask.nii.gz")
    error = refused(tmp_path / "mask.nii.gz", scan)
    assert "does not say which side is left" in error.message
    assert hint in error.hint and "DICOM" not in str(error)
    assert ("fslcpgeom" in error.hint) == (shape == SHAPE)


def test_forms_that_disagree_are_told_and_forms_that_mirror_are_refused(tmp_path, scan):
    for mirrored in (False, True):
        image = on_affine(lesion(), affine_of())
        qform = affine_of(np.array(OFFSET) + [4, 0, 0])
        image.set_qform(np.diag([-1, 1, 1, 1]) @ qform if mirrored else qform, code=1)
        path = tmp_path / f"mask{mirrored}.nii.gz"
        nib.save(image, path)
        if mirrored:
            assert "contradict each other on which side is left" in refused(path, scan).message
        else:
            assert codes(read_lesion_mask(path, scan)) == [("header-form-conflict", Severity.WARNING)]


def test_a_broken_file_is_refused_by_its_name(write, scan):
    path = write()
    path.write_bytes(path.read_bytes()[:60])
    error = refused(path, scan)
    assert error.code == "mask-unreadable" and error.message.startswith("mask.nii.gz is truncated or damaged")


def test_the_error_of_a_mask_comes_back_whole_from_a_worker(write, scan):
    error = refused(write(np.ones(SHAPE, np.uint8)), scan)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, str(copy), copy.exit_code) == (error.code, str(error), error.exit_code)


# ---------------------------------------------------------------------------------------- which scan it was drawn on


def test_the_scan_whose_voxels_a_mask_has_is_found(write, scan, tmp_path):
    other = tmp_path / "sub-01_FLAIR.nii.gz"
    nib.save(on_affine(np.ones((20, 20, 20), np.float32), affine_of(size=7.0)), other)
    assert drawn_on(write(), [other, scan]) == scan
    on_other = write(np.ones((20, 20, 20), np.uint8), affine_of(size=7.0), "on_other.nii.gz")
    assert drawn_on(on_other, [scan, other]) == other
    assert drawn_on(write(affine=affine_of(size=6.0), name="neither.nii.gz"), [scan, other]) is None
    assert drawn_on(tmp_path / "absent.nii.gz", [scan]) is None
    assert drawn_on(write(), [tmp_path / "absent.nii.gz", scan]) == scan


def test_a_mask_stored_as_one_of_two_scans_was_drawn_on_that_one(tmp_path):
    image = on_affine(np.ones(SHAPE, np.float32), affine_of())
    first, second = tmp_path / "LAS.nii.gz", tmp_path / "RAS.nii.gz"
    nib.save(stored_as(image, "LAS"), first)
    nib.save(image, second)
    nib.save(on_affine(lesion(), affine_of()), tmp_path / "mask.nii.gz")
    assert drawn_on(tmp_path / "mask.nii.gz", [first, second]) == second


# ------------------------------------------------------------------------------------------- brain masks and scans


def test_a_brain_mask_may_have_any_values_but_marks_something(write, scan):
    given = read_brain_mask(write(_classes() * 3), scan)
    assert given.problems == () and np.array_equal(data(given.image), lesion())
    with pytest.raises(MaskError, match="marks no brain"):
        read_brain_mask(write(lesion(np.float32) * np.float32(0.4)), scan)


def test_a_brain_mask_of_another_place_is_refused(write, scan):
    with pytest.raises(MaskError, match="the place of another"):
        read_brain_mask(write(affine=np.diag([-1, 1, 1, 1]) @ affine_of()), scan)


def test_a_brain_mask_stored_in_another_order_is_taken_without_a_word(tmp_path, scan):
    nib.save(stored_as(on_affine(lesion(), affine_of()), "LAS"), tmp_path / "mask.nii.gz")
    assert read_brain_mask(tmp_path / "mask.nii.gz", scan).problems == ()


@pytest.mark.parametrize(("millimetres", "fits"), [(30.0, True), (90.0, False)])
def test_a_preprocessed_scan_lies_where_the_raw_one_does(write, scan, millimetres: float, fits: bool):
    path = write(affine=affine_of(np.array(OFFSET) + [millimetres, 0, 0]), name="sub-01_desc-preproc_T1w.nii.gz")
    if fits:
        masks.check_preprocessed(path, scan)
    else:
        with pytest.raises(VisitError, match=r"sub-01_desc-preproc_T1w\.nii\.gz lies elsewhere than sub-01_T1w"):
            masks.check_preprocessed(path, scan)


@pytest.mark.parametrize("order", ["RAS", "LIA", "PSR", "SLP"])
def test_grids_in_the_closest_order_are_those_of_the_images(order: str):
    image = stored_as(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([2.0, 3, 4, 1])), order)
    grid, known = Grid.of(image).to_ras(), nib.as_closest_canonical(image)
    assert grid.shape == known.shape and np.allclose(grid.affine, known.affine)
    assert grid.largest_gap_mm(Grid.of(known)) < 1e-9
    assert grid.largest_gap_mm(Grid((3, 4, 6), known.affine)) == np.inf
