from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bids_app.derivatives import names, sidecars
from bids_app.derivatives.results import Provenance
from bids_app.derivatives.sidecars import check_keys
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Problem, Reuse, Severity
from tests.derivatives.mock import make_results, make_visit

REUSE = Reuse(
    preprocessed=Path("/d/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"),
    brain_mask=Path("/d/sub-01/anat/sub-01_desc-brain_mask.nii.gz"),
    sources=(
        "bids:fmriprep:sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "bids:fmriprep:sub-01/anat/sub-01_desc-brain_mask.nii.gz",
    ),
)


@pytest.fixture
def prepared(tmp_path: Path):
    return make_results(tmp_path / "work", make_visit(tmp_path))[0]


@pytest.fixture
def provenance(tmp_path: Path) -> Provenance:
    return Provenance("conf", "1", tmp_path / "bids")


def test_sources_are_the_direct_parents_only(prepared, provenance):
    prepared = replace(prepared, visit=replace(prepared.visit, reuse=REUSE))
    t1w = names.preprocessed(prepared.visit.t1w.name, "T1w")
    assert sidecars.reference(prepared, provenance)["Sources"] == [REUSE.sources[0]]
    assert sidecars.brain_mask(prepared, t1w, provenance)["Sources"] == [REUSE.sources[1]]


def test_repairs_are_told_of_the_file_they_were_made_in(prepared, provenance):
    visit = prepared.visit
    problems = tuple(
        Problem("header", Severity.WARNING, f"mended {scan.suffix}", (scan.path.name,))
        for scan in (visit.t1w, visit.flair)
    )
    prepared = replace(prepared, problems=problems, flair_stripped=True)
    t1w = names.preprocessed(visit.t1w.name, "T1w")
    assert sidecars.reference(prepared, provenance)["HeaderRepairs"] == ["mended T1w"]
    flair = sidecars.aligned_flair(prepared, t1w, provenance)
    assert flair["HeaderRepairs"] == ["mended FLAIR"] and flair["SkullStripped"] is True


def test_what_was_not_measured_is_null_since_json_knows_no_nan():
    keys = check_keys(Check("reused", np.nan, 0.5, "As it is."))
    assert json.loads(json.dumps(keys, allow_nan=False)) == {
        "Status": "reused",
        "TissueOverlap": None,
        "Similarity": 0.5,
        "SimilarityNearby": None,
        "SimilarityElsewhere": None,
    }
