"""The plan's text: everything a user should know before a run, and nothing that is not so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.models import Problem, Severity, Study
from bids_app.study.plan import expected_images, render, visit_state
from tests.skeletons import make_empty, make_skeleton

SCANS = (
    "sub-01_ses-1_run-1_T1w",
    "sub-01_ses-1_run-2_T1w",
    "sub-01_ses-1_FLAIR",
    "sub-01_ses-2_FLAIR",
    "sub-02_ses-1_T1w",
    "sub-02_ses-2_FLAIR",
)
#: What a model of T1w alone makes of the visits.
STATUS = {
    "sub-01_ses-1": "to do",
    "sub-01_ses-2": "cannot be processed: sub-01_ses-2 has no T1w, which the lesion model needs.",
    "sub-02_ses-1": "done",
    "sub-02_ses-2": "to do",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    prep = make_empty(tmp_path / "prep", "sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask.nii.gz")
    root = make_skeleton(tmp_path / "raw", SCANS)
    return Settings(
        bids_dir=root,
        out_dir=tmp_path / "out",
        work_dir=tmp_path / "work",
        derivatives={"fmriprep": prep},
        nprocs=8,
        omp_nthreads=4,
    )


@pytest.fixture
def study(settings: Settings) -> Study:
    return index(settings)


def blocks(text: str) -> dict[str, str]:
    """Parts of the text by their first word."""
    return {part.partition(":")[0]: part for part in text.split("\n\n")}


def test_each_visit_shows_its_scans_its_problems_and_what_is_reused(study: Study, settings: Settings):
    plan = blocks(render(study, settings, STATUS))
    first = plan["sub-01_ses-1"]
    assert first.startswith("sub-01_ses-1: to do\n")
    assert re.search(r"T1w +sub-01_ses-1_run-2_T1w\.nii\.gz", first)
    assert re.search(r"FLAIR +sub-01_ses-1_FLAIR\.nii\.gz", first)
    assert re.search(r"info .*sub-01_ses-1_run-1_T1w\.nii\.gz \(earlier run\).*\[several-t1w\]", first)
    assert plan["sub-01_ses-2"].startswith("sub-01_ses-2: cannot be processed: sub-01_ses-2 has no T1w, which")
    assert plan["sub-02_ses-2"].startswith("sub-02_ses-2: to do\n")
    assert re.search(r"T1w +none\n +FLAIR +sub-02_ses-2_FLAIR", plan["sub-02_ses-2"])
    assert re.search(r"info .*no T1w: .*; its FLAIR takes its place.*\[flair-alone\]", plan["sub-02_ses-2"])
    assert plan["sub-02_ses-1"].startswith("sub-02_ses-1: done\n")
    assert re.search(r"reused +bids:fmriprep:sub-02/ses-1/anat/sub-02_ses-1_desc-brain_mask", plan["sub-02_ses-1"])


def test_header_says_with_what(study: Study, settings: Settings):
    header = render(study, settings, {}, "ours, of T1w").partition("\n\n")[0]
    assert re.search(r"anomaly model +ours, of T1w", header)
    facts = ["Skeleton", "2 participants, 4 visits", Settings.lesion_model, "fmriprep", "last run"]
    facts.append("T1w, FLAIR, MNI152NLin2009aSym")
    for fact in [*facts, "8 CPUs, 4 threads a visit: 2 visits at a time", str(settings.out_dir)]:
        assert fact in header


def test_rule_is_printed_only_where_it_was_needed(tmp_path: Path, settings: Settings):
    plain = replace(settings, bids_dir=make_skeleton(tmp_path / "plain", ["sub-01_T1w"]))
    assert "scan choice" not in render(index(plain), plain, {})


def test_summary_counts(study: Study, settings: Settings):
    last = render(study, settings, STATUS).splitlines()[-1]
    assert last == "4 visits: 2 to do, 1 cannot be processed, 1 done. At least 22 images to write."
    empty = replace(study.visits[1], flair=None, problems=(Problem("no-t1w", Severity.ERROR, "No T1w."),))
    last = render(replace(study, visits=(study.visits[0], empty)), settings, STATUS).splitlines()[-1]
    assert last == "2 visits: 1 to do, 1 cannot be processed (no-t1w). At least 12 images to write."


def test_participants_left_without_a_visit_are_named(study: Study, settings: Settings):
    make_skeleton(settings.bids_dir, ["sub-03_ses-1_T1w"])
    asked = replace(settings, participants=("01", "03"), sessions=("2",))
    assert re.search(r"no visit of +sub-03", render(index(asked), asked, {}))


def test_force_shows_done_visits_as_to_do(study: Study, settings: Settings):
    visit = study.visits[2]
    assert visit_state(visit, settings, {visit.label: "done"}) == "done"
    assert visit_state(visit, replace(settings, force=True), {visit.label: "done"}) == "to do again (--force)"
    assert visit_state(visit, settings, {visit.label: "outdated"}) == "to do again (outdated)"


def test_expected_images(study: Study, settings: Settings):
    with_flair = expected_images(study.visits[0], settings)
    assert len(set(with_flair)) == len(with_flair) == 12
    assert len(expected_images(study.visits[2], settings)) == 10
    assert len(expected_images(study.visits[2], replace(settings, normalization=False))) == 5
    assert expected_images(replace(study.visits[1], flair=None), settings) == ()


def test_images_of_flair_alone_say_so(study: Study, settings: Settings):
    paths = [path.name for path in expected_images(study.visits[1], settings)]
    assert len(set(paths)) == 10
    assert all("_space-FLAIR_" in name or "_space-MNI152NLin2009aSym_" in name for name in paths)
    assert not [name for name in paths if "T1w" in name]


def test_mask_drawn_by_hand_has_no_probability(study: Study, settings: Settings):
    visit = study.visits[2]
    drawn = replace(visit, reuse=replace(visit.reuse, lesion_mask=Path("lesion.nii.gz")))
    less = set(expected_images(visit, settings)) - set(expected_images(drawn, settings))
    assert [path.name.partition("_label")[2] for path in less] == ["-L_desc-nnunet_probseg.nii.gz"] * 2


@pytest.mark.parametrize("scans", [("T1w", "FLAIR"), ("FLAIR",)])
def test_expected_images_are_among_those_of_the_golden_list(tmp_path: Path, settings: Settings, scans: tuple[str]):
    golden = Path(__file__).parents[1] / "golden" / f"visit_{'_'.join(scans).lower()}.txt"
    lines = set(golden.read_text(encoding="utf-8").split())
    root = make_skeleton(tmp_path / "golden", [f"sub-01_ses-1_{scan}" for scan in scans])
    visit = index(replace(settings, bids_dir=root)).visits[0]
    assert {str(path) for path in expected_images(visit, settings)} <= lines


def test_nothing_but_plain_text(study: Study, settings: Settings):
    text = render(study, settings, {})
    assert "\x1b" not in text
    assert not text.endswith("\n")


def test_visits_without_anatomy_are_named_and_not_counted(tmp_path: Path, settings: Settings):
    root = make_empty(make_skeleton(tmp_path / "some", ["sub-01_ses-1_T1w"]), "sub-01/ses-2/func/a_bold.nii.gz")
    some = replace(settings, bids_dir=root)
    text = render(index(some), some, {})
    assert re.search(r"left out +sub-01_ses-2 \(no anat folder\)", text)
    assert text.splitlines()[-1].startswith("1 visit: 1 to do. ")
    assert "left out" not in render(index(settings), settings, {})


def test_plan_of_nothing(study: Study, settings: Settings):
    assert render(replace(study, visits=()), settings, {}).endswith("\nNo visit to process.")
