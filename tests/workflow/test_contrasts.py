"""Visits in which one contrast is missing, or might as well be: the first two steps on whole brains of 4 mm voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_app import images
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.results import Prepared
from bids_app.derivatives.visit import session_row, visit_files
from bids_app.errors import VisitError
from bids_app.images import Image
from bids_app.preprocessing import coregistration, linear, normalization
from bids_app.settings import Settings
from bids_app.study.models import Scan, Visit
from bids_app.workflow import stages
from bids_app.workflow.job import Job
from tests.conftest import stored_as
from tests.derivatives.mock import make_results, provenance
from tests.preprocessing.phantoms import MARK, elsewhere, flair_of, patient, rigid, thing

WHOLE = 1.0  # phantoms are half as long as heads by default
MOVED = rigid((6, -4, 8), (7, -5, 9))


@pytest.fixture(autouse=True)
def few_starts(monkeypatch):
    """Enough for these scans, which have no bias field; what is left out is tested in the room of its own."""
    for module in (coregistration, normalization):
        monkeypatch.setattr(module, "LIKELY_DEGREES", (-8.0, 8.0))
        monkeypatch.setattr(module, "ANY_DEGREES", (0.0,))
    monkeypatch.setattr(coregistration, "SHIFTS_MM", ())
    monkeypatch.setattr(linear, "STARTS_KEPT", 1)
    monkeypatch.setattr(linear, "SAMPLES", 10_000)
    monkeypatch.setattr(stages, "correct_bias", lambda image, mask: image)


@pytest.fixture(scope="module")
def scans() -> tuple[Image, Image]:
    """T1w and FLAIR of one brain, without skull."""
    phantom = patient(WHOLE)
    flair = flair_of(phantom)
    return phantom.brain, images.masked(flair, images.resample(phantom.mask, flair, order=0))


def job_of(folder: Path, **scans: Image | bytes) -> Job:
    """A visit of these scans; bytes are the content of a broken file."""
    found = {}
    for suffix, content in scans.items():
        path = folder / "bids" / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else images.save(content, path)
        found[suffix] = Scan(path, ScanName.parse(path.name), suffix)
    visit = Visit("01", None, found.get("T1w"), found.get("FLAIR"))
    settings = Settings(out_dir=folder / "out", work_dir=folder / "work", bids_dir=folder / "bids", device="cpu")
    return Job(visit, settings, provenance(folder / "bids"), {}, folder / "model", "run1")


def prepared(folder: Path, **scans: Image | bytes) -> Prepared:
    return stages.prepare(job_of(folder, **scans), folder / "prepare")


def problems(result: Prepared) -> list[str]:
    return [problem.code for problem in result.problems if problem.code.startswith("flair")]


# ------------------------------------------------------------------------------------------------- FLAIR alone


def test_flair_alone_is_brought_to_the_pose_with_its_left_on_the_left(scans, tmp_path: Path, orientation: str):
    _, flair = scans
    found = prepared(tmp_path, FLAIR=stored_as(elsewhere(flair, MOVED), orientation))
    assert (found.contrast, found.flair, found.flair_check) == ("FLAIR", None, None)
    assert found.skull_stripped and 1000 < found.brain_volume_ml < 2200
    posed = stages.pose(found, tmp_path / "pose")
    assert (posed.contrasts, posed.check.status) == (("FLAIR",), "accepted")
    image = images.load(posed.scan("FLAIR"))
    assert image.shape == (197, 233, 189)
    # the dark mark of the phantom, left in front above, and its place on the right
    left, right = (value_at(image, (side * 2 * MARK[0], *(2 * np.array(MARK[1:])))) for side in (1, -1))
    assert left < 0.6 * right


def value_at(image: Image, place: tuple[float, ...]) -> float:
    """Mean of a cube of 7 mm around a place in world mm."""
    voxel = np.round(np.linalg.inv(image.affine) @ [*place, 1])[:3].astype(int)
    return float(images.data(image)[tuple(slice(index - 3, index + 4) for index in voxel)].mean())


# ------------------------------------------------------------------------------------------------- FLAIR of no use


def test_a_flair_that_fits_is_used(scans, tmp_path: Path):
    t1w, flair = scans
    found = prepared(tmp_path, T1w=t1w, FLAIR=elsewhere(flair, MOVED))
    assert found.flair and found.flair_check.usable
    assert problems(found) == []


def lower_part(image: Image) -> Image:
    """The lowest two fifths of a scan."""
    return image.slicer[:, :, : 2 * image.shape[2] // 5]


@pytest.mark.parametrize("kind", ["another head", "a part", "empty", "broken"])
def test_a_flair_that_does_not_fit_is_as_good_as_missing_and_told(scans, tmp_path: Path, kind: str):
    t1w, flair = scans
    content = {
        "another head": lambda: thing(patient(WHOLE)),
        "a part": lambda: lower_part(flair),
        "empty": lambda: images.like(flair, np.zeros(flair.shape, np.float32)),
        "broken": lambda: b"no image",
    }[kind]()
    found = prepared(tmp_path, T1w=t1w, FLAIR=content)
    assert (found.flair, found.flair_native, found.contrast) == (None, None, "T1w")
    measured = kind in ("another head", "a part")
    assert problems(found) == ["flair-misaligned" if measured else "flair-unusable"]
    assert found.problems[-1].message.startswith("The FLAIR is treated as missing. ")
    assert found.problems[-1].files == ("sub-01_FLAIR.nii.gz",)
    assert (found.flair_check is not None and not found.flair_check.usable) == measured
    check_that_outputs_speak_of_the_t1w_alone(found, tmp_path)


def check_that_outputs_speak_of_the_t1w_alone(found: Prepared, folder: Path) -> None:
    _, posed, segmented, normalized = make_results(folder / "made", found.visit)
    files = list(visit_files(found, segmented, normalized, provenance(folder)))
    assert not [item for item in files if "FLAIR" in item.path.name]
    probability = "sub-01_space-T1w_label-L_desc-nnunet_probseg.nii.gz"
    sidecar = next(item.sidecar for item in files if item.path.name == probability)
    assert sidecar["Sources"] == ["bids::sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    row = session_row(found, posed, segmented, normalized, found.problems)
    assert (row["channels"], row["flair_registration"]) == ("T1w", "failed" if found.flair_check else None)


@pytest.mark.parametrize("content", ["empty", "broken"])
def test_a_t1w_of_no_use_is_an_error_even_with_a_good_flair(scans, tmp_path: Path, content: str):
    t1w, flair = scans
    broken = b"no image" if content == "broken" else images.like(t1w, np.zeros(t1w.shape, np.float32))
    with pytest.raises(VisitError, match="sub-01_T1w"):
        prepared(tmp_path, T1w=broken, FLAIR=flair)
