"""The tables of a cohort, as data frames of plain values (object columns: whole numbers stay whole beside n/a)."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.record import Record
from bids_app.derivatives.visit import session_id
from bids_app.group.collect import Cohort, label_of, warning
from bids_app.group.progress import Say, silent, told
from bids_app.measures.volumes import volume_class
from bids_app.study.models import Problem
from bids_app.text import read_table

CARRIED_OVER = "Carried over from the participants.tsv of the raw dataset, which does not describe it"

#: Columns of a visit's table that say nothing in a table of all visits.
_ONLY_IN_LOOKUP = ("index", "name", "abbreviation")


def frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Rows as a table that keeps the type of each value."""
    return pd.DataFrame(rows, columns=columns, dtype=object)


def participants(cohort: Cohort) -> pd.DataFrame:
    """The raw participants table for the participants that were processed, and how many of their sessions are done."""
    done = Counter(record.subject for record in cohort.done)
    rows = [
        {
            "participant_id": f"sub-{subject}",
            "sessions_done": done[subject],
            **{column: value.strip() or None for column, value in cohort.raw.rows.get(subject, {}).items()},
        }
        for subject in sorted({record.subject for record in cohort.records})
    ]
    # a raw column called sessions_done is kept, and stands for ours
    return frame(rows, list(dict.fromkeys(["participant_id", *cohort.raw.columns, "sessions_done"])))


def participants_dictionary(cohort: Cohort) -> dict[str, Any]:
    """Dictionary of `participants`: the raw one, and a word for the columns that it leaves out."""
    ours: dict[str, Any] = {"Description": "Participants that were processed"}
    ours |= {column: dictionary("group")[column] for column in ("participant_id", "sessions_done")}
    undescribed = {column: {"Description": CARRIED_OVER} for column in cohort.raw.columns}
    return ours | undescribed | dict(cohort.raw.dictionary)


def sessions(cohort: Cohort) -> pd.DataFrame:
    """One row per processed visit, failed ones included, with the class of its lesion volume."""
    columns = ["participant_id", *dictionary("session"), "volume_class"]
    return frame([_session_row(record) for record in cohort.records], columns)


def _session_row(record: Record) -> dict[str, Any]:
    return {
        **record.summary,  # empty for a failed visit
        "participant_id": f"sub-{record.subject}",
        "session_id": session_id(record.session),
        "status": record.status,
        "volume_class": class_of(record),
    }


def class_of(record: Record) -> str | None:
    """Volume class of a visit; None if it has no lesion volume."""
    volume = record.summary.get("lesion_volume_ml")
    return volume_class(volume) if isinstance(volume, int | float) and volume >= 0 else None


def classes(cohort: Cohort) -> pd.DataFrame:
    """Finished visits by class of lesion volume; a class without visits has a row too."""
    count = Counter(class_of(record) for record in cohort.done)
    levels = dictionary("group")["volume_class"]["Levels"]
    return frame([{"volume_class": level, "visits": count[level]} for level in levels], ["volume_class", "visits"])


@dataclass(frozen=True)
class Kind:
    """What the table of a visit lists, and that of the cohort gathers.

    Attributes
    ----------
    word : str
        ``lesion`` or ``finding``: how its dictionary and its number are called.
    table : callable
        Path of a visit's table, from its scan and its native space.
    """

    word: str
    table: Callable[[names.ScanName, str], PurePath]

    @property
    def columns(self) -> list[str]:
        """Columns of the table of all."""
        own = [column for column in dictionary(self.word) if column not in _ONLY_IN_LOOKUP]
        return ["participant_id", "session_id", f"{self.word}_id", *own]


LESIONS, FINDINGS = Kind("lesion", names.lesion_table), Kind("finding", names.findings_table)


def gathered(
    cohort: Cohort, kind: Kind, left_out: Callable[[Problem], None], say: Say = silent
) -> Iterator[dict[str, str]]:
    """One row per lesion, or per finding, of the finished visits, read as they are asked for.

    Values are passed on as they are written in the visit's table.

    Parameters
    ----------
    left_out : callable
        Hears a warning for each table that cannot be read.
    say : callable
        Hears how far it has come.
    """
    for record in told(cohort.done, f"Tables of {kind.word}s read", say):
        visit = {"participant_id": f"sub-{record.subject}", "session_id": session_id(record.session)}
        for path in _tables_of(record, kind):
            try:
                found = list(_rows(cohort.out_dir / path, kind))
            except (OSError, ValueError, KeyError, csv.Error) as error:
                message = f"The {kind.word} table {path} cannot be read and is left out: {error}"
                left_out(warning(f"unreadable-{kind.word}s", message, path))
                continue
            yield from ({**visit, **row} for row in found)


def _tables_of(record: Record, kind: Kind) -> Iterator[str]:
    """The tables of a kind among the outputs of a visit."""
    for path in record.outputs:
        name = names.ScanName.parse(path)
        if name.entities and path in {str(kind.table(name, space)) for space in names.NATIVE_SPACES}:
            yield path


def _rows(path: Path, kind: Kind) -> Iterator[dict[str, str]]:
    table = read_table(path)
    if not table.columns:
        raise ValueError("it is empty")
    for row in table.records():
        values = {column: _unsigned(value) or "n/a" for column, value in row.items()}
        yield {f"{kind.word}_id": values["index"], **values}


def _unsigned(value: str) -> str:
    """A value of a table; zero without the sign that early versions wrote."""
    return value[1:] if value.startswith("-0") and not value.strip("-0.") else value


def missing(cohort: Cohort) -> pd.DataFrame:
    """The visits that are expected and have no results, and why.

    Expected is what the raw dataset held when a participant level ran, and every participant of its table.
    """
    processed = {label_of(record): record for record in cohort.records}
    rows = [
        _missing_row(record.subject, record.session, "failed", record.error)
        for record in cohort.records
        if record.status != "done"
    ]
    for subject, expected in cohort.raw.visits.items():
        for session in expected:
            label = names.visit_label(subject, session)
            if label not in processed:
                reason = "unreadable record" if label in cohort.unreadable else "not processed"
                rows.append(_missing_row(subject, session, reason))
    known = {record.subject for record in cohort.records} | set(cohort.raw.visits)
    rows += [_missing_row(subject, None, "no data") for subject in cohort.raw.listed if subject not in known]
    rows.sort(key=lambda row: (row["participant_id"], row["session_id"]))
    return frame(rows, ["participant_id", "session_id", "reason", "detail"])


def _missing_row(subject: str, session: str | None, reason: str, detail: str | None = None) -> dict[str, Any]:
    return {
        "participant_id": f"sub-{subject}",
        "session_id": session_id(session),
        "reason": reason,
        "detail": " ".join((detail or "").split()) or None,
    }
