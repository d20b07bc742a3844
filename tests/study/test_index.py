"""From datasets to visits: all the ways in which scans lie around."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.errors import ConfigError, DatasetError, ExitCode, NoInputError
from bids_app.settings import Settings
from bids_app.study.index import index, nothing_to_process
from bids_app.study.models import Severity, Study, Visit
from bids_app.study.plan import render
from bids_app.study.unused import Reason
from tests.skeletons import ONE_SESSION, TWO_SESSIONS, anat, listing, make_dangling, make_empty, make_skeleton


def indexed(root: Path, **settings) -> Study:
    return index(Settings(out_dir=root.parent / "out", bids_dir=root, **settings))


def labels(study: Study) -> list[str]:
    return [visit.label for visit in study.visits]


def scan_names(visit: Visit) -> tuple[str | None, str | None]:
    return tuple(scan.path.name.partition(".")[0] if scan else None for scan in (visit.t1w, visit.flair))


def codes(visit: Visit) -> list[str]:
    return [problem.code for problem in visit.problems]


def test_one_session(tmp_path):
    study = indexed(make_skeleton(tmp_path / "raw", ONE_SESSION))
    assert (study.name, study.participants) == ("Skeleton", ("01", "02"))
    assert [scan_names(visit) for visit in study.visits] == [("sub-01_T1w", "sub-01_FLAIR"), ("sub-02_T1w", None)]
    assert [(visit.usable, visit.problems) for visit in study.visits] == [(True, ()), (True, ())]
    assert study.visits[0].t1w.path == tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"


def test_two_sessions_pair_within_the_visit(tmp_path):
    study = indexed(make_skeleton(tmp_path / "raw", TWO_SESSIONS))
    assert labels(study) == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert [scan_names(visit)[1] for visit in study.visits] == ["sub-01_ses-1_FLAIR", None, "sub-02_ses-1_FLAIR"]


def test_uncompressed_files(tmp_path):
    study = indexed(make_skeleton(tmp_path / "raw", ["sub-01_T1w"], extension=".nii"))
    assert study.visits[0].t1w.path.name == "sub-01_T1w.nii"


def test_scans_beside_sessions_are_a_visit_of_their_own(tmp_path):
    study = indexed(make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-01_ses-1_T1w"]))
    assert [scan_names(visit)[0] for visit in study.visits] == ["sub-01_T1w", "sub-01_ses-1_T1w"]


def test_only_what_is_asked_for(tmp_path):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    assert labels(indexed(root, participants=("02",))) == ["sub-02_ses-1"]
    assert labels(indexed(root, excluded=("02", "absent"))) == ["sub-01_ses-1", "sub-01_ses-2"]
    assert labels(indexed(root, sessions=("2",))) == ["sub-01_ses-2"]
    assert indexed(root, participants=("02",)).participants == ("01", "02")


def test_label_that_starts_another_label(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-1_ses-1_T1w", "sub-12_ses-1_T1w", "sub-1_ses-12_T1w"])
    assert labels(indexed(root, participants=("1",), sessions=("1",))) == ["sub-1_ses-1"]


def test_unknown_labels_are_told_with_those_that_exist(tmp_path):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    with pytest.raises(NoInputError, match=r"has no sub-03, sub-xy\..* 2 participants: 01, 02"):
        indexed(root, participants=("03", "01", "xy"))
    with pytest.raises(NoInputError, match=r"ses-9 is no session .* there are 1, 2"):
        indexed(root, sessions=("1", "9"))
    with pytest.raises(NoInputError, match="no sessions"):
        indexed(make_skeleton(tmp_path / "flat", ONE_SESSION), sessions=("1",))
    with pytest.raises(NoInputError, match="excluded"):
        indexed(root, participants=("01",), excluded=("01",))


def test_long_lists_of_labels_are_cut(tmp_path):
    root = make_skeleton(tmp_path / "raw", [f"sub-{number:03d}_T1w" for number in range(30)])
    with pytest.raises(NoInputError, match=r"30 participants: .*, 019 and 10 more"):
        indexed(root, participants=("x",))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(NoInputError, match="does not exist"):
        indexed(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match=r"no dataset_description\.json"):
        indexed(empty)
    for content in ("{", '["a"]'):
        (empty / "dataset_description.json").write_text(content)
        with pytest.raises(DatasetError, match="JSON"):
            indexed(empty)
    (empty / "dataset_description.json").write_text("{}")
    with pytest.raises(NoInputError, match="no participant"):
        indexed(empty)


def test_several_t1w_are_chosen_by_the_rule(tmp_path):
    scans = ["sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_ce-gad_T1w", "sub-01_run-1_FLAIR", "sub-01_run-2_FLAIR"]
    visit = indexed(make_skeleton(tmp_path / "raw", scans, zooms={"sub-01_run-1_T1w": (0.8, 0.8, 0.8)})).visits[0]
    assert scan_names(visit) == ("sub-01_run-1_T1w", "sub-01_run-1_FLAIR")
    assert codes(visit) == ["several-t1w", "several-flair"]
    assert "sub-01_run-2_T1w.nii.gz (1 mm voxels, not 0.8 mm voxels)" in visit.problems[0].message
    assert visit.usable


def test_filter_file_comes_before_the_rule(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_FLAIR"])
    filter_file = tmp_path / "filter.json"
    filter_file.write_text(json.dumps({"t1w": {"run": 1}, "flair": {"acq": "3d"}}))
    visit = indexed(root, bids_filter_file=filter_file).visits[0]
    assert scan_names(visit) == ("sub-01_run-1_T1w", None)
    assert codes(visit) == ["no-flair"]  # there is one, and the filter leaves it out


def test_session_in_the_filter_file_chooses_the_visits(tmp_path):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    filter_file = tmp_path / "filter.json"
    filter_file.write_text(json.dumps({"t1w": {"session": "2"}}))
    assert labels(indexed(root, bids_filter_file=filter_file)) == ["sub-01_ses-2"]
    filter_file.write_text(json.dumps({"t1w": {"session": "7"}}))
    with pytest.raises(NoInputError, match="leaves no visit"):
        indexed(root, bids_filter_file=filter_file)


def test_visit_without_t1w_and_flair_is_listed_and_not_usable(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-02_part-phase_T1w", "sub-03_T1w"])
    (root / "sub-01" / "anat").mkdir(parents=True)
    study = indexed(root)
    assert [visit.usable for visit in study.visits] == [False, False, True]
    assert [codes(visit) for visit in study.visits] == [["no-t1w"], ["no-t1w"], []]
    assert study.visits[0].problems[0].severity is Severity.ERROR
    assert study.visits[0].reference is None
    assert "sub-02_part-phase_T1w.nii.gz" in study.visits[1].problems[0].message


def test_flair_is_the_reference_of_a_visit_without_t1w(tmp_path):
    alone, both = indexed(make_skeleton(tmp_path / "raw", ["sub-01_FLAIR", "sub-02_T1w", "sub-02_FLAIR"])).visits
    assert [visit.usable for visit in (alone, both)] == [True, True]
    assert [codes(visit) for visit in (alone, both)] == [["flair-alone"], []]
    assert (alone.reference, alone.flair_to_align, alone.contrasts) == (alone.flair, None, ("FLAIR",))
    assert (both.reference, both.flair_to_align, both.contrasts) == (both.t1w, both.flair, ("T1w", "FLAIR"))
    assert "sub-01 has no T1w: there is none in anat; its FLAIR takes its place" in alone.problems[0].message


def test_flair_is_the_reference_where_no_t1w_may_be_used(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_part-phase_T1w", "sub-01_FLAIR"])
    (visit,) = indexed(root).visits
    assert (visit.reference, codes(visit)) == (visit.flair, ["flair-alone"])
    assert "sub-01_part-phase_T1w.nii.gz" in visit.problems[0].message


def test_a_t1w_that_is_not_downloaded_is_not_replaced_by_the_flair(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-01_FLAIR"])
    make_dangling(anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz")
    (visit,) = indexed(root).visits
    assert (visit.usable, codes(visit), visit.reference) == (False, ["not-downloaded"], visit.t1w)


def test_visit_without_anat_folder_is_left_out(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_ses-1_T1w", "sub-02_T1w"])
    make_empty(root, "sub-01/ses-2/func/sub-01_ses-2_bold.nii.gz", "sub-03/func/sub-03_bold.nii.gz")
    for chosen in ({}, {"participants": ("01", "02")}):
        study = indexed(root, **chosen)
        assert labels(study) == ["sub-01_ses-1", "sub-02"]
        assert all(visit.usable for visit in study.visits)
    assert indexed(root).without_anatomy == ("sub-01_ses-2", "sub-03")
    assert indexed(make_empty(make_skeleton(tmp_path / "f", []), "sub-1/func/sub-1_bold.nii.gz")).visits == ()


@pytest.mark.parametrize("asked", [{"sessions": ("2",)}, {"participants": ("03",)}])
def test_visit_without_anat_folder_that_was_asked_for_is_an_error(tmp_path, asked):
    root = make_skeleton(tmp_path / "raw", ["sub-01_ses-1_T1w"])
    make_empty(root, "sub-01/ses-2/func/sub-01_ses-2_bold.nii.gz", "sub-03/ses-1/func/sub-03_ses-1_bold.nii.gz")
    study = indexed(root, **asked)
    assert [codes(visit) for visit in study.visits] == [["no-t1w"]]
    assert study.without_anatomy == ()


def test_datalad_files_that_are_not_downloaded(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w", "sub-02_FLAIR"])
    make_dangling(anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz")
    pointer = anat(root, "sub-02_FLAIR") / "sub-02_FLAIR.nii.gz"
    pointer.write_text("/annex/objects/MD5E-s100--0.nii.gz\n")
    first, second = indexed(root).visits
    assert codes(first) == codes(second) == ["not-downloaded"]
    assert "datalad get" in first.problems[0].message
    assert second.problems[0].files == (pointer.name,)
    assert not first.usable


def test_link_to_a_file_elsewhere_keeps_its_own_name(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    scan = anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz"
    scan.rename(tmp_path / "object.nii.gz")
    scan.symlink_to(tmp_path / "object.nii.gz")
    visit = indexed(root).visits[0]
    assert visit.t1w.path == scan
    assert visit.problems == ()


def test_empty_scan_fails_its_visit(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w"])
    (anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz").write_bytes(b"")
    first, second = indexed(root).visits
    assert (codes(first), first.usable, second.usable) == (["empty-file"], False, True)


def test_what_is_no_raw_anatomy_is_left_alone(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    make_skeleton(root / "derivatives" / "x", ["sub-01_run-9_T1w", "sub-05_T1w"])
    make_skeleton(root / "sourcedata", ["sub-06_T1w"])
    make_empty(
        root,
        "participants.tsv",
        "sub-01/func/sub-01_task-x_bold.nii.gz",
        "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/old/sub-01_run-3_T1w.nii.gz",
        "sub-x_y/anat/sub-x_y_T1w.nii.gz",
    )
    study = indexed(root)
    assert study.participants == ("01",)
    assert scan_names(study.visits[0]) == ("sub-01_T1w", None)
    assert study.visits[0].problems == ()


def test_reused_files_are_found_and_checked(tmp_path):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    prep = make_empty(tmp_path / "prep", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    make_dangling(prep / "sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask.nii.gz")
    study = indexed(root, derivatives={"fmriprep": prep})
    assert [visit.reuse.sources for visit in study.visits[:2]] == [(), ()]
    assert study.visits[2].reuse.sources == ("bids:fmriprep:sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask.nii.gz",)
    assert [codes(visit) for visit in study.visits] == [["not-reused"]] * 2 + [["not-downloaded"]]
    alone = indexed(root, derivatives={"fmriprep": prep}, participants=("01",), sessions=("1",))
    assert [codes(visit) for visit in alone.visits] == [["not-reused"]]  # the other session is there all the same
    with pytest.raises(NoInputError, match="absent does not exist"):
        indexed(root, derivatives={"fmriprep": tmp_path / "absent"})


def test_sessions_without_anatomy_do_not_count_for_reuse(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_ses-1_T1w"])
    make_empty(root, "sub-01/ses-2/func/sub-01_ses-2_bold.nii.gz")
    prep = make_empty(tmp_path / "prep", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    [visit] = indexed(root, derivatives={"fmriprep": prep}).visits
    assert (len(visit.reuse.sources), visit.problems) == (1, ())


def test_dataset_is_never_written(tmp_path):
    root = make_skeleton(tmp_path / "raw", TWO_SESSIONS)
    before = listing(tmp_path)
    indexed(root)
    assert listing(tmp_path) == before


def test_relative_dataset_path(tmp_path, monkeypatch):
    make_skeleton(tmp_path / "raw", ONE_SESSION)
    monkeypatch.chdir(tmp_path)
    assert indexed(Path("raw")).visits[0].t1w.path == tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz"


def test_database_is_made_whole_and_used_again(tmp_path, monkeypatch):
    root, database = make_skeleton(tmp_path / "raw", TWO_SESSIONS), tmp_path / "db"
    settings = Settings(out_dir=tmp_path / "out", bids_dir=root, bids_database_dir=database, participants=("02",))
    assert labels(index(settings)) == ["sub-02_ses-1"]
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]
    monkeypatch.setattr("bids_app.study.database._create", None)  # indexing again would call it
    again = index(replace(settings, participants=()))
    assert [scan_names(visit)[0] for visit in again.visits] == [
        "sub-01_ses-1_T1w",
        "sub-01_ses-2_T1w",
        "sub-02_ses-1_T1w",
    ]


def test_database_reached_by_another_path(tmp_path):
    root, database = make_skeleton(tmp_path / "raw", ONE_SESSION), tmp_path / "db"
    indexed(root, bids_database_dir=database)
    (tmp_path / "link").symlink_to(root)
    visit = indexed(tmp_path / "link", bids_database_dir=database).visits[0]
    assert visit.t1w.path == tmp_path / "link/sub-01/anat/sub-01_T1w.nii.gz"


def test_database_that_does_not_fit(tmp_path):
    root, database = make_skeleton(tmp_path / "raw", ONE_SESSION), tmp_path / "db"
    indexed(root, bids_database_dir=database)
    with pytest.raises(ConfigError, match="of another dataset"):
        indexed(make_skeleton(tmp_path / "other", ONE_SESSION), bids_database_dir=database)
    make_skeleton(root, ["sub-09_T1w"])
    with pytest.raises(ConfigError, match="older than sub-09"):
        indexed(root, bids_database_dir=database)
    assert labels(indexed(root, bids_database_dir=database, participants=("01",))) == ["sub-01"]
    (database / "layout_index.sqlite").write_text("no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be used"):
        indexed(root, bids_database_dir=database)


@pytest.mark.parametrize("scan", ["sub-02_FLAIR", "sub-02_run-2_T1w"])
def test_database_without_a_new_scan_of_a_known_visit(tmp_path, scan):
    root, database = make_skeleton(tmp_path / "raw", ["sub-02_T1w"]), tmp_path / "db"
    indexed(root, bids_database_dir=database)
    make_empty(
        root, "sub-02/anat/sub-02_T1w.json", "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/sub-02_x.y_T1w.nii.gz"
    )
    indexed(root, bids_database_dir=database)
    make_skeleton(root, [scan])
    with pytest.raises(ConfigError, match="older than sub-02"):
        indexed(root, bids_database_dir=database)


def test_file_removed_since_the_database_was_made(tmp_path):
    root, database = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-01_FLAIR"]), tmp_path / "db"
    indexed(root, bids_database_dir=database)
    (anat(root, "sub-01_FLAIR") / "sub-01_FLAIR.nii.gz").unlink()
    assert scan_names(indexed(root, bids_database_dir=database).visits[0]) == ("sub-01_T1w", None)


def test_every_folder_of_the_requested_visits_is_listed_once(tmp_path, monkeypatch):
    listed, scandir = [], os.scandir
    root = make_skeleton(tmp_path / "raw", [*TWO_SESSIONS, "sub-011_ses-1_T1w", "sub-01_ses-11_T1w"])
    make_skeleton(root / "derivatives" / "x", ["sub-01_ses-1_T1w"])
    make_empty(root, "sourcedata/a.nii", "sub-01/ses-1/func/sub-01_ses-1_bold.nii.gz", "sub-01/ses-1/anat/x_T1w.json")
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    indexed(root, participants=("01",), sessions=("1",))
    below = ("", "/sub-01", "/sub-01/ses-1", "/sub-01/ses-1/anat", "/sub-01/ses-1/func")
    own = [path for path in listed if not path.startswith(f"{root}/derivatives")]  # masks are looked for there
    assert sorted(own) == [f"{root}{folder}" for folder in below]
    listed.clear()
    indexed(root)
    own = [path for path in listed if not path.startswith(f"{root}/derivatives")]
    assert len(own) == len(set(own)) == 15


def test_odd_labels_and_sessions_are_named_and_the_others_go_on(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_ses-1_T1w"])
    make_empty(root, "sub-B_C/anat/sub-B_C_T1w.nii.gz", "sub-03/ses-1/anat/sub-03_T1w.nii.gz")
    study = indexed(root)
    assert {str(item.path): item.reason for item in study.unused} == {
        "sub-B_C": Reason.PARTICIPANT_LABEL,
        "sub-03/ses-1/anat/sub-03_T1w.nii.gz": Reason.SESSION_MISSING,
    }
    assert [visit.usable for visit in study.visits] == [True, True, False]
    assert "rename it to sub-03_ses-1_T1w.nii.gz" in study.visits[2].problems[0].message


def test_an_unreadable_folder_fails_its_visit_only(tmp_path, monkeypatch):
    root, scandir = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w", "sub-03_ses-1_T1w"]), os.scandir

    def closed(path):
        if Path(path) in (root / "sub-01", root / "sub-03/ses-1/anat"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    visits = {visit.label: visit for visit in indexed(root).visits}
    assert [label for label, visit in visits.items() if visit.usable] == ["sub-02"]
    assert "Permission denied" in visits["sub-01"].problems[0].message
    assert "Permission denied" in visits["sub-03_ses-1"].problems[0].message


def test_what_the_filter_file_leaves_out_is_named(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_run-1_T1w", "sub-01_run-2_T1w", "sub-01_FLAIR"])
    filter_file = tmp_path / "filter.json"
    filter_file.write_text(json.dumps({"t1w": {"run": 1}, "flair": {"acq": "3d"}}))
    study = indexed(root, bids_filter_file=filter_file)
    assert [item.path.name for item in study.unused] == ["sub-01_FLAIR.nii.gz", "sub-01_run-2_T1w.nii.gz"]
    assert {item.reason for item in study.unused} == {Reason.FILTERED}
    assert "left out by the filter file" in study.visits[0].problems[0].message


@pytest.mark.parametrize("pattern", ["sub-01_flair.nii.gz", "sub-01_acq-FLAIR_T2w.nii.gz", "sub-01_FLAIR.mgz"])
def test_a_flair_that_is_not_used_is_told_of_its_visit(tmp_path, pattern):
    root = make_empty(make_skeleton(tmp_path / "raw", ["sub-01_T1w"]), f"sub-01/anat/{pattern}")
    [visit] = indexed(root).visits
    assert (codes(visit), visit.usable) == (["no-flair"], True)
    assert pattern in visit.problems[0].message


def test_half_a_head_is_not_measured_as_a_whole(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_chunk-1_T1w", "sub-01_chunk-2_T1w", "sub-02_T1w"])
    first, second = indexed(root).visits
    assert (first.usable, second.usable) == (False, True)
    assert "chunk-" in first.problems[0].message


@pytest.mark.parametrize(
    ("scans", "chosen", "told"),
    [
        (["space-MNI152NLin6Asym_desc-preproc_T1w", "desc-preproc_T1w"], 1, ["several-t1w", "processed-scan"]),
        (["space-MNI152NLin2009cAsym_T1w", "T1w"], 1, ["several-t1w"]),
        (["desc-preproc_T1w", "T1w"], 1, ["several-t1w"]),
        (["space-orig_desc-brain_T1w", "space-MNI152NLin6Asym_T1w"], 0, ["several-t1w", "processed-scan"]),
        (["space-MNI152NLin2009aSym_T1w"], 0, ["standard-space"]),
    ],
)
def test_a_scan_comes_before_its_copies_and_a_native_copy_before_the_others(tmp_path, scans, chosen, told):
    fine = {f"sub-01_{scan}": (0.7, 0.7, 0.7) for scan in scans if "space-" in scan}
    [visit] = indexed(make_skeleton(tmp_path / "raw", [f"sub-01_{scan}" for scan in scans], fine)).visits
    assert scan_names(visit)[0] == f"sub-01_{scans[chosen]}"
    assert (codes(visit), visit.usable) == (told, True)


def test_the_pseudohealthy_image_is_never_a_scan(tmp_path):
    scans = ["sub-01_space-T1w_desc-pseudohealthy_T1w", "sub-01_desc-pseudohealthy_FLAIR"]
    root = make_skeleton(tmp_path / "raw", [*scans, "sub-02_T1w", f"{scans[0].replace('01', '02')}"])
    first, second = indexed(root).visits
    assert (first.reference, codes(first)) == (None, ["no-t1w"])
    assert (scan_names(second), codes(second)) == (("sub-02_T1w", None), [])


def test_nothing_that_this_app_wrote_is_a_scan(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_desc-preproc_T1w", "sub-02_space-MNI152NLin2009aSym_res-1_T1w"])
    description = {"Name": "Out", "BIDSVersion": "1.9.0", "GeneratedBy": [{"Name": "afterstroke"}]}
    (root / "dataset_description.json").write_text(json.dumps(description))
    study = indexed(root)
    assert [visit.reference for visit in study.visits] == [None, None]
    assert {item.reason for item in study.unused} == {Reason.OWN}
    error = nothing_to_process(study, Settings(out_dir=tmp_path / "out", bids_dir=root))
    assert (error.exit_code, "Give the raw dataset" in error.hint) == (ExitCode.NO_INPUT, True)


@pytest.mark.parametrize(
    ("more", "told", "not_told"),
    [
        ({}, "eeg, func", "Check the"),
        ({"participants": ("01",)}, "Check the labels.", "filter"),
    ],
)
def test_only_what_was_given_is_to_be_checked(tmp_path, more, told, not_told):
    root = make_empty(make_skeleton(tmp_path / "raw", []), "sub-01/func/sub-01_task-x_bold.nii.gz", "sub-01/eeg/a.edf")
    settings = Settings(out_dir=tmp_path / "out", bids_dir=root, **more)
    hint = nothing_to_process(index(settings), settings).hint
    assert told in hint
    assert not_told not in hint


def test_labels_that_were_meant_are_told(tmp_path):
    root = make_empty(make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-AB_T1w"]), "sub-B_C/anat/sub-B_C_T1w.nii.gz")
    with pytest.raises(NoInputError, match=r"has no sub-1, sub-ab\. Did you mean 01, AB\?"):
        indexed(root, participants=("1", "ab"))
    with pytest.raises(NoInputError, match=r"ses-1 is no session .* there are 01\..*Did you mean 01\?"):
        indexed(make_skeleton(tmp_path / "sessions", ["sub-01_ses-01_T1w"]), sessions=("1",))
    with pytest.raises(NoInputError, match=r"letters and digits only; rename it to sub-BC"):
        indexed(root, participants=("B_C",))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["Sub-01/anat/Sub-01_T1w.nii.gz"], "in lower case; rename it to sub-01"),
        (["rawdata/dataset_description.json", "rawdata/sub-01/anat/sub-01_T1w.nii.gz"], "There are some in .*rawdata"),
        (["derivatives/ATLAS/dataset_description.json"], "There are some in .*ATLAS"),
        (["patient/series/IM1.dcm"], "dcm2niix"),
        ([], "A BIDS dataset has a folder"),
    ],
)
def test_a_dataset_without_participants_says_what_it_has_instead(tmp_path, files, told):
    root = make_empty(make_skeleton(tmp_path / "raw", []), *files)
    with pytest.raises(NoInputError, match=f"no participant.*{told}"):
        indexed(root)


def test_masks_beside_the_scans_are_named_unless_the_dataset_is_given_for_reuse(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    make_empty(root, "sub-01/anat/sub-01_label-lesion_roi.nii.gz")
    assert [item.reason for item in indexed(root).unused] == [Reason.MASK]
    assert indexed(root, derivatives={"own": root}).unused == ()


def test_an_empty_participant_of_a_datalad_dataset_is_to_be_got(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    (root / "sub-02").mkdir()
    [item] = indexed(root).unused
    assert (item.reason, item.advice) == (Reason.EMPTY, f"if so, run: datalad get {root / 'sub-02'}")
    (root / ".gitmodules").write_text('[submodule "sub-02"]')
    assert indexed(root).unused[0].advice == f"run: datalad get {root / 'sub-02'}"


def test_a_link_in_a_circle_is_told_of_its_visit(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w"])
    (root / "sub-03").symlink_to("sub-03")
    (root / "sub-02" / "anat" / "sub-02_run-2_T1w.nii.gz").symlink_to("sub-02_run-2_T1w.nii.gz")
    study = indexed(root)
    assert [str(item.path) for item in study.unused] == ["sub-03"]
    assert labels(study) == ["sub-01", "sub-02"]


def test_names_that_no_terminal_can_show(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    Path(os.fsdecode(os.fsencode(root) + b"/sub-\xfc1/anat")).mkdir(parents=True)
    settings = Settings(out_dir=tmp_path / "out", bids_dir=root)
    text = render(index(settings), settings, {})
    assert "sub-\\udcfc1: the label" in text
    text.encode("utf-8")


def test_sessions_of_a_table_without_a_folder_are_named(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_ses-1_T1w"])
    (root / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\nses-1\t50\nses-2\t51\n")
    [item] = indexed(root).unused
    assert item.sentence == "a table with sessions that have no folder: ses-2"


def test_a_link_to_nowhere_says_what_to_bind(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    scan = anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz"
    scan.unlink()
    scan.symlink_to(tmp_path / "elsewhere" / "scan.nii.gz")
    (root / "sub-02").symlink_to(tmp_path / "elsewhere" / "sub-02")
    study = indexed(root)
    [problem] = study.visits[0].problems
    assert (problem.code, problem.severity) == ("dangling-link", Severity.ERROR)
    assert f"bind {tmp_path / 'elsewhere'}" in problem.message
    assert [(item.reason, item.advice) for item in study.unused] == [
        (Reason.DANGLING, f"bind {tmp_path / 'elsewhere' / 'sub-02'}")
    ]


@pytest.mark.parametrize(("cached", "normalization"), [(True, True), (False, True), (True, False)])
def test_fmripreps_transforms_serve_the_default_space_where_their_template_is_here(
    tmp_path: Path, monkeypatch, cached: bool, normalization: bool
):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "cache"))
    template = tmp_path / "cache" / "tpl-MNI152NLin2009cAsym" / "tpl-MNI152NLin2009cAsym_res-01_"
    template.parent.mkdir(parents=True)
    for name in ("T1w", "desc-brain_mask"):
        Path(f"{template}{name}.nii.gz").write_bytes(b"x" if cached else b"")
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    names = [
        f"sub-01/anat/sub-01_from-{one}_to-{other}_mode-image_xfm.h5"
        for one, other in (("T1w", "MNI152NLin2009cAsym"), ("MNI152NLin2009cAsym", "T1w"))
    ]
    make_empty(tmp_path / "fmriprep", *names)
    settings = Settings(
        bids_dir=root, out_dir=tmp_path / "out", derivatives={"fmriprep": tmp_path / "fmriprep"},
        normalization=normalization,
    )  # fmt: skip
    (visit,) = index(settings).visits
    assert visit.reuse.standard_space == ("MNI152NLin2009cAsym" if cached and normalization else None)
