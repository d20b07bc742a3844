"""The demo dataset is frozen, valid and looks as it should; the score measures what it says."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives import names
from bids_app.measures.volumes import volume_class, volume_ml
from demo import dataset, score
from tests.conftest import stored_as

#: Over the voxels and affines of all scans and true masks. It changes only with a good reason, which goes to the
#: changelog, because scores on the demo can no longer be compared across the change.
CHECKSUM = "8d7a19d7c416775201ddbf773f909c7da142b4c4158bfa28ce3a457e8272de1f"

SCANS = ("sub-01_ses-1_T1w", "sub-01_ses-1_FLAIR", "sub-01_ses-2_T1w", "sub-01_ses-2_FLAIR",
         "sub-02_T1w", "sub-03_T1w", "sub-03_FLAIR")  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The demo dataset, made once: some 20 s of processor time."""
    folder = tmp_path_factory.mktemp("demo")
    dataset.write_dataset(folder)
    return folder


def scan(folder: Path, stem: str) -> nib.Nifti1Image:
    return nib.load(next(folder.glob(f"sub-*/**/{stem}.nii.gz")))


def checksum(folder: Path) -> str:
    """Digest of voxels and affines: those, unlike the files' bytes, do not depend on zlib or header fields."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.nii.gz")):
        image = nib.load(path)
        voxels = np.ascontiguousarray(image.dataobj).tobytes()
        digest.update(hashlib.sha256(voxels).hexdigest().encode())
        digest.update(str((image.affine.round(3) + 0.0).tolist()).encode())
    return digest.hexdigest()


def test_is_frozen(demo):
    # Rounding to whole numbers at the end absorbs what processors and maths libraries differ in: all arithmetic
    # is in double precision, and noise of 3e-16 put on every interpolated value left every voxel the same.
    assert checksum(demo) == CHECKSUM


def test_shares_no_code_with_the_app():
    tree = ast.parse(Path(dataset.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "nibabel" in imported
    assert not [name for name in imported if name.startswith("bids_app")]


def test_has_the_scans_in_several_storage_orders_and_voxel_sizes(demo):
    assert sorted(path.name.removesuffix(".nii.gz") for path in demo.glob("sub-*/**/*.nii.gz")) == sorted(SCANS)
    orders = {stem: "".join(nib.aff2axcodes(scan(demo, stem).affine)) for stem in SCANS if stem.endswith("T1w")}
    assert orders == {"sub-01_ses-1_T1w": "RAS", "sub-01_ses-2_T1w": "LAS", "sub-02_T1w": "LIA", "sub-03_T1w": "RAS"}
    sizes = {tuple(round(float(size), 3) for size in scan(demo, stem).header.get_zooms()) for stem in SCANS}
    assert sizes == {(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (1.2, 1.2, 1.2), (1.0, 1.0, 1.2)}


def test_is_small_on_disk(demo):
    assert sum(path.stat().st_size for path in demo.rglob("*") if path.is_file()) < 25e6


def test_true_lesions_have_the_planned_side_and_size(demo):
    found = {}
    for path in score.true_masks(demo):
        mask = nib.load(path)
        centre = images.world(mask, np.argwhere(np.asarray(mask.dataobj) > 0)).mean(axis=0)
        found[path.name.split("_label")[0]] = ("left" if centre[0] < 0 else "right", volume_class(volume_ml(mask)))
    assert found == {
        "sub-01_ses-1": ("left", "medium"),
        "sub-01_ses-2": ("left", "medium"),
        "sub-02": ("right", "small"),
        "sub-03": ("right", "large"),
    }


@pytest.mark.parametrize("stem", SCANS)
def test_lesions_are_dark_in_t1w_and_bright_in_flair_where_the_truth_says(demo, stem):
    image = scan(demo, stem)
    truth = next(path for path in score.true_masks(demo) if path.name.startswith(stem.rsplit("_", 1)[0]))
    lesion = images.resample(nib.load(truth), image, order=0)
    values, inside = np.asarray(image.dataobj), np.asarray(lesion.dataobj) > 0
    healthy = np.median(values[(values > 0) & ~inside])
    ratio = np.median(values[inside]) / healthy
    assert ratio < 0.7 if stem.endswith("T1w") else ratio > 1.15


def test_follow_up_shows_the_same_head_moved_and_a_smaller_lesion(demo):
    first, second = (nib.load(path) for path in score.true_masks(demo)[:2])
    assert 0.6 < volume_ml(second) / volume_ml(first) < 0.9
    assert not np.allclose(images.to_ras(scan(demo, SCANS[0])).dataobj, images.to_ras(scan(demo, SCANS[2])).dataobj)


def test_validates_with_nothing_but_recommended_scanner_names(demo):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    ended = subprocess.run([validator, demo, "--format", "json"], capture_output=True, text=True, check=False)
    issues = json.loads(ended.stdout)["issues"]["issues"]
    assert ended.returncode == 0
    assert {issue["code"] for issue in issues} <= {"SIDECAR_KEY_RECOMMENDED", "JSON_KEY_RECOMMENDED"}


@pytest.fixture
def scored(tmp_path, asymmetric, orientation) -> tuple[Path, Path]:
    """A dataset with one true mask, stored in some order, and an output folder where it was found exactly, RAS."""
    mask = images.like(asymmetric, (images.data(asymmetric) == 200).astype(np.uint8))
    raw, out = tmp_path / "raw", tmp_path / "out"
    truth = raw / dataset.TRUTH / "sub-01/ses-1/anat/sub-01_ses-1_label-L_desc-truth_mask.nii.gz"
    images.save(stored_as(mask, orientation), truth)
    images.save(mask, out / names.lesion_mask(names.ScanName.parse("sub-01_ses-1_T1w.nii.gz")))
    return raw, out


def test_score_is_one_for_the_truth_in_any_storage_order(scored, capsys):
    assert score.main([str(folder) for folder in scored]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines[1:]] == [["sub-01_ses-1", "0.1", "0.1", "1.000"], ["mean", "1.000"]]


def test_score_is_zero_for_the_mirrored_truth(scored):
    raw, out = scored
    path = next(out.rglob("*_mask.nii.gz"))
    mask = nib.load(path)
    mirrored = images.like(mask, np.asarray(mask.dataobj)[::-1].copy())
    images.save(mirrored, path)
    assert score.score(score.true_masks(raw)[0], out).dice == 0


def test_score_of_half_the_lesion(scored):
    raw, out = scored
    path = next(out.rglob("*_mask.nii.gz"))
    values = np.asarray(nib.load(path).dataobj).copy()
    values[:, :, :10] = 0
    images.save(images.like(nib.load(path), values), path)
    assert score.score(score.true_masks(raw)[0], out).dice == pytest.approx(2 / 3)


def test_score_names_a_missing_mask(scored, capsys):
    raw, out = scored
    next(out.rglob("*_mask.nii.gz")).unlink()
    assert score.main([str(raw), str(out)]) == 1
    assert "no mask" in capsys.readouterr().out


def test_score_without_truth_or_arguments(tmp_path, capsys):
    assert score.main([str(tmp_path), str(tmp_path)]) == 2
    assert "python -m demo.dataset" in capsys.readouterr().err
    assert score.main([]) == 2
