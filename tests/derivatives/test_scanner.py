"""What raw sidecars tell of the scanner, inherited ones included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_app.derivatives.scanner import NO_SCANNER, Scanner, scanner_of

SCAN = "sub-01/ses-1/anat/sub-01_ses-1_acq-mprage_T1w"


def put(root: Path, name: str, **content) -> None:
    path = root / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def found(root: Path) -> Scanner:
    return scanner_of(root / f"{SCAN}.nii.gz", root)


def test_the_sidecar_of_the_scan_itself(tmp_path: Path):
    put(tmp_path, SCAN, Manufacturer="Siemens", ManufacturersModelName="Prisma  fit", MagneticFieldStrength=3)
    assert found(tmp_path) == Scanner("Siemens", "Prisma fit", 3.0)


def test_sidecars_above_serve_what_lies_below_and_the_nearest_is_right(tmp_path: Path):
    put(tmp_path, "T1w", Manufacturer="GE", MagneticFieldStrength=1.5, ManufacturersModelName="Signa")
    put(tmp_path, "acq-mprage_T1w", MagneticFieldStrength=3)
    put(tmp_path, "sub-01/sub-01_T1w", ManufacturersModelName="Discovery")
    assert found(tmp_path) == Scanner("GE", "Discovery", 3.0)
    put(tmp_path, SCAN, Manufacturer="Philips")
    assert found(tmp_path) == Scanner("Philips", "Discovery", 3.0)


@pytest.mark.parametrize(
    "name", ["FLAIR", "acq-space_T1w", "sub-02/sub-02_T1w", "sub-01/ses-2/sub-01_ses-2_T1w", "../T1w", "sub-01/my_T1w"]
)
def test_sidecars_of_other_scans_do_not_count(tmp_path: Path, name: str):
    root = tmp_path / "raw"
    (root / "sub-01").mkdir(parents=True)
    put(root, name, Manufacturer="GE")
    assert found(root) == NO_SCANNER


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Manufacturer": "GE",}', "null"])
def test_a_broken_sidecar_tells_nothing(tmp_path: Path, text: str):
    put(tmp_path, "T1w", Manufacturer="GE")
    path = tmp_path / f"{SCAN}.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert found(tmp_path) == Scanner("GE", None, None)


@pytest.mark.parametrize("value", [None, [], {"a": 1}, "n/a", "", 7, True])
def test_names_of_another_type_are_none(tmp_path: Path, value):
    put(tmp_path, SCAN, Manufacturer=value, ManufacturersModelName=value)
    assert found(tmp_path) == NO_SCANNER


@pytest.mark.parametrize(("value", "strength"), [("3", 3.0), (2.89, 2.89), (30000, None), (0, None), ("x", None)])
def test_field_strength(tmp_path: Path, value, strength):
    put(tmp_path, SCAN, MagneticFieldStrength=value)
    assert found(tmp_path).field_strength_t == strength


def test_a_scan_outside_the_dataset_has_its_own_sidecar(tmp_path: Path):
    put(tmp_path, SCAN, Manufacturer="GE")
    assert scanner_of(tmp_path / f"{SCAN}.nii.gz", tmp_path / "elsewhere").manufacturer == "GE"
