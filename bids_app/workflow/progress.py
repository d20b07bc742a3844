"""How far a run is: which step each visit is at, and how long that and the rest may take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bids_app.settings import Settings
from bids_app.study.estimate import step_seconds
from bids_app.wording import duration, part_of
from bids_app.workflow.worker import News

_RESUMED_SECONDS = 1.0
"""A step that takes less, and should take more, was done by an earlier run: it says nothing of this machine's pace."""


@dataclass
class _Visit:
    """A visit in work: its step, and when that began."""

    step: str
    began: float


class Progress:
    """Keeps what workers tell, and foresees the end.

    The seconds that steps are expected to take are corrected by those that they took in this run.

    Parameters
    ----------
    total : int
        Visits whose end will be told.
    labels : iterable of str
        Those of them that will be processed.
    settings : Settings
        They say which steps there are, and how many visits run side by side.
    clock : callable
        Seconds, from any beginning.

    Attributes
    ----------
    total, ended : int
    """

    def __init__(
        self, total: int, labels: Iterable[str], settings: Settings, clock: Callable[[], float] = time.monotonic
    ):
        self.total, self.ended, self._workers = total, 0, settings.workers
        self._expected, self._clock = step_seconds(settings), clock
        self._waiting = set(labels)
        self._visits: dict[str, _Visit] = {}
        self._measured = self._foreseen = 0.0

    def hear(self, news: News) -> None:
        """Take in that a step begins, and so that the one before has ended."""
        if news.step:
            self._measure(news.label)
            self._waiting.discard(news.label)
            self._visits[news.label] = _Visit(news.step, self._clock())

    def end(self, label: str) -> None:
        """Take in that a visit has ended, in whichever way."""
        self._measure(label)
        self._visits.pop(label, None)
        self._waiting.discard(label)
        self.ended += 1

    def _measure(self, label: str) -> None:
        """Compare the step that a visit was at with what was expected of it."""
        if (visit := self._visits.get(label)) is None:
            return
        seconds, expected = self._clock() - visit.began, self._expected.get(visit.step, 0.0)
        if seconds >= _RESUMED_SECONDS or expected < _RESUMED_SECONDS:
            self._measured += seconds
            self._foreseen += expected

    @property
    def _pace(self) -> float:
        """How much longer steps take than was expected."""
        return self._measured / self._foreseen if self._foreseen and self._measured else 1.0

    def _left_of(self, visit: _Visit) -> float:
        """Seconds that a visit in work may still take."""
        steps = list(self._expected)
        later = steps[steps.index(visit.step) + 1 :] if visit.step in steps else []
        now = max(0.0, self._expected.get(visit.step, 0.0) * self._pace - (self._clock() - visit.began))
        return now + sum(self._expected[step] for step in later) * self._pace

    def seconds_left(self) -> float:
        """Seconds until all visits may be done; 0 where none is left."""
        begun = [self._left_of(visit) for visit in self._visits.values()]
        work = sum(begun) + len(self._waiting) * sum(self._expected.values()) * self._pace
        side_by_side = max(1, min(self._workers, len(begun) + len(self._waiting)))
        return max(work / side_by_side, *begun, 0.0)

    def lines(self) -> list[str]:
        """What a terminal shows: a line for each visit in work, and one for the run."""
        width = max(map(len, self._visits), default=0)
        shown = [self._line(f"{label:<{width}}", visit) for label, visit in sorted(self._visits.items())]
        seconds = self.seconds_left()
        left = f", about {duration(seconds)} left" if seconds else ""
        return [*shown, f"  {part_of(self.ended, self.total, 'visit')} ended{left}"]

    def _line(self, label: str, visit: _Visit) -> str:
        steps = list(self._expected)
        number = f"step {steps.index(visit.step) + 1} of {len(steps)}, " if visit.step in steps else ""
        step = f"{visit.step:<{max(map(len, steps))}}"
        return f"  {label}  {step}  {number}about {duration(self._left_of(visit))} left"


@contextmanager
def on_terminal(progress: Progress) -> Iterator[None]:
    """Keep the lines of `progress` below what is printed, where standard output is a terminal; else do nothing."""
    if not (sys.stdout and sys.stdout.isatty()):
        yield
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # soft wrapping leaves the breaking of what is printed to the terminal, so that paths can be copied from it
    console = Console(file=sys.stdout, soft_wrap=True)
    if console.is_dumb_terminal:
        yield
        return

    def picture() -> Text:
        return Text("\n".join(line[: console.width - 1] for line in progress.lines()), no_wrap=True)

    with Live(console=console, get_renderable=picture, refresh_per_second=2, transient=True):
        yield
