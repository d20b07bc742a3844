"""What has to be known to process one visit, anywhere: in this process, in a worker, or on a cluster node."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from bids_app.derivatives import names
from bids_app.derivatives.record import (
    Record,
    Stamp,
    Status,
    checksums,
    fingerprint,
    outputs_intact,
    read_record,
    restamped,
    stamps,
    status_of,
    write_record,
)
from bids_app.derivatives.results import Provenance
from bids_app.derivatives.write import locked, write_json
from bids_app.errors import NO_SPACE, AppError, CannotWriteError, ExitCode, VisitError, no_space_left, visit_code
from bids_app.networks.registry import find_anomaly_model
from bids_app.settings import Settings
from bids_app.study.models import Visit

#: What one visit needs at most, GiB: networks, a whole-brain registration at 1 mm, nnU-Net's buffers.
MEMORY_GB = 4.0
#: A work folder with less space than this is full: no step writes less.
FULL_BYTES = 2**20


@dataclass(frozen=True, repr=False)
class Job:
    """One visit to process.

    Attributes
    ----------
    inputs : mapping of str to str
        sha256 of every input file, by the role it plays; empty until the visit begins (see `begun`).
    model_folder : Path
        The lesion model, found and checked.
    run_id : str
        Name of this run's folder for logs and crash files.
    anomaly_folder : Path or None
        The anomaly model, found and checked; None where the anomaly step is off, or there is none.
    input_stamps : mapping of str to Stamp
        Sizes and times of the inputs, as they were before they were read.
    """

    visit: Visit
    settings: Settings
    provenance: Provenance
    inputs: Mapping[str, str]
    model_folder: Path
    run_id: str
    anomaly_folder: Path | None = None
    input_stamps: Mapping[str, Stamp] = field(default_factory=dict)

    def __repr__(self) -> str:
        # nipype hashes this to decide whether a step of an unfinished visit has been made already
        kept = ", model input" if self.settings.keep_model_input else ""
        return f"Job({self.visit.label}, {self.provenance.configuration_hash}, {self.fingerprint}{kept})"

    @property
    def fingerprint(self) -> str:
        """Digest over the contents of the inputs."""
        return fingerprint(self.inputs)

    @property
    def work_folder(self) -> Path:
        """Where the steps of the visit keep what they made until it is finished.

        Named after configuration and inputs, so that a step is never resumed from what another run began.
        """
        # a label may hold a plus, which nipype takes in no name; no label holds an underscore
        label = self.visit.label.replace("+", "_")
        return self.settings.work_dir / self.provenance.configuration_hash / f"{label}_{self.fingerprint}"

    @property
    def log_folder(self) -> Path:
        """Where logs and crash files of this run go."""
        return self.settings.out_dir / names.log_folder(self.visit.subject) / self.run_id

    @property
    def locks(self) -> tuple[Path, Path]:
        """What is locked while the visit is processed: its work folder, and its outputs. Always in this order."""
        visit, folder = self.visit, self.work_folder
        lock = self.settings.out_dir / names.visit_lock(visit.subject, visit.session)
        return folder.with_name(f".{folder.name}.lock"), lock

    @property
    def error_file(self) -> Path:
        """Where a step leaves its sentence when it fails."""
        return self.work_folder / "error.json"


def anomaly_folder(settings: Settings) -> Path | None:
    """The anomaly model that a run uses; None where the anomaly step is off, or there is none.

    Raises
    ------
    ConfigError
        If there is no model of the name that was asked for.
    """
    return find_anomaly_model(settings.anomaly_model) if settings.anomaly else None


def input_files(visit: Visit) -> dict[str, Path | None]:
    """The files that a visit is made from, by the role they play; None for those it has not."""
    reuse = visit.reuse
    return {
        "t1w": visit.t1w.path if visit.t1w else None,
        "flair": visit.flair.path if visit.flair else None,
        "reused_scan": reuse.preprocessed,
        "reused_brain_mask": reuse.brain_mask,
        "reused_to_standard": reuse.to_standard,
        "reused_from_standard": reuse.from_standard,
        "reused_lesion_mask": reuse.lesion_mask,
    }


def input_checksums(visit: Visit) -> dict[str, str]:
    """sha256 of the files a visit is made from, by role.

    Raises
    ------
    VisitError
        If a file cannot be read.
    """
    return checksums(input_files(visit))


def begun(job: Job) -> Job:
    """The job with the checksums of its inputs, which are read now, when the visit begins.

    Raises
    ------
    VisitError
        If a file cannot be read.
    """
    if job.inputs:
        return job
    seen = stamps(input_files(job.visit))  # before they are read: a file that is changed meanwhile is in doubt
    return replace(job, inputs=input_checksums(job.visit), input_stamps=seen)


def status_of_visit(settings: Settings, visit: Visit, configuration: str) -> Status:
    """What there is to do for a visit, from its record in the output folder."""
    record = read_record(settings.out_dir, visit.subject, visit.session)
    try:
        return status_of(settings.out_dir, record, configuration, input_files(visit), settings.check_content)
    except VisitError:
        return Status.TO_DO


def remember(settings: Settings, visit: Visit) -> None:
    """Keep in the record of a finished visit what it is recognised by, after its files were copied."""
    record = read_record(settings.out_dir, visit.subject, visit.session)
    now = record and restamped(settings.out_dir, record, input_files(visit))
    if now != record:
        with suppress(CannotWriteError):  # it is read again the next time
            write_record(settings.out_dir, now)


@contextmanager
def hold_visit(job: Job, waits: Callable[[str], None]) -> Iterator[None]:
    """Hold a visit, so that no other run processes it at the same time, into the same folders.

    Parameters
    ----------
    job : Job
        One that is `begun`: its work folder is named after its inputs.
    waits : callable
        Called with a sentence where another run is at it, before waiting for that to end.
    """

    def told(holder: str) -> None:
        who = f" ({holder})" if holder else ""
        waits(f"Another run{who} is processing it. Waiting for that to end.")

    holder = f"process {os.getpid()} on {socket.gethostname()}, run {job.run_id}"
    work, outputs = job.locks
    with locked(work, holder, told, temporary=True), locked(outputs, holder, told, temporary=True):
        yield


def finished_by_another(job: Job) -> Record | None:
    """The record of a visit that another run has finished, just as this one would, after this one was planned."""
    record = read_record(job.settings.out_dir, job.visit.subject, job.visit.session)
    if job.settings.force or record is None or record.run_id == job.run_id:
        return None
    done = record.status == "done" and _made_alike(job, record)
    return record if done and outputs_intact(job.settings.out_dir, record) else None


def _made_alike(job: Job, record: Record) -> bool:
    """Whether a record is of what a job that has `begun` would make."""
    own = (job.provenance.configuration_hash, job.fingerprint)
    return (record.configuration_hash, record.fingerprint) == own


def forget_finished(job: Job) -> None:
    """Remove what a finished run of the same visit left in the work folder: to do it again is to do all of it again.

    What an unfinished run left stays, to be resumed.
    """
    record = read_record(job.settings.out_dir, job.visit.subject, job.visit.session)
    if record and record.status == "done" and _made_alike(job, record):
        shutil.rmtree(job.work_folder, ignore_errors=True)


def leave_error(job: Job, error: Exception) -> None:
    """Keep the sentence of a failed step where the run finds it, whichever process or machine it ran on.

    On a full disk nothing can be kept; `left_error` then finds that out by itself.
    """
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        error = no_space_left(job.settings.work_dir)
    hint = getattr(error, "hint", "")
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    code = visit_code(error) if isinstance(error, AppError) else ExitCode.VISIT_FAILED
    with suppress(CannotWriteError):
        write_json(job.error_file, {"message": message, "hint": hint, "code": int(code)})


def left_error(job: Job) -> tuple[str, ExitCode] | None:
    """Sentence and exit code that a failed step has left; None if there is nothing to be known."""
    if job.error_file.is_file():
        left = json.loads(job.error_file.read_text(encoding="utf-8"))
        return f"{left['message']} {left['hint']}".strip(), ExitCode(left["code"])
    if _is_full(job.settings.work_dir):
        full = no_space_left(job.settings.work_dir)
        return str(full), full.exit_code
    return None


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False
