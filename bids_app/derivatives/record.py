"""The record of a visit: what it was made from, how it ended, what it wrote.

The record decides what is done and what is to do again. What counts are contents, not dates or absolute paths, so that
datasets may be moved and copied; but a file of the size and time that it had is taken for the same without being read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

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


class Stamp(NamedTuple):
    """By what a file is known again without reading it: its size in bytes, and when it was changed, in nanoseconds."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The stamp of a file, or of what a link leads to; None if it cannot be looked at."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Record:
    """How a visit was processed.

    Attributes
    ----------
    status : str
        ``done`` or ``failed``.
    fingerprint : str
        Over the contents of the inputs.
    inputs : dict of str to str
        sha256 of every input, by the role it plays.
    input_names : dict of str to str
        Their file names: a scan of another name may be another one, whatever its size and time.
    input_stamps : dict of str to Stamp
        Of the same files when they were read. Records of early versions have none: their files are read again.
    model, anomaly_model : dict of str to str
        Name, version and checksum of what found the lesions, and of what made the anomaly map; empty where none did.
    outputs : dict of str to str
        sha256 of every file written, by its path relative to the output folder; of a failed visit, what an earlier
        run wrote and is still there: not to be used, but to be removed when it is out of date.
    output_stamps : dict of str to Stamp
        Of the same files when they were written.
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
    anomaly_model: dict[str, str] = field(default_factory=dict)
    input_names: dict[str, str] = field(default_factory=dict)
    input_stamps: dict[str, Stamp] = field(default_factory=dict)
    output_stamps: dict[str, Stamp] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        """The record that a file holds.

        Raises
        ------
        TypeError, AttributeError
            If it holds something else.
        """
        record = cls(**content)
        return replace(
            record,
            input_stamps={role: Stamp(*values) for role, values in record.input_stamps.items()},
            output_stamps={path: Stamp(*values) for path, values in record.output_stamps.items()},
        )


def stamps(files: Mapping[str, Path | None]) -> dict[str, Stamp]:
    """Stamps of the files that can be looked at, by role."""
    found = {role: Stamp.of(path) for role, path in files.items() if path is not None}
    return {role: stamp for role, stamp in found.items() if stamp is not None}


def file_names(files: Mapping[str, Path | None]) -> dict[str, str]:
    """Names of the files, without their folders, by role."""
    return {role: path.name for role, path in files.items() if path is not None}


def checksums(files: Mapping[str, Path | None]) -> dict[str, str]:
    """sha256 of files by the role they play; roles without a file are left out.

    Raises
    ------
    VisitError
        If a file cannot be read.
    """
    return {role: _checksum(path) for role, path in files.items() if path is not None}


def _checksum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise VisitError(
            f"{error.filename} cannot be read: {error.strerror}.", "Check that the file is there and readable."
        ) from error


@cache
def _read_once(path: Path, _: Stamp | None) -> str:
    """sha256 of a file, which is read once in a process as long as its size and time stay the same."""
    return _checksum(path)


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
    return read_record_file(out_dir / names.visit_record(subject, session))


def read_record_file(path: Path) -> Record | None:
    """The record in a file, or None if it cannot be read."""
    try:
        return Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def status_of(
    out_dir: Path,
    record: Record | None,
    configuration: str,
    inputs: Mapping[str, Path | None],
    check_content: bool = False,
) -> Status:
    """What there is to do, given the last record and what a run now would be made from.

    Parameters
    ----------
    inputs : mapping of str to Path or None
        The files that the visit would be made from, by the role they play.
    check_content : bool
        Whether every file is read, instead of those alone whose name, size or time is not the recorded one.

    Raises
    ------
    VisitError
        If an input cannot be read.
    """
    if record is None:
        return Status.TO_DO
    if record.status != "done":
        return Status.FAILED
    if record.configuration_hash != configuration or _inputs_changed(record, inputs, check_content):
        return Status.OUTDATED
    return Status.DONE if outputs_intact(out_dir, record, check_content) else Status.DAMAGED


def outputs_intact(out_dir: Path, record: Record, check_content: bool = False) -> bool:
    """Whether everything that a visit wrote is there as it was written; `check_content` as for `status_of`."""
    return all(
        _is_unchanged(out_dir / path, checksum, record.output_stamps.get(path), check_content)
        for path, checksum in record.outputs.items()
    )


def _inputs_changed(record: Record, inputs: Mapping[str, Path | None], check_content: bool) -> bool:
    """Whether the files are not those that a record names; reads only what is in doubt."""
    digests: dict[str, str] = {}
    for role, path in inputs.items():
        if path is None:
            continue
        then, now = record.input_stamps.get(role), Stamp.of(path)
        if then and now and then.size != now.size:
            return True
        known = now is not None and (then, record.input_names.get(role)) == (now, path.name) and role in record.inputs
        digests[role] = record.inputs[role] if known and not check_content else _read_once(path, now)
    return fingerprint(digests) != record.fingerprint


def _is_unchanged(path: Path, checksum: str, then: Stamp | None, check_content: bool) -> bool:
    """Whether a file is the one that was written: by size and time, and by its content where these leave a doubt."""
    now = Stamp.of(path)
    if now is None or (then and then.size != now.size):
        return False
    if then == now and not check_content:
        return True
    try:
        return _read_once(path, now) == checksum
    except VisitError:
        return False


def restamped(out_dir: Path, record: Record, inputs: Mapping[str, Path | None]) -> Record:
    """The record of a finished visit with the sizes and times that its files have now, after they were copied.

    What was read once to recognise it need not be read every time. A file that no longer has the recorded content keeps
    its old stamp, and stays in doubt.
    """
    outputs = {path: out_dir / path for path in record.outputs}
    return replace(
        record,
        input_names=file_names(inputs),
        input_stamps=_confirmed(inputs, record.inputs, record.input_stamps),
        output_stamps=_confirmed(outputs, record.outputs, record.output_stamps),
    )


def _confirmed(
    files: Mapping[str, Path | None], known: Mapping[str, str], then: Mapping[str, Stamp]
) -> dict[str, Stamp]:
    """The stamps that files of known contents have now; only those that are new are read."""
    now = stamps(files)  # before anything is read: who changes a file meanwhile changes its time as well
    new = {role: stamp for role, stamp in now.items() if role in known and then.get(role) != stamp}
    return {**then, **{role: new[role] for role in new if _is_unchanged(files[role], known[role], None, True)}}


def remove_stale(out_dir: Path, earlier: Iterable[str], outputs: Iterable[str]) -> None:
    """Remove what an earlier run of the visit wrote and this one did not."""
    for path in set(earlier) - set(outputs):
        (out_dir / path).unlink(missing_ok=True)
