"""How far a run is: steps, time left, and what a terminal shows of it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.settings import Settings
from bids_app.study.estimate import STEP_SECONDS, step_seconds
from bids_app.workflow.progress import Progress, on_terminal
from bids_app.workflow.worker import News

TWO_CORES = Settings(out_dir=Path("out"), nprocs=2, omp_nthreads=2)
WHOLE = sum(STEP_SECONDS.values())


class Clock:
    """Time that a test lets pass."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(progress: Progress, clock: Clock, label: str, **seconds: float) -> None:
    """Let the steps of a visit begin one after the other, each after the seconds that the one before took."""
    for step, lasted in seconds.items():
        progress.hear(News(label, step))
        clock.now += lasted


def test_at_the_beginning_the_time_left_is_what_was_measured(clock: Clock):
    assert Progress(3, ["a", "b", "c"], TWO_CORES, clock).seconds_left() == pytest.approx(3 * WHOLE)
    assert Progress(3, ["a"], TWO_CORES, clock).seconds_left() == pytest.approx(WHOLE), "the others are not processed"
    assert Progress(0, [], TWO_CORES, clock).seconds_left() == 0


def test_visits_side_by_side_share_the_time(clock: Clock):
    four = Settings(out_dir=Path("out"), nprocs=4, omp_nthreads=2)
    assert Progress(4, "abcd", four, clock).seconds_left() == pytest.approx(2 * WHOLE)
    assert Progress(1, "a", four, clock).seconds_left() == pytest.approx(WHOLE)


def test_time_passes_within_a_step_and_stops_where_it_takes_longer(clock: Clock):
    progress = Progress(1, ["a"], TWO_CORES, clock)
    begin(progress, clock, "a", prepare=5)
    assert progress.seconds_left() == pytest.approx(WHOLE - 5)
    clock.now += 100
    assert progress.seconds_left() == pytest.approx(WHOLE - STEP_SECONDS["prepare"])


def test_a_machine_that_takes_twice_as_long_is_believed(clock: Clock):
    progress = Progress(2, ["a", "b"], TWO_CORES, clock)
    begin(progress, clock, "a", prepare=2 * STEP_SECONDS["prepare"], pose=0)
    left = 2 * (WHOLE - STEP_SECONDS["prepare"]) + 2 * WHOLE
    assert progress.seconds_left() == pytest.approx(left)


def test_steps_that_an_earlier_run_has_done_say_nothing_of_the_pace(clock: Clock):
    progress = Progress(1, ["a"], TWO_CORES, clock)
    begin(progress, clock, "a", prepare=0.1, pose=0.1, segment=0)
    later = ("segment", "align", "normalize", "explain", "deliver")
    assert progress.seconds_left() == pytest.approx(sum(STEP_SECONDS[step] for step in later))


def test_the_end_of_visits_is_counted_whatever_became_of_them(clock: Clock):
    progress = Progress(2, ["a", "b"], TWO_CORES, clock)
    begin(progress, clock, "a", prepare=STEP_SECONDS["prepare"])
    progress.end("a")  # failed in its first step
    assert (progress.ended, progress.seconds_left()) == (1, pytest.approx(WHOLE))
    progress.end("b")  # its worker was not even begun
    assert (progress.ended, progress.seconds_left()) == (2, 0)


def test_steps_that_are_off_take_no_time():
    off = Settings(out_dir=Path("out"), nprocs=2, omp_nthreads=2, normalization=False, anomaly=False)
    assert [step for step, seconds in step_seconds(off).items() if not seconds] == ["align", "normalize", "explain"]
    one = step_seconds(Settings(out_dir=Path("out"), nprocs=1, omp_nthreads=1))
    assert one["pose"] == 2 * STEP_SECONDS["pose"]


def test_lines_for_a_terminal(clock: Clock):
    progress = Progress(3, ["sub-1", "sub-22"], TWO_CORES, clock)
    begin(progress, clock, "sub-1", prepare=5)
    begin(progress, clock, "sub-22", pose=0)
    progress.end("sub-3")
    first, second, run = progress.lines()
    assert first.startswith("  sub-1   prepare    step 1 of 7, about 86 s left")
    assert second.startswith("  sub-22  pose       step 2 of 7, about ")
    assert run == "  1 of 3 visits ended, about 3 min left"
    assert Progress(2, [], TWO_CORES, clock).lines() == ["  0 of 2 visits ended"], "as with a plugin"


def test_without_a_terminal_nothing_is_shown_and_rich_is_not_loaded(capsys, clock: Clock):
    loaded = "rich.live" in sys.modules
    with on_terminal(Progress(1, ["a"], TWO_CORES, clock)):
        print("a line")
    assert capsys.readouterr().out == "a line\n"
    assert ("rich.live" in sys.modules) == loaded


SHOWN = """
import time
from bids_app.process import guard_streams
from tests.workflow.test_progress import *
guard_streams()
progress = Progress(2, ["sub-1", "sub-2"], TWO_CORES)
with on_terminal(progress):
    progress.hear(News("sub-1", "segment"))
    time.sleep(0.8)
    print("/a/path" * 30, flush=True)
    progress.end("sub-1")
    time.sleep(0.8)
print("the end")
"""


def on_pty(term: str) -> str:
    """What a small program writes to a terminal of 60 columns."""
    ours, theirs = pty.openpty()
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "TERM": term, "COLUMNS": "60", "LINES": "20"}
    run = subprocess.Popen([sys.executable, "-c", SHOWN], stdout=theirs, stderr=theirs, env=environment, cwd=root)
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 65536):
            written += block
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert run.wait() == 0
    return written.decode().replace("\r\n", "\n")


def test_a_terminal_shows_the_step_below_what_is_said():
    written = on_pty("xterm")
    assert "  sub-1  segment    step 3 of 7, about " in written
    assert "  1 of 2 visits ended, about " in written
    assert "/a/path" * 30 + "\n" in written, "a path was broken into lines"
    assert written.rstrip().endswith("the end")


def test_a_terminal_that_cannot_move_its_cursor_shows_lines_only():
    assert on_pty("dumb") == "/a/path" * 30 + "\nthe end\n"
