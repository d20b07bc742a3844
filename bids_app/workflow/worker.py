"""What happens inside a worker process: one visit after the other, with the networks kept loaded."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bids_app.derivatives.record import Record
from bids_app.derivatives.write import write_json, write_text
from bids_app.errors import AppError, ExitCode, visit_code
from bids_app.networks.device import choose_device
from bids_app.process import guard_streams
from bids_app.settings import Settings, to_toml
from bids_app.workflow.export import export_finished
from bids_app.workflow.job import (
    Job,
    anomaly_folder,
    begun,
    finished_by_another,
    forget_finished,
    hold_visit,
    left_error,
)

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Outcome:
    """How a visit ended.

    Attributes
    ----------
    summary : dict
        The row of the sessions table of a finished visit.
    error : str
        The sentence of a failed one.
    code : ExitCode
        VISIT_FAILED concerns this visit alone; CANNOT_WRITE and UNAVAILABLE end the run.
    by_another : bool
        Whether another run has finished the visit, while this one waited for it.
    """

    label: str
    seconds: float
    summary: dict
    error: str = ""
    code: ExitCode = ExitCode.OK
    by_another: bool = False

    @property
    def done(self) -> bool:
        return not self.error


@dataclass(frozen=True)
class News:
    """What a worker tells while it is at a visit.

    Attributes
    ----------
    label : str
        The visit.
    step : str
        The step that begins now; empty where it is not about one.
    sentence : str
        Something that the user should hear.
    """

    label: str
    step: str = ""
    sentence: str = ""


Tell = Callable[[News], None]


@dataclass(frozen=True)
class Tools:
    """What a worker found when it started."""

    device: str
    description: str


def die_with_parent() -> None:
    """End this worker when the run ends, however it ends: a killed run must not go on writing.

    On Linux the kernel does it at once; elsewhere a thread does, as soon as a library lets Python run.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def serve(connection: Connection) -> None:
    """Do what comes through the pipe, and send back what came of it, until the other end is closed."""
    die_with_parent()
    guard_streams()

    def tell(news: News) -> None:
        with suppress(OSError):  # the run listens no more, and lets this visit finish
            connection.send(news)

    with suppress(EOFError, OSError):
        while True:
            function, arguments = connection.recv()
            try:
                answer = function(*arguments, tell)
            except Exception as error:
                answer = _sendable(error)
            connection.send(answer)


