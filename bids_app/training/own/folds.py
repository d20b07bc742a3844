"""Cross-validation by subject, balanced by lesion volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from bids_app.errors import NoInputError
from bids_app.training.own.cases import Case, Cohort
from bids_app.wording import counted


@dataclass(frozen=True)
class Fold:
    """One fold, by labels of cases.

    Attributes
    ----------
    train, validation : tuple of str
        No subject is in both.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]


def make_folds(cases: Sequence[Case], count: int) -> tuple[Fold, ...]:
    """Deal the subjects out, those with the largest lesions first; the same cases give the same folds.

    Parameters
    ----------
    cases : sequence of Case
    count : int
        Number of folds, at least 2.

    Raises
    ------
    NoInputError
        If there are fewer subjects than folds.
    """
    volumes: dict[str, list[float]] = {}
    for case in cases:
        volumes.setdefault(case.subject, []).append(case.volume_ml)
    if len(volumes) < count:
        raise NoInputError(
            f"{counted(len(volumes), 'subject')} cannot be dealt out to {count} folds: "
            "all sessions of one subject go to one fold.",
            f"Use --folds {len(volumes)} or fewer." if len(volumes) > 1 else "Give masks of more subjects.",
        )
    largest_first = sorted(volumes, key=lambda subject: (-sum(volumes[subject]) / len(volumes[subject]), subject))
    dealt = {subject: place % count for place, subject in enumerate(largest_first)}
    return tuple(
        Fold(
            tuple(case.label for case in cases if dealt[case.subject] != fold),
            tuple(case.label for case in cases if dealt[case.subject] == fold),
        )
        for fold in range(count)
    )


def case_table(cohort: Cohort, folds: Sequence[Fold]) -> pd.DataFrame:
    """A row for each visit: the fold that it is held out from, or why it was left out.

    Returns
    -------
    DataFrame
        Columns ``visit``, ``fold``, ``lesion_volume_ml``, ``problem`` and ``what``.
    """
    fold_of = {label: number for number, fold in enumerate(folds) for label in fold.validation}
    rows = [(label, None, None, problem.code, problem.message) for label, problem in cohort.left_out]
    for case in cohort.cases:
        used = case.label in fold_of
        codes = ", ".join(problem.code for problem in case.problems) if used else "not-prepared"
        what = " ".join(problem.message for problem in case.problems) if used else "Its preparation failed."
        rows.append((case.label, fold_of.get(case.label), round(case.volume_ml, 3), codes or None, what or None))
    table = pd.DataFrame(sorted(rows), columns=["visit", "fold", "lesion_volume_ml", "problem", "what"])
    return table.astype({"fold": "Int64"})


def render_folds(folds: Sequence[Fold], cases: Sequence[Case]) -> str:
    """A line a fold: how many cases it trains on and validates on, and their lesions."""
    by_label = {case.label: case for case in cases}
    lines = ["fold  train  validate  lesion volumes to validate on, mL"]
    for number, fold in enumerate(folds):
        volumes = sorted(by_label[label].volume_ml for label in fold.validation)
        shown = ", ".join(f"{volume:.1f}" for volume in volumes[:6]) + (", ..." if len(volumes) > 6 else "")
        lines.append(f"{number:>4}  {len(fold.train):>5}  {len(fold.validation):>8}  {shown}")
    return "\n".join(lines)
