"""Text that people edit, in whatever form their editor or spreadsheet left it.

JSON, TSV and TOML are UTF-8 by their standards; in practice they come with a byte order mark, as UTF-16 (Excel's
"Unicode text"), as Windows-1252, with the line ends of three systems, and tables with commas or semicolons for tabs.
All of that is read here; what is a guess is told in a note.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.wording import counted, listed

#: UTF-32 before UTF-16, whose little-endian mark it begins with.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What Excel separates by where the decimal point is a point, and where it is a comma.
_DELIMITERS = {",": "commas", ";": "semicolons"}


@dataclass(frozen=True)
class Text:
    """The text of a file.

    Attributes
    ----------
    content : str
        Lines end with ``\\n``.
    note : str
        What was guessed, as a clause; empty if nothing was.
    """

    content: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table as it stands in a file, all cells text.

    Attributes
    ----------
    columns : tuple of str
        Empty if there is no table.
    rows : tuple of tuple of str
        A row may have more or fewer cells than there are columns; `notes` says so then.
    notes : tuple of str
        What was guessed or is odd, as clauses.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()

    def records(self) -> list[dict[str, str]]:
        """Rows by column; cells that a row lacks are empty."""
        empty = dict.fromkeys(self.columns, "")
        return [empty | dict(zip(self.columns, row, strict=False)) for row in self.rows]


def decode(data: bytes) -> Text:
    """Decode UTF-8, UTF-16 or UTF-32 with or without byte order mark, else Windows-1252, which is noted.

    Raises
    ------
    ValueError
        If it is none of these.

    >>> decode(b"\\xef\\xbb\\xbfa\\r\\nb"), decode("Zürich".encode("cp1252")).content
    (Text(content='a\\nb', note=''), 'Zürich')
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _wide(data)
    if encoding:
        return Text(_lines(data.decode(encoding)))
    try:
        return Text(_lines(data.decode("utf-8")))
    except UnicodeDecodeError as error:
        utf8 = error
    try:
        return Text(_lines(data.decode("cp1252")), "read as Windows-1252; save it as UTF-8")
    except UnicodeDecodeError:
        where = f"line {data.count(bytes([10]), 0, utf8.start) + 1}"
        raise ValueError(f"{where} is neither UTF-8 nor Windows-1252; save it as UTF-8") from None


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of its first letters is zero."""
    first = data[:4]
    if b"\0" not in first or len(first) < 2:
        return None
    return "utf-16-be" if first[0] == 0 else "utf-16-le"


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> Text:
    """Text of a file, as `decode` reads it.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or not be decoded.
    """
    return decode(path.read_bytes())


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is no JSON; the message names the place.
    """
    return json.loads(read_text(path).content)


def read_table(path: Path) -> Table:
    """A table of a TSV file, also where commas or semicolons stand for the tabs. Empty lines are left out.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or not be decoded.
    """
    text = read_text(path)
    lines = [line for line in text.content.split("\n") if line.strip()]
    if not lines:
        return Table(notes=("is empty",))
    delimiter = _delimiter(lines[0])
    header, *rows = _cells(lines, delimiter)
    width = len(header)
    while width and not header[width - 1] and not any("".join(row[width - 1 :]) for row in rows):
        width -= 1  # what a spreadsheet leaves of columns that were emptied
    columns, body = header[:width], tuple(row[:width] if not any(row[width:]) else row for row in rows)
    notes = [text.note] if text.note else []
    if delimiter in _DELIMITERS:
        notes.append(f"separated by {_DELIMITERS[delimiter]}; save it with tabs")
    return Table(columns, body, (*notes, *_uneven(columns, body)))


def _delimiter(header: str) -> str:
    """Tab, unless the header has none and one of the others instead."""
    if "\t" in header:
        return "\t"
    best = max(_DELIMITERS, key=header.count)
    return best if best in header else "\t"


def _cells(lines: Sequence[str], delimiter: str) -> list[tuple[str, ...]]:
    """Cells without space around them. BIDS knows no quotes: they are taken off where the header has them too."""
    if delimiter == "\t" and '"' not in lines[0]:
        split = [line.split("\t") for line in lines]
    else:
        split = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    return [tuple(cell.strip() for cell in row) for row in split]


def _uneven(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A note on rows that have another number of cells than there are columns."""
    lines = [str(number) for number, row in enumerate(rows, start=2) if len(row) != len(columns)]
    if not lines:
        return []
    what = "line" if len(lines) == 1 else "lines"
    return [f"{what} {listed(lines, limit=5)} with another number of cells than {counted(len(columns), 'column')}"]
