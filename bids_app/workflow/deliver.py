"""The last step of a visit: write its derivatives, its record, and its subject's table."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from bids_app.derivatives.record import Record, file_names, read_record, remove_stale, stamps, write_record
from bids_app.derivatives.results import (
    NO_ANOMALIES,
    Aligned,
    Anomalies,
    AnomalyUse,
    ModelUse,
    Normalized,
    Posed,
    Prepared,
    Segmented,
)
from bids_app.derivatives.scanner import scanner_of
from bids_app.derivatives.sessions import rebuild
from bids_app.derivatives.visit import paths_of, session_row, visit_files, write_files, write_model_input
from bids_app.study.models import Problem, Severity
from bids_app.workflow.export import export_lesion_roi
from bids_app.workflow.job import Job, input_files

INTERRUPTED = "The outputs of this visit were not written to the end."


def deliver(
    job: Job,
    prepared: Prepared,
    posed: Posed,
    segmented: Segmented,
    normalized: tuple[Normalized, ...],
    aligned: Aligned | None = None,
    anomalies: Anomalies = NO_ANOMALIES,
) -> Record:
    """Write everything a finished visit leaves; the record comes last, as the mark of completion.

    A first record, of a visit that was interrupted, names all that may be there until then.
    """
    out_dir, visit, explained = job.settings.out_dir, job.visit, anomalies.explained
    doubts = _registration_problems(prepared, posed, normalized, aligned if explained else None)
    seen = (*visit.problems, *prepared.problems, *posed.problems, *segmented.problems)
    problems = (*seen, *doubts, *anomalies.problems)
    files = list(visit_files(prepared, segmented, normalized, job.provenance, explained, aligned))
    previous = read_record(out_dir, visit.subject, visit.session)
    earlier = previous.outputs if previous else {}
    at_most = dict.fromkeys(map(str, paths_of(files)), "") | earlier
    write_record(out_dir, _record(job, "failed", problems, error=INTERRUPTED, outputs=at_most))
    outputs = write_files(out_dir, files)
    write_model_input(job.log_folder, prepared, segmented, job.provenance)
    remove_stale(out_dir, earlier, outputs)
    if job.settings.export_lesion_roi:
        export_lesion_roi(visit, segmented.mask, job.settings.export_lesion_roi)
    scanner = scanner_of(visit.reference.path, job.provenance.bids_dir)
    record = _record(
        job,
        "done",
        problems,
        outputs=outputs,
        output_stamps=stamps({path: out_dir / path for path in outputs}),
        summary=session_row(prepared, posed, segmented, normalized, problems, explained, aligned, scanner),
        model=_named(segmented.model) or {"name": "manual"},
        anomaly_model=_named(explained.model) if explained else {},
    )
    write_record(out_dir, record)
    rebuild(out_dir, visit.subject)
    return record


def deliver_failure(job: Job, error: str) -> Record:
    """Leave the record and table row of a visit that failed.

    The outputs of an earlier run are left alone, and stay in the record, so that the next run that succeeds removes
    those it does not write.
    """
    out_dir, visit = job.settings.out_dir, job.visit
    previous = read_record(out_dir, visit.subject, visit.session)
    outputs = previous.outputs if previous else {}
    record = _record(job, "failed", visit.problems, error=error, outputs=outputs)
    write_record(out_dir, record)
    rebuild(out_dir, visit.subject)
    return record


def _registration_problems(
    prepared: Prepared, posed: Posed, normalized: tuple[Normalized, ...], aligned: Aligned | None
) -> tuple[Problem, ...]:
    """What the registrations' checks say that a user should hear."""
    checks = [("pose", posed.check), *((space.space.lower(), space.check) for space in normalized)]
    checks += [("affine", aligned.check)] if aligned else []
    doubts = [(name, check) for name, check in checks if check.status in ("doubtful", "failed")]
    flair = prepared.flair_check
    if flair and flair.status == "doubtful":  # one that failed is a problem of `prepared` already
        doubts.insert(0, ("flair", flair))
    return tuple(
        Problem(f"{name}-registration-{check.status}", Severity.WARNING, check.sentence) for name, check in doubts
    )


def _named(model: ModelUse | AnomalyUse | None) -> dict[str, str]:
    """By what a model is known; empty without one."""
    return {"name": model.name, "version": model.version, "sha256": model.sha256} if model else {}


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
        input_names=file_names(input_files(job.visit)),
        input_stamps=dict(job.input_stamps),
        problems=[asdict(problem) for problem in problems],
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **content,
    )
