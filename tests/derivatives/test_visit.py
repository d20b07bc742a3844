from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.description import write_top_level
from bids_app.derivatives.names import ScanName
from bids_app.derivatives.record import Record, sha256, write_record
from bids_app.derivatives.results import Aligned, Normalized
from bids_app.derivatives.scanner import Scanner
from bids_app.derivatives.sessions import RawDataset, rebuild, write_raw_dataset, write_raw_participants
from bids_app.derivatives.visit import lesion_table, session_row, visit_files, write_files
from bids_app.errors import CannotWriteError
from bids_app.lesion.inputs import Stated, parse_input
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Reuse
from tests.derivatives.mock import IDENTITY, PASSED, make_explained, make_results, make_visit, provenance

SCAN = ScanName.parse("sub-01_ses-1_T1w.nii.gz")


@pytest.fixture(params=["t1w_flair", "flair"])
def scans(request) -> str:
    """What there is of T1w and FLAIR, as the golden lists are called."""
    return request.param


@pytest.fixture
def written(tmp_path: Path, scans: str) -> Path:
    """An output folder with one visit of a subject with sessions."""
    bids, out = tmp_path / "bids", tmp_path / "out"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "Cohort", "Authors": ["A", "B"]}))
    visit = make_visit(bids, t1w="t1w" in scans)
    prepared, posed, segmented, normalized = make_results(tmp_path / "work", visit)
    # the embedded anomaly model sees a T1w alone
    explained = make_explained(tmp_path / "work", prepared, normalized) if "t1w" in scans else None
    write_top_level(out, bids, "a1b2c3d4", {})
    outputs = write_files(out, list(visit_files(prepared, segmented, normalized, provenance(bids), explained)))
    row = session_row(prepared, posed, segmented, normalized, (), explained)
    write_record(out, Record("01", "1", "done", "0.1.0", "a1b2c3d4", "f", {}, outputs=outputs, summary=row))
    rebuild(out, "01")
    raw = RawDataset("Cohort", {"01": ["1"]})
    write_raw_participants(out, "01", raw, write_raw_dataset(out, raw))
    return out


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_names_of_a_visit_are_the_golden_ones(written: Path, scans: str):
    golden = (Path(__file__).parents[1] / "golden" / f"visit_{scans}.txt").read_text().split()
    assert [name for name in all_files(written) if not name.endswith(".lock")] == golden


