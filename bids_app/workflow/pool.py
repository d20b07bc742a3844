"""A pool of long-lived workers, spawned once, each of which processes visit after visit.

A worker is a process at the other end of a pipe, which brings it work and takes back what it has to say. Nothing else
is shared: no semaphore, and so no ``/dev/shm``, which a container may have too small or not at all.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from bids_app.environment import thread_variables
from bids_app.errors import UnavailableError
from bids_app.settings import Settings
from bids_app.workflow import worker
from bids_app.workflow.job import MEMORY_GB, Job
from bids_app.workflow.worker import News, Outcome, Tools

_MEMORY_HINT = "Give more memory, or fewer visits side by side (--nprocs, --mem)."

#: They are for the run, which ends its workers. A batch system sends them to all processes at once.
_SIGNALS_OF_THE_RUN = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class WorkerDied(Exception):
    """A worker ended before it had done what it was asked."""


class Worker:
    """A process that does what it is asked, one thing after the other.

    Raises
    ------
    UnavailableError
        If no process can be started.
    """

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(theirs,))
        try:
            with _signals_blocked():
                self._process.start()
        except OSError as error:
            self.connection.close()
            raise UnavailableError(
                f"A worker cannot be started: {error.strerror}.", "This job may start too few processes (ulimit -u)."
            ) from error
        finally:
            theirs.close()  # when the worker ends, nobody holds its end of the pipe

    def ask(self, function: Callable, *arguments: Any) -> None:
        """Let it call a function, whose last argument is what it tells news with.

        Raises
        ------
        WorkerDied
        """
        try:
            self.connection.send((function, arguments))
        except OSError as error:
            raise WorkerDied from error

    def answer(self) -> Any:
        """What comes next: `News`, or what the function returned.

        Raises
        ------
        WorkerDied
        Exception
            What the function raised.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied from error
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def result(self, heard: Callable[[News], None]) -> Any:
        """What the function returned; its news are passed on until then. Raises as `answer`."""
        while isinstance(answer := self.answer(), News):
            heard(answer)
        return answer

    def end(self) -> None:
        """Let it finish what it is doing, and end; nobody listens any more."""
        self.connection.close()
        self._process.join()

    def kill(self) -> None:
        """End it, whatever it is doing: what it was at is resumed by the next run."""
        self._process.kill()
        self.end()


def in_worker(function: Callable, *arguments: Any) -> Any:
    """Call a function in a process of its own.

    Raises
    ------
    Exception
        What the function raised.
    """
    helper = Worker()
    try:
        helper.ask(function, *arguments)
        return helper.result(_ignore)
    finally:
        helper.kill()


class WorkerPool:
    """Workers for the visits of one run.

    A worker that dies (killed for memory, or a library crashed) takes its visit with it and no other: when the visits
    that are in work have ended, that one is processed again, alone and in a worker of its own, so that the guilty one
    is known. The others then go on side by side.

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
        self._idle: list[Worker] = []
        self._running: dict[Worker, Job] = {}

    def __enter__(self) -> WorkerPool:
        # the variables must be set before a worker imports numpy or torch
        os.environ.update(thread_variables(self.settings.omp_nthreads))
        self._idle.append(Worker())
        try:
            self.tools = self._start(self._idle[0])
        except BaseException:
            self._idle.pop().kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            if kind in (None, GeneratorExit):  # visits in work are let finish
                for helper in self._running:
                    helper.end()
        finally:
            for helper in (*self._idle, *self._running):
                helper.kill()

    def process(self, jobs: Sequence[Job], heard: Callable[[News], None]) -> Iterator[Outcome]:
        """Outcomes of the visits, as they end; `heard` is called with what the workers tell meanwhile."""
        waiting, left = deque(jobs), deque()
        while waiting or left or self._running:
            while waiting and not left and len(self._running) < self.size:
                self._hand_over(waiting.popleft())
            if not self._running:
                yield self._process_alone(left.popleft(), heard)
                continue
            by_connection = {helper.connection: helper for helper in self._running}
            for connection in wait(list(by_connection)):
                yield from self._hear(by_connection[connection], left, heard)

    def _hear(self, helper: Worker, left: deque[Job], heard: Callable[[News], None]) -> Iterator[Outcome]:
        """Take what a worker has to say; the visit of one that has died is `left`."""
        try:
            answer = helper.answer()
        except WorkerDied:
            left.append(self._running.pop(helper))
            helper.kill()
            return
        if isinstance(answer, News):
            heard(answer)
            return
        del self._running[helper]
        self._idle.append(helper)
        yield answer

    def _hand_over(self, job: Job) -> None:
        """Give a visit to an idle worker, or to a new one where there is none or it has died meanwhile."""
        while self._idle:
            helper = self._idle.pop()
            try:
                helper.ask(worker.process, job)
            except WorkerDied:
                helper.kill()
                continue
            self._running[helper] = job
            return
        helper = Worker()
        self._running[helper] = job
        with suppress(WorkerDied):  # found out, as of any other, when it is listened to
            helper.ask(worker.process, job)

    def _process_alone(self, job: Job, heard: Callable[[News], None]) -> Outcome:
        """Process a visit whose worker has died, when no other is in work."""
        for helper in self._idle:
            helper.kill()  # they keep networks in memory
        self._idle.clear()
        self._hand_over(job)
        [helper] = self._running
        try:
            outcome = helper.result(heard)
        except WorkerDied:
            message = f"The worker of {job.visit.label} was killed, most likely because memory ran out. {_MEMORY_HINT}"
            outcome = Outcome(job.visit.label, 0.0, {}, *worker.leave_failure(job, message))
        del self._running[helper]
        helper.kill()
        return outcome

    def _start(self, first: Worker) -> Tools:
        """Let one worker find out, before any visit, whether the visits can be processed at all."""
        try:
            first.ask(worker.start, self.settings, self.model_folder)
            return first.result(_ignore)
        except WorkerDied as error:
            message = "The first worker was killed while it started, most likely because memory ran out."
            raise UnavailableError(message, _MEMORY_HINT) from error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Keep signals away from a process that is started inside: it inherits the mask."""
    resource_tracker.ensure_running()  # Python starts this process with the first one, and it takes off the mask
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS_OF_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def _ignore(_: News) -> None:
    return


def _affordable(size: int, memory_gb: float | None) -> int:
    """As many workers as the memory allows, at least one."""
    return size if memory_gb is None else max(1, min(size, int(memory_gb // MEMORY_GB)))
