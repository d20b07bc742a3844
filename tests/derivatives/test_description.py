"""The description of the output folder: valid whatever the raw dataset says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest

from bids_app.derivatives import names
from bids_app.derivatives.description import CONTRIBUTORS, refuse_other_pipeline, write_top_level
from bids_app.errors import CannotWriteError
from bids_app.study.single import Case, make_case
from tests.skeletons import write_scan


def describe(root: Path, **raw) -> Path:
    """An output folder of a raw dataset that says `raw` of itself."""
    bids, out = root / "bids", root / "out"
    bids.mkdir(exist_ok=True)
    (bids / names.DESCRIPTION).write_text(json.dumps({"Name": "Cohort", "BIDSVersion": "1.8.0"} | raw))
    write_top_level(out, bids, "a1b2c3d4", {})
    return out


def description(out: Path) -> dict:
    return json.loads((out / names.DESCRIPTION).read_text())


def issues(folder: Path) -> list[tuple[str, str]]:
    """What the validator finds in an output folder with one table in it: without a participant it has nothing to do."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    (folder / "sub-01").mkdir()
    (folder / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\nses-1\n")
    (folder / "sub-01" / "sub-01_sessions.json").write_text('{"Description": "Sessions"}')
    ended = subprocess.run([validator, folder, "--format", "json"], capture_output=True, text=True, check=False)
    return [(issue["code"], issue.get("location", "")) for issue in json.loads(ended.stdout)["issues"]["issues"]]


AUTHORS = [
    ({}, ["Authors of Cohort", CONTRIBUTORS]),
    ({"Authors": []}, ["Authors of Cohort", CONTRIBUTORS]),
    ({"Authors": "A"}, ["Authors of Cohort", CONTRIBUTORS]),
    ({"Authors": ["A", 3]}, ["Authors of Cohort", CONTRIBUTORS]),
    ({"Authors": ["A"]}, ["A", CONTRIBUTORS]),
    ({"Authors": ["A", "B"]}, ["A", "B"]),
]


@pytest.mark.parametrize(("raw", "authors"), AUTHORS)
def test_authors(tmp_path, raw, authors):
    out = describe(tmp_path, **raw)
    assert description(out)["Authors"] == authors
    assert issues(out) == []


def test_values_of_a_wrong_type_are_left_out(tmp_path):
    out = describe(tmp_path, Name=["x"], License={"a": 1}, DatasetDOI=["10.1/x"])
    found = description(out)
    assert (found["Name"], found["License"]) == ("bids: stroke lesions", "n/a")
    assert found["SourceDatasets"] == [{"URL": "bids"}]
    assert issues(out) == []


@pytest.mark.parametrize("url", ["https://example.org/afterstroke", None])
def test_the_code_is_named_only_where_the_package_says_where_it_is(tmp_path, monkeypatch, url):
    declared = Message()
    declared["Project-URL"] = "Documentation, https://example.org/docs"
    if url:
        declared["Project-URL"] = f"Repository, {url}"
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: declared)
    assert description(describe(tmp_path))["GeneratedBy"][0].get("CodeURL") == url


def test_cases_are_linked_inside_the_output(tmp_path):
    out = tmp_path / "out"
    bids = make_case(Case(write_scan(tmp_path / "head.nii.gz")), out)
    write_top_level(out, bids, "a1b2c3d4", {})
    link = description(out)["DatasetLinks"]["raw"]
    assert link == "sourcedata/raw"
    assert (out / link / "sub-head/anat/sub-head_T1w.nii.gz").resolve() == tmp_path / "head.nii.gz"
    assert issues(out) == []
    (tmp_path / "head.nii.gz").unlink()
    (out / "sub-01" / "sub-01_sessions.json").unlink()
    (out / "sub-01" / "sub-01_sessions.tsv").unlink()
    (out / "sub-01").rmdir()
    assert issues(out) == []


def test_links_of_earlier_runs_stay_while_they_lead_somewhere(tmp_path):
    out = describe(tmp_path)
    folders = {name: tmp_path / name for name in ("fmriprep", "manual", "new")}
    for folder in folders.values():
        folder.mkdir()
    bids = tmp_path / "bids"
    write_top_level(out, bids, "a1b2c3d4", {"fmriprep": folders["fmriprep"], "manual": folders["manual"]})
    folders["manual"].rmdir()
    describe(tmp_path)
    assert description(out)["DatasetLinks"] == {"fmriprep": "../fmriprep", "raw": "../bids"}
    write_top_level(out, bids, "a1b2c3d4", {"fmriprep": folders["new"]})
    assert description(out)["DatasetLinks"] == {"fmriprep": "../new", "raw": "../bids"}


@pytest.mark.parametrize("links", [["../x"], {"a": 3}, "x", None])
def test_links_that_make_no_sense_are_dropped(tmp_path, links):
    out = describe(tmp_path)
    (out / names.DESCRIPTION).write_text(json.dumps(description(out) | {"DatasetLinks": links}))
    describe(tmp_path)
    assert description(out)["DatasetLinks"] == {"raw": "../bids"}


@pytest.mark.parametrize(
    ("generated", "told"),
    [
        ({"Name": "fMRIPrep"}, "derivatives of fMRIPrep"),
        ([{"Name": "fMRIPrep"}, "x"], "derivatives of fMRIPrep"),
        ("fMRIPrep", "another dataset"),
        (None, "another dataset"),
    ],
)
def test_output_of_another_pipeline_is_refused_in_a_sentence(tmp_path, generated, told):
    (tmp_path / names.DESCRIPTION).write_text(json.dumps({"Name": "x", "GeneratedBy": generated}))
    with pytest.raises(CannotWriteError, match=f"already holds {told}"):
        refuse_other_pipeline(tmp_path)
    refuse_other_pipeline(tmp_path / "absent")


@pytest.mark.parametrize("linked", ["out", "bids", "prep"])
def test_links_lead_to_the_datasets_however_these_are_reached(tmp_path, linked):
    """`..` in a link leads out of the folder that a symbolic link leads to."""
    far = tmp_path / "far" / "away"
    folders = {name: (far if name == linked else tmp_path) / name for name in ("out", "bids", "prep")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (tmp_path / linked).symlink_to(far / linked)
    (folders["bids"] / names.DESCRIPTION).write_text('{"Name": "Cohort", "BIDSVersion": "1.8.0"}')
    for _ in range(2):  # the second run keeps the links of the first
        write_top_level(tmp_path / "out", tmp_path / "bids", "a1b2c3d4", {"prep": tmp_path / "prep"})
        links = description(tmp_path / "out")["DatasetLinks"]
        for out in (tmp_path / "out", folders["out"]):
            found = {name: (out / link).resolve() for name, link in links.items()}
            assert found == {"raw": folders["bids"], "prep": folders["prep"]}
