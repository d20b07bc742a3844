"""Scans that a training learns from go through the App's own steps, several side by side, and each once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from bids_app import app_version
from bids_app.derivatives.results import Provenance
from bids_app.errors import AppError, CannotWriteError, DatasetError, UnavailableError
from bids_app.settings import AnomalyTraining, Settings, TrainingSettings
from bids_app.study.models import Problem, Severity, Visit
from bids_app.wording import counted
from bids_app.workflow import tools
from bids_app.workflow.job import Job

Result = TypeVar("Result")
Task = TypeVar("Task", bound=Callable)


def job_of(visit: Visit, settings: TrainingSettings | AnomalyTraining) -> Job:
    """What the App's steps want to know, for a visit that delivers nothing."""
    app = Settings(
        settings.out_dir,
        settings.bids_dir,
        settings.work_dir,
        device=settings.device,
        skull_stripped=settings.skull_stripped,
        anomaly=False,
    )
    return Job(visit, app, Provenance("", app_version(), settings.bids_dir), {}, Path(), "training")


def attempt(function: Callable[[], Result], label: str) -> Result | Problem:
    """What a function returns, or the problem of the one scan that it failed on."""
    try:
        return function()
    except CannotWriteError:
        raise  # of the run, not of the scan
    except AppError as error:
        return Problem("not-prepared", Severity.ERROR, error.message)
    except (RuntimeError, ValueError, ArithmeticError) as error:  # of the registration, of ITK
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return Problem("not-prepared", Severity.ERROR, f"{label} could not be prepared: {reason}")


def prepare_each(tasks: Sequence[Task], nprocs: int, say: Callable[[str], None], noun: str, hint: str) -> list:
    """What tasks with a `label` make, those that fail told and left out.

    Parameters
    ----------
    noun, hint : str
        How one of them is called, and what to do if most of them fail.

    Raises
    ------
    DatasetError
        If more than half fail.
    """
    ready, failed = [], 0
    for number, (task, result) in enumerate(each(tasks, nprocs), start=1):
        if isinstance(result, Problem):
            failed += 1
            say(f"left out {task.label}: {result.message}")
        else:
            ready.append(result)
            say(f"prepared {number} of {len(tasks)}: {task.label}")
    if 2 * failed > len(tasks):
        raise DatasetError(
            f"{failed} of {counted(len(tasks), noun)} could not be prepared: that is more than half.", hint
        )
    return ready


def each(tasks: Sequence[Task], nprocs: int) -> Iterator[tuple[Task, object]]:
    """Tasks and their results as they come, from worker processes if there may be several.

    Raises
    ------
    UnavailableError
        If there is not enough memory for so many side by side.
    """
    workers = min(nprocs, len(tasks))
    if workers < 2:
        tools.limit_threads(nprocs)
        yield from ((task, task()) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=tools.limit_threads, initargs=(1,)) as pool:
        running = {pool.submit(task): task for task in tasks}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            raise UnavailableError(
                f"A process that prepared scans was stopped from outside, of {workers} side by side.",
                "This is how running out of memory looks (up to 4 GB each): give fewer --nprocs and start again.",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
