"""How a training tells where it is: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Epoch:
    """What nnU-Net says after an epoch.

    Attributes
    ----------
    number, total : int
        Epochs that are done, and in all.
    loss : float
        Mean training loss; Dice makes it negative.
    pseudo_dice : float
        Dice over random patches of the validation cases taken together, in [0, 1]; nnU-Net's quick look.
    seconds_left : float
    """

    number: int
    total: int
    loss: float
    pseudo_dice: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"epoch {self.number} of {self.total}, loss {self.loss:.3f}, pseudo-Dice {self.pseudo_dice:.3f}, "
            f"{duration(self.seconds_left)} left"
        )


class Reporter(Protocol):
    """Somebody who wants to know."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def epoch(self, what: str, epoch: Epoch) -> None:
        """Progress of one network, ``what`` being as in ``t1w, fold 0``."""


class Lines:
    """Plain lines, for logs and pipes."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    def epoch(self, what: str, epoch: Epoch) -> None:
        print(f"{what}: {epoch}", flush=True)


class Bars:
    """A bar for each network that is trained, on a terminal."""

    def __init__(self, progress):
        self._progress = progress
        self._tasks: dict[str, int] = {}

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def epoch(self, what: str, epoch: Epoch) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=epoch.total, said="")
        self._progress.update(self._tasks[what], completed=epoch.number, said=str(epoch))


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Bars if standard output is a terminal, else lines."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns) as progress:
        yield Bars(progress)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(42), duration(600), duration(7500)
    ('42 s', '10 min', '2 h 05 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
