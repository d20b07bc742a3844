"""Scans that another pipeline has made of a scan: processed, or brought into another space."""

from __future__ import annotations

import re

from bids_app.study.models import Problem, Scan, Severity

#: Spaces in which a brain keeps its size, under the names that pipelines give them.
_NATIVE = ("orig", "T1w", "T2w", "FLAIR", "anat", "individual", "native", "scanner", "subject", "ACPC")


def standard_space(filename: str) -> str | None:
    """The space that a scan was brought into, if a brain has another size there than its own; else None.

    >>> standard_space("sub-1_space-MNI152NLin2009cAsym_T1w.nii"), standard_space("sub-1_space-orig_T1w.nii")
    ('MNI152NLin2009cAsym', None)
    """
    space = _made(filename).get("space")
    return None if space in (None, *_NATIVE) else space


def rawness(filename: str) -> int:
    """How near a scan is to what the scanner made: 2 as it came, 1 processed, 0 in a standard space.

    >>> [rawness(f"sub-1_{name}.nii") for name in ("T1w", "desc-preproc_T1w", "space-MNI152NLin6Asym_T1w")]
    [2, 1, 0]
    """
    if standard_space(filename):
        return 0
    return 1 if _made(filename) else 2


def told_of_copy(scan: Scan) -> tuple[Problem, ...]:
    """What the user should know of a chosen scan that is a copy."""
    name = scan.path.name
    if space := standard_space(name):
        message = (
            f"{name} is a copy in {space}, and there is no {scan.suffix} of the patient's own size: volumes are those "
            f"of the brain in {space}."
        )
        return (Problem("standard-space", Severity.WARNING, message, (name,)),)
    if made := _made(name):
        how = ", ".join(f"{key}-{label}" for key, label in made.items())
        message = f"{name} was processed before ({how}), and there is no raw {scan.suffix}."
        return (Problem("processed-scan", Severity.INFO, message, (name,)),)
    return ()


def _made(filename: str) -> dict[str, str]:
    """The entities of a name that say what was made of a scan."""
    return dict(re.findall(r"_(space|desc)-([0-9A-Za-z+]+)", filename))
