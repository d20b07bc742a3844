"""Filter files: fMRIPrep's form, and what is refused."""

from __future__ import annotations

import json

import pytest

from bids_app.errors import ConfigError
from bids_app.study.filters import ScanFilters, parse_filters, read_filters


def accepted(conditions: dict, *names: str) -> list[str]:
    """The names that a T1w filter accepts."""
    filters = parse_filters({"t1w": conditions})
    return [name for name in names if filters.t1w.accepts(name)]


@pytest.mark.parametrize("key", ["acquisition", "acq"])
def test_long_and_short_entity_names(key):
    assert accepted({key: "hi"}, "sub-1_acq-hi_T1w.nii", "sub-1_acq-lo_T1w.nii", "sub-1_T1w.nii") == [
        "sub-1_acq-hi_T1w.nii"
    ]


def test_null_is_absent_and_star_is_present():
    names = ("sub-1_T1w.nii", "sub-1_rec-norm_T1w.nii")
    assert accepted({"reconstruction": None}, *names) == ["sub-1_T1w.nii"]
    assert accepted({"reconstruction": "*"}, *names) == ["sub-1_rec-norm_T1w.nii"]


def test_list_is_one_of_and_may_hold_null():
    names = ("sub-1_T1w.nii", "sub-1_run-1_T1w.nii", "sub-1_run-2_T1w.nii")
    assert accepted({"run": [None, 2]}, *names) == ["sub-1_T1w.nii", "sub-1_run-2_T1w.nii"]


@pytest.mark.parametrize("value", [1, "1", "01", "run-01"])
def test_runs_are_numbers(value):
    assert accepted({"run": value}, "sub-1_run-01_T1w.nii", "sub-1_run-2_T1w.nii") == ["sub-1_run-01_T1w.nii"]


def test_labels_are_no_numbers():
    assert accepted({"acq": "1"}, "sub-1_acq-01_T1w.nii") == []


@pytest.mark.parametrize(("long", "short"), [("task", "task"), ("direction", "dir"), ("modality", "mod")])
def test_every_entity_can_be_filtered(long, short):
    assert accepted({long: "1"}, f"sub-1_{short}-1_T1w.nii", "sub-1_T1w.nii") == [f"sub-1_{short}-1_T1w.nii"]


def test_extension():
    assert accepted({"extension": [".nii.gz"]}, "sub-1_T1w.nii", "sub-1_T1w.nii.gz") == ["sub-1_T1w.nii.gz"]


def test_conditions_hold_together():
    assert accepted({"acq": "a", "run": 1}, "sub-1_acq-a_run-2_T1w.nii", "sub-1_acq-a_run-1_T1w.nii") == [
        "sub-1_acq-a_run-1_T1w.nii"
    ]


def test_datatype_and_suffix_of_fmriprep_filters_are_no_conditions():
    assert accepted({"datatype": "anat", "suffix": "T1w"}, "sub-1_T1w.nii") == ["sub-1_T1w.nii"]


def test_filter_that_babs_writes_chooses_the_session():
    written = {kind: {"session": "02"} for kind in ("fmap", "bold", "sbref", "flair", "t2w", "t1w", "roi")}
    filters = parse_filters(written)
    assert filters.accept_visit("sub-1_ses-02")
    assert not filters.accept_visit("sub-1_ses-01")
    assert not filters.accept_visit("sub-1")


def test_no_file_is_no_filter():
    assert read_filters(None) == ScanFilters()
    assert ScanFilters().accept_visit("sub-1_ses-1")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"t1": {}}, "t1"),
        ({"t1w": {"acquisiton": "hi"}}, "acquisiton"),
        ({"t1w": {"suffix": "UNIT1"}}, "UNIT1"),
        ({"t1w": "hi"}, "object"),
        (["t1w"], "object"),
    ],
)
def test_what_makes_no_sense_is_refused(content, named):
    with pytest.raises(ConfigError, match=named):
        parse_filters(content)


def test_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text("{'t1w': }")
    with pytest.raises(ConfigError, match=r"filter\.json is not valid JSON"):
        read_filters(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_filters(tmp_path / "absent.json")


def test_file_is_read(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"flair": {"acq": "2d"}}))
    assert read_filters(path).flair.accepts("sub-1_acq-2d_FLAIR.nii")
    assert not read_filters(path).flair.accepts("sub-1_FLAIR.nii")
