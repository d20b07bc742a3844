"""A training goes on with what it was begun with, and replaces nothing else."""

from __future__ import annotations

import pytest

from bids_app.errors import ConfigError, UsageError
from bids_app.training.record import check_record, check_result


def test_a_training_goes_on_with_the_same(tmp_path):
    check_record(tmp_path, "ours", {"steps": 3, "seed": 1})
    check_record(tmp_path, "ours", {"steps": 3, "seed": 1})
    with pytest.raises(ConfigError, match=r"The training ours in .* was begun with other steps and seed"):
        check_record(tmp_path, "ours", {"steps": 4, "seed": 2})


def test_an_older_record_forgives_what_it_does_not_know(tmp_path):
    check_record(tmp_path, "ours", {"steps": 3})
    check_record(tmp_path, "ours", {"steps": 3, "kind": "new"})


def test_what_another_training_or_nobody_recorded_is_not_replaced(tmp_path):
    work, result = tmp_path / "work", tmp_path / "models" / "base"
    check_result(work, result)
    (result / "fold_0").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds something already"):
        check_result(work, result)
    check_record(work, "base", {"result": str(tmp_path / "elsewhere")})
    with pytest.raises(UsageError, match="holds something already"):
        check_result(work, result)


def test_a_training_replaces_its_own_result(tmp_path):
    result = tmp_path / "models" / "base"
    (result / "fold_0").mkdir(parents=True)
    check_record(tmp_path / "work", "base", {"result": str(result)})
    check_result(tmp_path / "work", result)
