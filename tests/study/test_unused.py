"""Why something is not used: a sentence for every way in which names go wrong, and none for what is right."""

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest

from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.plan import PATHS_SHOWN, render, render_unused
from bids_app.study.unused import (
    Place,
    Reason,
    Unused,
    format_of,
    is_image,
    is_scan,
    participant_folder,
    session_folder,
    top_file,
    why_unused,
)
from tests.skeletons import make_empty, make_skeleton

PLAIN = Place("01", None, PurePosixPath("sub-01/anat"))
SESSION = Place("01", "02", PurePosixPath("sub-01/ses-02/anat"))
FUNC = Place("01", None, PurePosixPath("sub-01/func"))
LOOSE = Place("01", None, PurePosixPath("sub-01"))
OWN = Place("01", None, PurePosixPath("sub-01/anat"), own_output=True)

#: Name, place, reason, and what the advice says.
NAMES = [
    # extensions and formats
    ("sub-01_T1w.NII.GZ", PLAIN, Reason.EXTENSION_CASE, "sub-01_T1w.nii.gz"),
    ("sub-01_FLAIR.Nii", PLAIN, Reason.EXTENSION_CASE, "sub-01_FLAIR.nii"),
    ("sub-01_T1w", PLAIN, Reason.EXTENSION, ""),
    ("sub-01_T1w.gz", PLAIN, Reason.EXTENSION, "sub-01_T1w.nii.gz"),
    ("sub-01_T1w.nifti", PLAIN, Reason.EXTENSION, "sub-01_T1w.nii.gz"),
    ("sub-01_T1w.nii.gz.gz", PLAIN, Reason.TWICE, ""),
    ("sub-01_T1w.nii.bz2", PLAIN, Reason.COMPRESSION, ""),
    ("sub-01_T1w.mgz", PLAIN, Reason.FREESURFER, ""),
    ("orig.MGZ", PLAIN, Reason.FREESURFER, ""),
    ("sub-01_T1w.hdr", PLAIN, Reason.PAIR, ""),
    ("sub-01_T1w.img", PLAIN, Reason.PAIR, ""),
    ("sub-01_FLAIR.nrrd", PLAIN, Reason.NRRD, ""),
    ("sub-01_T1w.mha", PLAIN, Reason.META_IMAGE, ""),
    ("sub-01_T1w.mnc", PLAIN, Reason.MINC, ""),
    ("sub-01_T1w+orig.BRIK", PLAIN, Reason.AFNI, ""),
    ("sub-01_T1w.mif.gz", PLAIN, Reason.MRTRIX, ""),
    ("IM0001.dcm", PLAIN, Reason.DICOM, ""),
    ("1.2.840.IMA", PLAIN, Reason.DICOM, ""),
    ("sub-01_T1w.PAR", PLAIN, Reason.PHILIPS, ""),
    ("sub-01_T1w.zip", PLAIN, Reason.ARCHIVE, ""),
    ("sub-01_T1w.nii.gz.part", PLAIN, Reason.UNFINISHED, ""),
    ("sub-01_T1w.nii.gz.lnk", PLAIN, Reason.SHORTCUT, ""),
    ("sub-01_T1w.nii.gz~", PLAIN, Reason.BACKUP, ""),
    ("._sub-01_T1w.nii.gz", PLAIN, Reason.MACOS, ""),
    # participant and session
    ("T1.nii.gz", PLAIN, Reason.NO_BIDS_NAME, "sub-01_T1w.nii.gz"),
    ("sub01_T1w.nii.gz", PLAIN, Reason.NO_BIDS_NAME, "sub-01_T1w.nii.gz"),
    ("Sub-01_T1w.nii.gz", PLAIN, Reason.KEY_CASE, "sub-01_T1w.nii.gz"),
    ("sub-02_T1w.nii.gz", PLAIN, Reason.OTHER_PARTICIPANT, "move it there"),
    ("sub-1_T1w.nii.gz", PLAIN, Reason.OTHER_SPELLING, "sub-01_T1w.nii.gz"),
    ("sub-01-T1w.nii.gz", PLAIN, Reason.SEPARATOR, "sub-01_T1w.nii.gz"),
    ("sub-01 T1w.nii.gz", PLAIN, Reason.SEPARATOR, "sub-01_T1w.nii.gz"),
    ("sub-01_acq-x_ses-02_T1w.nii.gz", PLAIN, Reason.SESSION_ALONE, "ses-02/anat/sub-01_ses-02_acq-x_T1w.nii.gz"),
    ("sub-01_ses-02_T1w.nii.gz", PLAIN, Reason.SESSION_ALONE, "sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz"),
    ("sub-01_T1w.nii.gz", SESSION, Reason.SESSION_MISSING, "sub-01_ses-02_T1w.nii.gz"),
    ("sub-01_acq-x_FLAIR.nii", SESSION, Reason.SESSION_MISSING, "sub-01_ses-02_acq-x_FLAIR.nii"),
    ("sub-01_ses-2_T1w.nii.gz", SESSION, Reason.SESSION_SPELLING, "sub-01_ses-02_T1w.nii.gz"),
    ("sub-01_ses-03_T1w.nii.gz", SESSION, Reason.OTHER_SESSION, "move it there"),
    ("ses-02_sub-01_T1w.nii.gz", SESSION, Reason.NAME_ORDER, "sub-01_ses-02_T1w.nii.gz"),
    ("sub-01_run-1_ses-02_T1w.nii.gz", SESSION, Reason.NAME_ORDER, "sub-01_ses-02_run-1_T1w.nii.gz"),
    # suffix
    ("sub-01_t1w.nii.gz", PLAIN, Reason.SUFFIX_CASE, "sub-01_T1w.nii.gz"),
    ("sub-01_T1W.nii.gz", PLAIN, Reason.SUFFIX_CASE, "sub-01_T1w.nii.gz"),
    ("sub-01_flair.nii.gz", PLAIN, Reason.SUFFIX_CASE, "sub-01_FLAIR.nii.gz"),
    ("sub-01_T1.nii.gz", PLAIN, Reason.SUFFIX_WORD, "sub-01_T1w.nii.gz"),
    ("sub-01_MPRAGE.nii.gz", PLAIN, Reason.SUFFIX_WORD, "sub-01_T1w.nii.gz"),
    ("sub-01_T2FLAIR.nii.gz", PLAIN, Reason.SUFFIX_WORD, "sub-01_FLAIR.nii.gz"),
    ("sub-01_T1w_brain.nii.gz", PLAIN, Reason.AFTER_SUFFIX, "sub-01_T1w.nii.gz"),
    ("sub-01_acq-mprage_run-1.nii.gz", PLAIN, Reason.NO_SUFFIX, "sub-01_acq-mprage_run-1_T1w.nii.gz"),
    ("sub-01_T1w (1).nii.gz", PLAIN, Reason.ODD_CHARACTERS, "sub-01_T1w.nii.gz"),
    ("sub-01_acq-ä_T1w.nii.gz", PLAIN, Reason.ODD_CHARACTERS, "sub-01_T1w.nii.gz"),
    ("sub-01_T1w.defaced.nii.gz", PLAIN, Reason.ODD_CHARACTERS, "sub-01_T1w.nii.gz"),
    # other scans
    ("sub-01_UNIT1.nii.gz", PLAIN, Reason.UNIT1, ""),
    ("sub-01_inv-1_MP2RAGE.nii.gz", PLAIN, Reason.MP2RAGE, ""),
    ("sub-01_T1map.nii.gz", PLAIN, Reason.QUANTITATIVE, ""),
    ("sub-01_inplaneT1.nii.gz", PLAIN, Reason.INPLANE, ""),
    ("sub-01_acq-FLAIR_T2w.nii.gz", PLAIN, Reason.FLAIR_AS_T2W, "sub-01_acq-FLAIR_FLAIR.nii.gz"),
    ("sub-01_T2w.nii.gz", PLAIN, Reason.CONTRAST, ""),
    ("sub-01_PDw.nii", PLAIN, Reason.CONTRAST, ""),
    ("sub-01_part-phase_T1w.nii.gz", PLAIN, Reason.PART, ""),
    ("sub-01_chunk-1_T1w.nii.gz", PLAIN, Reason.CHUNK, ""),
    ("sub-01_space-T1w_desc-pseudohealthy_T1w.nii.gz", PLAIN, Reason.PSEUDOHEALTHY, ""),
    ("sub-01_desc-pseudohealthy_FLAIR.nii.gz", PLAIN, Reason.PSEUDOHEALTHY, ""),
    ("sub-01_desc-preproc_T1w.nii.gz", OWN, Reason.OWN, ""),
    # masks
    ("sub-01_label-lesion_roi.nii.gz", PLAIN, Reason.MASK, ""),
    ("sub-01_T1w_label-lesion_roi.nii.gz", PLAIN, Reason.MASK, ""),
    ("sub-01_space-orig_label-L_mask.nii.gz", PLAIN, Reason.MASK, ""),
    ("lesion.nii", PLAIN, Reason.MASK, ""),
    # elsewhere
    ("sub-01_FLAIR.nii.gz", FUNC, Reason.MISPLACED, "move it to sub-01/anat/sub-01_FLAIR.nii.gz"),
    ("sub-01_T1w.nii.gz", LOOSE, Reason.LOOSE, "move it to sub-01/anat/sub-01_T1w.nii.gz"),
    ("mprage.nii.gz", LOOSE, Reason.LOOSE, "move it to sub-01/anat/sub-01_T1w.nii.gz"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "reason", "advice"), NAMES, ids=[f"{row[2].name}-{row[0]}" for row in NAMES])
