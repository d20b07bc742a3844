"""Trainings of seconds: tiny networks, small slices, scans that need no preparation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bids_app.anomaly import autoencoder, velocity
from bids_app.training.reflect import command, presets, scans
from bids_app.training.reflect.slices import Slices
from tests.anomaly.models import AUTOENCODER, VELOCITY

SHAPE = (24, 64, 48)


def brain(seed: int = 0) -> np.ndarray:
    """Grey values of an ellipsoid with a dark middle, ``(slices, rows, columns)`` uint8."""
    z, y, x = (axis / (size / 2) - 1 for axis, size in zip(np.ogrid[tuple(map(slice, SHAPE))], SHAPE, strict=True))
    radius = np.sqrt(x**2 + y**2 + z**2) / 0.9
    noise = np.random.default_rng(seed).normal(0, 8, SHAPE)
    values = np.clip(np.where(radius < 0.3, 40, 170) + noise, 1, 255)
    return np.where(radius < 1, values, 0).astype(np.uint8)


def some_slices(subjects: int = 2) -> Slices:
    """All slices of some brains that show enough, lowest first."""
    names, images, heights = [], [], []
    for number in range(subjects):
        grey = brain(number)
        shown = np.flatnonzero((grey > 0).sum(axis=(1, 2)) > 100)
        names += [f"{number:02d}"] * len(shown)
        images.append(grey[shown])
        heights.append(shown.astype(float))
    return Slices(np.concatenate(images), tuple(names), np.concatenate(heights))


@pytest.fixture
def tiny(monkeypatch):
    """Everything small, for tests that train."""
    small = presets.PRESETS["small"]
    stages = {name: replace(stage, batch=8, steps=3) for name, stage in small.stages.items()}
    monkeypatch.setitem(presets.PRESETS, "small", replace(small, stages=stages))
    monkeypatch.setitem(autoencoder.SIZES, "tiny-f8", AUTOENCODER)
    monkeypatch.setitem(velocity.SIZES, "tiny", VELOCITY)
    monkeypatch.setattr("bids_app.training.reflect.learn.TEXTURE_COUNT", 3)
    monkeypatch.setattr(scans, "LEAST_PIXELS", 100)
    monkeypatch.setattr(command, "SHAPE", SHAPE)

    def grey_slices(scan, settings, folder):
        clean = np.ones(SHAPE[0], bool)
        clean[:4] = scan.case is None
        return brain(int(scan.visit.subject[-2:])), clean

    monkeypatch.setattr(scans, "grey_slices", grey_slices)
