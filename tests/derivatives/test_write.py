from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from bids_app.derivatives.write import atomic, copy_file, write_json, write_rows, write_table, write_text
from bids_app.errors import CannotWriteError, ExitCode


def test_a_file_appears_only_when_whole(tmp_path: Path):
    path = tmp_path / "sub" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.suffix == ".txt"
    assert path.read_text() == "half"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path):
    with pytest.raises(CannotWriteError, match="No space left") as caught, atomic(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.exit_code == ExitCode.CANNOT_WRITE


@pytest.mark.parametrize("what", ["file", "link", "folder"])
def test_what_is_in_the_way_is_named(tmp_path: Path, what: str):
    place = tmp_path / "place"
    if what == "file":
        place.write_text("")
    elif what == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        (place / "a.txt").mkdir(parents=True)
    told = f"{place} is in the way: a folder" if what != "folder" else f"{place}/a.txt is in the way: a file"
    with pytest.raises(CannotWriteError, match=told) as caught:
        write_text(place / "a.txt", "")
    assert caught.value.hint == "Rename it."
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_may_not_be_written_is_said_in_a_sentence(tmp_path: Path):
    told = r"a\.txt cannot be written: Permission denied"
    with pytest.raises(CannotWriteError, match=told), atomic(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_tables_are_tab_separated_with_na(tmp_path: Path):
    path = write_table(tmp_path / "a.tsv", pd.DataFrame({"x": [1.5, None], "y": ["a", None]}))
    assert path.read_text() == "x\ty\n1.5\ta\nn/a\tn/a\n"


def test_zero_has_no_sign_in_tables(tmp_path: Path):
    path = write_table(tmp_path / "a.tsv", pd.DataFrame({"x": [-0.0, -0.5], "y": [round(-0.001, 2), "-"]}))
    assert path.read_text() == "x\ty\n0.0\t0.0\n-0.5\t-\n"


def test_a_table_is_written_as_its_rows_come(tmp_path: Path):
    path = tmp_path / "a.tsv"
    rows = ({"x": number, "z": 1} for number in (1, None, float("nan"), "a\tb"))
    assert write_rows(path, ["x", "y"], rows).read_text() == 'x\ty\n1\tn/a\nn/a\tn/a\nn/a\tn/a\n"a\tb"\tn/a\n'

    def breaks():
        yield {"x": 2}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_rows(path, ["x"], breaks())
    assert path.read_text().startswith("x\ty\n1"), "the old table stays whole"
    assert list(tmp_path.iterdir()) == [path]


def test_json_and_copies(tmp_path: Path):
    path = write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert list(json.loads(path.read_text())) == ["b", "a"]
    assert "é" in path.read_text(encoding="utf-8")
    assert copy_file(path, tmp_path / "b.json").read_bytes() == path.read_bytes()
