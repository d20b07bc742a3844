"""What a training was begun with, kept beside its checkpoints: a second call goes on only with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import write_json
from bids_app.errors import ConfigError, UsageError

RECORD = "training.json"


def check_result(work: Path, result: Path) -> None:
    """Refuse to replace what another training left, or a model: a folder with anything in it.

    Parameters
    ----------
    work : Path
        Folder of the training's checkpoints and record.
    result : Path
        Folder of the model that will come of it.

    Raises
    ------
    UsageError
    """
    known = read_object(work / RECORD)
    ours = bool(known) and known.get("result", str(result)) == str(result)
    if not ours and result.exists() and (not result.is_dir() or any(result.iterdir())):
        raise UsageError(
            f"{result} holds something already, and not of the training in {work}.",
            "Choose another --name or --out; to go on with that training, give its --work-dir.",
        )


def check_record(work: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write the record of a training, or refuse to go on with anything else than it was begun with.

    Parameters
    ----------
    work : Path
        See `check_result`.
    name : str
        Of the training.
    content : mapping
        What JSON can hold; what a record of an older version does not say is not compared.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    known, content = read_object(work / RECORD), json.loads(json.dumps(content))  # as it is read again
    if not known:
        write_json(work / RECORD, content)
    elif differing := [key for key in content if known.get(key, content[key]) != content[key]]:
        raise ConfigError(
            f"The training {name} in {work} was begun with other {' and '.join(differing)}.",
            "Give the same options to go on, choose another --name, or delete that folder to begin anew. (Scans also "
            "differ if their files have changed, or the version of the App.)",
        )
