"""The group level: read the output folder, write the tables and maps of the cohort, say what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from bids_app import images
from bids_app.derivatives import names
from bids_app.derivatives.columns import dictionary
from bids_app.derivatives.description import DISCLAIMER
from bids_app.derivatives.write import write_image, write_json, write_table
from bids_app.errors import ExitCode
from bids_app.group import tables
from bids_app.group.collect import Cohort, collect, mixed_runs, restrict
from bids_app.group.frequency import FrequencyMap, frequency_map, masks_by_space, sidecar
from bids_app.settings import Settings
from bids_app.study.models import Problem
from bids_app.wording import counted

Say = Callable[[str], None]


def run_group(settings: Settings, say: Say = print) -> ExitCode:
    """Write the group's tables and lesion frequency maps into the output folder, from that folder alone.

    Failed or missing visits are listed, not an error of the group level.

    Raises
    ------
    NoInputError
        If the folder holds no processed visit, or none of those that were asked for.
    CannotWriteError
        If a file cannot be written.
    """
    everyone = collect(settings.out_dir)
    cohort = restrict(everyone, settings)
    lesions, lesion_problems = tables.gathered(cohort, tables.LESIONS)
    findings, finding_problems = tables.gathered(cohort, tables.FINDINGS)
    missing = tables.missing(cohort)
    # participants.tsv belongs to the output folder as a whole, whatever part of it was asked for
    participants = names.sidecar(settings.out_dir / names.PARTICIPANTS)
    write_json(participants, tables.participants_dictionary(everyone))
    write_table(settings.out_dir / names.PARTICIPANTS, tables.participants(everyone))
    for name, what, table in (
        (names.GROUP_SESSIONS, "Processed visits, a row each", tables.sessions(cohort)),
        (names.GROUP_LESIONS, "Lesions of all finished visits, a row each", lesions),
        (names.GROUP_FINDINGS, "Findings of the anomaly maps of all finished visits, a row each", findings),
        (names.GROUP_CLASSES, "Finished visits by class of total lesion volume", tables.classes(cohort)),
        (names.GROUP_MISSING, "Visits that are expected and have no results", missing),
    ):
        write_group_table(settings.out_dir / name, what, table)
    maps, map_problems = _write_maps(cohort)
    of_tables = (*lesion_problems, *finding_problems)
    for problem in (*everyone.problems, *mixed_runs(cohort.records), *of_tables, *map_problems):
        say(f"WARNING {problem.message}")
    for line in summary(cohort, len(missing), maps):
        say(line)
    return ExitCode.OK


def write_group_table(path: Path, description: str, table: pd.DataFrame) -> None:
    """Write a group table, after its data dictionary."""
    own = dictionary("finding" if "finding_id" in table.columns else "lesion")
    known = own | dictionary("session") | dictionary("group")
    columns = {column: known[column] for column in table.columns}
    write_json(names.sidecar(path), {"Description": f"{description}. {DISCLAIMER}"} | columns)
    write_table(path, table)


def _write_maps(cohort: Cohort) -> tuple[list[FrequencyMap], list[Problem]]:
    """Write a lesion frequency map for every standard space, and remove those of an earlier run that have no heir."""
    maps, problems = [], []
    for space, masks in masks_by_space(cohort).items():
        found, more = frequency_map(cohort.out_dir, space, masks)
        problems += more
        if found:
            path = cohort.out_dir / names.group_frequency(space)
            write_json(names.sidecar(path), sidecar(found))
            write_image(path, found.image)
            maps.append(found)
    written = {cohort.out_dir / names.group_frequency(found.space) for found in maps}
    for path in set(cohort.out_dir.glob(str(names.group_frequency("*")))) - written:
        path.unlink()
        names.sidecar(path).unlink(missing_ok=True)
    return maps, problems


def summary(cohort: Cohort, missing: int, maps: list[FrequencyMap]) -> Iterator[str]:
    """What the group level found, in a few lines."""
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
    yield f"Tables and maps are in {cohort.out_dir}."


def _map_line(found: FrequencyMap) -> str:
    values = images.data(found.image)
    line = (
        f"Lesion frequency map in {found.space}: {counted(found.participants, 'participant')}, "
        f"{counted(len(found.masks), 'visit')}"
    )
    if not values.any():
        return f"{line}, no lesion anywhere."
    peak = images.world(found.image, np.argwhere(values == values.max()))[0]
    at = ", ".join(f"{value:z.0f}" for value in peak)  # no -0
    return f"{line}, highest share {values.max():.2f} (first at {at} mm)."
