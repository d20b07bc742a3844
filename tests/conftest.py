"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

LONG_FILES = (
    "test_end_to_end.py",
    "training/own/test_run.py",
    "workflow/test_pool.py",
    "workflow/test_contrasts.py",
    "training/reflect/test_embedded_recipe.py",
)
"""The longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, long files come first: begun last, they would leave the others idle."""
    if hasattr(config, "workerinput"):
        last = len(LONG_FILES)
        places = {Path(__file__).parent / name: number for number, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: places.get(item.path, last))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real scans and masks; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("AFTERSTROKE_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}; set AFTERSTROKE_TEST_DATA")
    return folder


@pytest.fixture
def asymmetric() -> nib.Nifti1Image:
    """A small RAS image of 2 mm voxels that differs in all six directions: bright left, anterior and top marks."""
    values = np.zeros((16, 18, 20), dtype=np.float32)
    values[3:13, 3:15, 3:17] = 50
    values[3:5, 8:10, 9:11] = 200  # left
    values[7:9, 13:15, 9:11] = 150  # anterior
    values[7:9, 8:10, 15:17] = 100  # superior
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [-15, -17, -19]
    return nib.Nifti1Image(values, affine)


@pytest.fixture(params=["RAS", "LAS", "LIA"])
def orientation(request) -> str:
    """The three storage orders in which every function that touches orientation is tested."""
    return request.param


def stored_as(image: nib.Nifti1Image, axcodes: str) -> nib.Nifti1Image:
    """The same scan in world space, with its voxels stored in another order."""
    start = nib.io_orientation(image.affine)
    end = nib.orientations.axcodes2ornt(tuple(axcodes))
    return image.as_reoriented(nib.orientations.ornt_transform(start, end))