def test_a_name_that_is_wrong_has_a_reason_and_no_scan(name, place, reason, advice):
    found = why_unused(name, place)
    assert found.reason is reason
    assert advice in found.advice
    assert bool(advice) == bool(found.advice)
    assert found.path == place.folder / name


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("sub-01_T1w.nii.gz", PLAIN),
        ("sub-01_FLAIR.nii", PLAIN),
        ("sub-01_ses-02_task-rest_acq-x_ce-gad_rec-n_run-1_T1w.nii.gz", SESSION),
        ("sub-01_acq-lesion_T1w.nii.gz", PLAIN),
        ("sub-01_desc-preproc_T1w.nii.gz", PLAIN),
        ("sub-01_space-MNI152NLin2009aSym_T1w.nii.gz", PLAIN),
        ("sub-01_part-mag_T1w.nii.gz", PLAIN),
        ("sub-01_run-1_acq-x_T1w.nii.gz", PLAIN),  # the validator is the judge of this one
        ("sub-01_T1w.nii.gz", OWN),
    ],
)
def test_a_scan_has_no_reason(name, place):
    assert why_unused(name, place) is None
    assert is_scan(name, place.label)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("README.md", PLAIN),
        ("sub-01_T1w.json", PLAIN),
        ("sub-01_scans.tsv", PLAIN),
        (".DS_Store", PLAIN),
        ("._notes.txt", PLAIN),
        ("Icon\r", PLAIN),
        ("Thumbs.db", PLAIN),
        ("notes.zip", PLAIN),
        ("sub-01_task-flair_bold.nii.gz", FUNC),
        ("sub-01_physio.tsv.gz", FUNC),
        ("sub-01_run-1_bold.mgz", FUNC),
    ],
)
def test_what_looks_like_no_scan_is_left_alone(name, place):
    assert why_unused(name, place) is None
    assert not is_scan(name, place.label)


