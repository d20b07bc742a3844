"""Reads what the participant level left in the output folder; the raw dataset is never looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_app.derivatives import names
from bids_app.derivatives.record import Record, read_record
from bids_app.errors import NoInputError
from bids_app.settings import Settings
from bids_app.study.models import Problem, Severity
from bids_app.wording import listed


@dataclass(frozen=True)
class RawStudy:
    """What the runs of the participant level noted of the raw dataset.

    Attributes
    ----------
    visits : mapping of str to tuple of (str or None)
        Sessions of every participant of the raw dataset, by label without prefix.
    columns : tuple of str
        Columns of the raw participants.tsv other than ``participant_id``; empty if there was none.
    rows : mapping
        Values by column, by participant label; of those who were asked for in a run.
    listed : tuple of str
        Labels of all participants in the raw participants.tsv.
    dictionary : mapping
        The raw participants.json.
    """

    visits: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    dictionary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """Everything the group level works on.

    Attributes
    ----------
    records : tuple of Record
        Of the processed visits, by subject and session.
    unreadable : frozenset of str
        Labels of the visits whose record cannot be read.
    problems : tuple of Problem
        What the user should know of.
    """

    out_dir: Path
    records: tuple[Record, ...]
    raw: RawStudy
    unreadable: frozenset[str] = frozenset()
    problems: tuple[Problem, ...] = ()

    @property
    def done(self) -> tuple[Record, ...]:
        """The visits whose outputs may be used."""
        return tuple(record for record in self.records if record.status == "done")


def label_of(record: Record) -> str:
    """``sub-01_ses-1`` or ``sub-01``."""
    return names.visit_label(record.subject, record.session)


def warning(code: str, message: str, *files: str) -> Problem:
    """A problem of severity WARNING."""
    return Problem(code, Severity.WARNING, message, files)


def collect(out_dir: Path) -> Cohort:
    """Read the records of all visits and the notes on the raw dataset.

    Raises
    ------
    NoInputError
        If no record can be read.
    """
    paths = sorted(out_dir.glob(str(names.log_folder("*") / names.RECORD_PATTERN)))
    found = {path: _read_visit(out_dir, path) for path in paths}
    records = [record for record in found.values() if record]
    bad = [path for path, record in found.items() if record is None]
    if not records:
        what = "no readable record" if bad else "no record"
        raise NoInputError(f"{out_dir} holds {what} of a processed visit.", "Run the participant level first.")
    raw, problems = _read_raw(out_dir)
    problems += tuple(_unreadable(path, out_dir) for path in bad)
    return Cohort(
        out_dir=out_dir,
        records=tuple(sorted(records, key=lambda record: (record.subject, record.session or ""))),
        raw=raw,
        unreadable=frozenset(_visit_label_of(path) for path in bad),
        problems=problems,
    )


def restrict(cohort: Cohort, settings: Settings) -> Cohort:
    """The part of a cohort that was asked for by participant and session labels.

    Raises
    ------
    NoInputError
        If a requested participant has no record, or nothing is left.
    """
    present = sorted({record.subject for record in cohort.records})
    if unknown := [label for label in settings.participants if label not in present]:
        raise NoInputError(
            f"{cohort.out_dir} holds no record of {', '.join(f'sub-{label}' for label in unknown)}.",
            f"There are: {', '.join(present)}.",
        )

    def wanted(subject: str, session: str | None) -> bool:
        chosen = (not settings.participants or subject in settings.participants) and subject not in settings.excluded
        return chosen and (not settings.sessions or session in settings.sessions)

    records = tuple(record for record in cohort.records if wanted(record.subject, record.session))
    if not records:
        raise NoInputError("No processed visit is left by the labels that were given.", "Check the labels.")
    expected = {
        subject: tuple(session for session in sessions if wanted(subject, session))
        for subject, sessions in cohort.raw.visits.items()
    }
    named = tuple(label for label in cohort.raw.listed if wanted(label, None) or expected.get(label))
    raw = replace(cohort.raw, listed=named, visits={subject: some for subject, some in expected.items() if some})
    return replace(cohort, records=records, raw=raw)


def mixed_runs(records: Iterable[Record]) -> tuple[Problem, ...]:
    """A warning if the visits were not all processed by one version with one configuration."""
    groups: dict[tuple[str, str], list[str]] = {}
    for record in records:
        groups.setdefault((record.version, record.configuration_hash), []).append(label_of(record))
    if len(groups) < 2:
        return ()
    parts = [
        f"version {version}, configuration {configuration}: {listed(sorted(labels), limit=5)}"
        for (version, configuration), labels in sorted(groups.items())
    ]
    return (warning("mixed-runs", f"The visits were processed in different ways ({'; '.join(parts)})."),)


def _visit_label_of(path: Path) -> str:
    name = names.ScanName.parse(path.name)
    return names.visit_label(name.subject, name.session)


def _read_visit(out_dir: Path, path: Path) -> Record | None:
    """The record at `path`; None if it cannot be read, or speaks of another visit."""
    name = names.ScanName.parse(path.name)
    if not name.entities:
        return None
    record = read_record(out_dir, name.subject, name.session)
    if record is None or not (isinstance(record.outputs, dict) and isinstance(record.summary, dict)):
        return None
    return record if (record.subject, record.session) == (name.subject, name.session) else None


def _unreadable(path: Path, out_dir: Path) -> Problem:
    file = str(path.relative_to(out_dir))
    return warning("unreadable-record", f"{file} cannot be read: run this visit again.", file)


def _read_raw(out_dir: Path) -> tuple[RawStudy, tuple[Problem, ...]]:
    """Merge what the runs noted beside each participant."""
    notes, problems = [], []
    for path in sorted(out_dir.glob(str(names.raw_participants("*")))):
        try:
            notes.append(_note(path))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            file = str(path.relative_to(out_dir))
            problems.append(warning("unreadable-participants", f"{file} cannot be read and is left out.", file))
    visits: dict[str, set[str | None]] = {}
    for note in notes:
        for label, sessions in note.visits.items():
            visits.setdefault(label, set()).update(sessions)
    merged = RawStudy(
        visits={label: tuple(sorted(some, key=lambda s: s or "")) for label, some in sorted(visits.items())},
        columns=tuple(dict.fromkeys(column for note in notes for column in note.columns)),
        rows={label: row for note in notes for label, row in note.rows.items()},
        listed=tuple(dict.fromkeys(label for note in notes for label in note.listed)),
        dictionary={column: text for note in notes for column, text in note.dictionary.items()},
    )
    return merged, tuple(problems)


def _note(path: Path) -> RawStudy:
    """What a run noted beside one participant."""
    content = json.loads(path.read_text(encoding="utf-8"))
    columns = content["columns"]
    row = dict(zip(columns, map(str, content["row"] or ()), strict=False))
    return RawStudy(
        visits={label: tuple(sessions) for label, sessions in content["visits"].items()},
        columns=tuple(column for column in columns if column != "participant_id"),
        rows={row.pop("participant_id").removeprefix("sub-"): row} if row else {},
        listed=tuple(content["listed"]),
        dictionary=dict(content["dictionary"]),
    )
