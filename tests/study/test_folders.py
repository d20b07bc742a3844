"""Folders that may not be written, and those that cannot."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.errors import CannotWriteError, NoInputError, UsageError
from bids_app.settings import Settings
from bids_app.study.folders import check_group_input, check_places, check_writable, dataset_of
from tests.skeletons import listing


def places(root: Path, out: str, work: str = "work", **more) -> Settings:
    raw = root / "raw"
    (raw / "sub-01").mkdir(parents=True, exist_ok=True)
    return Settings(bids_dir=raw, out_dir=root / out, work_dir=root / work, **more)


@pytest.mark.parametrize("out", ["out", "raw/derivatives/afterstroke", "raw/derivatives", "raw2/sub-01"])
def test_good_places(tmp_path, out):
    check_places(places(tmp_path, out))
    check_places(places(tmp_path, out, bids_database_dir=tmp_path / "raw/derivatives/db"))


def test_work_beside_the_output(tmp_path):
    check_places(places(tmp_path, "raw/derivatives/afterstroke", work="raw/derivatives/work"))


@pytest.mark.parametrize("out", ["raw", "raw/sub-01", "raw/sub-01/anat", "raw/../raw", "link", "link/sub-02/x"])
def test_output_in_the_raw_data_is_refused(tmp_path, out):
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    with pytest.raises(UsageError, match="output folder"):
        check_places(places(tmp_path, out))


@pytest.mark.parametrize("work", ["raw", "raw/work", "raw/sub-01", "out", "out/work", "out/.work"])
def test_work_in_the_raw_data_or_the_output_is_refused(tmp_path, work):
    with pytest.raises(UsageError, match="work folder"):
        check_places(places(tmp_path, "out", work))


@pytest.mark.parametrize("database", ["raw", "raw/db", "raw/sub-01/db"])
def test_database_in_the_raw_data_is_refused(tmp_path, database):
    with pytest.raises(UsageError, match="--bids-database-dir"):
        check_places(places(tmp_path, "out", bids_database_dir=tmp_path / database))


def test_dataset_of_a_file(tmp_path):
    for folder in ("raw/sub-01/anat", "raw/derivatives/prep/sub-01/anat"):
        (tmp_path / folder).mkdir(parents=True)
    assert dataset_of(tmp_path / "raw/sub-01/anat/a.nii") is None
    for folder in ("raw", "raw/derivatives/prep"):
        (tmp_path / folder / "dataset_description.json").write_text("{}")
    assert dataset_of(tmp_path / "raw/sub-01/anat/a.nii") == tmp_path / "raw"
    assert dataset_of(tmp_path / "raw/derivatives/prep/sub-01/anat/a.nii") == tmp_path / "raw/derivatives/prep"


def test_exported_masks_in_the_raw_data_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--export-lesion-roi"):
        check_places(places(tmp_path, "out", export_lesion_roi=tmp_path / "raw" / "rois"))


def test_check_of_places_writes_nothing(tmp_path):
    settings = places(tmp_path, "out")
    before = listing(tmp_path)
    check_places(settings)
    assert listing(tmp_path) == before


def test_writable_folders_are_made_and_stay_empty(tmp_path):
    check_writable(places(tmp_path, "a/b/out", export_lesion_roi=tmp_path / "rois"))
    assert [list((tmp_path / folder).iterdir()) for folder in ("a/b/out", "work", "rois")] == [[], [], []]


@pytest.mark.parametrize("folder", ["out", "work"])
def test_folder_that_is_a_file_is_told(tmp_path, folder):
    (tmp_path / folder).write_text("a file")
    with pytest.raises(CannotWriteError, match=rf"{folder}.*{tmp_path / folder}"):
        check_writable(places(tmp_path, "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_told(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(CannotWriteError, match="Permission denied"):
        check_writable(places(tmp_path, "out"))


def test_group_needs_participants(tmp_path):
    with pytest.raises(NoInputError, match="does not exist"):
        check_group_input(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub-01.html").write_text("a page is no participant")
    with pytest.raises(NoInputError, match="holds no participant"):
        check_group_input(tmp_path / "out")
    (tmp_path / "out" / "sub-01").mkdir()
    check_group_input(tmp_path / "out")


@pytest.mark.parametrize("out", ["raw/results", "raw/sourcedata", "raw/sourcedata/afterstroke", "raw/code/out"])
def test_output_anywhere_in_the_dataset_but_its_derivatives_is_refused(tmp_path, out):
    with pytest.raises(UsageError, match=r"output folder .* is inside the dataset") as caught:
        check_places(places(tmp_path, out))
    assert "raw/derivatives/afterstroke" in caught.value.hint


@pytest.mark.parametrize("folder", ["out", "work"])
def test_folder_that_is_a_file_is_told_before_anything_is_written(tmp_path, folder):
    (tmp_path / folder).write_text("a file")
    with pytest.raises(CannotWriteError, match=rf"{folder} is a file"):
        check_places(places(tmp_path, "out"))


def test_the_datasets_of_all_scans_of_a_case_are_raw(tmp_path):
    settings = replace(places(tmp_path, "other/results"), bids_dir=None)
    check_places(settings)
    with pytest.raises(UsageError, match="inside the dataset"):
        check_places(settings, tmp_path / "raw", tmp_path / "other")