def _sendable(error: Exception) -> Exception:
    """An error as it is, or its text where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def check_device(request: str, _: Tell) -> None:
    """Find out whether a device can be used; raises as `choose_device`."""
    choose_device(request)


def start(settings: Settings, model_folder: Path, _: Tell) -> Tools:
    """Import what a visit needs, set the threads, decide the device, load the models; slow, so once a worker.

    Raises
    ------
    UnavailableError
        If the device that was asked for is not there.
    ConfigError
        If the model cannot be run: better now than after the first visit was prepared.
    """
    from bids_app.workflow import graph, tools  # noqa: F401  the imports are the work

    tools.limit_threads(settings.omp_nthreads)
    device = tools.device(settings.device)
    tools.lesion_models(model_folder, settings.folds, settings.device)
    if folder := anomaly_folder(settings):
        tools.anomaly_model(folder, settings.device)
    return Tools(device.name, device.description)


def process(job: Job, tell: Tell) -> Outcome:
    """Process one visit from beginning to end; never raises for what concerns this visit alone."""
    started = time.monotonic()
    try:
        job = begun(job)
        with hold(job, tell):
            return _process_held(job, tell, started)
    except Exception as error:  # its inputs could not be read, or it could not be held
        return failed(job, error, time.monotonic() - started)


def hold(job: Job, tell: Tell) -> AbstractContextManager[None]:
    """Hold a visit, as `hold_visit`, and tell where that has to wait for another run."""
    return hold_visit(job, lambda sentence: tell(News(job.visit.label, sentence=sentence)))


def _process_held(job: Job, tell: Tell, started: float) -> Outcome:
    """Process a visit that no other run can be at, unless one has just finished it."""
    try:
        if record := finished_by_another(job):
            return finished(job, record, time.monotonic() - started)
        record = _run_steps(job, tell)
        return Outcome(job.visit.label, time.monotonic() - started, record.summary)
    except Exception as error:  # whatever happens to one visit must not end the others
        return failed(job, error, time.monotonic() - started)


def _run_steps(job: Job, tell: Tell) -> Record:
    """Run the steps of a visit, each of which is told when it begins."""
    from bids_app.workflow.graph import visit_workflow

    def heard(node: Any, status: str) -> None:
        if status == "start":
            tell(News(job.visit.label, node.name))

    prepare(job)
    nodes = visit_workflow(job).run(plugin="Linear", plugin_args={"status_callback": heard}).nodes
    record: Record = next(node for node in nodes if node.name == "deliver").result.outputs.out
    seconds = {node.name: round(node.result.runtime.duration, 2) for node in nodes}
    write_json(job.log_folder / f"{job.visit.label}_seconds.json", seconds)
    shutil.rmtree(job.work_folder, ignore_errors=True)
    return record


def finished(job: Job, record: Record, seconds: float) -> Outcome:
    """The outcome of a visit that another run has finished meanwhile. Raises as `export_finished`."""
    if job.settings.export_lesion_roi:
        export_finished(job.visit, job.settings)
    return Outcome(job.visit.label, seconds, record.summary, by_another=True)


def failed(job: Job, error: Exception, seconds: float) -> Outcome:
    """Leave the record of a visit that failed, unless that cannot be written either, and say how it ended."""
    message, code = sentence_of(job, error)
    if code is ExitCode.VISIT_FAILED:
        message, code = leave_failure(job, message)
    return Outcome(job.visit.label, seconds, {}, message, code)


def leave_failure(job: Job, message: str) -> tuple[str, ExitCode]:
    """Leave the record of a visit that failed, as far as it can be written; its sentence and exit code.

    Where something is in the way of the record, the visit has failed all the same, for the reason that it had.
    """
    from bids_app.workflow.deliver import deliver_failure

    try:
        deliver_failure(job, message)
    except AppError as unwritable:
        return _unless_blocked(unwritable, message, ExitCode.VISIT_FAILED)
    return message, ExitCode.VISIT_FAILED


def _unless_blocked(unwritable: AppError, message: str, code: ExitCode) -> tuple[str, ExitCode]:
    """What to say where a file about a failure cannot be written: that, if it ends the run; else the failure."""
    if visit_code(unwritable) is ExitCode.VISIT_FAILED:
        return message, code
    return str(unwritable), unwritable.exit_code


def sentence_of(job: Job, error: BaseException) -> tuple[str, ExitCode]:
    """Sentence and exit code of a failed visit; the traceback goes to the crash file.

    nipype wraps what a step raised into text, so the step has left its own sentence in a file.
    """
    if isinstance(error, AppError):
        message, code = str(error), visit_code(error)
    else:
        message, code = left_error(job) or (f"{type(error).__name__}: {error}", ExitCode.VISIT_FAILED)
    try:
        details = "".join(traceback.format_exception(error))
        write_text(job.log_folder / f"crash-{job.visit.label}.txt", f"{message}\n\n{details}")
    except AppError as unwritable:
        return _unless_blocked(unwritable, message, code)
    return message, code


def prepare(job: Job) -> None:
    """Make the folders of a visit and set up nipype for it."""
    forget_finished(job)
    job.error_file.unlink(missing_ok=True)
    job.work_folder.mkdir(parents=True, exist_ok=True)
    write_text(job.log_folder / "settings.toml", to_toml(job.settings))
    _configure_nipype(job)


def _configure_nipype(job: Job) -> None:
    """Quiet, content-hashed; nipype's configuration is one per process."""
    from nipype import config

    config.update_config(
        {
            "execution": {
                "crashfile_format": "txt",
                "create_report": "false",
                "hash_method": "content",
                "stop_on_first_crash": "true",
                "remove_unnecessary_outputs": "false",
                "check_version": "false",
            },
            "logging": {"log_to_file": "false"},
        }
    )
    logging.getLogger("nipype").setLevel(logging.ERROR)
    for name in ("nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL if not job.settings.verbosity else logging.INFO)