def test_the_validator_finds_no_error_and_no_warning(written: Path):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    done = subprocess.run([validator, written, "--format", "json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert (done.returncode, issues) == (0, [])


def test_every_image_has_a_sidecar_that_names_what_exists(written: Path):
    for image in written.rglob("*.nii.gz"):
        sidecar = json.loads(names.sidecar(image).read_text())
        assert "Research use only" in sidecar["Description"]
        for uri in sidecar["Sources"]:
            if uri.startswith("bids::"):
                assert (written / uri.removeprefix("bids::")).is_file(), f"{image.name}: {uri}"


def test_form_codes_say_which_space_an_image_lies_in(written: Path, scans: str):
    """As fMRIPrep writes them: 1 of the scanner, 2 aligned with another scan, 4 in MNI."""
    native = "T1w" if "t1w" in scans else "FLAIR"
    own = {names.preprocessed(SCAN, native, native).name, names.brain_mask(SCAN, native).name}
    found = {path.name: nib.load(path).header for path in written.rglob("*.nii.gz")}
    for name, header in found.items():
        code = 1 if name in own else 4 if "_space-MNI" in name else 2
        assert (header["sform_code"], header["qform_code"]) == (code, code), name
    assert any("desc-preproc_FLAIR" in name for name in found)


def test_maps_are_stored_in_whole_numbers(written: Path):
    maps = [path for suffix in ("probseg", "uncertainty", "anomalymap") for path in written.rglob(f"*_{suffix}.nii.gz")]
    assert len(maps) in (4, 6)
    for path in maps:
        image = nib.load(path)
        assert (image.get_data_dtype(), image.dataobj.slope) == (np.int16, 2.0**-10)
        assert image.get_fdata().max() == pytest.approx(0.9, abs=1e-3)


def test_what_lies_in_mni_is_the_same_as_in_native_space(written: Path, scans: str):
    """FLAIR, lesions one by one and uncertainty are there, and their sidecars name what they come from."""
    lesions = "seg-lesions_res-1_desc-nnunet_dseg", "res-1_label-L_desc-nnunet_uncertainty"
    for name in (*lesions, "res-1_desc-preproc_FLAIR"):
        (path,) = written.rglob(f"*_space-MNI152NLin2009aSym_{name}.json")
        sidecar = json.loads(path.read_text())
        assert sidecar["SpatialReference"].startswith("https://") and "Registration" in sidecar
        assert sidecar["Sources"][-1].endswith("to-MNI152NLin2009aSym_mode-image_xfm.h5")
    labels = nib.load(next(written.rglob("*_space-MNI*_dseg.nii.gz")))
    mask = nib.load(next(written.rglob("*_space-MNI*_label-L_*_mask.nii.gz")))
    assert np.array_equal(labels.get_fdata() > 0, mask.get_fdata() > 0)


def test_resolution_names_the_label_of_the_file(written: Path):
    sidecars = [json.loads(path.read_text()) for path in written.rglob("*_res-1_*.json")]
    assert sidecars
    assert all(set(sidecar["Resolution"]) == {"1"} for sidecar in sidecars)


def test_lesion_sidecars_say_how_they_were_made(written: Path):
    masks = list(written.rglob("*_label-L_*.json"))
    assert len(masks) == 6
    for path in masks:
        sidecar = json.loads(path.read_text())
        assert sidecar["Model"] == {"Name": "tiny", "Version": "1.0", "SHA256": "0" * 64, "Folds": ["0", "1"]}
        assert (sidecar["Threshold"], sidecar["Device"], sidecar["Manual"]) == (0.5, "cpu", False)
        assert sidecar["MinimumVolume"] == {"Value": 10.0, "Units": "mm^3"}
        assert (sidecar["ThresholdSource"], sidecar["MinimumVolumeSource"]) == ("its card", "its card")
        assert sidecar["Input"] == {
            "Space": "rigid", "BrainExtracted": True, "BiasCorrected": True, "Source": "its card",
            "Description": "the brain, brought rigidly to MNI at 1 mm, bias field corrected", "Steps": "nnU-Net",
        }  # fmt: skip
        assert sidecar["ConfigurationHash"] == "a1b2c3d4"


@pytest.mark.parametrize(
    ("wanted", "sources"),
    [
        ("rigid", ["bids::sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz"]),
        ("native:n4", ["bids::sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz"]),
        ("native", ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"]),
        (
            "native-brain",
            [
                "bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
                "bids::sub-01/ses-1/anat/sub-01_ses-1_desc-brain_mask.nii.gz",
            ],
        ),
    ],
)
def test_a_lesion_map_comes_from_what_its_model_was_given(tmp_path: Path, wanted: str, sources: list[str]):
    prepared, _, segmented, normalized = make_results(tmp_path / "work", make_visit(tmp_path / "bids"))
    given = Stated(parse_input(wanted), "its card")
    terms = replace(segmented.model.terms, input=given, steps="StrokeSeg 2, so to say")
    segmented = replace(segmented, model=replace(segmented.model, terms=terms))
    files = visit_files(prepared, segmented, normalized, provenance(tmp_path / "bids"))
    name = "sub-01_ses-1_space-T1w_label-L_desc-nnunet_probseg.nii.gz"
    sidecar = next(item.sidecar for item in files if item.path.name == name)
    assert sidecar["Sources"] == sources
    assert "logits, StrokeSeg 2, so to say. Research" in sidecar["Description"]
    assert sidecar["Input"]["Space"] == wanted.partition(":")[0]


def test_what_was_made_on_flair_alone_says_so_everywhere(written: Path, scans: str):
    text = "".join(path.read_text() for path in (written / "sub-01" / "ses-1").rglob("*.json"))
    row = pd.read_csv(written / names.sessions_table("01"), sep="\t").iloc[0]
    if scans == "t1w_flair":
        assert (row.native_space, row.flair_registration) == ("T1w", "accepted")
        return
    assert "T1w" not in text
    assert (row.native_space, row.channels) == ("FLAIR", "FLAIR")
    assert pd.isna(row.flair_registration)
    sidecar = json.loads(next(written.rglob("*_space-FLAIR_label-L_desc-nnunet_probseg.json")).read_text())
    scan = "bids::sub-01/ses-1/anat/sub-01_ses-1_space-FLAIR_desc-preproc_FLAIR.nii.gz"
    assert (sidecar["Channels"], sidecar["Sources"], sidecar["SpatialReference"]) == (["FLAIR"], [scan], scan)
    raw = json.loads(next(written.rglob("*_space-FLAIR_desc-preproc_FLAIR.json")).read_text())
    assert raw["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"]


def test_links_to_other_datasets_are_relative(written: Path):
    description = json.loads((written / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../bids"}
    assert description["GeneratedBy"][0]["Name"] == "afterstroke"


def test_every_column_is_described(written: Path):
    for table in written.rglob("sub-*.tsv"):
        described = json.loads(names.sidecar(table).read_text())
        assert set(pd.read_csv(table, sep="\t").columns) <= set(described), table.name


def test_the_lesion_table_says_where_the_lesion_is(written: Path):
    table = pd.read_csv(next(written.rglob("*_seg-lesions_*_dseg.tsv")), sep="\t", na_values="n/a")
    lesion = table.loc[0]
    assert list(table.columns) == list(dictionary("lesion"))
    assert (lesion.volume_ml, lesion.volume_voxels, lesion.hemisphere) == (1.0, 125, "L")
    assert (lesion.centroid_x_mm, lesion.centroid_y_mm, lesion.centroid_z_mm) == (-4, 12, 10)
    assert pd.isna(lesion.mni_x_mm)


def test_what_departs_from_a_healthy_brain_is_told(written: Path, scans: str):
    row = pd.read_csv(written / names.sessions_table("01"), sep="\t").iloc[0]
    tables = list(written.rglob("*_seg-findings_*_dseg.tsv"))
    if scans == "flair":
        assert not tables and pd.isna(row.finding_count)
        return
    table = pd.read_csv(tables[0], sep="\t", na_values="n/a")
    assert list(table.columns) == list(dictionary("finding"))
    finding = table.loc[0]
    assert (finding.kind, finding.lesion_share, finding.volume_ml, finding.hemisphere) == ("lesional", 1.0, 1.0, "L")
    assert (row.finding_count, row.nonlesional_count) == (1, 0)
    sidecar = json.loads(next(written.rglob("*_space-T1w_desc-reflect_anomalymap.json")).read_text())
    assert (sidecar["Model"]["SHA256"], sidecar["Device"]) == ("1" * 64, "cpu")
    assert sidecar["Sources"] == ["bids::sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz"]


def test_the_sessions_table_has_voxels_scanner_and_figures_of_the_checks(tmp_path: Path):
    prepared, posed, segmented, normalized = make_results(tmp_path / "work", make_visit(tmp_path, flair=False))
    posed = replace(posed, check=Check("doubtful", 0.81234, np.nan, "Look at it."))
    row = session_row(prepared, posed, segmented, normalized, (), scanner=Scanner("GE", "Signa", 1.5))
    assert list(row) == list(dictionary("session"))
    assert (row["voxel_x_mm"], row["voxel_y_mm"], row["voxel_z_mm"]) == (2.0, 2.0, 2.0)
    assert (row["manufacturer"], row["scanner_model"], row["field_strength_t"]) == ("GE", "Signa", 1.5)
    columns = ("", "_overlap", "_similarity")
    assert [row[f"pose_registration{column}"] for column in columns] == ["doubtful", 0.812, None]
    assert [row[f"mni_registration{column}"] for column in columns] == ["accepted", 0.97, 0.4]
    assert [row[f"affine_registration{column}"] for column in columns] == [None] * 3
    row = session_row(prepared, posed, segmented, normalized, (), aligned=Aligned(IDENTITY, PASSED))
    assert (row["affine_registration"], row["affine_registration_overlap"]) == ("accepted", 0.97)
    assert row["manufacturer"] is None
    assert "institution" not in " ".join(row).lower()


def test_no_lesion_is_an_empty_table_with_all_columns():
    table = lesion_table(())
    assert (len(table), list(table.columns)) == (0, list(dictionary("lesion")))


def test_checksums_are_those_of_the_files(written: Path):
    record = json.loads((written / names.visit_record("01", "1")).read_text())
    assert len(record["outputs"]) > 15
    for path, checksum in record["outputs"].items():
        assert sha256(written / path) == checksum


def test_a_mask_drawn_by_hand_says_so(tmp_path: Path):
    drawn = "sub-01/ses-1/anat/sub-01_ses-1_label-L_mask.nii.gz"
    reuse = Reuse(lesion_mask=tmp_path / drawn, sources=(f"bids:manual:{drawn}",))
    visit = replace(make_visit(tmp_path, flair=False), reuse=reuse)
    prepared, posed, segmented, normalized = make_results(tmp_path / "work", visit)
    manual = replace(segmented, model=None, probability=None, uncertainty=None)
    normalized = tuple(replace(space, probability=None) for space in normalized)
    files = list(visit_files(prepared, manual, normalized, provenance(tmp_path)))
    assert not [item for item in files if "probseg" in item.path.name]
    sidecar = next(item.sidecar for item in files if item.path == names.lesion_mask(visit.t1w.name))
    assert sidecar["Manual"] is True
    assert sidecar["Sources"] == [f"bids:manual:{drawn}"]
    assert "Model" not in sidecar
    assert session_row(prepared, posed, manual, normalized, ())["channels"] == "manual"


def test_a_failed_registration_leaves_no_image_and_is_told(tmp_path: Path):
    visit = make_visit(tmp_path, flair=False)
    prepared, posed, segmented, _ = make_results(tmp_path / "work", visit)
    failed = (Normalized("MNI152NLin2009aSym", Check("failed", 0.4, 0.1, "Outside limits.")),)
    files = list(visit_files(prepared, segmented, failed, provenance(tmp_path)))
    assert files
    assert not [item for item in files if "MNI" in item.path.name]
    assert session_row(prepared, posed, segmented, failed, ())["mni_registration"] == "failed"


def test_a_space_that_is_not_mni_says_nothing_of_the_registration_to_mni(tmp_path: Path):
    prepared, posed, segmented, (space,) = make_results(tmp_path / "work", make_visit(tmp_path, flair=False))
    other = replace(space, space="OASIS30ANTs", check=replace(space.check, status="doubtful"))
    assert session_row(prepared, posed, segmented, (other,), ())["mni_registration"] is None
    assert session_row(prepared, posed, segmented, (other, space), ())["mni_registration"] == "accepted"


def test_the_twin_of_a_flair_is_named_like_the_flair(tmp_path: Path):
    visit = make_visit(tmp_path)
    flair = replace(visit.flair, name=ScanName.parse("sub-01_ses-1_acq-space_FLAIR.nii.gz"))
    prepared, _, segmented, normalized = make_results(tmp_path / "work", replace(visit, flair=flair))
    explained = make_explained(tmp_path / "work", prepared, normalized)
    explained = replace(explained, model=replace(explained.model, contrast="FLAIR"))
    files = visit_files(prepared, segmented, normalized, provenance(tmp_path), explained)
    twins = [item for item in files if "pseudohealthy" in item.path.name]
    assert len(twins) == 2 and all("acq-space" in item.path.name for item in twins)
    assert "acq-space" in twins[0].sidecar["Sources"][0] and "acq-space" in twins[1].sidecar["Sources"][0]


def test_the_table_is_rebuilt_without_locks_and_from_records_alone(written: Path, monkeypatch):
    log = written / names.log_folder("01")
    for stray in (".0f.sub-01_ses-1_record.json", "._sub-01_ses-1_record.json", "old_record.json"):
        (log / stray).write_bytes((written / names.visit_record("01", "1")).read_bytes())

    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert len(rebuild(written, "01").read_text().splitlines()) == 2

    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(CannotWriteError, match=r"\.lock cannot be written"):
        rebuild(written, "01")


def test_the_sessions_table_keeps_failed_visits(written: Path):
    write_record(written, Record("01", "2", "failed", "0.1.0", "a1b2c3d4", "f", {}, error="Broken."))
    table = pd.read_csv(rebuild(written, "01"), sep="\t")
    assert table[["session_id", "status"]].to_numpy().tolist() == [["ses-1", "done"], ["ses-2", "failed"]]
    text = (written / names.sessions_table("01")).read_text()
    assert "\t1\t1.0\t" in text, "a whole number must stay whole beside n/a"
