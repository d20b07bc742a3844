"""The last step of a visit: write its derivatives, its record, and its subject's table."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from bids_app.derivatives.record import Record, read_record, remove_stale, write_record
from bids_app.derivatives.results import Normalized, Posed, Prepared, Segmented
from bids_app.derivatives.sessions import rebuild
from bids_app.derivatives.visit import session_row, visit_files, write_files
from bids_app.preprocessing.checks import Check
from bids_app.study.models import Problem, Severity
from bids_app.workflow.export import export_lesion_roi
from bids_app.workflow.job import Job


def deliver(
    job: Job, prepared: Prepared, posed: Posed, segmented: Segmented, normalized: tuple[Normalized, ...]
) -> Record:
    """Write everything a finished visit leaves; the record comes last, as the mark of completion."""
    out_dir, visit = job.settings.out_dir, job.visit
    doubts = _registration_problems(normalized, posed.check)
    problems = (*visit.problems, *prepared.problems, *segmented.problems, *doubts)
    previous = read_record(out_dir, visit.subject, visit.session)
    outputs = write_files(out_dir, visit_files(prepared, segmented, normalized, job.provenance))
    remove_stale(out_dir, previous, outputs)
    if job.settings.export_lesion_roi:
        export_lesion_roi(visit, segmented.mask, job.settings.export_lesion_roi)
    summary = session_row(prepared, posed, segmented, normalized, problems)
    record = _record(job, "done", problems, outputs=outputs, summary=summary, model=_model(segmented))
    write_record(out_dir, record)
    rebuild(out_dir, visit.subject)
    return record


def deliver_failure(job: Job, error: str) -> Record:
    """Leave the record and table row of a visit that failed; the outputs of an earlier run are left alone."""
    record = _record(job, "failed", job.visit.problems, error=error)
    write_record(job.settings.out_dir, record)
    rebuild(job.settings.out_dir, job.visit.subject)
    return record


def _registration_problems(normalized: tuple[Normalized, ...], pose: Check) -> tuple[Problem, ...]:
    """What the registrations' checks say that a user should hear."""
    checks = [("pose", pose), *((space.space.lower(), space.check) for space in normalized)]
    return tuple(
        Problem(f"{name}-registration-{check.status}", Severity.WARNING, check.sentence)
        for name, check in checks
        if check.status in ("retried", "failed")
    )


def _model(segmented: Segmented) -> dict[str, str]:
    model = segmented.model
    return {"name": model.name, "version": model.version, "sha256": model.sha256} if model else {"name": "manual"}


def _record(job: Job, status: str, problems: tuple[Problem, ...], **content: Any) -> Record:
    return Record(
        subject=job.visit.subject,
        session=job.visit.session,
        status=status,
        version=job.provenance.version,
        configuration_hash=job.provenance.configuration_hash,
        fingerprint=job.fingerprint,
        run_id=job.run_id,
        inputs=dict(job.inputs),
        problems=[asdict(problem) for problem in problems],
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **content,
    )
