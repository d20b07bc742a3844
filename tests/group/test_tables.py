"""The group tables, word for word, from mock output folders."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.write import write_table
from bids_app.errors import NoInputError
from bids_app.group.collect import collect
from bids_app.settings import Settings
from tests.group.mock import add_done, add_early_raw, add_failed, add_raw, run_lines

VISITS = {"01": ["1", "2"], "02": [None], "03": [None], "04": [None]}
COLUMNS = ("participant_id", "age", "site")
ROWS = (("sub-04", "40", "B"), ("sub-01", "61", "A"), ("sub-02", "", "A"), ("sub-05", "50", "B"))


@pytest.fixture
def out(tmp_path):
    """Two sessions of one participant (T1w; FLAIR alone), a failed one, one never processed, one without a folder."""
    add_done(tmp_path, "01", "1", volumes=(12.5, 2.5))
    add_done(tmp_path, "01", "2", volumes=(70.01,), contrast="FLAIR")
    add_failed(tmp_path, "02", error="The T1w\tis\nempty.")
    add_done(tmp_path, "03", volumes=())
    for subject in ("01", "02", "03"):
        add_raw(tmp_path, subject, VISITS, COLUMNS, ROWS, {"age": {"Description": "Age", "Units": "year"}})
    return tmp_path


def text(out, name: str) -> str:
    return (out / name).read_text(encoding="utf-8").replace("\t", " ")


def described(out, name: str) -> dict:
    return json.loads(names.sidecar(out / name).read_text(encoding="utf-8"))


def test_participants_are_carried_over(out):
    run_lines(out)
    assert text(out, names.PARTICIPANTS) == (
        "participant_id age site sessions_done\n"
        "sub-01 61 A 2\n"
        "sub-02 n/a A 0\n"
        "sub-03 n/a n/a 1\n"
    )  # fmt: skip
    dictionary = described(out, names.PARTICIPANTS)
    assert dictionary["age"] == {"Description": "Age", "Units": "year"}
    assert set(dictionary) == {"Description", "participant_id", "age", "site", "sessions_done"}


def test_participants_without_a_raw_table(tmp_path):
    add_done(tmp_path, "01")
    add_raw(tmp_path, "01", {"01": [None]})
    run_lines(tmp_path)
    assert text(tmp_path, names.PARTICIPANTS) == "participant_id sessions_done\nsub-01 1\n"


def test_a_note_holds_no_row_of_another_participant(out):
    note = (out / names.raw_participants("01")).read_text()
    assert "61" in note
    assert not any(value in note for value in ("40", "50"))


def test_notes_of_different_times_are_merged(tmp_path):
    add_done(tmp_path, "01")
    add_done(tmp_path, "02")
    add_raw(tmp_path, "01", {"01": [None]}, ("participant_id", "age"), (("sub-01", "61"), ("sub-02", "1")))
    add_raw(tmp_path, "02", {"02": [None]}, ("participant_id", "arm"), (("sub-01", "x"), ("02", "y")))
    run_lines(tmp_path)
    assert text(tmp_path, names.PARTICIPANTS) == (
        "participant_id age arm sessions_done\nsub-01 61 n/a 1\nsub-02 n/a y 1\n"
    )


SCANNER = "1.0 1.0 1.2 Siemens n/a 3.0"
CHECKS = "n/a n/a n/a accepted 0.91 0.4 n/a n/a n/a accepted n/a n/a"


def test_the_list_of_all_is_kept_once_per_state_of_the_dataset(out):
    states = list((out / "logs").iterdir())
    assert [path.name[:12] for path in states] == ["raw_dataset-"]
    for subject in ("01", "02", "03"):
        note = json.loads((out / names.raw_participants(subject)).read_text())
        assert set(note) == {"dataset", "state", "columns", "row"} and note["state"] in states[0].name
    add_raw(out, "01", VISITS | {"06": [None]}, COLUMNS, ROWS)
    assert len(list((out / "logs").iterdir())) == 2
    run_lines(out)
    assert "sub-06 n/a not processed" in text(out, names.GROUP_MISSING)


def test_a_list_that_no_note_names_is_of_no_account(out):
    for subject in ("01", "02", "03"):
        add_raw(out, subject, {"01": ["1"]})
    run_lines(out)
    assert "not processed" not in text(out, names.GROUP_MISSING)


@pytest.mark.parametrize("damage", [None, "{", '{"columns": 3}'])
def test_a_damaged_list_is_told_once_and_rows_are_kept(out, damage):
    (state,) = (out / "logs").iterdir()
    state.unlink() if damage is None else state.write_text(damage)
    warnings = [line for line in run_lines(out) if line.startswith("WARNING")]
    assert warnings == [f"WARNING logs/{state.name} cannot be read and is left out."]
    assert "sub-01 61 A 2" in text(out, names.PARTICIPANTS)


def test_notes_of_an_early_version_are_read_and_merged(tmp_path):
    for subject in ("01", "02", "03"):
        add_done(tmp_path, subject)
    columns = ("participant_id", "age")
    early = {"01": [None], "02": [None], "04": [None]}
    add_early_raw(tmp_path, "01", early, columns, ("sub-01", "61"), ["01", "07"])
    add_early_raw(tmp_path, "02", early, columns, None, ["01", "07"])
    add_raw(tmp_path, "03", {"03": [None], "05": [None]}, columns, (("sub-03", "70"),))
    run_lines(tmp_path)
    assert text(tmp_path, names.PARTICIPANTS) == (
        "participant_id age sessions_done\nsub-01 61 1\nsub-02 n/a 1\nsub-03 70 1\n"
    )
    missing = text(tmp_path, names.GROUP_MISSING).splitlines()[1:]
    assert missing == ["sub-04 n/a not processed n/a", "sub-05 n/a not processed n/a", "sub-07 n/a no data n/a"]


def test_a_cohort_holds_little_of_each_record(out):
    """Records hold checksums and problems of dozens of files, which the group level does not look at."""
    path = out / names.visit_record("01", "1")
    content = json.loads(path.read_text())
    content["outputs"] |= {f"sub-01/ses-1/anat/file{number}.nii.gz": "0" * 64 for number in range(50)}
    content["problems"], content["inputs"] = [{"code": "x"}] * 50, {"t1w": "0" * 64}
    path.write_text(json.dumps(content))
    record = collect(out).records[0]
    assert len(record.outputs) == 2 and set(record.outputs.values()) == {""}
    assert not record.problems and not record.inputs


def test_long_steps_say_how_far_they_have_come(out, monkeypatch):
    monkeypatch.setattr("bids_app.group.progress.SECONDS", 0.0)
    lines = run_lines(out)
    for line in ("Records read: 3 of 4", "Notes on participants read: 2 of 3", "Tables of lesions read: 1 of 3",
                 "Masks in MNI152NLin2009aSym read: 2 of 3"):  # fmt: skip
        assert line in lines


def test_sessions(out):
    run_lines(out)
    assert text(out, names.GROUP_SESSIONS) == (
        "participant_id session_id status native_space voxel_x_mm voxel_y_mm voxel_z_mm manufacturer scanner_model "
        "field_strength_t channels lesion_count lesion_volume_ml "
        "lesion_volume_left_ml lesion_volume_right_ml largest_lesion_ml finding_count "
        "finding_volume_ml nonlesional_count nonlesional_volume_ml brain_volume_ml "
        "flair_registration flair_registration_overlap flair_registration_similarity "
        "pose_registration pose_registration_overlap pose_registration_similarity "
        "affine_registration affine_registration_overlap affine_registration_similarity "
        "mni_registration mni_registration_overlap mni_registration_similarity problems volume_class\n"
        f"sub-01 ses-1 done T1w {SCANNER} T1w 2 15.0 15.0 0.0 12.5 n/a n/a n/a n/a 1234.5 {CHECKS} n/a small\n"
        f"sub-01 ses-2 done FLAIR {SCANNER} FLAIR 1 70.01 70.01 0.0 70.01 n/a n/a n/a n/a 1234.5 {CHECKS} n/a large\n"
        f"sub-02 n/a failed{' n/a' * 32}\n"
        f"sub-03 n/a done T1w {SCANNER} T1w 0 0 0 0.0 0.0 n/a n/a n/a n/a 1234.5 {CHECKS} n/a none\n"
    )


def test_lesions(out):
    run_lines(out)
    assert text(out, names.GROUP_LESIONS) == (
        "participant_id session_id lesion_id volume_ml volume_voxels centroid_x_mm centroid_y_mm centroid_z_mm "
        "mni_x_mm mni_y_mm mni_z_mm hemisphere region probability_mean\n"
        "sub-01 ses-1 1 12.5 125 -7.0 -1.0 1.5 -7.0 n/a n/a L left thalamus 0.9\n"
        "sub-01 ses-1 2 2.5 125 -7.0 -1.0 1.5 -7.0 n/a n/a L left thalamus 0.9\n"
        "sub-01 ses-2 1 70.01 125 -7.0 -1.0 1.5 -7.0 n/a n/a L left thalamus 0.9\n"
    )


def test_tables_of_an_early_version_are_gathered(out):
    """They have no regions, and zeros with a sign."""
    table = out / names.lesion_table(names.ScanName.parse("sub-01_ses-2_T1w.nii.gz"), "FLAIR")
    lines = [line.split("\t") for line in table.read_text().splitlines()]
    column = lines[0].index("region")
    lines = [[*line[:column], *line[column + 1 :]] for line in lines]
    lines[1][lines[0].index("centroid_x_mm")] = "-0.0"
    table.write_text("".join("\t".join(line) + "\n" for line in lines))
    run_lines(out)
    line = text(out, names.GROUP_LESIONS).splitlines()[-1]
    assert line == "sub-01 ses-2 1 70.01 125 0.0 -1.0 1.5 -7.0 n/a n/a L n/a 0.9"


def test_findings(out):
    scan = names.ScanName.parse("sub-01_ses-1_T1w.nii.gz")
    row = dict.fromkeys(dictionary("finding"), "1") | {"kind": "nonlesional", "region": "left thalamus"}
    write_table(out / names.findings_table(scan), pd.DataFrame([row]))
    path = out / names.visit_record("01", "1")
    record = json.loads(path.read_text())
    record["outputs"][str(names.findings_table(scan))] = "0" * 64
    path.write_text(json.dumps(record))
    run_lines(out)
    header, line, *more = text(out, names.GROUP_FINDINGS).splitlines()
    assert header.split()[:5] == ["participant_id", "session_id", "finding_id", "kind", "lesion_share"]
    assert line.startswith("sub-01 ses-1 1 nonlesional 1 left thalamus") and not more


def test_volume_classes_count_finished_visits(out):
    run_lines(out)
    assert text(out, names.GROUP_CLASSES) == "volume_class visits\nnone 1\nsmall 1\nmedium 0\nlarge 1\n"


def test_missing_visits_have_a_reason(out):
    run_lines(out)
    assert text(out, names.GROUP_MISSING) == (
        "participant_id session_id reason detail\n"
        "sub-02 n/a failed The T1w is empty.\n"
        "sub-04 n/a not processed n/a\n"
        "sub-05 n/a no data n/a\n"
    )


def test_a_session_of_a_processed_participant_may_be_missing(out):
    (out / names.visit_record("01", "2")).unlink()
    run_lines(out)
    assert "sub-01 ses-2 not processed n/a\n" in text(out, names.GROUP_MISSING)


@pytest.mark.parametrize(
    "name",
    [
        names.GROUP_SESSIONS,
        names.GROUP_LESIONS,
        names.GROUP_FINDINGS,
        names.GROUP_CLASSES,
        names.GROUP_MISSING,
        names.PARTICIPANTS,
    ],
)
def test_every_column_is_described(out, name):
    run_lines(out)
    header = (out / name).read_text(encoding="utf-8").splitlines()[0].split("\t")
    dictionary = described(out, name)
    assert all(dictionary[column]["Description"] for column in header)
    assert all(dictionary[column]["Units"] == "mL" for column in header if column.endswith("_ml"))


def test_says_what_it_found(out):
    assert run_lines(out) == [
        "4 visits of 3 participants: 3 done, 1 failed.",
        "3 expected visits without results, listed with the reason in group_missing.tsv.",
        "Finished visits by lesion volume: none 1, small 1, medium 0, large 1.",
        "Lesion frequency map in MNI152NLin2009aSym: 2 participants, 3 visits, "
        "highest share 1.00 (first at -7, -1, 1 mm).",
        f"Tables and maps are in {out}.",
    ]


def test_one_participant_alone(tmp_path):
    add_done(tmp_path, "01")
    lines = run_lines(tmp_path)
    assert lines[0] == "1 visit of 1 participant: 1 done, 0 failed."
    assert text(tmp_path, names.GROUP_MISSING) == "participant_id session_id reason detail\n"


def test_all_visits_failed(tmp_path):
    add_failed(tmp_path, "01")
    lines = run_lines(tmp_path)
    assert "No lesion frequency map: no visit is done." in lines
    assert not list(tmp_path.glob("*.nii.gz"))
    assert text(tmp_path, names.GROUP_LESIONS).count("\n") == 1


@pytest.mark.parametrize("missing", [False, True])
def test_an_empty_folder_is_no_input(tmp_path, missing):
    folder = tmp_path / "nothing" if missing else tmp_path
    with pytest.raises(NoInputError, match="no record of a processed visit") as caught:
        run_lines(folder)
    assert caught.value.exit_code == 66
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[]", '{"subject": "01"}', "\x00"])
def test_an_unreadable_record_is_named_and_left_out(out, content):
    path = out / names.visit_record("01", "2")
    path.write_text(content)
    lines = run_lines(out)
    assert lines[0] == "WARNING sub-01/log/sub-01_ses-2_record.json cannot be read: run this visit again."
    assert "ses-2" not in text(out, names.GROUP_SESSIONS)
    assert "sub-01 ses-2 unreadable record n/a\n" in text(out, names.GROUP_MISSING)


def test_a_record_copied_from_another_visit_is_not_believed(out):
    (out / names.visit_record("03", None)).write_text((out / names.visit_record("02", None)).read_text())
    assert "WARNING sub-03/log/sub-03_record.json cannot be read: run this visit again." in run_lines(out)


def test_nothing_but_unreadable_records_is_no_input(tmp_path):
    add_failed(tmp_path, "01").write_text("{")
    with pytest.raises(NoInputError, match="no readable record"):
        run_lines(tmp_path)


def test_damaged_notes_on_the_raw_dataset_are_named_and_left_out(out):
    (out / names.raw_participants("03")).write_text('{"visits": []}')
    lines = run_lines(out)
    assert lines[0] == "WARNING sub-03/log/raw_participants.json cannot be read and is left out."
    assert "sub-01 61 A 2" in text(out, names.PARTICIPANTS)


def test_a_lost_lesion_table_is_named_and_left_out(out):
    add_done(out, "03", volumes=(1.0,))["table"].unlink()
    assert any("sub-03_space-T1w_seg-lesions" in line for line in run_lines(out) if line.startswith("WARNING"))
    assert "sub-03" not in text(out, names.GROUP_LESIONS)


def test_mixed_versions_and_configurations_are_listed(out):
    add_done(out, "06", version="0.2.0", configuration="ffffffff")
    assert run_lines(out)[0] == (
        "WARNING The visits were processed in different ways (version 0.1.0, configuration a1b2c3d4: "
        "sub-01_ses-1, sub-01_ses-2, sub-02, sub-03; version 0.2.0, configuration ffffffff: sub-06)."
    )


def files(out) -> dict[str, bytes]:
    """What lies in the output folder itself, and in no participant's."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "labels",
    [{"participants": ("01",)}, {"sessions": ("1",)}, {"excluded": ("03",)}],
    ids=["participants", "sessions", "excluded"],
)
def test_a_part_of_the_cohort_never_takes_the_place_of_its_tables(out, labels):
    run_lines(out)
    cohort = files(out)
    lines = run_lines(out, **labels)
    assert files(out) == cohort
    (part,) = out.glob("group_part-*")
    assert lines[-2:] == [
        "These are the labels that were asked for alone; the tables and maps of the whole cohort were left alone.",
        f"Tables and maps are in {part}.",
    ]
    assert set(files(part)) == set(cohort) | {"selection.json"}
    run_lines(out, **labels)
    assert list(out.glob("group_part-*")) == [part], "the same labels, the same place"
    run_lines(out, participants=("01", "03"))
    assert len(list(out.glob("group_part-*"))) == 2


