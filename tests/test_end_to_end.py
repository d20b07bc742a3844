"""The whole App on a small dataset, as a user starts it: files, validator, left and right, resuming, being killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.datasets import load_mni152_template

from bids_app import images
from tests.anomaly.models import write_anomaly_model
from tests.conftest import stored_as
from tests.lesion.models import write_model
from tests.lesion.nnunet import dice, nnunet_predicts

ROOT = Path(__file__).parents[1]
SPACE = "MNI152NLin2009aSym"
#: An untrained network is sure of nothing: at this threshold it finds no lesion.
OPTIONS = ["--skip-bids-validation", "--device", "cpu", "--nprocs", "2", "--threshold", "0.95"]

#: Where the hand-drawn lesion lies, MNI mm: left, behind the centre, above it.
LESION_MM = np.array([-36.0, -22.0, 22.0])


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *map(str, arguments)]


def app(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT)


def moved(image: nib.Nifti1Image, degrees: float, shift_mm: tuple[float, float, float]) -> nib.Nifti1Image:
    """The same head lying differently in the scanner: only the affine changes."""
    angle = np.deg2rad(degrees)
    pose = np.eye(4)
    pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    pose[:3, 3] = shift_mm
    return images.on_affine(np.asarray(image.dataobj), pose @ image.affine)


@pytest.fixture(scope="module")
def brain() -> nib.Nifti1Image:
    """The MNI brain at 2 mm."""
    template = load_mni152_template(resolution=2)
    return images.on_affine(template.get_fdata(dtype=np.float32) * 800, template.affine)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, brain) -> Path:
    """sub-01 with T1w (stored LIA) and FLAIR, sub-02 whose file is broken, and a lesion of sub-01 drawn by hand."""
    root = tmp_path_factory.mktemp("study")
    bids = root / "bids"
    lesion = np.linalg.norm(nib.affines.apply_affine(brain.affine, np.indices(brain.shape).transpose(1, 2, 3, 0))
                            - LESION_MM, axis=-1) < 12  # fmt: skip
    t1w = images.like(brain, np.where(lesion, 0.25, 1).astype(np.float32) * images.data(brain))
    flair = images.like(brain, np.where(images.data(brain) > 0, 900 - images.data(brain), 0).astype(np.float32))
    anat = bids / "sub-01" / "ses-1" / "anat"
    images.save(stored_as(moved(t1w, 8, (6, -4, 5)), "LIA"), anat / "sub-01_ses-1_T1w.nii.gz")
    images.save(moved(flair, 5, (2, 0, 8)), anat / "sub-01_ses-1_FLAIR.nii.gz")
    broken = bids / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes((anat / "sub-01_ses-1_T1w.nii.gz").read_bytes()[:20000])
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "Small", "BIDSVersion": "1.11.1", "Authors": ["A", "B"], "License": "CC0"})
    )
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\nsub-02\t70\nsub-03\t50\n")
    drawn = root / "manual" / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_label-L_mask.nii.gz"
    images.save(moved(images.like(brain, lesion), 8, (6, -4, 5)), drawn)
    write_anomaly_model(root / "anomaly")
    write_model(root / "tiny", patch=(48, 56, 48), spacing=(4.0, 4.0, 4.0), gain=1.0)
    return root


@pytest.fixture(scope="module")
def t1w_alone(dataset: Path) -> Path:
    """A BIDS dataset of the T1w of sub-01: where the FLAIR does not matter, its registration need not be waited for."""
    bids, t1w = dataset / "bids_t1w", Path("sub-01", "ses-1", "anat", "sub-01_ses-1_T1w.nii.gz")
    for name in (t1w, Path("dataset_description.json")):
        (bids / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset / "bids" / name, bids / name)
    return bids


@pytest.fixture(scope="module")
def finished(dataset: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """Outputs of the participant level with a tiny network, and what the run said."""
    out = dataset / "out"
    run = app(
        dataset / "bids", out, "participant", "--lesion-model", dataset / "tiny", "--work-dir", dataset / "work",
        "--anomaly-model", dataset / "anomaly", "--export-lesion-roi", dataset / "roi", *OPTIONS,
    )  # fmt: skip
    return out, run


def test_the_broken_visit_fails_and_the_other_one_is_done(finished):
    _, run = finished
    assert run.returncode == 1, run.stderr
    assert "sub-01_ses-1: done in" in run.stdout
    failure = next(line for line in run.stdout.splitlines() if "sub-02: FAILED" in line)
    assert "sub-02_T1w.nii.gz" in failure
    assert "Traceback" not in run.stdout + run.stderr


def test_the_outputs_are_the_golden_ones(finished):
    out, _ = finished
    golden = (ROOT / "tests" / "golden" / "visit_t1w_flair.txt").read_text().split()
    logs = {path.relative_to(out) for pattern in ("sub-*/log/**/*", "logs/*") for path in out.glob(pattern)}
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    found = {str(path) for path in files - logs}
    failed = {"sub-02/sub-02_sessions.json", "sub-02/sub-02_sessions.tsv"}
    assert found - failed == {name for name in golden if "/log/" not in name and not name.startswith("logs/")}


def test_the_validator_is_content(finished):
    out, _ = finished
    assert app(out.parent / "bids", out, "group").returncode == 0
    done = subprocess.run(
        [Path(sys.executable).with_name("bids-validator-deno"), out, "--format", "json"], capture_output=True, text=True
    )
    assert (done.returncode, json.loads(done.stdout)["issues"]["issues"]) == (0, [])


def test_group_tables_say_who_is_missing(finished):
    out, _ = finished
    app(out.parent / "bids", out, "group")
    missing = pd.read_csv(out / "group_missing.tsv", sep="\t", keep_default_na=False)
    assert set(missing.participant_id) >= {"sub-02"}
    assert "sub-01" in set(pd.read_csv(out / "group_sessions.tsv", sep="\t").participant_id)


def test_files_of_one_space_lie_on_one_grid(finished):
    out, _ = finished
    anat = out / "sub-01" / "ses-1" / "anat"
    for pattern in ("*space-MNI*.nii.gz", "*space-T1w*.nii.gz"):
        grids = [nib.load(path) for path in anat.glob(pattern)]
        assert len(grids) >= 4
        assert all(images.same_grid(grids[0], grid) for grid in grids)
    native = nib.load(anat / "sub-01_ses-1_desc-preproc_T1w.nii.gz")
    assert nib.aff2axcodes(native.affine) == ("R", "A", "S")


def test_the_exported_roi_lies_on_the_raw_scan(finished, dataset: Path):
    raw = nib.load(dataset / "bids/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    roi = nib.load(dataset / "roi/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_roi.nii.gz")
    assert images.same_grid(raw, roi)


def test_a_second_run_does_nothing_again(finished, dataset: Path):
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "sub-01" / "ses-1").rglob("*") if path.is_file()}
    run = app(
        dataset / "bids", out, "participant", "--participant-label", "01", "--lesion-model", dataset / "tiny",
        "--work-dir", dataset / "work", "--anomaly-model", dataset / "anomaly", *OPTIONS,
    )  # fmt: skip
    assert run.returncode == 0
    assert "Done already, and unchanged: 1 visit." in run.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.fixture(scope="module")
def drawn(dataset: Path, t1w_alone: Path) -> Path:
    """Outputs with the lesion drawn by hand."""
    out = dataset / "drawn"
    run = app(
        t1w_alone, out, "participant", "--derivatives", f"manual={dataset / 'manual'}", "--work-dir", dataset / "work",
        "--lesion-model", dataset / "tiny", "--no-anomaly", *OPTIONS,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return out / "sub-01" / "ses-1" / "anat"


def test_left_is_left_from_a_scan_stored_lia_to_mni(drawn: Path):
    table = pd.read_csv(next(drawn.glob("*_dseg.tsv")), sep="\t")
    assert list(table.hemisphere) == ["L"]
    place = table.loc[0, ["mni_x_mm", "mni_y_mm", "mni_z_mm"]].to_numpy(dtype=float)
    assert np.linalg.norm(place - LESION_MM) < 4
    mask = nib.load(next(drawn.glob(f"*space-{SPACE}_res-1_label-L_desc-nnunet_mask.nii.gz")))
    centre = images.world(mask, np.argwhere(images.data(mask) > 0)).mean(axis=0)
    assert np.linalg.norm(centre - LESION_MM) < 4


def test_the_volume_is_that_of_the_drawn_mask(drawn: Path, dataset: Path):
    mask = nib.load(next((dataset / "manual").rglob("*_mask.nii.gz")))
    table = pd.read_csv(next(drawn.glob("*_dseg.tsv")), sep="\t")
    assert table.volume_ml.sum() == pytest.approx(images.data(mask).sum() * 0.008, rel=0.02)


def test_the_brain_lands_on_the_template(drawn: Path, brain):
    normal = nib.load(drawn / f"sub-01_ses-1_space-{SPACE}_res-1_desc-preproc_T1w.nii.gz")
    found = images.data(images.resample(normal, brain))
    known = images.data(brain)
    inside = known > 0
    assert np.corrcoef(found[inside], known[inside])[0, 1] > 0.8


@pytest.mark.parametrize("channels", [("T1w",), ("T1w", "FLAIR")], ids=" and ".join)
def test_a_model_without_a_card_does_what_nnunet_does_with_the_files(tmp_path: Path, brain, channels: tuple[str, ...]):
    """From BIDS_DIR to the mask; the scans lie on one grid, stored LIA."""
    t1w = images.data(brain)
    contrasts = {"T1w": t1w, "FLAIR": np.where(t1w > 0, 900 - t1w, 0)}
    noise = np.random.default_rng(0).normal(1, 0.05, t1w.shape)
    files = [tmp_path / "bids" / "sub-01" / "anat" / f"sub-01_{channel}.nii.gz" for channel in channels]
    for channel, file in zip(channels, files, strict=True):
        scan = images.like(brain, (contrasts[channel] * noise).astype(np.float32))
        images.save(stored_as(moved(scan, 8, (6, -4, 5)), "LIA"), file)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "Small", "BIDSVersion": "1.11.1"}')
    (tmp_path / "plugin.yml").write_text("plugin: Linear\n")
    model = write_model(
        tmp_path / "model", channels=channels, patch=(48, 56, 48), spacing=(3.0, 3.0, 3.0), folds=("0",),
        mirror_axes=(0,), gain=8,
    )  # fmt: skip
    run = app(
        tmp_path / "bids", tmp_path / "out", "participant", "--lesion-model", model, "--no-normalization",
        "--no-anomaly", "--skip-bids-validation", "--device", "cpu", "--nprocs", "1", "--work-dir", tmp_path / "work",
        "--use-plugin", tmp_path / "plugin.yml", "--keep-model-input",
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "model input    native (no card): the scan on its own grid, skull on" in run.stdout
    _, segmentation = nnunet_predicts(model, files, tmp_path / "nnunet")
    expected = images.data(images.to_ras(segmentation)) > 0
    mask = images.load(next((tmp_path / "out").rglob("*_space-T1w_label-L_desc-nnunet_mask.nii.gz")))
    assert 0.02 < expected.mean() < 0.9
    assert dice(images.data(mask) > 0, expected) >= 0.999
    kept = sorted((tmp_path / "out").glob("sub-01/log/*/model-input/*.nii.gz"))
    for scan, file in zip(kept, files, strict=True):
        assert np.array_equal(images.data(images.load(scan)), images.data(nib.load(file)))


def test_a_killed_run_goes_on_where_it_was(dataset: Path, t1w_alone: Path):
    out, work = dataset / "killed", dataset / "work-killed"
    arguments = command(
        t1w_alone, out, "participant", "--lesion-model", dataset / "tiny", "--no-normalization", "--no-anomaly",
        "--work-dir", work, *OPTIONS,
    )  # fmt: skip
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finished_step = wait_for(work, "*/sub-01*/prepare/result_prepare.pklz")
    process.kill()  # the run alone: its worker must notice
    process.wait()
    wait_for_end_of_group(process.pid)
    assert not list(out.rglob("*_probseg.nii.gz"))
    assert not list(out.rglob("*record.json"))
    stamp = finished_step.stat().st_mtime_ns
    again = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.PIPE, text=True)
    wait_for(work, "*/sub-01*/segment/_inputs.pklz")
    assert finished_step.stat().st_mtime_ns == stamp, "a finished step was made again"
    assert "done in" in again.communicate()[0]
    assert again.returncode == 0
    assert list(out.rglob("*_mask.nii.gz"))
    assert not list(out.rglob(".*.nii.gz")), "half-written files"


def wait_for_end_of_group(group: int, seconds: float = 5) -> None:
    """Until no process of the group is left."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker outlived its run")


