"""The group level: read the output folder, write the tables and maps of the cohort, say what was found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.description import DISCLAIMER
from bids_app.derivatives.storage import code_of_space
from bids_app.derivatives.write import write_image, write_json, write_rows, write_table
from bids_app.errors import ExitCode
from bids_app.group import tables
from bids_app.group.collect import Cohort, collect, mixed_runs, restrict
from bids_app.group.frequency import FrequencyMap, frequency_map, masks_by_space, sidecar
from bids_app.group.progress import Say
from bids_app.settings import Settings
from bids_app.study.models import Problem
from bids_app.wording import counted


def run_group(settings: Settings, say: Say = print) -> ExitCode:
    """Write the group's tables and lesion frequency maps into the output folder, from that folder alone.

    Those of a part of the participants or sessions go to a folder of their own: the cohort's stay as they are. Failed
    or missing visits are listed, not an error of the group level.

    Raises
    ------
    NoInputError
        If the folder holds no processed visit, or none of those that were asked for.
    CannotWriteError
        If a file cannot be written.
    """
    everyone = collect(settings.out_dir, say)
    cohort = restrict(everyone, settings)
    part = selection_of(settings)
    place = settings.out_dir / names.group_part(part.digest) if part else settings.out_dir
    if part:
        write_json(place / names.SELECTION, part.content)
    problems = [*everyone.problems, *mixed_runs(cohort.records)]
    missing = tables.missing(cohort)
    write_json(names.sidecar(place / names.PARTICIPANTS), tables.participants_dictionary(cohort))
    write_table(place / names.PARTICIPANTS, tables.participants(cohort))
    for name, what, table in (
        (names.GROUP_SESSIONS, "Processed visits, one row each", tables.sessions(cohort)),
        (names.GROUP_CLASSES, "Finished visits by class of total lesion volume", tables.classes(cohort)),
        (names.GROUP_MISSING, "Visits that are expected and have no results", missing),
    ):
        write_group_table(place / name, what, list(table.columns), table.to_dict("records"))
    for name, what, kind in (
        (names.GROUP_LESIONS, "Lesions of all finished visits, one row each", tables.LESIONS),
        (names.GROUP_FINDINGS, "Findings of the anomaly maps of all finished visits, one row each", tables.FINDINGS),
    ):
        rows = tables.gathered(cohort, kind, problems.append, say)
        write_group_table(place / name, what, kind.columns, rows)
    maps, map_problems = _write_maps(cohort, place, say)
    for problem in (*problems, *map_problems):
        say(f"WARNING {problem.message}")
    for line in summary(cohort, len(missing), maps, place):
        say(line)
    return ExitCode.OK


@dataclass(frozen=True)
class Selection:
    """The part of a cohort that was asked for.

    Attributes
    ----------
    content : mapping
        The labels, as they are kept beside the tables.
    """

    content: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name its folder: the same for the same labels, in whatever order."""
        return hashlib.blake2b(json.dumps(self.content).encode(), digest_size=4).hexdigest()


def selection_of(settings: Settings) -> Selection | None:
    """What part of the cohort was asked for; None for all of it."""
    labels = {
        "participants": [f"sub-{label}" for label in sorted(settings.participants)],
        "excluded": [f"sub-{label}" for label in sorted(settings.excluded)],
        "sessions": [f"ses-{label}" for label in sorted(settings.sessions)],
    }
    return Selection(labels) if any(labels.values()) else None


def write_group_table(path: Path, description: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a group table, after its data dictionary."""
    own = dictionary("finding" if "finding_id" in columns else "lesion")
    known = own | dictionary("session") | dictionary("group")
    described = {column: known[column] for column in columns}
    write_json(names.sidecar(path), {"Description": f"{description}. {DISCLAIMER}"} | described)
    write_rows(path, columns, rows)


def _write_maps(cohort: Cohort, place: Path, say: Say) -> tuple[list[FrequencyMap], list[Problem]]:
    """Write a lesion frequency map for every standard space, and remove those of an earlier run that have no heir."""
    maps, problems = [], []
    for space, masks in masks_by_space(cohort).items():
        found, more = frequency_map(cohort.out_dir, space, masks, say)
        problems += more
        if found:
            path = place / names.group_frequency(space)
            write_json(names.sidecar(path), sidecar(found))
            write_image(path, images.with_form_code(found.image, code_of_space(space)))
            maps.append(found)
    written = {place / names.group_frequency(found.space) for found in maps}
    for path in set(place.glob(str(names.group_frequency("*")))) - written:
        path.unlink()
        names.sidecar(path).unlink(missing_ok=True)
    return maps, problems


def summary(cohort: Cohort, missing: int, maps: list[FrequencyMap], place: Path) -> Iterator[str]:
    """What the group level found, in a few lines, and where its files are."""
    participants = len({record.subject for record in cohort.records})
    yield (
        f"{counted(len(cohort.records), 'visit')} of {counted(participants, 'participant')}: "
        f"{len(cohort.done)} done, {len(cohort.records) - len(cohort.done)} failed."
    )
    if missing:
        yield f"{counted(missing, 'expected visit')} without results, listed with the reason in {names.GROUP_MISSING}."
    counts = tables.classes(cohort).itertuples(index=False)
    yield f"Finished visits by lesion volume: {', '.join(f'{row.volume_class} {row.visits}' for row in counts)}."
    for found in maps:
        yield _map_line(found)
    if not maps:
        why = "no finished visit has a usable lesion mask in a standard space" if cohort.done else "no visit is done"
        yield f"No lesion frequency map: {why}."
    if place != cohort.out_dir:
        yield "These are the labels that were asked for alone; the tables and maps of the whole cohort were left alone."
    yield f"Tables and maps are in {place}."


def _map_line(found: FrequencyMap) -> str:
    values = images.data(found.image)
    line = (
        f"Lesion frequency map in {found.space}: {counted(found.participants, 'participant')}, "
        f"{counted(len(found.masks), 'visit')}"
    )
    if not values.any():
        return f"{line}, no lesion anywhere."
    peak = images.world(found.image, np.argwhere(values == values.max()))[0]
    at = ", ".join(str(round(value)) for value in peak.tolist())  # whole numbers have no negative zero
    return f"{line}, highest share {values.max():.2f} (first at {at} mm)."
