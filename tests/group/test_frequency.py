"""The lesion frequency map: who weighs what, left stays left, what is left out."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.write import write_image, write_json
from bids_app.group.frequency import FrequencyMap
from bids_app.group.run import _map_line
from tests.conftest import stored_as
from tests.group.mock import LEFT, RIGHT, SPACE, add_done, add_failed, run_lines, standard_mask

MAP = names.group_frequency(SPACE)


def share_at(image: nib.Nifti1Image, world: tuple[float, float, float]) -> float:
    """Value of an image at a place in mm."""
    voxel = nib.affines.apply_affine(np.linalg.inv(image.affine), world).round().astype(int)
    return float(np.asarray(image.dataobj)[tuple(voxel)])


LEFT_MM, RIGHT_MM = (-7, -1, 1), (7, -1, 1)


def test_every_participant_weighs_the_same(tmp_path):
    add_done(tmp_path, "01", "1", mask=standard_mask(LEFT))
    add_done(tmp_path, "01", "2", mask=standard_mask(LEFT, RIGHT))
    add_done(tmp_path, "01", "3", mask=standard_mask(LEFT), contrast="FLAIR")
    add_done(tmp_path, "02", mask=standard_mask())
    run_lines(tmp_path)
    image = nib.load(tmp_path / MAP)
    assert image.get_data_dtype() == np.float32
    assert share_at(image, LEFT_MM) == pytest.approx(0.5)
    assert share_at(image, RIGHT_MM) == pytest.approx(1 / 6)
    assert np.asarray(image.dataobj).sum() == pytest.approx(0.5 + 1 / 6)
    assert (image.header["sform_code"], image.header["qform_code"]) == (4, 4)


def test_left_stays_left_in_every_storage_order(tmp_path, orientation):
    add_done(tmp_path, "01", mask=stored_as(standard_mask(LEFT), orientation))
    add_done(tmp_path, "02", mask=standard_mask(LEFT))
    add_done(tmp_path, "03", mask=stored_as(standard_mask(RIGHT), orientation))
    lines = run_lines(tmp_path)
    image = nib.load(tmp_path / MAP)
    assert not [line for line in lines if line.startswith("WARNING")]
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert (share_at(image, LEFT_MM), share_at(image, RIGHT_MM)) == pytest.approx((2 / 3, 1 / 3))


def test_the_sidecar_says_how_and_of_whom(tmp_path):
    add_done(tmp_path, "01", "1")
    add_done(tmp_path, "01", "2")
    run_lines(tmp_path)
    sidecar = json.loads((tmp_path / names.sidecar(MAP)).read_text(encoding="utf-8"))
    stem = f"space-{SPACE}_res-1_label-L_desc-nnunet_mask.nii.gz"
    assert sidecar["Sources"] == [f"bids::sub-01/ses-{s}/anat/sub-01_ses-{s}_{stem}" for s in (1, 2)]
    assert (sidecar["Participants"], sidecar["Visits"]) == (1, 2)
    assert "every participant weighs the same" in sidecar["Description"]
    assert set(sidecar["Resolution"]) == {names.STANDARD_RES}


def test_a_map_for_every_standard_space(tmp_path):
    record = add_done(tmp_path, "01")["record"]
    content = json.loads(record.read_text(encoding="utf-8"))
    other = names.lesion_mask(names.ScanName.parse("sub-01_T1w.nii.gz"), "MNI152NLin6Asym")
    write_image(tmp_path / other, standard_mask(RIGHT))
    write_json(record, content | {"outputs": {**content["outputs"], str(other): "0"}})
    run_lines(tmp_path)
    assert share_at(nib.load(tmp_path / names.group_frequency("MNI152NLin6Asym")), RIGHT_MM) == 1
    assert share_at(nib.load(tmp_path / MAP), RIGHT_MM) == 0


def test_masks_on_another_grid_are_named_and_left_out(tmp_path):
    moved = standard_mask(RIGHT)
    moved = images.on_affine(np.asarray(moved.dataobj), moved.affine + np.eye(4, k=3))
    add_done(tmp_path, "01", mask=moved)
    add_done(tmp_path, "02")
    add_done(tmp_path, "03")
    warnings = [line for line in run_lines(tmp_path) if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "sub-01_space" in warnings[0]
    assert "another grid" in warnings[0]
    assert share_at(nib.load(tmp_path / MAP), LEFT_MM) == 1


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated"])
def test_unreadable_masks_are_named_and_left_out(tmp_path, damage):
    path = add_done(tmp_path, "01")["mask"]
    add_done(tmp_path, "02", mask=standard_mask(RIGHT))
    whole = path.read_bytes()
    path.unlink()
    if damage != "absent":
        path.write_bytes(whole[: len(whole) * 2 // 3] if damage == "truncated" else b"")
    warnings = [line for line in run_lines(tmp_path) if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "sub-01_space" in warnings[0]
    assert share_at(nib.load(tmp_path / MAP), RIGHT_MM) == 1


def test_masks_whose_registration_failed_are_left_out(tmp_path):
    path = add_done(tmp_path, "01")["mask"]
    write_json(names.sidecar(path), {"Registration": {"Status": "failed"}})
    lines = run_lines(tmp_path)
    assert "the registration to this space failed its check" in lines[0]
    assert "No lesion frequency map: no finished visit has a usable lesion mask in a standard space." in lines


def test_a_map_of_an_earlier_run_does_not_outlive_its_masks(tmp_path):
    add_done(tmp_path, "01")
    run_lines(tmp_path)
    assert (tmp_path / MAP).is_file()
    add_failed(tmp_path, "01")
    run_lines(tmp_path)
    assert not list(tmp_path.glob("group_space-*"))


def test_a_place_in_the_middle_is_not_said_with_a_sign(tmp_path):
    mask = standard_mask(LEFT)
    affine = mask.affine.copy()
    affine[:3, 3] += [7 - 0.3, 1 - 0.4, -1 + 0.2]
    add_done(tmp_path, "01", mask=images.on_affine(np.asarray(mask.dataobj), affine))
    assert any(line.endswith("(first at 0, 0, 0 mm).") for line in run_lines(tmp_path))


def test_a_map_without_any_lesion(tmp_path):
    add_done(tmp_path, "01", mask=standard_mask(), volumes=())
    assert f"Lesion frequency map in {SPACE}: 1 participant, 1 visit, no lesion anywhere." in run_lines(tmp_path)


def test_a_peak_near_the_middle_has_no_minus_zero():
    affine = np.eye(4)
    affine[:3, 3] = [-0.2, 0.3, -7.2]
    image = nib.Nifti1Image(np.ones((1, 1, 1), dtype=np.float32), affine)
    assert "(first at 0, 0, -7 mm)" in _map_line(FrequencyMap(SPACE, image, ()))
