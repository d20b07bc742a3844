"""The environment of the libraries."""

from __future__ import annotations

import errno
import getpass
import multiprocessing.synchronize
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from bids_app.environment import (
    CACHES,
    SILENCE,
    check_semaphores,
    quiet_libraries,
    thread_variables,
    use_temporary_folder,
)
from bids_app.errors import UnavailableError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """A process where nothing is set, and which is put back afterwards."""
    monkeypatch.setattr(os, "environ", {"HOME": "/home/someone"})


def test_caches_go_to_the_work_folder_which_is_not_made(tmp_path: Path):
    quiet_libraries(tmp_path / "work")
    assert all(os.environ[name].startswith(str(tmp_path / "work")) for name in CACHES)
    assert not (tmp_path / "work").exists()


def test_telemetry_is_off_whatever_was_set():
    os.environ["NIPYPE_NO_ET"] = "0"
    quiet_libraries(Path("work"))
    assert {name: os.environ[name] for name in SILENCE} == SILENCE


def test_what_the_user_has_set_stays():
    mine = {"MPLCONFIGDIR": "/mine", "TEMPLATEFLOW_HOME": "/templates", "OMP_WAIT_POLICY": "ACTIVE"}
    os.environ.update(mine)
    quiet_libraries(Path("work"))
    assert {name: os.environ[name] for name in mine} == mine


def test_threads_wait_asleep():
    quiet_libraries(Path("work"))
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    ("cache", "home"), [(None, "/home/someone/.cache/templateflow"), ("/cache", "/cache/templateflow")]
)
def test_templates_stay_where_the_user_has_them(cache, home):
    if cache:
        os.environ["XDG_CACHE_HOME"] = cache
    quiet_libraries(Path("/work"))
    assert os.environ["TEMPLATEFLOW_HOME"] == home


def test_threads():
    assert set(thread_variables(3).values()) == {"3"}
    assert {"OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS"} <= set(thread_variables(1))


def unknown(_: int):
    raise KeyError("uid not found")


def test_who_has_neither_home_nor_passwd_entry_gets_both_and_no_folder_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    quiet_libraries(tmp_path / "work")
    assert Path.home() == tmp_path / "work/cache/home"
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert os.environ["TEMPLATEFLOW_HOME"] == str(tmp_path / "work/cache/home/.cache/templateflow")
    assert not (tmp_path / "work").exists()


def test_home_and_name_that_are_there_stay(monkeypatch):
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    os.environ["USER"] = "someone"
    quiet_libraries(Path("/work"))
    assert (os.environ["HOME"], os.environ["USER"], "LOGNAME" in os.environ) == ("/home/someone", "someone", False)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("2,1", "2"), (" 4 , 2,1", "4"), ("3", "3"), ("", None), ("0", None), ("-1", None), ("all", None), ("4(2)", None)],
)
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "MKL_NUM_THREADS"])
def test_numbers_of_threads_are_such_as_every_library_reads(name, given, kept):
    os.environ[name] = given
    quiet_libraries(Path("/work"))
    assert os.environ.get(name) == kept


def test_temporary_files_have_a_place_where_no_usual_one_can_be_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
        use_temporary_folder(tmp_path)
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (str(tmp_path), str(tmp_path))


def test_temporary_files_stay_where_they_can_be_written(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    use_temporary_folder(tmp_path)
    assert tempfile.gettempdir() != str(tmp_path)
    assert "TMPDIR" not in os.environ


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENOENT])
def test_what_needs_shared_memory_says_so_where_there_is_none(number, monkeypatch):
    check_semaphores("Training")

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    with pytest.raises(UnavailableError, match="Training needs shared memory, and /dev/shm") as caught:
        check_semaphores("Training")
    assert "--shm-size" in caught.value.hint
