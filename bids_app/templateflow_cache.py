"""TemplateFlow's cache as plain files, and the list of what TemplateFlow has. Never a download.

``templateflow.api.get`` would fetch what is missing, which a run must not do, and its index holds empty placeholder
files for everything that was never fetched. The list of all files comes with the package of TemplateFlow, which is not
imported for it: that would write into the cache.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from bids_app.environment import user_cache
from bids_app.errors import UnavailableError

#: How TemplateFlow names images of 1 mm, template by template.
RESOLUTIONS = ("_res-01", "_res-1", "")
#: Spaces that fMRIPrep's transforms lead to, whose templates can carry them on to the spaces that are asked for.
BRIDGES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym")
_SKELETON = PurePosixPath("conf/templateflow-skel.zip")


def templateflow_home() -> Path:
    """Folder of the cache: the variable TEMPLATEFLOW_HOME, else where templateflow itself puts it."""
    return Path(os.environ.get("TEMPLATEFLOW_HOME") or user_cache() / "templateflow")


def is_cached(space: str) -> bool:
    """Whether the template of a space can be used on this machine."""
    return _found(space) is not None


def bridges(spaces: Iterable[str]) -> tuple[str, ...]:
    """Spaces whose transforms serve those that are asked for, because their templates are on this machine."""
    wanted = set(spaces)
    return tuple(space for space in BRIDGES if wanted and space not in wanted and is_cached(space))


def cached_files(space: str) -> tuple[Path, Path | None]:
    """T1w and brain mask of a cached template; the mask is None where the T1w is of the brain alone.

    Raises
    ------
    UnavailableError
        If it is not there: because there is no such template, because it has no such images, or because they were not
        fetched, which is told with the command that fetches them.
    """
    found = _found(space)
    if found is None:
        raise _unavailable(space)
    return found


def _found(space: str) -> tuple[Path, Path | None] | None:
    for resolution in RESOLUTIONS:
        head, mask, brain = (_path(space, resolution, name) for name in ("T1w", "desc-brain_mask", "desc-brain_T1w"))
        if _is_whole(head) and _is_whole(mask):
            return head, mask
        if _is_whole(brain):
            return brain, None
    return None


def _path(space: str, resolution: str, name: str) -> Path:
    return templateflow_home() / f"tpl-{space}" / f"tpl-{space}{resolution}_{name}.nii.gz"


def _is_whole(path: Path) -> bool:
    """Whether a cached file was really fetched (TemplateFlow's index is made of empty files)."""
    return path.is_file() and path.stat().st_size > 0


def _unavailable(space: str) -> UnavailableError:
    """Why a template cannot be used, and what to do."""
    listed = _listed()
    usable = {name: resolution for name in listed if (resolution := _fetchable(name)) is not None}
    if listed and space not in listed and not (templateflow_home() / f"tpl-{space}").is_dir():
        named = {name.lower(): name for name in usable}
        close = get_close_matches(space.lower(), named, n=1)
        hint = f"Did you mean {named[close[0]]}?" if close else f"There are: {', '.join(sorted(usable))}."
        return UnavailableError(f"There is no template {space}, neither in TemplateFlow nor on this machine.", hint)
    if listed and space in listed and space not in usable:
        return UnavailableError(
            f"TemplateFlow has no T1w with a brain mask of {space}, so it cannot be an output space.",
            f"There are: {', '.join(sorted(usable))}.",
        )
    return _not_fetched(space, usable.get(space, RESOLUTIONS[0]))


def _not_fetched(space: str, resolution: str) -> UnavailableError:
    """The error for a template that could be here and is not."""
    head, mask = (_path(space, resolution, name) for name in ("T1w", "desc-brain_mask"))
    which = ", resolution=1" if resolution else ""
    fetch = (
        f"from templateflow.api import get; get('{space}'{which}, suffix='T1w', desc=None); "
        f"get('{space}'{which}, suffix='mask', desc='brain')"
    )
    return UnavailableError(
        f"The template of the output space {space} is not on this machine: "
        f"{mask if _is_whole(head) else head} is missing.",
        f'Where there is a network, run: TEMPLATEFLOW_HOME={templateflow_home()} python -c "{fetch}"; '
        "then set TEMPLATEFLOW_HOME to that folder (in a container, bind it too).",
    )


@cache
def _listed() -> dict[str, frozenset[str]]:
    """Names of the files of every template of TemplateFlow; empty where its list cannot be read."""
    package = find_spec("templateflow")
    if package is None or not package.submodule_search_locations:
        return {}
    try:
        with zipfile.ZipFile(Path(package.submodule_search_locations[0]) / _SKELETON) as skeleton:
            paths = [PurePosixPath(name) for name in skeleton.namelist() if name.startswith("tpl-")]
    except (OSError, zipfile.BadZipFile):
        return {}
    templates: dict[str, set[str]] = {}
    for path in paths:
        templates.setdefault(path.parts[0].removeprefix("tpl-"), set()).add(path.name)
    return {name: frozenset(files) for name, files in templates.items()}


def _fetchable(space: str) -> str | None:
    """The resolution in which TemplateFlow has T1w and brain mask of a template; None if it has not."""
    files = _listed()[space]
    for resolution in RESOLUTIONS:
        if {f"tpl-{space}{resolution}_{name}.nii.gz" for name in ("T1w", "desc-brain_mask")} <= files:
            return resolution
    return None
