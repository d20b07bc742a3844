"""Training scans go the way of the App's own, and their masks with them."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app import images
from bids_app.errors import DatasetError, UnavailableError
from bids_app.preprocessing.checks import Check, Registration
from bids_app.preprocessing.templates import load_template
from bids_app.settings import DEFAULT_SPACE, TrainingSettings
from bids_app.study.models import Problem, Severity
from bids_app.training import preparation
from bids_app.training.own import prepare
from bids_app.training.own.cases import Case, find_cases
from bids_app.workflow import stages
from tests.training.own.study import MASKS, VISITS, lying, make_study

#: sub-01_ses-1 is stored RAS, sub-01_ses-2 LAS and sub-02_ses-1 LIA; the first two lesions are left, the last is right.
STORED = {"RAS": 0, "LAS": 1, "LIA": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_study(tmp_path_factory.mktemp("study") / "bids", flair=True, visits=VISITS[:3])


@pytest.fixture
def no_bias_correction(monkeypatch):
    """It takes half of the time, and is tested elsewhere."""
    monkeypatch.setattr(stages, "correct_bias", lambda image, mask: image)


def settings_of(root: Path, fusion: str = "t1w") -> TrainingSettings:
    out, work = root.parent / "out", root.parent / "work"
    return TrainingSettings(root, MASKS, out, fusion, fusion, work, device="cpu", skull_stripped="yes")


def places(ready: prepare.Ready) -> np.ndarray:
    """World coordinates of the lesion, ``(n, 3)``."""
    mask = images.load(ready.mask)
    return nib.affines.apply_affine(mask.affine, np.argwhere(images.data(mask) > 0))


def check(ready: prepare.Ready, expected: tuple[float, float, float], radius: float, contrast: str) -> None:
    """The lesion lies where it was put, and the scan is unlike its mirror image there."""
    assert np.linalg.norm(places(ready).mean(axis=0) - expected) < 1.5
    assert len(places(ready)) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.1)
    scan, mask = images.load(ready.channel(contrast)), images.load(ready.mask)
    assert scan.shape == mask.shape == (197, 233, 189)
    values, lesion = images.data(scan), images.data(mask) > 0
    ratio = np.median(values[lesion]) / np.median(values[lesion[::-1]])
    assert ratio < 0.5 if contrast == "T1w" else ratio > 2


@pytest.fixture
def known_pose(monkeypatch):
    """The registration is tested elsewhere: here the pose is how the study's heads were turned."""

    def go(number: int) -> None:
        found = Registration(np.linalg.inv(lying(number)), Check("accepted", 1.0, 1.0, ""))
        monkeypatch.setattr(stages, "to_pose", lambda brain, mask, template: found)

    return go


@pytest.mark.parametrize("order", ["RAS", "LAS", "LIA"])
def test_left_is_left_however_a_scan_is_stored(root: Path, order: str, no_bias_correction, known_pose, tmp_path: Path):
    known_pose(STORED[order])
    settings = settings_of(root)
    case = find_cases(settings).cases[STORED[order]]
    assert nib.aff2axcodes(nib.load(case.mask).affine) == tuple(order)
    _, _, radius, place = VISITS[STORED[order]]
    check(prepare.prepare_case(case, settings, ("T1w",), tmp_path), place, radius, "T1w")


@pytest.mark.slow
def test_a_flair_beside_the_t1w_lies_on_it(root: Path, no_bias_correction, tmp_path: Path):
    settings = settings_of(root, "early")
    case = find_cases(settings).cases[2]
    ready = prepare.prepare_case(case, settings, ("T1w", "FLAIR"), tmp_path)
    for contrast in ("T1w", "FLAIR"):
        check(ready, VISITS[2][3], VISITS[2][2], contrast)


@pytest.mark.slow
def test_a_flair_alone_takes_along_the_mask_drawn_on_the_t1w(root: Path, no_bias_correction, tmp_path: Path):
    settings = settings_of(root, "flair")
    case = find_cases(settings).cases[0]
    assert case.drawn_on.name.endswith("_T1w.nii.gz")
    check(prepare.prepare_case(case, settings, ("FLAIR",), tmp_path), VISITS[0][3], VISITS[0][2], "FLAIR")


class Calls:
    """Counts how often a case is prepared, and makes empty files instead."""

    def __init__(self, monkeypatch, root: Path):
        self.count = 0
        whole = images.load(next((root / "sub-01" / "ses-1" / "anat").glob("*_T1w.nii.gz")))

        def pose(prepared, folder):
            self.count += 1
            path = images.save(whole, folder / "pose.nii.gz")
            return stages.Posed((("T1w", path),), tuple(map(tuple, np.eye(4))), None)

        monkeypatch.setattr(stages, "prepare", lambda job, folder: None)
        monkeypatch.setattr(stages, "pose", pose)
        monkeypatch.setattr(prepare, "moved_mask", lambda case, matrix, grid, brain: whole)
        monkeypatch.setattr(prepare, "mask_to_reference", lambda case, prepared: np.eye(4))


