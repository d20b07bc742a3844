"""A pool of long-lived workers, spawned once, each of which processes visit after visit."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from bids_app.environment import thread_variables
from bids_app.errors import ExitCode
from bids_app.settings import Settings
from bids_app.workflow import worker
from bids_app.workflow.deliver import deliver_failure
from bids_app.workflow.job import MEMORY_GB, Job
from bids_app.workflow.worker import Outcome, Tools


class WorkerPool:
    """Workers for the visits of one run.

    A worker that dies (killed for memory, or a library crashed) takes its visit with it and no other: the visits that
    were not finished are then processed one at a time, each in a worker of its own, so that the guilty one is known.

    Attributes
    ----------
    size : int
        Number of workers.
    model_folder : Path
        The lesion model they will run.
    tools : Tools
        What the first worker found: the device.
    """

    def __init__(self, settings: Settings, size: int, model_folder: Path):
        self.settings, self.model_folder = settings, model_folder
        self.size = _affordable(size, settings.memory_gb)
        self._executor = self._spawn(self.size)

    def __enter__(self) -> WorkerPool:
        self.tools = self._start(self._executor)
        return self

    def __exit__(self, *_) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def process(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes of the visits, as they end."""
        waiting = {self._executor.submit(worker.process, job): job for job in jobs}
        for future in as_completed(list(waiting)):
            if isinstance(future.exception(), BrokenProcessPool):
                yield from self._one_by_one(list(waiting.values()))
                return
            waiting.pop(future)
            yield future.result()

    def _one_by_one(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        for job in jobs:
            with self._spawn(1) as executor:
                self._start(executor)
                yield _outcome(executor.submit(worker.process, job), job)

    def _start(self, executor: ProcessPoolExecutor) -> Tools:
        """Let one worker find out, before any visit, whether the visits can be processed at all."""
        return executor.submit(worker.start, self.settings, self.model_folder).result()

    def _spawn(self, size: int) -> ProcessPoolExecutor:
        # the variables must be set before a worker imports numpy or torch
        os.environ.update(thread_variables(self.settings.omp_nthreads))
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(size, mp_context=context, initializer=worker.die_with_parent)


def _outcome(future: Future, job: Job) -> Outcome:
    """The outcome of a visit that had a worker of its own."""
    try:
        return future.result()
    except BrokenProcessPool:
        message = (
            f"The worker of {job.visit.label} was killed, most likely because memory ran out. "
            "Give more memory, or fewer visits side by side (--nprocs, --mem)."
        )
        deliver_failure(job, message)
        return Outcome(job.visit.label, 0.0, {}, message, ExitCode.VISIT_FAILED)


def _affordable(size: int, memory_gb: float | None) -> int:
    """As many workers as the memory allows, at least one."""
    return size if memory_gb is None else max(1, min(size, int(memory_gb // MEMORY_GB)))
