"""The participant level: what is to do, who does it, how it ended."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_app import app_version
from bids_app.derivatives.description import write_top_level
from bids_app.derivatives.record import Status
from bids_app.derivatives.results import Provenance
from bids_app.derivatives.sessions import write_raw_participants
from bids_app.errors import AppError, ExitCode, VisitError
from bids_app.networks.registry import find_model, verify
from bids_app.networks.weights import folder_sha256
from bids_app.preprocessing.templates import check_spaces
from bids_app.settings import Settings, configuration_hash
from bids_app.study.models import Severity, Study, Visit
from bids_app.workflow.deliver import deliver_failure
from bids_app.workflow.job import Job, input_checksums, status_of_visit
from bids_app.workflow.pool import WorkerPool
from bids_app.workflow.worker import Outcome

Say = Callable[[str], None]

MODEL_SUFFIXES = (".json", ".pth", ".onnx")


def _say(line: str) -> None:
    print(line, flush=True)


def visit_status(settings: Settings, study: Study) -> dict[str, Status]:
    """What there is to do for every visit, by its label."""
    configuration = provenance_of(settings, study).configuration_hash
    return {visit.label: status_of_visit(settings, visit, configuration) for visit in study.visits}


def provenance_of(settings: Settings, study: Study) -> Provenance:
    """What all sidecars of this run share."""
    version = app_version()
    model = folder_sha256(_model_files(find_model(settings.lesion_model)))
    return Provenance(configuration_hash(settings, version, model), version, study.root)


def _model_files(path: Path) -> list[Path]:
    """The files that make a model what it is."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in MODEL_SUFFIXES]


def run_participants(
    settings: Settings, study: Study, status: Mapping[str, Status] | None = None, say: Say = _say
) -> ExitCode:
    """Process every visit that is to do; return OK, or VISIT_FAILED if any visit failed.

    Parameters
    ----------
    status : mapping, optional
        What there is to do for every visit, where `visit_status` has been asked already.

    Raises
    ------
    AppError
        If nothing can be processed: no device, no template, no model, OUT cannot be written.
    """
    check_spaces(settings.standard_spaces)
    model_folder = find_model(settings.lesion_model)
    verify(model_folder)
    provenance = provenance_of(settings, study)
    write_top_level(settings.out_dir, study.root, provenance.configuration_hash, settings.derivatives)
    for subject in sorted({visit.subject for visit in study.visits}):
        _leave_raw_participants(settings.out_dir, subject, study)
    status = visit_status(settings, study) if status is None else status
    todo = [visit for visit in study.visits if settings.force or status[visit.label] != Status.DONE]
    if done := len(study.visits) - len(todo):
        say(f"{done} of {len(study.visits)} visits are done already and unchanged.")
    run_id = new_run_id()
    jobs = [Job(visit, settings, provenance, _checksums(visit), model_folder, run_id) for visit in todo]
    return _report(_outcomes(jobs, settings, say), len(jobs), settings, say)


def new_run_id() -> str:
    """Name of a run's folder of logs: date, time and eight random digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


def _checksums(visit: Visit) -> Mapping[str, str]:
    """Input checksums; an unreadable input is found again, and reported, when the visit is processed."""
    try:
        return input_checksums(visit)
    except VisitError:
        return {}


def _outcomes(jobs: list[Job], settings: Settings, say: Say) -> Iterator[Outcome]:
    """Process the usable visits side by side; a visit with an error of its own fails without being tried."""
    usable = [job for job in jobs if job.visit.usable]
    for job in jobs:
        if not job.visit.usable:
            message = " ".join(p.message for p in job.visit.problems if p.severity is Severity.ERROR)
            deliver_failure(job, message)
            yield Outcome(job.visit.label, 0.0, {}, message, ExitCode.VISIT_FAILED)
    if not usable:
        return
    if settings.plugin_file:
        from bids_app.workflow.cluster import process_with_plugin

        yield from process_with_plugin(usable, settings)
        return
    with WorkerPool(settings, min(settings.workers, len(usable)), usable[0].model_folder) as pool:
        say(f"Device: {pool.tools.description}. Visits side by side: {pool.size}.")
        yield from pool.process(usable)


def _report(outcomes: Iterator[Outcome], total: int, settings: Settings, say: Say) -> ExitCode:
    """Say how each visit ended, as soon as it ended.

    Raises
    ------
    AppError
        If the failure of a visit ends the whole run (no space left).
    """
    failed = []
    for number, outcome in enumerate(outcomes, start=1):
        say(f"[{number}/{total}] {outcome.label}: {describe(outcome)}")
        if outcome.done:
            continue
        failed.append(outcome)
        if outcome.code is not ExitCode.VISIT_FAILED:
            raise _Ended(outcome)
        if settings.stop_on_first_crash:
            break
    if failed:
        say(f"{len(failed)} of {total} visits failed: {', '.join(o.label for o in failed)}. See sub-*/log/.")
    return ExitCode.VISIT_FAILED if failed else ExitCode.OK


class _Ended(AppError):
    """The failure of one visit that ends the run."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.error)
        self.exit_code = outcome.code


def describe(outcome: Outcome) -> str:
    """One line on how a visit ended."""
    if not outcome.done:
        return f"FAILED after {outcome.seconds:.0f} s. {outcome.error}"
    row = outcome.summary
    count, volume = row["lesion_count"], row["lesion_volume_ml"]
    lesions = f"{count} lesion{'s' if count > 1 else ''}, {volume:.2f} mL" if count else "no lesion"
    doubts = f" (look at: {row['problems']})" if row.get("problems") else ""
    return f"done in {outcome.seconds:.0f} s, {lesions}{doubts}"


def _leave_raw_participants(out_dir: Path, subject: str, study: Study) -> None:
    """Keep what the group level must know of the raw dataset, so that it needs the output folder alone."""
    expected = {label: _sessions_on_disk(study.root / f"sub-{label}") for label in study.participants}
    table = _participants_table(study.root / "participants.tsv")
    dictionary = _json(study.root / "participants.json")
    write_raw_participants(out_dir, subject, study.name, expected, table, dictionary)


def _sessions_on_disk(folder: Path) -> list[str | None]:
    return sorted(path.name.removeprefix("ses-") for path in folder.glob("ses-*") if path.is_dir()) or [None]


def _participants_table(path: Path) -> dict[str, Any]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return {"columns": [], "rows": []}
    header, *rows = [line.split("\t") for line in lines if line.strip()] or [[]]
    return {"columns": header, "rows": rows}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