def test_every_image_in_anat_is_a_scan_or_has_a_reason():
    draw = random.Random(7)
    words = ["sub-01", "ses-02", "sub-1", "acq-a", "acq-a b", "Run-1", "T1w", "t1", "FLAIR", "T2w", "", "x", "label-L"]
    for _ in range(3000):
        stem = "_".join(draw.choices(words, k=draw.randint(1, 5)))
        name, place = stem + draw.choice([".nii", ".nii.gz", ".NII.GZ"]), draw.choice([PLAIN, SESSION])
        assert not stem or why_unused(name, place) or is_scan(name, place.label), name


def test_a_better_name_is_a_scan():
    for name, place, *_ in NAMES:
        found = why_unused(name, place)
        better = found.advice.rpartition("/")[2].rpartition(" ")[2]
        if found.advice.startswith("rename it to"):
            assert why_unused(better, place) is None and is_scan(better, place.label), name


@pytest.mark.parametrize(
    ("name", "reason", "better"),
    [
        ("sub-B_C", Reason.PARTICIPANT_LABEL, "sub-BC"),
        ("sub-01-2", Reason.PARTICIPANT_LABEL, "sub-012"),
        ("sub-a b", Reason.PARTICIPANT_LABEL, "sub-ab"),
        ("Sub-01", Reason.PARTICIPANT_CASE, "sub-01"),
        ("SUB-01", Reason.PARTICIPANT_CASE, "sub-01"),
        ("sub_01", Reason.PARTICIPANT_FORM, "sub-01"),
        ("sub01", Reason.PARTICIPANT_FORM, "sub-01"),
        ("sub\u201301", Reason.PARTICIPANT_FORM, "sub-01"),  # the dash of a word processor
        ("subject-01", Reason.PARTICIPANT_FORM, "sub-01"),
        ("P05", Reason.PARTICIPANT_FORM, "sub-P05"),
        ("patient 5", Reason.PARTICIPANT_FORM, "sub-patient5"),
        ("0042", Reason.PARTICIPANT_FORM, "sub-0042"),
    ],
)
def test_folders_that_are_meant_as_participants(name, reason, better):
    assert participant_folder(name) == (reason, better)


