"""The BIDS validator, run on the requested visits only: no visit's error stops another."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from bids_app.derivatives.names import ENTITY_ORDER, sidecar, visit_folder
from bids_app.errors import DatasetError
from bids_app.settings import Settings
from bids_app.study.models import Problem, Severity, Study, Visit
from bids_app.wording import counted

logger = logging.getLogger(__name__)

#: What is wrong with the name of a scan, so that it is not sure what it is.
_OF_A_NAME = (
    "DATATYPE_MISMATCH",
    "ENTITY_NOT_IN_RULE",
    "ENTITY_WITH_NO_LABEL",
    "EXTENSION_MISMATCH",
    "FILENAME_MISMATCH",
    "INVALID_ENTITY_LABEL",
    "INVALID_LOCATION",
    "NOT_INCLUDED",
)
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

    @property
    def path(self) -> PurePosixPath:
        """Path in the dataset."""
        return PurePosixPath(self.location.lstrip("/"))

    @property
    def invalidates_name(self) -> bool:
        """Whether the name of a file is wrong; entities that BIDS has for other files are understood."""
        if self.code == "ENTITY_NOT_IN_RULE" and self.message.partition(" ")[0] in ENTITY_ORDER:
            return False
        return self.code in _OF_A_NAME

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" if self.message else self.code


def validate(study: Study, settings: Settings, folder: Path | None) -> Study:
    """Run the BIDS validator on the anatomical scans of the requested visits.

    Errors elsewhere are logged as a warning, as is a validator that is not installed or does not run.

    Parameters
    ----------
    folder : Path or None
        Where the links are made that the validator looks at; None is a temporary folder of the system.

    Returns
    -------
    Study
        Visits with a scan of an invalid name have the error ``invalid-name``, those with an invalid sidecar, which is
        no reason not to process them, the warning ``invalid-sidecar``.

    Raises
    ------
    DatasetError
        If no visit is left that could be processed, for the names of their scans.
    """
    if settings.skip_bids_validation:
        return study
    command = validator_command()
    if command is None:
        logger.warning("The BIDS validator (bids-validator-deno) is not installed: the dataset is not validated.")
        return study
    with tempfile.TemporaryDirectory(prefix="validation-", dir=folder) as links:
        try:
            link_visits(study, Path(links))
        except OSError as error:
            logger.warning("The work folder takes no links (%s): the dataset is not validated.", error.strerror)
            return study
        issues = _run(command, Path(links))
    by_path: dict[PurePosixPath, list[Issue]] = {}
    for issue in issues:
        by_path.setdefault(issue.path, []).append(issue)
    judged = replace(study, visits=tuple(_judged(visit, by_path, study.root) for visit in study.visits))
    images = {image for visit in study.visits for image in _images(visit, study.root)}
    sidecars = {sidecar(image) for image in images}
    told = {issue for issue in issues if issue.path in sidecars or (issue.path in images and issue.invalidates_name)}
    if others := Counter(issue.code for issue in issues if issue not in told):
        codes = ", ".join(f"{count} {code}" for code, count in others.most_common())
        logger.warning("The BIDS validator finds errors that stop nothing: %s.", codes)
    _refuse_if_none_is_left(study, judged)
    return judged


def _refuse_if_none_is_left(before: Study, judged: Study) -> None:
    """Fail if the names of scans are why nothing can be processed."""
    invalid = [problem for visit in judged.visits for problem in visit.problems if problem.code == "invalid-name"]
    if not invalid or any(visit.usable for visit in judged.visits):
        return
    shown = " ".join(problem.message for problem in invalid[:_SHOWN]) + (" ..." if len(invalid) > _SHOWN else "")
    raise DatasetError(
        f"The requested scans are not valid BIDS ({counted(len(invalid), 'error')}): {shown}",
        "Correct them, or use --skip-bids-validation.",
    )


def validator_command() -> list[str] | None:
    """How to call the validator: the package of this Python, else a program on the PATH, else None."""
    if find_spec("bids_validator_deno"):
        return [sys.executable, "-c", "from bids_validator_deno import cli; cli()"]
    program = shutil.which("bids-validator-deno")
    return [program] if program else None


def link_visits(study: Study, folder: Path) -> None:
    """Make `folder` a dataset of links: the top-level files, and anat of each requested visit that has a scan."""
    for path in study.root.iterdir():
        if path.is_file() and (not path.name.startswith(".") or path.name == ".bidsignore"):
            (folder / path.name).symlink_to(path)
    for visit in study.visits:
        if visit.reference is None:
            continue
        place = folder / visit_folder(visit.subject, visit.session)
        place.mkdir(parents=True, exist_ok=True)
        source = study.root / visit_folder(visit.subject, visit.session)
        for inherited in (source / "anat", *source.glob("*.json")):
            if inherited.exists():
                (place / inherited.name).symlink_to(inherited)


def _run(command: Sequence[str], folder: Path) -> list[Issue]:
    """Errors that the validator finds; none, and a warning, where it cannot run."""
    arguments = [str(folder), "--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders", "--max-rows", "-1"]
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


def _judged(visit: Visit, issues: Mapping[PurePosixPath, Sequence[Issue]], root: Path) -> Visit:
    """A visit with the errors in the names and the sidecars of its scans."""
    problems = []
    for image in _images(visit, root):
        if names := [issue for issue in issues.get(image, ()) if issue.invalidates_name]:
            what = f"{image.name} is no valid BIDS name: {'; '.join(map(str, names))}"
            problems.append(Problem("invalid-name", Severity.ERROR, f"{what}. Rename it.", (image.name,)))
        if of_sidecar := issues.get(sidecar(image)):
            name = sidecar(image).name
            what = f"{name}, which is not needed, is invalid: {'; '.join(map(str, of_sidecar))}"
            problems.append(Problem("invalid-sidecar", Severity.WARNING, f"{what}.", (name,)))
    return replace(visit, problems=(*visit.problems, *problems)) if problems else visit


def _images(visit: Visit, root: Path) -> list[PurePosixPath]:
    """Paths of the chosen scans in the dataset."""
    return [PurePosixPath(scan.path.relative_to(root)) for scan in (visit.t1w, visit.flair) if scan]
