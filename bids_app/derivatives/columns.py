"""Names, units and descriptions of table columns, read from ``data/columns.json``."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def dictionary(table: str) -> dict[str, dict[str, Any]]:
    """Data dictionary of a kind of table: ``lesion``, ``session`` or ``group``."""
    return json.loads(files("bids_app.data").joinpath("columns.json").read_text(encoding="utf-8"))[table]
