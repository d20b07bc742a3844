"""The plan's text: everything a user should know before a run, and nothing that is not so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.models import Problem, Severity, Study
from bids_app.study.plan import (
    FORMATS,
    UNNAMED,
    ModelOutputs,
    ModelsInWords,
    expected_files,
    expected_images,
    render,
    rendered,
    visit_state,
)
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
    header = render(study, settings, {}, ModelsInWords(anomaly="ours, of T1w")).partition("\n\n")[0]
    assert re.search(r"anomaly model +ours, of T1w", header)
    facts = ["Skeleton", "2 participants, 4 visits", Settings.lesion_model, "fmriprep", "last run"]
    facts.append("T1w, FLAIR, MNI152NLin2009aSym")
    for fact in [*facts, "8 CPUs, 4 threads a visit: 2 visits at a time", str(settings.out_dir)]:
        assert fact in header


def test_header_says_what_the_lesion_model_is_given(study: Study, settings: Settings):
    words = "mine, all folds, threshold 0.5 (no card)", "native (no card): the scan on its own grid"
    header = render(study, settings, {}, ModelsInWords(*words))
    assert re.search(r"lesion model +mine, all folds, threshold 0\.5 \(no card\)\n", header)
    assert re.search(r"model input +native \(no card\): the scan on its own grid\n", header)
    assert "its own threshold" not in header


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


OUTPUTS = ModelOutputs("T1w", uncertainty=True)


@pytest.mark.parametrize("scans", [("T1w", "FLAIR"), ("FLAIR",)])
def test_expected_files_are_those_of_the_golden_list(tmp_path: Path, settings: Settings, scans: tuple[str]):
    golden = Path(__file__).parents[1] / "golden" / f"visit_{'_'.join(scans).lower()}.txt"
    lines = {line for line in golden.read_text(encoding="utf-8").split() if line.startswith("sub-")}
    visit = index(replace(settings, bids_dir=make_skeleton(tmp_path / "golden", [f"sub-01_ses-1_{s}" for s in scans])))
    found = list(map(str, expected_files(visit.visits[0], settings, OUTPUTS)))
    assert len(found) == len(set(found))
    assert set(found) == lines


def test_files_that_depend_on_models_and_options(study: Study, settings: Settings):
    both, flair = study.visits[0], study.visits[1]

    def words(visit, more=OUTPUTS, options=settings) -> str:
        return " ".join(map(str, expected_files(visit, options, more)))

    assert "uncertainty" in words(both) and "anomalymap" in words(both)
    assert "uncertainty" not in words(both, ModelOutputs("T1w", uncertainty=False))
    assert "reflect" not in words(both, ModelOutputs(None, uncertainty=True))
    assert "anomalymap" not in words(flair)
    assert "desc-pseudohealthy_FLAIR" in words(flair, ModelOutputs("FLAIR", True))
    assert "desc-pseudohealthy_FLAIR" in words(both, ModelOutputs("FLAIR", True))
    assert "MNI" not in words(both, options=replace(settings, normalization=False))
    drawn = replace(both, reuse=replace(both.reuse, lesion_mask=Path("lesion.nii.gz")))
    assert "uncertainty" not in words(drawn) and "probseg" not in words(drawn)


def test_a_dry_run_names_the_files_and_estimates_time_and_space(study: Study, settings: Settings):
    text = render(study, settings, STATUS, UNNAMED, OUTPUTS)
    plan = blocks(text)
    first = plan["sub-01_ses-1"]
    assert re.search(r"  writes   \d+ files sub-01/ses-1/anat/sub-01_ses-1_\.\.\., images", first)
    named = re.split(r",?\s+", first.partition("sidecar each:\n")[2].strip())
    whole = [PurePosixPath("sub-01/ses-1/anat", f"sub-01_ses-1_{name}") for name in named]
    files = expected_files(study.visits[0], settings, OUTPUTS)
    assert whole == [file for file in files if file.parent.name == "anat" and file.suffix != ".json"]
    assert "writes" not in plan["sub-02_ses-1"] + plan["sub-01_ses-2"], "done, and not to be done"
    assert text.splitlines()[-2:] == [
        "Estimate: about 59 s on 8 CPUs (less with a GPU); 240 MB in the output folder, "
        "at most 300 MB in the work folder.",
        "4 visits: 2 to do, 1 cannot be processed, 1 done. At least 22 images to write.",
    ]
    done = dict.fromkeys(STATUS, "done")
    assert render(study, settings, done, UNNAMED, OUTPUTS).splitlines()[-2] == "Nothing is to do."
    assert "Estimate" not in render(study, settings, STATUS)


def test_short_plan_has_a_line_each_visit(study: Study, settings: Settings):
    lines = rendered("short", study, settings, STATUS, UNNAMED, OUTPUTS).splitlines()
    assert lines[:4] == [
        "sub-01_ses-1  to do  T1w+FLAIR  several-t1w",
        "sub-01_ses-2  cannot be processed  FLAIR  flair-alone",
        "sub-02_ses-1  done  T1w",
        "sub-02_ses-2  to do  FLAIR  flair-alone",
    ]
    assert lines[4].startswith("Estimate: about ")
    assert lines[5].startswith("4 visits: ")
    assert len(rendered("short", study, settings, STATUS).splitlines()) == 5


def test_plan_as_a_table(study: Study, settings: Settings):
    table = rendered("tsv", study, settings, STATUS, UNNAMED, OUTPUTS)
    header, *rows = (line.split("\t") for line in table.splitlines())
    first, second, third, _ = (dict(zip(header, row, strict=True)) for row in rows)
    assert (first["participant_id"], first["session_id"], first["state"]) == ("sub-01", "ses-1", "to do")
    assert (first["t1w"], first["problems"]) == ("sub-01_ses-1_run-2_T1w.nii.gz", "several-t1w")
    assert "sub-01/ses-1/anat/sub-01_ses-1_run-2_desc-preproc_T1w.nii.gz; " in first["files"]
    assert (second["state"], second["t1w"], second["files"]) == ("cannot be processed", "n/a", "n/a")
    assert second["reason"] == "sub-01_ses-2 has no T1w, which the lesion model needs."
    assert third["reused"].startswith("bids:fmriprep:sub-02")


def test_plan_as_json(study: Study, settings: Settings):
    plan = json.loads(rendered("json", study, settings, STATUS, ModelsInWords(anomaly="ours"), OUTPUTS))
    assert (plan["Dataset"], plan["AnomalyModel"]) == (str(study.root), "ours")
    assert [visit["state"] for visit in plan["Visits"]] == ["to do", "cannot be processed", "done", "to do"]
    first = plan["Visits"][0]
    assert first["problems"] == ["several-t1w"] and "earlier run" in first["messages"][0]
    assert first["files"] == list(map(str, expected_files(study.visits[0], settings, OUTPUTS)))
    assert plan["Estimate"] == {"Seconds": pytest.approx(14 + 90.9 / 2), "OutputMB": 240, "WorkMB": 300}


@pytest.mark.parametrize("plan_format", FORMATS)
def test_every_format_of_a_plan_of_nothing_and_of_strange_names(study: Study, settings: Settings, plan_format: str):
    rendered(plan_format, replace(study, visits=()), settings, {}, UNNAMED, OUTPUTS)
    strange = replace(study.visits[0], problems=(Problem("x", Severity.ERROR, "one\ttab\nand a line."),))
    text = rendered(plan_format, replace(study, visits=(strange,)), settings, {}, UNNAMED, OUTPUTS)
    if plan_format == "tsv":
        assert [line.count("\t") for line in text.splitlines()] == [9, 9]
