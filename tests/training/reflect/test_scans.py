"""Healthy scans: found, prepared, kept, and split by subject."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_app import images
from bids_app.anomaly.slices import box, to_slices
from bids_app.derivatives.results import Aligned, Prepared
from bids_app.errors import DatasetError, NoInputError, VisitError
from bids_app.measures.volumes import volume_ml
from bids_app.preprocessing import headers, masks
from bids_app.preprocessing.checks import Check
from bids_app.settings import AnomalyTraining
from bids_app.training.reflect import scans
from bids_app.training.reflect.scans import find_scans, gather, grey_slices, healthy_brains, prepare_scans, scan_table
from bids_app.workflow import stages
from tests.conftest import stored_as
from tests.training.own.study import MASKS, ball, make_study
from tests.training.own.study import brain as mni_brain

IDENTITY = tuple(map(tuple, np.eye(4)))


def asked(root: Path, **options) -> AnomalyTraining:
    return AnomalyTraining("reflect", root / "bids", root / "out", "m", root / "work", device="cpu", **options)


@pytest.fixture
def unprepared(monkeypatch):
    """Scans lie in MNI already, without skull."""
    leave_unprepared(monkeypatch)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four prepared scans with lesion, and how they were asked for."""
    root = tmp_path_factory.mktemp("four")
    write_visit(root, "RAS")
    settings = asked(root, masks="masks/sub-{subject}_mask.nii.gz")
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_unprepared(monkeypatch)
        return settings, prepare_scans(find_scans(settings), settings, print)


def leave_unprepared(monkeypatch):
    def prepare(job, folder):
        scan = headers.clean(job.visit.reference.path).image
        mask = images.like(scan, (images.data(scan) > 0).astype(np.uint8))
        reference, brain_mask = images.save(scan, folder / "r.nii.gz"), images.save(mask, folder / "m.nii.gz")
        return Prepared(job.visit, reference, brain_mask, volume_ml(mask), True)

    monkeypatch.setattr(stages, "prepare", prepare)
    monkeypatch.setattr(stages, "pose", lambda prepared, folder: None)
    monkeypatch.setattr(
        stages, "to_mni", lambda prepared, posed, lesion: Aligned(IDENTITY, Check("accepted", 1.0, 1.0, ""))
    )


def write_visit(root: Path, orientation: str) -> None:
    """A brain whose left half is brighter, and a lesion in it, high up."""
    brain = mni_brain(3)
    left = np.indices(brain.shape)[0] < np.linalg.inv(brain.affine)[0, 3]
    values = images.data(brain) * np.where(left, 1.4, 1.0).astype(np.float32)
    lesion = images.like(brain, ball(brain, (-30.0, -20.0, 45.0), 9.0))
    for number in range(4):
        stem = f"sub-{number}"
        scan = stored_as(images.like(brain, values), orientation)
        images.save(scan, root / "bids" / stem / "anat" / f"{stem}_T1w.nii.gz")
        images.save(stored_as(lesion, orientation), root / "bids" / "masks" / f"{stem}_mask.nii.gz")
    (root / "bids" / "dataset_description.json").write_text(json.dumps({"Name": "Four", "BIDSVersion": "1.11.1"}))


def test_left_is_left_and_slices_with_lesion_are_known(tmp_path, orientation, unprepared):
    write_visit(tmp_path, orientation)
    settings = asked(tmp_path, masks="masks/sub-{subject}_mask.nii.gz", participants=("0", "1", "2", "3"))
    scan = find_scans(settings).scans[0]
    grey, clean = grey_slices(scan, settings, tmp_path / "steps")
    assert grey.shape == to_slices(box()).shape
    middle = grey.shape[2] // 2
    brain = grey > 0
    assert grey[..., :middle][brain[..., :middle]].mean() > 1.2 * grey[..., middle:][brain[..., middle:]].mean()
    heights = box().affine[2, 3] + np.flatnonzero(~clean)
    assert 36 <= heights.min() <= 40 and 50 <= heights.max() <= 54


def test_a_mask_outside_of_the_brain_makes_no_slices_healthy(tmp_path, unprepared):
    write_visit(tmp_path, "RAS")
    path = tmp_path / "bids" / "masks" / "sub-0_mask.nii.gz"
    lesion = masks.read_lesion_mask(path, path).image
    images.save(
        images.like(lesion, ball(lesion, (0.0, -20.0, -60.0), 9.0)), tmp_path / "bids" / "masks" / "sub-0_mask.nii.gz"
    )
    settings = asked(tmp_path, masks="masks/sub-{subject}_mask.nii.gz", participants=("0", "1", "2", "3"))
    with pytest.raises(VisitError, match="lies outside the brain"):
        grey_slices(find_scans(settings).scans[0], settings, tmp_path / "steps")


def test_slices_with_lesion_are_left_out(four):
    _, ready = four
    grey, counts = next(healthy_brains(ready))
    assert 10 < (~counts).sum() < 20 and grey[~counts].any()  # seen, and not counted
    slices = gather(ready)
    assert not ((slices.heights > 39) & (slices.heights < 51)).any()
    assert set(slices.subjects) == {f"sub-{number}" for number in range(4)}


