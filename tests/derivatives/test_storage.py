"""How images are stored: no value leaves its side of a threshold, and codes say which space it is."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives.storage import GREY_LEVELS, MAP_STEP, FormCode, Kind, Labels, Map, Scan, stored
from bids_app.derivatives.write import write_image

RNG = np.random.default_rng(5)
SHAPE = (20, 21, 22)


def image_of(values: np.ndarray) -> nib.Nifti1Image:
    return images.on_affine(values, np.diag([-1.0, 1.5, 2.0, 1.0]))


def written(folder: Path, values: np.ndarray, kind: Kind, code: FormCode = FormCode.SCANNER) -> nib.Nifti1Image:
    return nib.load(write_image(folder / "image.nii.gz", stored(image_of(values), kind, code)))


def mask(folder: Path, inside: np.ndarray, name: str = "mask") -> Path:
    return images.save(image_of(inside), folder / f"{name}.nii.gz")


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.7, 0.25, 1e-4, 0.9999, 1.0, 1 / 3, 0.62001])
def test_rounding_takes_no_voxel_over_a_threshold(tmp_path: Path, threshold: float):
    near = np.float32(threshold) + RNG.uniform(-2e-3, 2e-3, SHAPE).astype(np.float32)
    values = np.clip(np.where(RNG.random(SHAPE) < 0.5, near, RNG.random(SHAPE, np.float32)), 0, 1).astype(np.float32)
    values.flat[:3] = threshold, np.nextafter(np.float32(threshold), np.float32(0)), 0
    found = written(tmp_path, values, Map(threshold=threshold))
    assert np.array_equal(found.get_fdata() >= threshold, values >= np.float32(threshold))
    assert np.abs(found.get_fdata() - values).max() <= 1.5 * MAP_STEP
    assert found.get_data_dtype() == np.int16 and found.get_fdata().min() >= 0 and found.get_fdata().max() <= 1


@pytest.mark.parametrize("threshold", [0.5, 0.25, 0.75, 0.125])
def test_the_usual_thresholds_part_the_voxels_as_before_whatever_the_models_own_is(tmp_path: Path, threshold: float):
    values = (threshold + RNG.uniform(-2e-3, 2e-3, SHAPE)).astype(np.float32)
    found = written(tmp_path, values, Map(threshold=0.2)).get_fdata()
    assert np.array_equal(found >= threshold, values >= threshold)


def test_values_of_a_map_are_the_same_in_single_and_double_precision(tmp_path: Path):
    found = written(tmp_path, RNG.random(SHAPE, np.float32), Map())
    raw, slope = np.asarray(found.dataobj.get_unscaled()), found.dataobj.slope
    assert np.array_equal(raw.astype(np.float32) * np.float32(slope), raw.astype(np.float64) * slope)
    assert np.array_equal(images.data(found), found.get_fdata())


def test_a_map_is_zero_outside_the_brain_and_kept_in_the_lesion(tmp_path: Path):
    values, brain, lesion = np.full(SHAPE, 0.8, np.float32), np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    brain[5:10], lesion[9:12] = 1, 1
    found = written(tmp_path, values, Map((mask(tmp_path, brain), mask(tmp_path, lesion, "lesion")), 0.5)).get_fdata()
    assert (found[5:12] > 0.79).all() and not found[:5].any() and not found[12:].any()


def test_what_is_no_number_is_zero(tmp_path: Path):
    values = np.full(SHAPE, 0.5, np.float32)
    values[0], values[1], values[2] = np.nan, np.inf, -np.inf
    for kind in (Map(), Scan()):
        found = written(tmp_path, values, kind).get_fdata()
        assert not found[:3].any() and np.allclose(found[3:], 0.5, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 800.0, 4095.0, 3e5])
def test_a_scan_keeps_its_grey_values(tmp_path: Path, scale: float):
    values = (scale * RNG.random(SHAPE)).astype(np.float32)
    found = written(tmp_path, values, Scan())
    assert found.get_data_dtype() == np.int16
    assert np.abs(found.get_fdata() - values).max() <= scale / GREY_LEVELS / 2


def test_the_brightest_voxel_of_a_scan_fits_and_negative_ones_stay_negative(tmp_path: Path):
    values = RNG.random(SHAPE).astype(np.float32)
    values.flat[:2] = 500.0, -300.0
    found = written(tmp_path, values, Scan()).get_fdata()
    assert found.flat[0] == pytest.approx(500, abs=0.01) and found.flat[1] == pytest.approx(-300, abs=0.01)
    assert np.abs(found - values).max() <= 500 / 32767


@pytest.mark.parametrize("values", [np.zeros(SHAPE, np.float32), np.full(SHAPE, -2.0, np.float32)])
def test_a_scan_without_bright_voxels(tmp_path: Path, values: np.ndarray):
    assert np.allclose(written(tmp_path, values, Scan()).get_fdata(), values, atol=1e-3)


@pytest.mark.parametrize(("largest", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)])
def test_labels_take_the_smallest_type(tmp_path: Path, largest: int, dtype: type):
    values = np.zeros(SHAPE, np.int32)
    values[3, 4, 5] = largest
    found = written(tmp_path, values, Labels())
    assert found.get_data_dtype() == dtype and np.array_equal(np.asarray(found.dataobj), values)


@pytest.mark.parametrize("kind", [Scan(), Map(), Labels()])
@pytest.mark.parametrize("code", list(FormCode))
def test_both_forms_carry_the_code_and_the_affine(tmp_path: Path, kind: Kind, code: FormCode):
    found = written(tmp_path, np.ones(SHAPE, np.float32), kind, code)
    assert (found.header["sform_code"], found.header["qform_code"]) == (code, code)
    for affine in (found.affine, found.get_sform(), found.get_qform()):
        assert np.allclose(affine, np.diag([-1.0, 1.5, 2.0, 1.0]))
    assert found.header.get_xyzt_units() == ("mm", "sec")