def wait_for(folder: Path, pattern: str, seconds: float = 180) -> Path:
    """The first file that matches, as soon as it is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := next(folder.glob(pattern), None):
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {folder}")


@pytest.fixture(scope="module")
def with_plugin(dataset: Path, t1w_alone: Path) -> list[str]:
    """Arguments of a run through a nipype plugin that starts processes, as a cluster's jobs are."""
    (dataset / "plugin.yml").write_text("plugin: MultiProc\nplugin_args:\n  n_procs: 2\n")
    return command(
        t1w_alone, dataset / "plugin", "participant", "--lesion-model", dataset / "tiny", "--derivatives",
        f"manual={dataset / 'manual'}", "--no-normalization", "--no-anomaly", "--use-plugin", dataset / "plugin.yml",
        "--work-dir", dataset / "work-plugin", *OPTIONS,
    )  # fmt: skip


def test_a_nipype_plugin_does_the_same(dataset: Path, drawn: Path, with_plugin: list[str]):
    check_plugin(with_plugin, dataset, drawn)


@pytest.mark.slow
def test_a_nipype_plugin_does_it_again(dataset: Path, drawn: Path, with_plugin: list[str]):
    for _ in range(2):
        check_plugin([*with_plugin, "--force"], dataset, drawn)


def check_plugin(arguments: list[str], dataset: Path, drawn: Path) -> None:
    """A run through the plugin finds the drawn lesion, as a run without, and tidies up."""
    mask = "sub-01_ses-1_space-T1w_label-L_desc-nnunet_mask.nii.gz"
    found, known = dataset / "plugin" / "sub-01" / "ses-1" / "anat" / mask, nib.load(drawn / mask)
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "sub-01_ses-1: done in" in run.stdout
    assert np.array_equal(images.data(nib.load(found)), images.data(known))
    assert not list((dataset / "work-plugin").glob("*/sub-01*"))
    found.unlink()
