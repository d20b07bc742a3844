"""Trainings of seconds: tiny networks, two steps an epoch, scans that need no preparation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app import images
from bids_app.preprocessing import headers
from bids_app.settings import TrainingSettings
from bids_app.training import plans
from bids_app.training.own import planning, prepare, run, train
from bids_app.training.own.trainer import OwnTrainer
from bids_app.workflow import stages
from tests.training.own.study import MASKS, brain

TINY = plans.NetworkSize(features=(4, 8, 8, 8), patch=(48, 48, 48))


@cache
def grid() -> images.Image:
    """In place of the standard space at 1 mm: the same at 3 mm."""
    return brain(3)


def _prepare(job, folder: Path) -> SimpleNamespace:
    return SimpleNamespace(visit=job.visit, flair_native="there", flair_matrix=np.eye(4), problems=())


def _pose(prepared, folder: Path) -> stages.Posed:
    scans = []
    for scan in (prepared.visit.t1w, prepared.visit.flair):
        if scan:
            moved = images.resample(headers.clean(scan.path).image, grid())
            scans.append((scan.suffix, images.save(moved, folder / f"pose_{scan.suffix}.nii.gz")))
    return stages.Posed(tuple(scans), tuple(map(tuple, np.eye(4))), None)


def _tiny_plans(fusion: plans.Fusion) -> dict:
    """The small preset at 4 mm, where a brain is one small patch."""
    content = plans.build_plans(replace(fusion, size=TINY))
    content["configurations"][plans.CONFIGURATION]["spacing"] = [4.0, 4.0, 4.0]
    return content


@pytest.fixture(scope="package")
def tiny():
    """Everything small, for tests that train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "prepare", _prepare)
        patch.setattr(stages, "pose", _pose)
        patch.setattr(prepare, "load_template", lambda space: SimpleNamespace(t1w=grid()))
        patch.setattr(planning, "build_plans", _tiny_plans)
        patch.setattr(train, "STEPS", 2)
        patch.setattr(train, "VALIDATION_STEPS", 1)
        patch.setattr(OwnTrainer, "plot_network_architecture", lambda self: None)
        yield


@pytest.fixture(scope="package")
def trained(tiny) -> Callable[..., TrainingSettings]:
    """Train on a study, and say with which settings."""

    def go(root: Path, fusion: str, **options) -> TrainingSettings:
        values = {"folds": 2, "epochs": 1, "device": "cpu", "name": fusion} | options
        settings = TrainingSettings(
            root / "bids", MASKS, root / "out", fusion=fusion, work_dir=root / "work", skull_stripped="yes", **values
        )
        run.train_lesion(settings)
        return settings

    return go
