"""The table of the participants: read in all forms, and what is not used of it told."""

from __future__ import annotations

import pytest

from bids_app.settings import Settings
from bids_app.study.index import index
from bids_app.study.participants import compared, read_participants
from bids_app.study.plan import render
from tests.skeletons import make_skeleton


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ("participant_id\tage\tsite\nsub-01\t67\tZürich\nsub-02\t70\tGenf\n".encode(), ()),
        ("participant_id\tage\tsite\nsub-01\t67\tZürich\n02\t70\tGenf\n".encode("cp1252"), ("Windows-1252",)),
        ("participant_id;age;site\r\n01;67;Zürich\r\n02;70;Genf\r\n".encode("utf-16"), ("semicolons",)),
        ("Participant ID,age,site\nsub-01,67,Zürich\n02,70,Genf\n".encode(), ("commas", "Participant ID was taken")),
    ],
)
def test_all_forms_are_read_and_guesses_told(tmp_path, content, notes):
    (tmp_path / "participants.tsv").write_bytes(content)
    table = read_participants(tmp_path)
    assert table.columns == ("participant_id", "age", "site")
    assert {label: row[1:] for label, row in table.rows.items()} == {"01": ("67", "Zürich"), "02": ("70", "Genf")}
    assert len(table.notes) == len(notes)
    assert all(note in told for note, told in zip(notes, table.notes, strict=True))


def test_no_table_is_nothing_to_tell(tmp_path):
    assert read_participants(tmp_path).notes == ()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name\tage\nx\t1\ny\t2\n", "has no column participant_id: its 2 rows cannot be used"),
        (b"participant_id\tage\n\x81\x8d\t1\n", "cannot be read: line 2 is neither"),
        (b"", "is empty"),
        (b"participant_id\tage\nsub-01\t1\nsub-01\t2\n", "sub-01 with several rows, of which the last counts"),
    ],
)
def test_what_is_not_used_is_told(tmp_path, content, told):
    (tmp_path / "participants.tsv").write_bytes(content)
    table = read_participants(tmp_path)
    assert told in "; ".join(table.notes)
    assert not table.rows or table.rows["01"][1] == "2"
    assert table.rows or table.columns == ()  # no column of n/a in the tables of the group


def test_a_broken_dictionary_is_told(tmp_path):
    (tmp_path / "participants.json").write_text('{"age": {"Description": "years"},}')
    assert "participants.json cannot be read" in read_participants(tmp_path).notes[0]
    (tmp_path / "participants.json").write_bytes('{"age": {"Description": "zürich"}}'.encode("cp1252"))
    assert read_participants(tmp_path).dictionary["age"] == {"Description": "zürich"}


def test_rows_and_folders_that_lack_the_other_are_counted(tmp_path):
    root = make_skeleton(tmp_path / "raw", ["sub-01_T1w", "sub-02_T1w"])
    rows = "\n".join(f"sub-{number}" for number in ["01", *range(1000, 2000)])
    (root / "participants.tsv").write_text(f"participant_id\n{rows}\n")
    settings = Settings(out_dir=tmp_path / "out", bids_dir=root)
    study = index(settings)
    [note] = study.notes
    assert "1000 rows have no folder: sub-1000, sub-1001, sub-1002, sub-1003, sub-1004 and 995 more" in note
    assert "1 folder has no row: sub-02" in note
    assert note in render(study, settings, {})
    assert compared(study.table, ["01"])[0].startswith("1000 rows")
