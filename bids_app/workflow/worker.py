"""What happens inside a worker process: one visit after the other, with the networks kept loaded."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.record import Record
from bids_app.derivatives.write import write_json, write_text
from bids_app.errors import AppError, ExitCode
from bids_app.settings import Settings, to_toml
from bids_app.workflow.job import Job, anomaly_folder, begun, code_of, forget_finished, left_error

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
    """

    label: str
    seconds: float
    summary: dict
    error: str = ""
    code: ExitCode = ExitCode.OK

    @property
    def done(self) -> bool:
        return not self.error


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


def start(settings: Settings, model_folder: Path) -> Tools:
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


def process(job: Job) -> Outcome:
    """Process one visit from beginning to end; never raises for what concerns this visit alone."""
    from bids_app.workflow.graph import visit_workflow

    started = time.monotonic()
    try:
        job = begun(job)
        prepare(job)
        nodes = visit_workflow(job).run(plugin="Linear").nodes
        record: Record = next(node for node in nodes if node.name == "deliver").result.outputs.out
        seconds = {node.name: round(node.result.runtime.duration, 2) for node in nodes}
        write_json(job.log_folder / f"{job.visit.label}_seconds.json", seconds)
        shutil.rmtree(job.work_folder, ignore_errors=True)
        return Outcome(job.visit.label, time.monotonic() - started, record.summary)
    except Exception as error:  # whatever happens to one visit must not end the others
        return failed(job, error, time.monotonic() - started)


def failed(job: Job, error: Exception, seconds: float) -> Outcome:
    """Leave the record of a visit that failed, and say how it ended."""
    return left_failed(job, *sentence_of(job, error), seconds)


def left_failed(job: Job, message: str, code: ExitCode = ExitCode.VISIT_FAILED, seconds: float = 0.0) -> Outcome:
    """Leave the record of a visit that failed; where even that cannot be written, its sentence is said all the same."""
    from bids_app.workflow.deliver import deliver_failure

    if code is ExitCode.VISIT_FAILED:
        try:
            deliver_failure(job, message)
        except AppError as unwritable:
            if (worse := code_of(job.settings, unwritable)) is not ExitCode.VISIT_FAILED:
                message, code = str(unwritable), worse
    return Outcome(job.visit.label, seconds, {}, message, code)


def sentence_of(job: Job, error: BaseException) -> tuple[str, ExitCode]:
    """Sentence and exit code of a failed visit; the traceback goes to the crash file.

    nipype wraps what a step raised into text, so the step has left its own sentence in a file.
    """
    if isinstance(error, AppError):
        message, code = str(error), code_of(job.settings, error)
    else:
        message, code = left_error(job) or (f"{type(error).__name__}: {error}", ExitCode.VISIT_FAILED)
    try:
        details = "".join(traceback.format_exception(error))
        write_text(job.log_folder / f"crash-{job.visit.label}.txt", f"{message}\n\n{details}")
    except AppError as unwritable:
        if (worse := code_of(job.settings, unwritable)) is not ExitCode.VISIT_FAILED:
            return str(unwritable), worse
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
