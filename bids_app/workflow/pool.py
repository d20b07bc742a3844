"""A pool of long-lived workers, spawned once, each of which processes visit after visit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from bids_app.environment import thread_variables
from bids_app.errors import UnavailableError
from bids_app.settings import Settings
from bids_app.workflow import worker
from bids_app.workflow.job import MEMORY_GB, Job
from bids_app.workflow.worker import Outcome, Tools

_MEMORY_HINT = "Give more memory, or fewer visits side by side (--nprocs, --mem)."


class WorkerPool:
    """Workers for the visits of one run.

    A worker that dies (killed for memory, or a library crashed) takes its visit with it and no other: the visits that
    were in work at that moment, at most one a worker, are processed again one at a time, each in a worker of its own,
    so that the guilty one is known. The others then go on side by side.

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
        try:
            self.tools = self._start()
        except BaseException:
            self._end_now()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind in (None, GeneratorExit):  # visits in work are let finish
            self._executor.shutdown(wait=True, cancel_futures=True)
        else:
            self._end_now()

    def process(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes of the visits, as they end."""
        waiting, running = deque(jobs), {}
        while waiting or running:
            # no more than one visit a worker, so that it is known which were in work when a worker dies
            while waiting and len(running) < self.size and not _any_broken(running):
                self._submit(waiting.popleft(), running)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                if not _is_broken(future):
                    running.pop(future)
                    yield future.result()
            if _any_broken(running):
                yield from self._isolate(running)
                running = {}

    def _submit(self, job: Job, running: dict[Future, Job]) -> None:
        try:
            future = self._hand_over(worker.process, job)
        except BrokenProcessPool as error:  # an idle worker has died meanwhile
            future = Future()
            future.set_exception(error)
        running[future] = job

    def _isolate(self, running: dict[Future, Job]) -> Iterator[Outcome]:
        """Process the visits that were in work when a worker died, each alone; then there are new workers."""
        # all workers have ended before any visit is begun again: two must not write in the same folder
        self._executor.shutdown(wait=True)
        for future, job in running.items():
            if not _is_broken(future):
                yield future.result()
                continue
            self._executor = self._spawn(1)
            yield _outcome(self._hand_over(worker.process, job), job)
            self._executor.shutdown(wait=True)
        self._executor = self._spawn(self.size)

    def _start(self) -> Tools:
        """Let one worker find out, before any visit, whether the visits can be processed at all."""
        try:
            return self._hand_over(worker.start, self.settings, self.model_folder).result()
        except BrokenProcessPool as error:
            message = "The first worker was killed while it started, most likely because memory ran out."
            raise UnavailableError(message, _MEMORY_HINT) from error

    def _hand_over(self, function: Callable, *arguments: Any) -> Future:
        """Submit work. A worker that this starts inherits the mask: Ctrl-C is for the run, which ends its workers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._executor.submit(function, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _end_now(self) -> None:
        """End all workers, whatever they are doing: what they were at is resumed by the next run."""
        for process in multiprocessing.active_children():
            process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _spawn(self, size: int) -> ProcessPoolExecutor:
        # the variables must be set before a worker imports numpy or torch
        os.environ.update(thread_variables(self.settings.omp_nthreads))
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(size, mp_context=context, initializer=worker.die_with_parent)


def _is_broken(future: Future) -> bool:
    return future.done() and isinstance(future.exception(), BrokenProcessPool)


def _any_broken(running: dict[Future, Job]) -> bool:
    return any(map(_is_broken, running))


def _outcome(future: Future, job: Job) -> Outcome:
    """The outcome of a visit that had a worker of its own."""
    try:
        return future.result()
    except BrokenProcessPool:
        message = (
            f"The worker of {job.visit.label} was killed, most likely because memory ran out. {_MEMORY_HINT}"
        )
        return worker.left_failed(job, message)


def _affordable(size: int, memory_gb: float | None) -> int:
    """As many workers as the memory allows, at least one."""
    return size if memory_gb is None else max(1, min(size, int(memory_gb // MEMORY_GB)))
