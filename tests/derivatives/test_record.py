from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives import record as record_module
from bids_app.derivatives.record import (
    Record,
    Stamp,
    Status,
    checksums,
    fingerprint,
    read_record,
    refuse_other_scans,
    remove_stale,
    restamped,
    sha256,
    status_of,
    write_record,
)
from bids_app.errors import UsageError

RECORD = Record("01", None, "done", "1", "conf", "digest", {"t1w": "abc"})


@pytest.fixture
def finished(tmp_path: Path) -> Record:
    """A visit made of one scan into one image."""
    scan, image = tmp_path / "bids" / "T1w.nii.gz", tmp_path / "sub-01" / "image.nii.gz"
    for path, content in ((scan, b"a scan"), (image, b"voxels")):
        path.parent.mkdir()
        path.write_bytes(content)
    inputs = checksums({"t1w": scan})
    return replace(
        RECORD,
        fingerprint=fingerprint(inputs),
        inputs=inputs,
        input_names={"t1w": scan.name},
        input_stamps={"t1w": Stamp.of(scan)},
        outputs={"sub-01/image.nii.gz": sha256(image)},
        output_stamps={"sub-01/image.nii.gz": Stamp.of(image)},
    )


def test_a_record_comes_back(tmp_path: Path, finished: Record):
    write_record(tmp_path, finished)
    assert read_record(tmp_path, "01", None) == finished
    assert read_record(tmp_path, "02", None) is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"subject": "01"}'])
def test_an_unreadable_record_counts_as_none(tmp_path: Path, damage: str):
    write_record(tmp_path, RECORD).write_text(damage)
    assert read_record(tmp_path, "01", None) is None


def status(out: Path, record: Record | None, configuration: str = "conf", **more) -> Status:
    return status_of(out, record, configuration, {"t1w": out / "bids" / "T1w.nii.gz", "flair": None}, **more)


def test_status_table(tmp_path: Path, finished: Record):
    assert status(tmp_path, None) is Status.TO_DO
    assert status(tmp_path, finished) is Status.DONE
    assert status(tmp_path, replace(finished, status="failed")) is Status.FAILED
    assert status(tmp_path, finished, "other") is Status.OUTDATED
    assert status(tmp_path, replace(finished, fingerprint="other")) is Status.OUTDATED
    assert status_of(tmp_path, finished, "conf", {"t1w": None}) is Status.OUTDATED, "a scan less"


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that are read to take their checksums."""
    names: list[str] = []
    monkeypatch.setattr(record_module, "sha256", lambda path: names.append(path.name) or sha256(path))
    return names


def copied(path: Path) -> None:
    """As if a file was copied: same content, another time."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


def test_a_finished_visit_is_recognised_without_reading_it(tmp_path: Path, finished: Record, read: list[str]):
    assert status(tmp_path, finished) is Status.DONE and not read
    assert status(tmp_path, finished, check_content=True) is Status.DONE
    assert read == ["T1w.nii.gz", "image.nii.gz"]


def test_what_was_copied_is_read_once_and_then_known(tmp_path: Path, finished: Record, read: list[str]):
    for path in (tmp_path / "bids" / "T1w.nii.gz", tmp_path / "sub-01" / "image.nii.gz"):
        copied(path)
    assert status(tmp_path, finished) is Status.DONE
    assert read == ["T1w.nii.gz", "image.nii.gz"]
    known = restamped(tmp_path, finished, {"t1w": tmp_path / "bids" / "T1w.nii.gz", "flair": None})
    read.clear()
    assert status(tmp_path, known) is Status.DONE and not read
    assert restamped(tmp_path, known, {"t1w": tmp_path / "bids" / "T1w.nii.gz"}) == known and not read


def test_a_record_without_sizes_and_times_is_believed_after_reading(tmp_path: Path, finished: Record, read: list[str]):
    early = {key: value for key, value in asdict(finished).items() if "stamps" not in key and key != "input_names"}
    path = write_record(tmp_path, finished)
    path.write_text(json.dumps(early))
    record = read_record(tmp_path, "01", None)
    assert status(tmp_path, record) is Status.DONE
    assert read == ["T1w.nii.gz", "image.nii.gz"]
    image = tmp_path / "sub-01" / "image.nii.gz"
    image.write_bytes(b"voxelz")
    assert status(tmp_path, record) is Status.DAMAGED
    assert "sub-01/image.nii.gz" not in restamped(tmp_path, record, {}).output_stamps


@pytest.mark.parametrize(
    ("content", "reads"),
    [(b"voxelz", ["image.nii.gz"]), (b"fewer", []), (None, [])],
    ids=["changed", "shorter", "gone"],
)
def test_a_changed_or_missing_output_is_noticed(tmp_path: Path, finished: Record, read: list[str], content, reads):
    image = tmp_path / "sub-01" / "image.nii.gz"
    image.unlink() if content is None else image.write_bytes(content)
    assert status(tmp_path, finished) is Status.DAMAGED
    assert read == reads


@pytest.mark.parametrize("change", ["content", "size", "name"])
def test_a_changed_input_is_noticed(tmp_path: Path, finished: Record, read: list[str], change: str):
    scan = tmp_path / "bids" / "T1w.nii.gz"
    time = scan.stat().st_mtime_ns
    if change == "name":  # another scan of the same size and time, as archives unpack them
        scan = scan.rename(scan.with_name("run-2_T1w.nii.gz"))
        scan.write_bytes(b"A SCAN")
        os.utime(scan, ns=(time, time))
    else:
        scan.write_bytes(b"A SCAN" if change == "content" else b"another scan")
    assert status_of(tmp_path, finished, "conf", {"t1w": scan}) is Status.OUTDATED
    assert read == ([] if change == "size" else [scan.name])


@pytest.mark.parametrize("stamps", [3, {"t1w": [1]}, {"t1w": None}, ["x"]])
def test_a_record_whose_stamps_make_no_sense_cannot_be_read(tmp_path: Path, finished: Record, stamps):
    path = write_record(tmp_path, finished)
    path.write_text(json.dumps(asdict(finished) | {"input_stamps": stamps}))
    assert read_record(tmp_path, "01", None) is None


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