def test_labels_restrict_the_tables_of_a_part(out):
    lines = run_lines(out, participants=("02", "01"), sessions=("1",))
    (part,) = out.glob("group_part-*")
    assert lines[0] == "1 visit of 1 participant: 1 done, 0 failed."
    assert text(part, names.GROUP_SESSIONS).count("\n") == 2
    assert text(part, names.GROUP_MISSING).count("\n") == 1
    assert text(part, names.PARTICIPANTS) == "participant_id age site sessions_done\nsub-01 61 A 1\n"
    content = json.loads((part / "selection.json").read_text())
    assert content == {"participants": ["sub-01", "sub-02"], "excluded": [], "sessions": ["ses-1"]}


def test_excluded_participants(out):
    run_lines(out, excluded=("01", "04"))
    (part,) = out.glob("group_part-*")
    assert "sub-01" not in text(part, names.GROUP_SESSIONS)
    assert "sub-04" not in text(part, names.GROUP_MISSING)


def test_unknown_labels_are_no_input(out):
    from bids_app.group.run import run_group

    with pytest.raises(NoInputError, match="no record of sub-99") as caught:
        run_group(Settings(out_dir=out, participants=("99",)))
    assert caught.value.hint == "There are: 01, 02, 03."
    with pytest.raises(NoInputError, match="No processed visit is left"):
        run_group(Settings(out_dir=out, excluded=("01", "02", "03")))
