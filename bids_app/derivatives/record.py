"""The record of a visit: what it was made from, how it ended, what it wrote.

The record decides what is done and what is to do again. It looks at contents, not at dates or absolute paths, so
that datasets may be moved and copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bids_app.derivatives import names
from bids_app.derivatives.write import write_json
from bids_app.errors import UsageError, VisitError
from bids_app.networks.weights import sha256


class Status(StrEnum):
    """What there is to do for a visit."""

    TO_DO = "to do"
    DONE = "done"
    FAILED = "failed before"
    OUTDATED = "outdated"  # its inputs, the configuration, a model or the version changed
    DAMAGED = "damaged"  # outputs are missing or were changed


@dataclass(frozen=True)
class Record:
    """How a visit was processed.

    Attributes
    ----------
    status : str
        ``done`` or ``failed``.
    fingerprint : str
        Over the contents of the inputs.
    outputs : dict of str to str
        sha256 of every file written, by its path relative to the output folder; of a failed visit, what an earlier
        run wrote and is still there: not to be used, but to be removed when it is out of date.
    summary : dict
        The visit's row of the sessions table.
    """

    subject: str
    session: str | None
    status: str
    version: str
    configuration_hash: str
    fingerprint: str
    inputs: dict[str, str]
    model: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None
    run_id: str = ""
    finished: str = ""


def checksums(files: Mapping[str, Path | None]) -> dict[str, str]:
    """sha256 of files by the role they play; roles without a file are left out.

    Raises
    ------
    VisitError
        If a file cannot be read.
    """
    try:
        return {role: sha256(path) for role, path in files.items() if path is not None}
    except OSError as error:
        raise VisitError(
            f"{error.filename} cannot be read: {error.strerror}.", "Check that the file is there and readable."
        ) from error


def refuse_other_scans(out_dir: Path, subject: str, session: str | None, scans: Mapping[str, Path | None]) -> None:
    """Refuse to put a visit in the place of one that was made from other scans.

    Parameters
    ----------
    scans : mapping of str to Path or None
        By the role they play, as in `Record.inputs`.

    Raises
    ------
    UsageError
        If one of them had another content, whatever its path: in a container all patients may be ``/in/T1w.nii.gz``.
    """
    record = read_record(out_dir, subject, session)
    if record is None:
        return  # without reading any scan
    if any(record.inputs.get(role, digest) != digest for role, digest in checksums(scans).items()):
        raise UsageError(
            f"{out_dir} already holds {names.visit_label(subject, session)}, made from another scan.",
            "Name this case with --participant-label, or replace that one with --force.",
        )


def fingerprint(checksums: Mapping[str, str]) -> str:
    """One short digest over the checksums of a visit's inputs and the roles they play."""
    content = json.dumps(sorted(checksums.items()))
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def write_record(out_dir: Path, record: Record) -> Path:
    """Write the record of a visit."""
    return write_json(out_dir / names.visit_record(record.subject, record.session), asdict(record))


def read_record(out_dir: Path, subject: str, session: str | None) -> Record | None:
    """The record of a visit, or None if there is none that can be read."""
    try:
        content = json.loads((out_dir / names.visit_record(subject, session)).read_text(encoding="utf-8"))
        return Record(**content)
    except (OSError, ValueError, TypeError):
        return None


def status_of(out_dir: Path, record: Record | None, configuration: str, inputs_digest: str) -> Status:
    """What there is to do, given the last record and what a run now would be made from."""
    if record is None:
        return Status.TO_DO
    if record.status != "done":
        return Status.FAILED
    if (record.configuration_hash, record.fingerprint) != (configuration, inputs_digest):
        return Status.OUTDATED
    return Status.DONE if _outputs_intact(out_dir, record) else Status.DAMAGED


def _outputs_intact(out_dir: Path, record: Record) -> bool:
    return all(
        (out_dir / path).is_file() and sha256(out_dir / path) == checksum for path, checksum in record.outputs.items()
    )


def remove_stale(out_dir: Path, earlier: Iterable[str], outputs: Iterable[str]) -> None:
    """Remove what an earlier run of the visit wrote and this one did not."""
    for path in set(earlier) - set(outputs):
        (out_dir / path).unlink(missing_ok=True)
