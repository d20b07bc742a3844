"""The BIDS validator, run on the requested visits only: another participant's error stops nobody."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from bids_app.derivatives.names import sidecar, visit_folder
from bids_app.errors import DatasetError
from bids_app.settings import Settings
from bids_app.study.models import Study

logger = logging.getLogger(__name__)

#: What is wrong inside one image fails that visit when it is read, and no other.
_OF_ONE_IMAGE = ("EMPTY_FILE", "SYMLINK_BROKEN", "FILE_READ", "NIFTI_HEADER_UNREADABLE")
#: No error of the dataset, but of looking at some visits of it: the scans of an inherited sidecar may be elsewhere.
_OF_THE_SELECTION = "SIDECAR_WITHOUT_DATAFILE"
_SHOWN = 3


@dataclass(frozen=True)
class Issue:
    """One error that the validator found.

    Attributes
    ----------
    code : str
    location : str
        Path in the dataset, starting with a slash; may be empty.
    message : str
    """

    code: str
    location: str
    message: str

    def __str__(self) -> str:
        return f"{self.location}: {self.message} [{self.code}]"


def validate(study: Study, settings: Settings) -> None:
    """Run the BIDS validator on the anatomical scans of the requested visits.

    Errors elsewhere are logged as a warning, as is a validator that is not installed or does not run.

    Raises
    ------
    DatasetError
        If names or sidecars of the requested T1w or FLAIR are not valid BIDS.
    """
    if settings.skip_bids_validation:
        return
    command = validator_command()
    if command is None:
        logger.warning("The BIDS validator (bids-validator-deno) is not installed: the dataset is not validated.")
        return
    with tempfile.TemporaryDirectory(prefix="validation-", dir=settings.work_dir) as folder:
        try:
            link_visits(study, Path(folder))
        except OSError as error:
            logger.warning("The work folder takes no links (%s): the dataset is not validated.", error.strerror)
            return
        issues = _run(command, Path(folder))
    fatal = _fatal(issues, study)
    if others := Counter(issue.code for issue in issues if issue not in fatal):
        codes = ", ".join(f"{count} {code}" for code, count in others.most_common())
        logger.warning("The BIDS validator finds errors that stop nothing: %s.", codes)
    if fatal:
        shown = "; ".join(map(str, fatal[:_SHOWN])) + ("; ..." if len(fatal) > _SHOWN else "")
        raise DatasetError(
            f"The requested scans are not valid BIDS ({len(fatal)} errors): {shown}",
            "Correct them, or use --skip-bids-validation.",
        )


def validator_command() -> list[str] | None:
    """How to call the validator: the package of this Python, else a program on the PATH, else None."""
    if find_spec("bids_validator_deno"):
        return [sys.executable, "-c", "from bids_validator_deno import cli; cli()"]
    program = shutil.which("bids-validator-deno")
    return [program] if program else None


def link_visits(study: Study, folder: Path) -> None:
    """Make `folder` a dataset of links: the top-level files, and anat of each requested visit."""
    for path in study.root.iterdir():
        if path.is_file() and (not path.name.startswith(".") or path.name == ".bidsignore"):
            (folder / path.name).symlink_to(path)
    for visit in study.visits:
        place = folder / visit_folder(visit.subject, visit.session)
        place.mkdir(parents=True, exist_ok=True)
        source = study.root / visit_folder(visit.subject, visit.session)
        for inherited in (source / "anat", *source.glob("*.json")):
            if inherited.exists():
                (place / inherited.name).symlink_to(inherited)


def _run(command: Sequence[str], folder: Path) -> list[Issue]:
    """Errors that the validator finds; none, and a warning, where it cannot run."""
    arguments = [str(folder), "--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders"]
    try:
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        report = json.loads(result.stdout)["issues"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The BIDS validator does not run (%r): the dataset is not validated.", error)
        return []
    texts = report.get("codeMessages", {})
    errors = (_issue(item, texts) for item in report.get("issues", []) if item.get("severity") == "error")
    return [issue for issue in errors if issue.code != _OF_THE_SELECTION]


def _issue(item: dict, texts: dict) -> Issue:
    code = item.get("code", "?")
    message = item.get("issueMessage") or texts.get(code) or ""
    return Issue(code, item.get("location") or "", " ".join(message.split()))


def _fatal(issues: Sequence[Issue], study: Study) -> list[Issue]:
    """The errors in the name or the sidecar of a scan that was chosen."""
    scans = [scan for visit in study.visits for scan in (visit.t1w, visit.flair) if scan]
    images = {PurePosixPath(scan.path.relative_to(study.root)) for scan in scans}
    sidecars = {sidecar(image) for image in images}
    located = [(issue, PurePosixPath(issue.location.lstrip("/"))) for issue in issues]
    return [
        issue for issue, path in located if path in sidecars or (path in images and issue.code not in _OF_ONE_IMAGE)
    ]