@pytest.mark.parametrize("name", ["subjects", "code", "derivatives", "patterns", "sub-01", "sub-", "cases", "stimuli"])
def test_folders_that_are_not_meant_as_participants(name):
    assert participant_folder(name) is None


@pytest.mark.parametrize(
    ("name", "reason", "better"),
    [
        ("ses-1_b", Reason.SESSION_LABEL, "ses-1b"),
        ("Ses-1", Reason.SESSION_CASE, "ses-1"),
        ("ses_1", Reason.SESSION_FORM, "ses-1"),
        ("session1", Reason.SESSION_FORM, "ses-1"),
        ("V2", Reason.SESSION_FORM, "ses-V2"),
    ],
)
def test_folders_that_are_meant_as_sessions(name, reason, better):
    assert session_folder(name) == (reason, better)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("participants.csv", Reason.TABLE),
        ("participants.xlsx", Reason.TABLE),
        ("Participants.tsv", Reason.TABLE),
        ("participants.tsv.txt", Reason.TABLE),
        ("sub-01.zip", Reason.ARCHIVE),
        ("sub-02.tar.gz", Reason.ARCHIVE),
        ("sub-01_T1w.nii.gz", Reason.LOOSE),
        ("scan.mgz", Reason.LOOSE),
        ("participants.tsv", None),
        ("participants.json", None),
        ("README", None),
        ("stimuli.zip", None),
    ],
)
def test_files_beside_the_participants(name, reason):
    found = top_file(name)
    assert (found[0] if found else None) is reason


def test_formats():
    assert format_of("a.MGZ") is Reason.FREESURFER
    assert format_of("a.nii.gz") is None
    assert [is_image(name) for name in ("a.nii", "a.mgz", "a.json", "a.zip", "a.gz", "t1.gz")] == [
        True, True, False, False, False, True,
    ]  # fmt: skip


#: Paths in a dataset that are not listed by their name alone, and what is told of them.
PLACES = [
    ("Sub-09/anat/Sub-09_T1w.nii.gz", "Sub-09", Reason.PARTICIPANT_CASE),
    ("P9/anat/T1.nii", "P9", Reason.PARTICIPANT_FORM),
    ("Mueller/anat/T1.nii", "Mueller", Reason.PARTICIPANT_FORM),
    ("sub-01/Anat/sub-01_T1w.nii.gz", "sub-01/Anat", Reason.ANAT_CASE),
    ("sub-01/T1/x.nii.gz", "sub-01/T1", Reason.OTHER_FOLDER),
    ("sub-01/dicom/IM001.dcm", "sub-01/dicom", Reason.DICOM),
    ("sub-01/anat/old/sub-01_T1w.nii.gz", "sub-01/anat/old", Reason.BELOW_ANAT),
    ("sub-01/anat/series1/IM001.dcm", "sub-01/anat/series1", Reason.DICOM),
    ("sub-01/anat/sub-01_run-2_T1w.nii.gz/x", "sub-01/anat/sub-01_run-2_T1w.nii.gz", Reason.FOLDER_FOR_FILE),
    ("sub-01/anat/sub-01_run-2_T1w.json", "sub-01/anat/sub-01_run-2_T1w.json", Reason.NO_IMAGE),
    ("sub-01/Ses-1/anat/x.nii.gz", "sub-01/Ses-1", Reason.SESSION_CASE),
    ("sub-01/ses-1_b/anat/x.nii.gz", "sub-01/ses-1_b", Reason.SESSION_LABEL),
    ("sub-01/baseline/anat/x.nii.gz", "sub-01/baseline", Reason.SESSION_FORM),
    ("sub-01/V1/anat/x.nii.gz", "sub-01/V1", Reason.SESSION_FORM),
    ("sub-09", "sub-09", Reason.PARTICIPANT_FILE),
    ("sub-01.zip", "sub-01.zip", Reason.ARCHIVE),
    ("participants.csv", "participants.csv", Reason.TABLE),
]