def test_what_is_prepared_is_not_prepared_again(root: Path, monkeypatch, tmp_path: Path):
    calls, settings = Calls(monkeypatch, root), settings_of(root)
    case = find_cases(settings).cases[0]
    first = prepare.prepare_case(case, settings, ("T1w",), tmp_path / "a")
    assert prepare.prepare_case(case, settings, ("T1w",), tmp_path / "a") == first
    assert calls.count == 1
    first.mask.unlink()
    prepare.prepare_case(case, settings, ("T1w",), tmp_path / "a")
    assert calls.count == 2


def test_a_training_on_other_masks_leaves_the_scans_of_this_one_alone(root: Path, monkeypatch, tmp_path: Path):
    calls, settings = Calls(monkeypatch, root), settings_of(root)
    case, other = find_cases(settings).cases[:2]
    first = prepare.prepare_case(case, settings, ("T1w",), tmp_path)
    second = prepare.prepare_case(dataclasses.replace(case, mask=other.mask), settings, ("T1w",), tmp_path)
    assert calls.count == 2 and first.label == second.label
    assert first.mask != second.mask and first.mask.exists() and second.mask.exists()


def test_of_two_trainings_at_once_the_first_to_finish_counts(root: Path, monkeypatch, tmp_path: Path):
    calls, settings = Calls(monkeypatch, root), settings_of(root)
    case, meanwhile = find_cases(settings).cases[0], prepare._prepare_into

    def slower(folder: Path, ready: prepare.Ready, settings: TrainingSettings) -> None:
        meanwhile(folder, ready, settings)
        monkeypatch.setattr(prepare, "_prepare_into", meanwhile)
        inode.append(prepare.prepare_case(case, settings, ("T1w",), tmp_path).mask.stat().st_ino)

    inode: list[int] = []
    monkeypatch.setattr(prepare, "_prepare_into", slower)
    ready = prepare.prepare_case(case, settings, ("T1w",), tmp_path)
    assert calls.count == 2 and [ready.mask.stat().st_ino] == inode
    assert [path.name for path in tmp_path.iterdir()] == [ready.folder.name]


class Killed:
    """A task whose process is stopped by the operating system."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_for_memory_is_told(root: Path, monkeypatch):
    settings = dataclasses.replace(settings_of(root), nprocs=2)
    with pytest.raises(UnavailableError, match="stopped from outside") as told:
        list(preparation.each([Killed(), Killed()], settings.nprocs))
    assert "--nprocs" in told.value.hint


def test_a_changed_mask_is_prepared_again(tmp_path: Path, monkeypatch):
    root = make_study(tmp_path / "bids", visits=VISITS[:1])
    calls, settings = Calls(monkeypatch, root), settings_of(root)
    case = find_cases(settings).cases[0]
    first = prepare.prepare_case(case, settings, ("T1w",), tmp_path / "a")
    mask = images.load(case.mask)
    images.save(images.like(mask, images.data(mask) * 0), case.mask)
    assert prepare.prepare_case(case, settings, ("T1w",), tmp_path / "a").fingerprint != first.fingerprint
    assert calls.count == 2


def failing(labels: set[str]):
    def task(self):
        if self.case.label in labels:
            return Problem("not-prepared", Severity.ERROR, f"{self.case.label} is broken.")
        return prepare.Ready(self.case, (), Path("mask"), "")

    return task


def test_a_case_that_fails_is_told_and_left_out(root: Path, monkeypatch):
    settings, said = settings_of(root), []
    cases = find_cases(settings).cases
    monkeypatch.setattr(prepare._Task, "__call__", failing({cases[1].label}))
    ready = prepare.prepare_all(cases, settings, ("T1w",), said.append)
    assert [item.label for item in ready] == [cases[0].label, cases[2].label]
    assert f"left out {cases[1].label}: {cases[1].label} is broken." in said


def test_more_than_half_failing_stops(root: Path, monkeypatch):
    settings = settings_of(root)
    cases = find_cases(settings).cases
    monkeypatch.setattr(prepare._Task, "__call__", failing({case.label for case in cases[:2]}))
    with pytest.raises(DatasetError, match="2 of 3 cases could not be prepared"):
        prepare.prepare_all(cases, settings, ("T1w",), lambda line: None)


def test_a_broken_scan_is_a_sentence(tmp_path: Path):
    root = make_study(tmp_path / "bids", visits=VISITS[:1])
    settings = settings_of(root)
    case = find_cases(settings).cases[0]
    scan = case.visit.t1w.path
    scan.write_bytes(scan.read_bytes()[:3000])
    result = prepare._Task(case, settings, ("T1w",), tmp_path / "a")()
    assert isinstance(result, Problem)
    assert scan.name in result.message


def test_a_lesion_outside_the_brain_is_refused(root: Path):
    """Though it lies within the picture."""
    case: Case = find_cases(settings_of(root)).cases[0]
    grid = load_template(DEFAULT_SPACE).t1w
    everywhere, nowhere = np.ones(grid.shape, bool), np.zeros(grid.shape, bool)
    assert images.data(prepare.moved_mask(case, np.eye(4), grid, everywhere)).any()
    with pytest.raises(prepare.VisitError, match="lies outside the brain"):
        prepare.moved_mask(case, np.eye(4), grid, nowhere)
