"""Reads what the participant level left in the output folder; the raw dataset is never looked at.

Of each record and note only what the group level needs is kept, as it is read: there may be tens of thousands.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_app.derivatives import names
from bids_app.derivatives.record import Record, read_record
from bids_app.errors import NoInputError
from bids_app.group.progress import Say, silent, told
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
        Of the processed visits, by subject and session; of what they name, only the outputs that `is_gathered`.
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


def standard_space(path: str) -> str | None:
    """The standard space of a lesion mask, from its name; None for any other file.

    >>> standard_space("sub-01/anat/sub-01_space-MNI152NLin2009aSym_res-1_label-L_desc-nnunet_mask.nii.gz")
    'MNI152NLin2009aSym'
    >>> standard_space("sub-01/anat/sub-01_space-T1w_label-L_desc-nnunet_mask.nii.gz")
    """
    space, name = re.search(r"_space-([0-9a-zA-Z+]+)", path), names.ScanName.parse(path)
    if not space or not name.entities or space.group(1) in names.NATIVE_SPACES:
        return None
    return space.group(1) if path == str(names.lesion_mask(name, space.group(1))) else None


def is_gathered(path: str) -> bool:
    """Whether the group level reads a file of a visit: its tables, and its lesion masks in standard spaces."""
    return path.endswith(".tsv") or standard_space(path) is not None


def collect(out_dir: Path, say: Say = silent) -> Cohort:
    """Read the records of all visits and the notes on the raw dataset.

    Parameters
    ----------
    say : callable
        Hears how far it has come.

    Raises
    ------
    NoInputError
        If no record can be read.
    """
    paths = sorted(out_dir.glob(str(names.log_folder("*") / names.RECORD_PATTERN)))
    found = {path: _read_visit(out_dir, path) for path in told(paths, "Records read", say)}
    records = [record for record in found.values() if record]
    bad = [path for path, record in found.items() if record is None]
    if not records:
        what = "no readable record" if bad else "no record"
        raise NoInputError(f"{out_dir} holds {what} of a processed visit.", "Run the participant level first.")
    raw, problems = _read_raw(out_dir, say)
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
    return _needed(record) if (record.subject, record.session) == (name.subject, name.session) else None


def _needed(record: Record) -> Record:
    """What the group level needs of a record, a small part of it."""
    return replace(
        record,
        inputs={},
        input_names={},
        input_stamps={},
        outputs={path: "" for path in record.outputs if is_gathered(path)},
        output_stamps={},
        problems=[],
        model={},
        anomaly_model={},
        version=_shared(record.version),
        configuration_hash=_shared(record.configuration_hash),
        summary={_shared(column): _shared(value) for column, value in record.summary.items()},
    )


def _shared(value: Any) -> Any:
    """The value; a text that many records have is kept once."""
    return sys.intern(value) if isinstance(value, str) else value


def _unreadable(path: Path, out_dir: Path) -> Problem:
    file = str(path.relative_to(out_dir))
    return warning("unreadable-record", f"{file} cannot be read: run this visit again.", file)


@dataclass
class _Merging:
    """What the notes that were read so far say together."""

    visits: dict[str, set[str | None]] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    rows: dict[str, Mapping[str, str]] = field(default_factory=dict)
    listed: dict[str, None] = field(default_factory=dict)
    dictionary: dict[str, Any] = field(default_factory=dict)
    states: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    _last: RawStudy = field(default_factory=RawStudy)

    def add(self, note: RawStudy) -> None:
        """Merge one more note, or one more state of the dataset."""
        # notes of early versions hold the list of all, most often the same
        if (note.visits, note.listed) != (self._last.visits, self._last.listed):
            for label, sessions in note.visits.items():
                self.visits.setdefault(label, set()).update(sessions)
            self.listed |= dict.fromkeys(note.listed)
            self._last = note
        self.columns |= dict.fromkeys(note.columns)
        self.rows |= note.rows
        self.dictionary |= note.dictionary

    def merged(self) -> RawStudy:
        return RawStudy(
            visits={label: tuple(sorted(some, key=lambda s: s or "")) for label, some in sorted(self.visits.items())},
            columns=tuple(self.columns),
            rows=self.rows,
            listed=tuple(self.listed),
            dictionary=self.dictionary,
        )


def _read_raw(out_dir: Path, say: Say) -> tuple[RawStudy, tuple[Problem, ...]]:
    """Merge what the runs noted beside each participant, and the states of the dataset that these notes name."""
    merging, problems = _Merging(), []
    for path in told(sorted(out_dir.glob(str(names.raw_participants("*")))), "Notes on participants read", say):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            note, state = _note(content), content.get("state")
        except _NO_NOTE:
            problems.append(_left_out(path, out_dir))
            continue
        if state and state not in merging.states:
            merging.states.add(state)
            problems += _add_state(merging, out_dir, str(state))
        merging.add(note)
    return merging.merged(), tuple(problems)


_NO_NOTE = (OSError, ValueError, TypeError, KeyError, AttributeError)


def _add_state(merging: _Merging, out_dir: Path, state: str) -> list[Problem]:
    """Merge a state of the raw dataset, read once for all the notes that name it."""
    path = out_dir / names.raw_dataset(state)
    try:
        merging.add(_note(json.loads(path.read_text(encoding="utf-8"))))
    except _NO_NOTE:
        return [_left_out(path, out_dir)]
    return []


def _left_out(path: Path, out_dir: Path) -> Problem:
    file = str(path.relative_to(out_dir))
    return warning("unreadable-participants", f"{file} cannot be read and is left out.", file)


def _note(content: Mapping[str, Any]) -> RawStudy:
    """What a run noted beside one participant, or of all: in early versions both are in one note."""
    columns = content["columns"]
    row = dict(zip(columns, map(str, content.get("row") or ()), strict=False))
    return RawStudy(
        visits={label: tuple(sessions) for label, sessions in content.get("visits", {}).items()},
        columns=tuple(column for column in columns if column != "participant_id"),
        rows={row.pop("participant_id").removeprefix("sub-"): row} if row else {},
        listed=tuple(content.get("listed", ())),
        dictionary=dict(content.get("dictionary", {})),
    )