@pytest.mark.parametrize(("file", "path", "reason"), PLACES, ids=[row[0] for row in PLACES])
def test_what_lies_in_a_wrong_place_is_named_in_the_plan(tmp_path, file, path, reason):
    root = make_empty(make_skeleton(tmp_path / "raw", ["sub-01_T1w"]), file)
    settings = Settings(out_dir=tmp_path / "out", bids_dir=root)
    study = index(settings)
    assert [(str(item.path), item.reason) for item in study.unused] == [(path, reason)]
    assert f"\n  {path}: {reason.value}" in render(study, settings, {})
    assert study.visits[0].usable


@pytest.mark.parametrize(
    "file",
    ["code/run.py", "derivatives/prep/sub-01/anat/x.nii.gz", "sourcedata/a.nii", "sub-01/notes/a.txt",
     "sub-01/anat/.git/a.nii", ".git/sub-01/x", "sub-01/func/sub-01_bold.nii.gz", "docs/anatomy.png",
     "sub-01/sub-01_scans.tsv", "sub-01/anat/sub-01_T1w.json", "participants.tsv"],
)  # fmt: skip
def test_what_is_in_its_place_is_not_named(tmp_path, file):
    root = make_empty(make_skeleton(tmp_path / "raw", ["sub-01_T1w"]), file)
    assert index(Settings(out_dir=tmp_path / "out", bids_dir=root)).unused == ()


def test_dicom_without_extension_is_found(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-02_T1w"])
    path = root / "sub-01" / "anat" / "IM0001"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(128) + b"DICM")
    study = index(Settings(out_dir=tmp_path / "out", bids_dir=root))
    assert [item.reason for item in study.unused] == [Reason.DICOM]
    assert "dcm2niix" in study.visits[0].problems[0].message


def test_a_sidecar_may_describe_images_with_more_entities(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_run-1_T1w", "sub-01_run-2_T1w"])
    make_empty(root, "sub-01/anat/sub-01_T1w.json")
    assert index(Settings(out_dir=tmp_path / "out", bids_dir=root)).unused == ()


def test_many_of_one_kind_are_counted():
    items = [Unused(PurePosixPath(f"sub-{n}/anat/sub-{n}_T2w.nii"), Reason.CONTRAST, detail="T2w") for n in range(999)]
    lines = list(render_unused([*items, Unused(PurePosixPath("Sub-1"), Reason.PARTICIPANT_CASE, "rename it to sub-1")]))
    assert lines[0] == "not used: 1000 files and folders"
    assert lines[1] == "  sub-0/anat/sub-0_T2w.nii: only T1w and FLAIR are used, not T2w"
    assert lines[PATHS_SHOWN + 1] == f"  and {999 - PATHS_SHOWN} more: only T1w and FLAIR are used, not T2w"
    assert lines[-1].endswith("in lower case (rename it to sub-1)")
    assert len(lines) == PATHS_SHOWN + 3


def test_every_reason_has_a_sentence_of_its_own():
    assert len({reason.value for reason in Reason}) == len(Reason) > 50


def test_a_free_name_is_advised(tmp_path: Path):
    root = make_empty(make_skeleton(tmp_path / "raw", ["sub-012_T1w"]), "sub-01-2/anat/x.nii")
    [item] = index(Settings(out_dir=tmp_path / "out", bids_dir=root)).unused
    assert "a name that is free" in item.advice
