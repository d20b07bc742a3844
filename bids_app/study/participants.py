"""The table of the participants: read as it is, and compared with the folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bids_app.derivatives.names import PARTICIPANTS, sidecar
from bids_app.text import read_json, read_table
from bids_app.wording import counted, listed

ID = "participant_id"
#: Labels that a note names.
_SHOWN = 5


@dataclass(frozen=True)
class ParticipantsTable:
    """What the dataset's own table says of its participants.

    Attributes
    ----------
    columns : tuple of str
        Empty if there is no table, or none that says whom its rows are of.
    rows : mapping of str to tuple of str
        By label without prefix.
    dictionary : mapping
        Content of the JSON beside it.
    notes : tuple of str
        What of it is not used, or was guessed; each a clause.
    """

    columns: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dictionary: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_participants(root: Path) -> ParticipantsTable:
    """The table of a dataset; never fails, but notes what cannot be read."""
    dictionary, of_dictionary = _dictionary(sidecar(root / PARTICIPANTS))
    try:
        table = read_table(root / PARTICIPANTS)
    except FileNotFoundError:
        linked = (root / PARTICIPANTS).is_symlink()
        notes = (f"is not downloaded; run: datalad get {root / PARTICIPANTS}",) if linked else ()
        return ParticipantsTable(dictionary=dictionary, notes=notes + of_dictionary)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return ParticipantsTable(notes=(f"cannot be read: {reason}", *of_dictionary))
    key = _key_of(table.columns)
    if key is None:
        note = f"has no column {ID}: its {counted(len(table.rows), 'row')} cannot be used"
        return ParticipantsTable(dictionary=dictionary, notes=(*table.notes, note, *of_dictionary))
    named = [row for row in table.rows if len(row) > key and row[key]]
    labels = [_label(row[key]) for row in named]
    columns = tuple(ID if number == key else column for number, column in enumerate(table.columns))
    notes = [*table.notes, *_doubtful(table.columns[key], labels), *of_dictionary]
    return ParticipantsTable(columns, dict(zip(labels, named, strict=True)), dictionary, tuple(notes))


def compared(table: ParticipantsTable, participants: Sequence[str]) -> tuple[str, ...]:
    """Notes on rows without folder, and folders without row."""
    if not table.rows:
        return ()
    absent = [label for label in table.rows if label not in set(participants)]
    unlisted = [label for label in participants if label not in table.rows]
    notes = []
    if absent:
        verb = "has" if len(absent) == 1 else "have"
        notes.append(f"{counted(len(absent), 'row')} {verb} no folder: {listed(absent, 'sub-', _SHOWN)}")
    if unlisted:
        verb = "has" if len(unlisted) == 1 else "have"
        notes.append(f"{counted(len(unlisted), 'folder')} {verb} no row: {listed(unlisted, 'sub-', _SHOWN)}")
    return tuple(notes)


def _dictionary(path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """Content of the JSON beside the table, and what is wrong with it."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError) as error:
        return {}, (f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}",)
    if isinstance(content, dict):
        return content, ()
    return {}, (f"{path.name} is no JSON object",)


def _key_of(columns: Sequence[str]) -> int | None:
    """Place of the column that names the participants, whatever its case and the characters between its words."""
    if ID in columns:
        return columns.index(ID)
    plain = [re.sub("[^a-z]", "", column.lower()) for column in columns]
    return plain.index("participantid") if "participantid" in plain else None


def _label(cell: str) -> str:
    return cell.removeprefix("sub-")


def _doubtful(column: str, labels: Sequence[str]) -> list[str]:
    """Notes on a column that is called otherwise, and on participants with several rows."""
    notes = [] if column == ID else [f"its column {column} was taken for {ID}"]
    if several := [label for label, count in Counter(labels).items() if count > 1]:
        notes.append(f"{listed(several, 'sub-', _SHOWN)} with several rows, of which the last counts")
    return notes