def test_without_masks_all_slices_of_ixi_are_healthy(tmp_path, unprepared):
    write_visit(tmp_path / "as_bids", "LAS")
    (tmp_path / "bids").mkdir()
    for number, scan in enumerate(sorted((tmp_path / "as_bids").rglob("*_T1w.nii.gz"))):
        scan.rename(tmp_path / "bids" / f"IXI{number:03d}-Guys-0828-T1.nii.gz")
    settings = asked(tmp_path)
    ready = prepare_scans(find_scans(settings), settings, print)
    assert all(each.read()[1].all() for each in ready)
    slices = gather(ready)
    assert set(slices.subjects) == {f"sub-IXI{number:03d}" for number in range(4)}
    middle = slices.images.shape[2] // 2
    left, right = (side[side > 0].mean() for side in np.split(slices.images, [middle], axis=2))
    assert left > 1.2 * right


def test_scans_are_prepared_once(four, monkeypatch):
    settings, before = four
    found = find_scans(settings)
    assert found.name == "Four" and found.subjects == ("0", "1", "2", "3") and len(found.held_out) == 2
    monkeypatch.setattr(scans, "grey_slices", None)
    assert prepare_scans(found, settings, print) == before
    assert not [path for path in before[0].path.parent.iterdir() if path.name.startswith(".")]


def test_a_scan_that_fails_is_left_out(tmp_path, tiny, monkeypatch):
    root = make_study(tmp_path / "bids")
    working = scans.grey_slices

    def failing(scan, settings, folder):
        if scan.visit.subject == "03":
            raise VisitError("sub-03_ses-1 could not be aligned with MNI.")
        return working(scan, settings, folder)

    monkeypatch.setattr(scans, "grey_slices", failing)
    said: list[str] = []
    found = find_scans(asked(tmp_path))
    ready = prepare_scans(found, asked(tmp_path), said.append)
    assert "left out sub-03_ses-1: sub-03_ses-1 could not be aligned with MNI." in said
    table = scan_table(found, ready).set_index("visit")
    assert table.problem["sub-03_ses-1"] == "not-prepared" and len(ready) == len(found.scans) - 1
    assert set(table.use.dropna()) == {"train", "validation"} and root.is_dir()


def test_no_subject_is_in_both_uses(tmp_path, tiny):
    make_study(tmp_path / "bids")
    found = find_scans(asked(tmp_path))
    table = scan_table(found, prepare_scans(found, asked(tmp_path), print))
    subjects = table.visit.str.split("_").str[0]
    assert table.groupby(subjects).use.nunique().max() == 1


def test_most_scans_failing_ends_it(tmp_path, tiny, monkeypatch):
    make_study(tmp_path / "bids")

    def broken(*_):
        raise VisitError("broken")

    monkeypatch.setattr(scans, "grey_slices", broken)
    with pytest.raises(DatasetError, match="more than half"):
        prepare_scans(find_scans(asked(tmp_path)), asked(tmp_path), print)


def test_ixi_is_understood(tmp_path):
    (tmp_path / "bids").mkdir()
    for number, site in ((2, "Guys-0828"), (12, "HH-1211"), (20, "IOP-0001"), (33, "HH-1259")):
        (tmp_path / "bids" / f"IXI{number:03d}-{site}-T1.nii.gz").touch()
        (tmp_path / "bids" / f"IXI{number:03d}-{site}-T2.nii.gz").touch()
    found = find_scans(asked(tmp_path))
    assert found.name == "IXI" and found.subjects == ("IXI002", "IXI012", "IXI020", "IXI033")
    with pytest.raises(NoInputError, match="no FLAIR"):
        find_scans(asked(tmp_path, contrast="FLAIR"))
    with pytest.raises(NoInputError, match="has no IXI099"):
        find_scans(asked(tmp_path, participants=("IXI099",)))


def test_too_few_subjects_are_told(tmp_path):
    make_study(tmp_path / "bids")
    with pytest.raises(NoInputError, match="1 subject with a T1w"):
        find_scans(asked(tmp_path, participants=("01",)))
    with pytest.raises(NoInputError, match=r"0 subjects with a FLAIR.*sub-01_ses-1 has no FLAIR"):
        find_scans(asked(tmp_path, contrast="FLAIR"))


def test_a_changed_scan_is_prepared_anew(tmp_path, tiny):
    make_study(tmp_path / "bids")
    settings = asked(tmp_path)
    before = {each.path for each in prepare_scans(find_scans(settings), settings, print)}
    scan = find_scans(settings).scans[0].visit.reference.path
    images.save(images.like(images.load(scan), images.data(images.load(scan)) + 1), scan)
    after = {each.path for each in prepare_scans(find_scans(settings), settings, print)}
    assert len(before & after) == len(before) - 1
    stripped = replace(settings, skull_stripped="yes")
    assert not after & {each.path for each in prepare_scans(find_scans(stripped), stripped, print)}


def test_masks_of_patients_find_their_scans(tmp_path, tiny):
    make_study(tmp_path / "bids")
    found = find_scans(asked(tmp_path, masks=MASKS))
    assert all(scan.case is not None for scan in found.scans) and len(found.scans) == 7
