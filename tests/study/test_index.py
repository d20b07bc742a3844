"""From datasets to visits: all the ways in which scans lie around."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bids.layout import BIDSLayoutIndexer

from bids_app.errors import ConfigError, DatasetError, NoInputError
from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.models import Severity, Study, Visit
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


def test_zero_byte_scan_is_a_scan(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w"])
    (anat(root, "sub-01_T1w") / "sub-01_T1w.nii.gz").write_bytes(b"")
    assert indexed(root).visits[0].usable  # processing says what is wrong with it


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
    monkeypatch.setattr("bids_app.study.index._indexer", None)  # indexing again would call it
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


def test_pybids_looks_at_the_requested_scans_only(tmp_path, monkeypatch):
    seen = []
    index_file = BIDSLayoutIndexer._index_file
    monkeypatch.setattr(BIDSLayoutIndexer, "_index_file", lambda *a: seen.append(Path(a[1]).name) or index_file(*a))
    root = make_skeleton(tmp_path / "raw", [*TWO_SESSIONS, "sub-011_ses-1_T1w", "sub-01_ses-11_T1w"])
    make_skeleton(root / "derivatives" / "x", ["sub-01_ses-1_T1w"])
    make_empty(root, "sourcedata/a.nii", "sub-01/ses-1/func/sub-01_ses-1_bold.nii.gz", "sub-01/ses-1/anat/x_T1w.json")
    indexed(root, participants=("01",), sessions=("1",))
    assert sorted(seen) == ["sub-01_ses-1_FLAIR.nii.gz", "sub-01_ses-1_T1w.nii.gz"]
    indexed(root, participants=("02",))
    assert sorted(seen[2:]) == ["sub-02_ses-1_FLAIR.nii.gz", "sub-02_ses-1_T1w.nii.gz"]


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
