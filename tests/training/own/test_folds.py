"""Folds by subject, balanced by volume."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.errors import NoInputError
from bids_app.study.models import Problem, Severity, Visit
from bids_app.training.own.cases import Case, Cohort
from bids_app.training.own.folds import case_table, make_folds, render_folds


def case(subject: str, session: str, volume_ml: float) -> Case:
    return Case(Visit(subject, session, None, None), Path("mask"), Path("scan"), volume_ml)


CASES = [case(f"{n:02}", session, float(n)) for n in range(20) for session in ("1", "2")]


def test_every_case_is_validated_on_once_and_trained_on_otherwise():
    folds = make_folds(CASES, 5)
    assert sorted(label for fold in folds for label in fold.validation) == sorted(item.label for item in CASES)
    for fold in folds:
        assert set(fold.train) | set(fold.validation) == {item.label for item in CASES}
        assert not set(fold.train) & set(fold.validation)


def test_no_subject_is_on_both_sides():
    for fold in make_folds(CASES, 5):
        subjects = [{label.split("_")[0] for label in labels} for labels in (fold.train, fold.validation)]
        assert not subjects[0] & subjects[1]


def test_volumes_are_balanced():
    volumes = {item.label: item.volume_ml for item in CASES}
    means = [sum(volumes[label] for label in fold.validation) / len(fold.validation) for fold in make_folds(CASES, 5)]
    assert max(means) - min(means) <= 4  # dealt at random they differ by 10 and more


def test_the_order_of_the_cases_changes_nothing():
    first, second = make_folds(CASES, 4), make_folds(CASES[::-1], 4)
    assert [set(fold.validation) for fold in first] == [set(fold.validation) for fold in second]


def test_fewer_subjects_than_folds_are_told():
    with pytest.raises(NoInputError, match="20 subjects cannot be dealt out to 21 folds"):
        make_folds(CASES, 21)


def test_the_table_has_a_line_a_fold():
    lines = render_folds(make_folds(CASES, 5), CASES).splitlines()
    assert len(lines) == 6
    assert lines[1].split()[:3] == ["0", "32", "8"]


def test_the_table_of_cases_says_what_became_of_each_visit():
    left_out = (("sub-99", Problem("no-mask", Severity.ERROR, "sub-99 has no mask.")),)
    folds = make_folds(CASES[:-1], 5)
    table = case_table(Cohort("study", tuple(CASES), left_out), folds).set_index("visit")
    assert list(table.loc["sub-99", ["problem", "what"]]) == ["no-mask", "sub-99 has no mask."]
    assert table.loc[CASES[-1].label, "problem"] == "not-prepared"
    held_out = {label: number for number, fold in enumerate(folds) for label in fold.validation}
    assert {label: row.fold for label, row in table.iterrows() if row.problem is None} == held_out
