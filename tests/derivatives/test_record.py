from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives.record import (
    Record,
    Status,
    checksums,
    fingerprint,
    read_record,
    refuse_other_scans,
    remove_stale,
    sha256,
    status_of,
    write_record,
)
from bids_app.errors import UsageError

RECORD = Record("01", None, "done", "1", "conf", "digest", {"t1w": "abc"})


@pytest.fixture
def finished(tmp_path: Path) -> Record:
    (tmp_path / "sub-01").mkdir()
    image = tmp_path / "sub-01" / "image.nii.gz"
    image.write_bytes(b"voxels")
    return replace(RECORD, outputs={"sub-01/image.nii.gz": sha256(image)})


def test_a_record_comes_back(tmp_path: Path):
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path, "01", None) == RECORD
    assert read_record(tmp_path, "02", None) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"subject": "01"}'])
def test_an_unreadable_record_counts_as_none(tmp_path: Path, damage: str):
    write_record(tmp_path, RECORD).write_text(damage)
    assert read_record(tmp_path, "01", None) is None


def test_status_table(tmp_path: Path, finished: Record):
    assert status_of(tmp_path, None, "conf", "digest") is Status.TO_DO
    assert status_of(tmp_path, finished, "conf", "digest") is Status.DONE
    assert status_of(tmp_path, replace(finished, status="failed"), "conf", "digest") is Status.FAILED
    assert status_of(tmp_path, finished, "other", "digest") is Status.OUTDATED
    assert status_of(tmp_path, finished, "conf", "other") is Status.OUTDATED


def test_a_changed_or_missing_output_is_noticed(tmp_path: Path, finished: Record):
    image = tmp_path / "sub-01" / "image.nii.gz"
    image.write_bytes(b"voxelz")
    assert status_of(tmp_path, finished, "conf", "digest") is Status.DAMAGED
    image.unlink()
    assert status_of(tmp_path, finished, "conf", "digest") is Status.DAMAGED


def test_stale_outputs_go_and_others_stay(tmp_path: Path, finished: Record):
    stale, kept = tmp_path / "sub-01" / "image.nii.gz", tmp_path / "sub-01" / "kept.nii.gz"
    kept.write_bytes(b"")
    remove_stale(tmp_path, finished.outputs, ["sub-01/kept.nii.gz"])
    assert (stale.exists(), kept.exists()) == (False, True)


def test_a_visit_of_other_scans_is_not_replaced(tmp_path: Path):
    """In a container the scans of two patients may have one path."""
    t1w, flair = tmp_path / "t1w.nii.gz", tmp_path / "flair.nii.gz"
    t1w.write_bytes(b"a"), flair.write_bytes(b"b")
    refuse_other_scans(tmp_path, "T1w", None, {"t1w": t1w, "flair": None})
    write_record(tmp_path, Record("T1w", None, "done", "1", "conf", "f", checksums({"t1w": t1w})))
    refuse_other_scans(tmp_path, "T1w", None, {"t1w": t1w, "flair": flair})
    t1w.write_bytes(b"another patient")
    with pytest.raises(UsageError, match="already holds sub-T1w, made from another scan"):
        refuse_other_scans(tmp_path, "T1w", None, {"t1w": t1w, "flair": None})


def test_the_fingerprint_follows_contents_and_roles():
    assert fingerprint({"t1w": "a", "flair": "b"}) == fingerprint({"flair": "b", "t1w": "a"})
    assert fingerprint({"t1w": "a", "flair": "b"}) != fingerprint({"t1w": "b", "flair": "a"})


def test_the_record_lies_in_the_log_of_its_subject():
    assert str(names.visit_record("01", "2")) == "sub-01/log/sub-01_ses-2_record.json"
