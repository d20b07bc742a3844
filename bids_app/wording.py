"""Small pieces of the sentences that users read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, whose plural is with an s unless given.

    >>> counted(1, "visit"), counted(2, "visit"), counted(2, "copy", "copies")
    ('1 visit', '2 visits', '2 copies')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"


def printable(text: str) -> str:
    """Text that any terminal can show: control characters and bytes that are no UTF-8 as escapes.

    >>> printable("Icon\\r"), printable("sub-\\udcfc"), printable("Zürich")
    ('Icon\\\\r', 'sub-\\\\udcfc', 'Zürich')
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def capitalized(sentence: str) -> str:
    """A sentence with a capital first letter; all others stay as they are.

    >>> capitalized("the T1w is used.")
    'The T1w is used.'
    """
    return sentence[:1].upper() + sentence[1:]


def was(number: int) -> str:
    """The verb after `counted`.

    >>> was(1), was(2)
    ('was', 'were')
    """
    return "was" if number == 1 else "were"


def listed(labels: Sequence[str], prefix: str = "", limit: int = 20) -> str:
    """Labels as a list, cut where it gets long.

    >>> listed(["01", "02", "03"], "sub-", limit=2)
    'sub-01, sub-02 and 1 more'
    """
    shown = ", ".join(f"{prefix}{label}" for label in labels[:limit])
    more = len(labels) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def part_of(part: int, whole: int, noun: str) -> str:
    """How many of how many, for a verb that has one form for all of them.

    >>> part_of(1, 1, "visit"), part_of(3, 3, "visit"), part_of(1, 3, "visit")
    ('1 visit', 'all 3 visits', '1 of 3 visits')
    """
    if part < whole:
        return f"{part} of {counted(whole, noun)}"
    return counted(whole, noun) if whole == 1 else f"all {counted(whole, noun)}"


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> duration(42.3), duration(377), duration(7260), duration(200_000)
    ('42 s', '6 min', '2 h 1 min', '2 days 7 h')
    """
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h" if hours else f"{days} days"


def disk_space(megabytes: float) -> str:
    """An amount of disk space.

    >>> disk_space(480), disk_space(2400), disk_space(240_000), disk_space(2_400_000)
    ('480 MB', '2.4 GB', '240 GB', '2.4 TB')
    """
    size, unit = megabytes, "MB"
    for larger in ("GB", "TB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "MB" else f"{size:.1f} {unit}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question about a word that is misspelt, with a space before it; empty where nothing is like it.

    >>> did_you_mean("partcipant", ["participant", "group"]), did_you_mean("x", ["group"])
    (" Did you mean 'participant'?", '')
    """
    from difflib import get_close_matches  # only where somebody has made a mistake

    alike = {item.lower(): item for item in known}
    found = get_close_matches(word.lower(), alike, n=1, cutoff=0.6)
    return f" Did you mean '{alike[found[0]]}'?" if found else ""


def in_one_line(text: str) -> str:
    """Text without line breaks: what searches logs for errors sees them whole.

    >>> in_one_line("a broken file:\\n   line 3")
    'a broken file: line 3'
    """
    return " ".join(text.split())
