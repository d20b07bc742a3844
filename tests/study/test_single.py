"""A scan that is in no dataset becomes a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.errors import NoInputError, UsageError
from bids_app.settings import Settings
from bids_app.study import single
from bids_app.study.index import index
from bids_app.study.models import Visit
from bids_app.study.single import Case, check_case, make_case
from tests.skeletons import listing, write_scan


def indexed(case: Case, tmp_path: Path) -> list[Visit]:
    out = tmp_path / "out"
    return list(index(Settings(out_dir=out, bids_dir=make_case(case, out))).visits)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("T1.nii.gz", "sub-T1"),
        ("MR 12_t1-mprage.nii", "sub-MR12t1mprage"),
        ("sub-07_ses-2_acq-x_T1w.nii.gz", "sub-07_ses-2"),
        ("patient_ses-2.nii", "sub-patientses2"),
        ("___.nii", "sub-case"),
    ],
)
def test_label_comes_from_the_name(tmp_path, name, label):
    scan = write_scan(tmp_path / name)
    visits = indexed(Case(scan), tmp_path)
    assert [visit.label for visit in visits] == [label]
    assert visits[0].t1w.path.resolve() == scan


def test_flair_and_a_label_of_ones_own(tmp_path):
    t1w, flair = write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "b.nii")
    before = listing(tmp_path)
    visit = indexed(Case(t1w, flair, "P1"), tmp_path)[0]
    assert (visit.label, visit.flair.path.resolve()) == ("sub-P1", flair)
    assert {name: time for name, time in listing(tmp_path).items() if name in before} == before


def test_flair_alone(tmp_path):
    flair = write_scan(tmp_path / "sub-07_FLAIR.nii")
    case = Case(None, flair)
    check_case(case)
    visit = indexed(case, tmp_path)[0]
    assert (visit.label, visit.t1w, visit.flair.path.resolve()) == ("sub-07", None, flair)


def test_flair_alone_and_other_scans_do_not_mix(tmp_path):
    t1w, flair, other = (write_scan(tmp_path / name) for name in ("a.nii", "b.nii", "c.nii"))
    out = tmp_path / "out"
    make_case(Case(None, flair, "P1"), out)
    with pytest.raises(UsageError, match="already holds sub-P1"):
        make_case(Case(None, other, "P1"), out)
    with pytest.raises(UsageError, match="already holds sub-P1"):
        make_case(Case(t1w, None, "P1"), out)
    make_case(Case(t1w, flair, "P1"), out)
    with pytest.raises(UsageError, match="already holds sub-P1"):
        make_case(Case(None, flair, "P1"), out)


def test_second_run_takes_the_flair_away(tmp_path):
    t1w, flair = write_scan(tmp_path / "a.nii.gz"), write_scan(tmp_path / "b.nii")
    assert indexed(Case(t1w, flair), tmp_path)[0].flair
    assert indexed(Case(t1w), tmp_path)[0].flair is None


def test_cases_of_one_output_folder_share_a_dataset(tmp_path):
    indexed(Case(write_scan(tmp_path / "a.nii")), tmp_path)
    assert [visit.label for visit in indexed(Case(write_scan(tmp_path / "b.nii")), tmp_path)] == ["sub-a", "sub-b"]


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    first, second = (Case(write_scan(tmp_path / folder / "T1.nii")) for folder in ("one", "two"))
    make_case(first, tmp_path / "out")
    with pytest.raises(UsageError, match="already holds sub-T1"):
        make_case(second, tmp_path / "out")
    make_case(second, tmp_path / "elsewhere")
    make_case(first, tmp_path / "out")


def test_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    scan = write_scan(tmp_path / "a.nii")
    visit = indexed(Case(scan), tmp_path)[0]
    assert visit.t1w.path.read_bytes() == scan.read_bytes()
    indexed(Case(scan), tmp_path)


def test_what_is_no_scan(tmp_path):
    with pytest.raises(NoInputError, match="does not exist"):
        check_case(Case(tmp_path / "absent.nii"))
    scan = write_scan(tmp_path / "a.nii")
    (tmp_path / "a.mgz").write_bytes(b"")
    with pytest.raises(UsageError, match="no NIfTI"):
        check_case(Case(scan, tmp_path / "a.mgz"))
    with pytest.raises(UsageError, match="no participant label"):
        check_case(Case(scan, label="a_b"))
    check_case(Case(scan, scan, "ab"))


def test_link_of_an_earlier_run_is_no_scan_to_start_from(tmp_path):
    root = make_case(Case(write_scan(tmp_path / "a.nii")), tmp_path / "out")
    link = root / "sub-a/anat/sub-a_T1w.nii"
    with pytest.raises(UsageError, match="earlier run"):
        make_case(Case(link), tmp_path / "out")
    assert link.resolve() == tmp_path / "a.nii"


def test_description_is_the_same_for_all_cases(tmp_path):
    roots = [make_case(Case(write_scan(tmp_path / name)), tmp_path / "out") for name in ("a.nii", "b.nii")]
    assert roots[0] == roots[1]
    assert single._DATASET["DatasetType"] == "raw"


def test_description_is_never_half_written(tmp_path, monkeypatch):
    root = make_case(Case(write_scan(tmp_path / "a.nii")), tmp_path / "out")
    description = root / "dataset_description.json"
    whole, write, seen = description.read_text(), Path.write_text, []

    def slow_write(path: Path, text: str, **options):
        write(path, text[:5], **options)
        seen.append(description.read_text())
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", slow_write)
    make_case(Case(write_scan(tmp_path / "b.nii")), tmp_path / "out")
    assert seen == [whole]
    assert sorted(path.name for path in root.iterdir()) == [description.name, "sub-a", "sub-b"]


def test_a_folder_is_told_with_what_is_in_it(tmp_path):
    for name in ("dicom/series", "nifti", "empty", "bids"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "dicom/series/IM1").write_bytes(bytes(128) + b"DICM")
    write_scan(tmp_path / "nifti" / "t1.nii.gz")
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    for name, told in (
        ("dicom", "folder of DICOM.*dcm2niix"),
        ("nifti", r"Give the scan in it, as .*t1\.nii\.gz"),
        ("empty", "no NIfTI file.*dcm2niix"),
        ("bids", "is a BIDS dataset.*participant"),
    ):
        with pytest.raises(UsageError, match=told):
            check_case(Case(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "told"),
    [("a.dcm", "dcm2niix"), ("IM1", "dcm2niix"), ("a.mgz", "mri_convert"), ("a.mha", "Slicer"), ("a.zip", "unpack")],
)
def test_other_formats_are_told_with_what_converts_them(tmp_path, name, told):
    (tmp_path / name).write_bytes(bytes(128) + b"DICM" if name.startswith("IM") else b"x")
    with pytest.raises(UsageError, match=rf"{name} is no NIfTI.*{told}"):
        check_case(Case(tmp_path / name))


def test_extension_in_capitals_is_read(tmp_path):
    scan = write_scan(tmp_path / "head.nii.gz").rename(tmp_path / "HEAD.NII.GZ")
    case = Case(scan)
    check_case(case)
    [visit] = indexed(case, tmp_path)
    assert (visit.label, visit.t1w.path.name) == ("sub-HEAD", "sub-HEAD_T1w.nii.gz")


def test_an_output_folder_that_is_a_scan_was_forgotten(tmp_path):
    t1w, flair = write_scan(tmp_path / "t1.nii.gz"), write_scan(tmp_path / "flair.nii")
    with pytest.raises(UsageError, match="the output folder is missing"):
        check_case(Case(t1w), flair)
    check_case(Case(t1w, flair), tmp_path / "out")


def test_a_link_to_nowhere_says_what_to_bind(tmp_path):
    (tmp_path / "t1.nii.gz").symlink_to(tmp_path / "far" / "t1.nii.gz")
    with pytest.raises(NoInputError, match=rf"link to .*bind {tmp_path / 'far'}"):
        check_case(Case(tmp_path / "t1.nii.gz"))
