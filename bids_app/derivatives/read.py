"""Reading what may not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bids_app.text import read_json


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one if the file is missing, cannot be read or holds something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
