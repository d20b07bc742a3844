"""Whether a file of a DataLad dataset is here, or only its name."""

from __future__ import annotations

import re
from pathlib import Path

#: What git-annex leaves of an unlocked file, and git of a link where the file system knows none.
_POINTER = re.compile(rb"(/|(\.\./)*\.git/)annex/objects/")
_LONGEST = 200  # bytes that are enough for `_POINTER`, however deep the folder


def has_content(path: Path) -> bool:
    """False for a dangling link, and for the text that git-annex or git leaves in place of a file.

    A file that is not there has no content either; one that cannot be read has, and processing says what is wrong.
    """
    try:
        with path.open("rb") as file:
            return _POINTER.match(file.read(_LONGEST)) is None
    except FileNotFoundError:
        return False
    except OSError:
        return True
