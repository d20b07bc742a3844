"""The environment of the libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_app.environment import CACHES, SILENCE, quiet_libraries, thread_variables


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
