"""The table of a subject's sessions, rebuilt from the records under a lock, so that sessions may run in parallel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.description import DISCLAIMER
from bids_app.derivatives.record import Record, read_record_file
from bids_app.derivatives.visit import session_id
from bids_app.derivatives.write import locked, write_json, write_table, write_text


def rebuild(out_dir: Path, subject: str) -> Path:
    """Write the sessions table of a subject from the records of its visits, failed ones included.

    Where the file system has no locks, what two sessions that end in the same second may lose of the table is there
    again with the next one.
    """
    columns = list(dictionary("session"))
    with locked(out_dir / names.log_folder(subject) / ".lock"):
        rows = [_row(record) for record in _records(out_dir, subject)]
        path = out_dir / names.sessions_table(subject)
        description = {"Description": f"Visits of sub-{subject}. {DISCLAIMER}"}
        write_json(names.sidecar(path), description | dictionary("session"))
        return write_table(path, pd.DataFrame(rows, columns=columns, dtype=object).sort_values("session_id"))


def _records(out_dir: Path, subject: str) -> Iterator[Record]:
    for path in sorted((out_dir / names.log_folder(subject)).glob(names.RECORD_PATTERN)):
        if record := read_record_file(path):  # the group level names unreadable records
            yield record


def _row(record: Record) -> dict[str, Any]:
    return record.summary or {"session_id": session_id(record.session), "status": record.status}


@dataclass(frozen=True)
class RawDataset:
    """What the group level must know of the raw dataset.

    Attributes
    ----------
    name : str
    visits : mapping of str to sequence of (str or None)
        Sessions of every participant, by label without prefix; ``[None]`` in a dataset without sessions.
    columns : tuple of str
        Columns of participants.tsv; empty if there is none.
    rows : mapping of str to tuple of str
        Its rows, by label without prefix.
    dictionary : mapping
        Content of participants.json.
    """

    name: str
    visits: Mapping[str, Sequence[str | None]]
    columns: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dictionary: Mapping[str, Any] = field(default_factory=dict)


def write_raw_dataset(out_dir: Path, raw: RawDataset) -> str:
    """Keep the labels and sessions of everyone in the raw dataset, once per state of it.

    The file is named after its content, so jobs that write it at the same time write the same.

    Returns
    -------
    str
        The state: 16 hexadecimal digits, by which `write_raw_participants` refers to the file.
    """
    content = {
        "dataset": raw.name,
        "visits": raw.visits,
        "columns": raw.columns,
        "listed": list(raw.rows),
        "dictionary": raw.dictionary,
    }
    text = json.dumps(content, ensure_ascii=False) + "\n"
    state = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    _write_if_new(out_dir / names.raw_dataset(state), text)
    return state


def write_raw_participants(out_dir: Path, subject: str, raw: RawDataset, state: str) -> Path:
    """Leave what the group level must know of a participant beside its records: its own row, and no other's.

    Parameters
    ----------
    state : str
        From `write_raw_dataset`.
    """
    content = {"dataset": raw.name, "state": state, "columns": raw.columns, "row": raw.rows.get(subject)}
    return _write_if_new(out_dir / names.raw_participants(subject), json.dumps(content, ensure_ascii=False) + "\n")


def _write_if_new(path: Path, text: str) -> Path:
    unchanged = path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text
    return path if unchanged else write_text(path, text)
