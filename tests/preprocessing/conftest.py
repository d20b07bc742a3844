"""The small head that most tests of this folder look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import SimpleITK as sitk

from bids_app.preprocessing import comparison, coregistration, linear, normalization
from bids_app.preprocessing.templates import Template
from tests.preprocessing import phantoms


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small images gain nothing from threads, and the tests share their machine."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    yield
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


@pytest.fixture(scope="session")
def phantom() -> phantoms.Phantom:
    return phantoms.patient()


@pytest.fixture(scope="session")
def template() -> Template:
    return phantoms.template()


@pytest.fixture(scope="module")
def frugal() -> Iterator[None]:
    """Fewer voxels and iterations than for a whole head; heads of the right size are in ``test_real_heads.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SAMPLES", 10_000)
        # the head is half as long as one: so are the voxels and the shifts with which it is compared
        for module in (comparison, coregistration, normalization):
            patch.setattr(module, "COMPARE_MM", 2.0)
        patch.setattr(comparison, "NEAR", (4.0, 8.0))
        # and it is smooth: two scans of it agree less exactly than those of one person do
        smooth = replace(coregistration.FLAIR_LIMITS, nearby=0.9, highest_nearby=0.95)
        patch.setattr(coregistration, "FLAIR_LIMITS", smooth)
        patch.setattr(normalization, "SCHEDULE", ((4.0, 30, 1.0), (2.0, 10, 1.0)))
        patch.setattr(normalization, "STIFF_SCHEDULE", ((4.0, 30, 2.0), (2.0, 10, 2.0)))
        yield


@pytest.fixture
def quick(frugal, monkeypatch) -> None:
    """Few starts too, for scans that more of them do not help."""
    for module in (coregistration, normalization):
        monkeypatch.setattr(module, "LIKELY_DEGREES", (-8.0, 8.0))
        monkeypatch.setattr(module, "ANY_DEGREES", (0.0, 90.0))
    monkeypatch.setattr(coregistration, "SHIFTS_MM", ())
    monkeypatch.setattr(linear, "STARTS_KEPT", 1)
    monkeypatch.setattr(normalization, "SCHEDULE", ((4.0, 20, 1.0),))
    monkeypatch.setattr(normalization, "STIFF_SCHEDULE", ((4.0, 20, 2.0),))
