from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from bids_app.derivatives.write import atomic, copy_file, locked, write_json, write_rows, write_table, write_text
from bids_app.errors import BlockedError, CannotWriteError, ExitCode, visit_code


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


@pytest.mark.parametrize(
    ("blocked", "told"),
    [
        ("sub-01", r"the file .*sub-01 is in the way"),
        ("sub-01@", r"the file .*sub-01 is in the way"),  # a link that leads nowhere
        ("sub-01/a.txt/", r"folder .*a\.txt is in"),
    ],
)
def test_what_is_in_the_way_is_named_and_concerns_one_visit(tmp_path: Path, blocked, told):
    if blocked.endswith("/"):
        (tmp_path / blocked).mkdir(parents=True)
    elif blocked.endswith("@"):
        (tmp_path / blocked[:-1]).symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / blocked).touch()
    with pytest.raises(BlockedError, match=told) as caught:
        write_text(tmp_path / "sub-01" / "a.txt", "")
    assert caught.value.exit_code is ExitCode.CANNOT_WRITE  # at the top of the output
    assert visit_code(caught.value) is ExitCode.VISIT_FAILED


def test_a_closed_folder_concerns_one_visit_and_a_full_disk_all(tmp_path: Path):
    for number, code in ((errno.EACCES, ExitCode.VISIT_FAILED), (errno.ENOSPC, ExitCode.CANNOT_WRITE)):
        with pytest.raises(CannotWriteError) as caught, atomic(tmp_path / "a.txt"):
            raise OSError(number, os.strerror(number))
        assert visit_code(caught.value) is code


def hold(path: Path, *told: str) -> subprocess.Popen:
    """Another process that holds a lock until it is killed."""
    code = "import sys, time; from pathlib import Path; from bids_app.derivatives.write import locked\n"
    code += "with locked(Path(sys.argv[1]), 'somebody else'): print('held', flush=True); time.sleep(60)"
    root = str(Path(__file__).parents[2])
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": root}
    )
    assert other.stdout.readline() == b"held\n"
    return other


def test_who_waits_for_a_lock_hears_who_holds_it_and_a_killed_holder_stops_nobody(tmp_path: Path):
    path, heard = tmp_path / "a.lock", []
    other = hold(path)
    killer = threading.Timer(0.3, other.send_signal, [signal.SIGKILL])
    killer.start()
    started = time.monotonic()
    with locked(path, "me", heard.append):
        assert time.monotonic() - started > 0.2
        assert path.read_text() == "me"
    other.wait()
    assert heard == ["somebody else"]


def test_a_lock_that_nobody_holds_is_had_at_once_whatever_a_killed_run_left(tmp_path: Path):
    path, heard = tmp_path / "a.lock", []
    path.write_text("a run that was killed")
    with locked(path, "me", heard.append):
        assert path.read_text() == "me"
    assert heard == []


def test_a_temporary_lock_leaves_no_file_and_lets_no_two_in(tmp_path: Path):
    path, inside, most = tmp_path / "a.lock", [], []

    def enter():
        for _ in range(50):
            with locked(path, temporary=True):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (max(most), len(most), path.exists()) == (1, 200, False)


def test_where_there_are_no_locks_nothing_is_held(tmp_path: Path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / "a.lock", "me", str, temporary=True):
        pass
