"""What people edit is read, whatever their editor or spreadsheet made of it, or told."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from bids_app.settings import read_toml
from bids_app.study.filters import read_filters
from bids_app.text import Table, decode, read_json, read_table

TEXT = "site\tZürich\nage\t67\n"
#: Bytes that all mean `TEXT`.
FORMS = {
    "utf-8": TEXT.encode(),
    "utf-8 with mark": TEXT.encode("utf-8-sig"),
    "utf-16 of Excel": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16 big endian": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-16 without mark": TEXT.encode("utf-16-le"),
    "utf-32": TEXT.encode("utf-32"),
    "Windows": TEXT.replace("\n", "\r\n").encode(),
    "old Mac": TEXT.replace("\n", "\r").encode(),
    "Windows-1252": TEXT.encode("cp1252"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_text_is_the_same_text(form):
    found = decode(FORMS[form])
    assert found.content == TEXT
    assert ("Windows-1252" in found.note) == (form == "Windows-1252")


def test_what_cannot_be_decoded_is_told_with_its_line():
    with pytest.raises(ValueError, match="line 2 is neither UTF-8 nor Windows-1252; save it as UTF-8"):
        decode(b"a\tb\n\x81\x8d\n")
    assert decode(b"") == decode(b"")
    assert decode(b"").content == ""


def table(tmp_path: Path, content: bytes) -> Table:
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    return read_table(path)


def test_a_table_as_it_should_be(tmp_path):
    found = table(tmp_path, b"participant_id\tage\nsub-01\t67\n\nsub-02\tn/a\n")
    assert found == Table(("participant_id", "age"), (("sub-01", "67"), ("sub-02", "n/a")))
    assert found.records()[1] == {"participant_id": "sub-02", "age": "n/a"}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"participant_id,age\nsub-01,67\n", "separated by commas; save it with tabs"),
        (b"participant_id;age\nsub-01;67\n", "separated by semicolons; save it with tabs"),
        (b'"participant_id";"age"\n"sub-01";"67"\n', "separated by semicolons; save it with tabs"),
        (b'"participant_id"\t"age"\n"sub-01"\t"67"\n', ""),
        (b"participant_id\tage\t\t\nsub-01\t67\t\t\n", ""),
        (b" participant_id \tage\nsub-01 \t 67\n", ""),
    ],
)
def test_tables_of_spreadsheets(tmp_path, content, note):
    found = table(tmp_path, content)
    assert (found.columns, found.rows) == (("participant_id", "age"), (("sub-01", "67"),))
    assert found.notes == ((note,) if note else ())


def test_commas_inside_cells_stay(tmp_path):
    found = table(tmp_path, b"participant_id\tsite, city\nsub-01\tA, B\n")
    assert found.rows == (("sub-01", "A, B"),)
    found = table(tmp_path, b'participant_id,site\nsub-01,"A, B"\n')
    assert found.rows == (("sub-01", "A, B"),)


def test_a_lone_quote_in_a_table_with_tabs_is_text(tmp_path):
    found = table(tmp_path, b"participant_id\theight\nsub-01\t5'10\"\nsub-02\t\"tall\n")
    assert found.rows == (("sub-01", "5'10\""), ("sub-02", '"tall'))


def test_uneven_rows_are_told(tmp_path):
    found = table(tmp_path, b"participant_id\tage\nsub-01\nsub-02\t70\nsub-03\t1\t2\n")
    assert found.notes == ("lines 2, 4 with another number of cells than 2 columns",)
    assert found.records()[0] == {"participant_id": "sub-01", "age": ""}


def test_an_empty_table_and_one_column(tmp_path):
    assert table(tmp_path, b"\n \n") == Table(notes=("is empty",))
    assert table(tmp_path, b"participant_id\nsub-01\n").rows == (("sub-01",),)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_every_reader_of_what_people_edit_takes_all_forms(tmp_path, encoding):
    path = tmp_path / "file"
    path.write_bytes(json.dumps({"Name": "Zürich"}, ensure_ascii=False).replace(" ", "\r\n").encode(encoding))
    assert read_json(path) == {"Name": "Zürich"}
    path.write_bytes('lesion_model = "Zürich"\r\n# für uns\r\n'.encode(encoding))
    assert read_toml(path) == {"lesion_model": "Zürich"}
    path.write_bytes('{"t1w": {"acquisition": "mprage"}}\r\n'.encode(encoding))
    assert read_filters(path).t1w.conditions == (("acq", ("mprage",)),)
