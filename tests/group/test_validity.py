"""What both levels write together is valid BIDS, without error or warning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives.description import write_top_level
from bids_app.derivatives.record import Record, write_record
from bids_app.derivatives.sessions import rebuild
from bids_app.derivatives.visit import session_row, visit_files, write_files
from tests.derivatives import mock
from tests.group.mock import add_failed, add_raw, run_lines

ROWS = (("sub-01", "61", "A"), ("sub-02", "n/a", "B"), ("sub-03", "70", "A"))


@pytest.fixture(params=[("participant_id", "age", "site"), ()], ids=["raw table", "no raw table"])
def out(tmp_path, request) -> Path:
    """A dataset whose participants have sessions or none, written by the participant level's own writers."""
    bids, out = tmp_path / "raw", tmp_path / "out"
    bids.mkdir()
    description = {"Name": "Mock", "BIDSVersion": "1.11.1", "License": "CC0", "Authors": ["A B", "C D"]}
    (bids / names.DESCRIPTION).write_text(json.dumps(description))
    write_top_level(out, bids, "a1b2c3d4", {})
    for subject, session in (("01", "1"), ("01", "2"), ("02", None)):
        visit = mock.make_visit(bids, subject, session)
        results = mock.make_results(tmp_path / "work", visit)
        prepared, posed, segmented, normalized = results
        outputs = write_files(out, list(visit_files(prepared, segmented, normalized, mock.provenance(bids))))
        summary = session_row(prepared, posed, segmented, normalized, ())
        write_record(
            out, Record(subject, session, "done", "0.1.0", "a1b2c3d4", "f", {}, outputs=outputs, summary=summary)
        )
    add_failed(out, "03")
    for subject in ("01", "02", "03"):
        rebuild(out, subject)
        rows = ROWS if request.param else ()
        add_raw(out, subject, {"01": ["1", "2"], "02": [None], "03": [None]}, request.param, rows)
    return out


def issues(folder: Path) -> list[tuple[str, str]]:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    ended = subprocess.run([validator, folder, "--format", "json"], capture_output=True, text=True, check=False)
    return [(issue["code"], issue.get("location", "")) for issue in json.loads(ended.stdout)["issues"]["issues"]]


def test_output_folder_validates_after_the_group_level(out):
    lines = run_lines(out)
    assert not [line for line in lines if line.startswith("WARNING")]
    assert (out / names.group_frequency("MNI152NLin2009aSym")).is_file()
    assert issues(out) == []
    run_lines(out, participants=("01",))
    assert list(out.glob("group_part-*/group_sessions.tsv"))
    assert issues(out) == []


def test_group_files_are_these(out):
    before = {path.name for path in out.iterdir()}
    run_lines(out)
    written = sorted({path.name for path in out.iterdir()} - before)
    tables = [names.PARTICIPANTS, names.GROUP_SESSIONS, names.GROUP_LESIONS, names.GROUP_FINDINGS]
    tables += [names.GROUP_CLASSES, names.GROUP_MISSING]
    expected = [*tables, str(names.group_frequency("MNI152NLin2009aSym"))]
    expected += [str(names.sidecar(Path(name))) for name in expected]
    assert written == sorted(expected)
