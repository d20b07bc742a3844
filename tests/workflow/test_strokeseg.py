"""ONNX networks get the steps of StrokeSeg, which are written down here once more, with loops and SciPy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_app import images
from bids_app.derivatives.results import Posed, Prepared
from bids_app.images import Image
from bids_app.workflow import stages
from tests.derivatives.mock import PASSED
from tests.lesion.models import head
from tests.lesion.nnunet import dice
from tests.networks.onnx_files import write_onnx
from tests.preprocessing.phantoms import rigid
from tests.workflow.test_model_input import frozen, make_job, write_visit

PATCH = 32
IN_MNI = (58, 66, 50)
TO_MNI = rigid((9, -14, 21), (4, -6, 3))


@pytest.fixture
def brains() -> list[Image]:
    """T1w and FLAIR as the steps before leave them: the brain alone, in MNI at 1 mm, with a hole of zeros."""
    return [head(IN_MNI, 1.0), head(IN_MNI, 1.0, seed=1, contrast=-1)]


def make_visit(folder: Path, brains: list[Image]) -> tuple[Prepared, Posed]:
    """A visit whose scans lie in the scanner as `TO_MNI` says, on oblique voxels of 2 mm."""
    grid = head((44, 52, 42), 2.0)
    native = images.on_affine(images.data(grid) + 1, np.linalg.inv(TO_MNI) @ grid.affine)
    scans = dict(zip(("T1w", "FLAIR"), [native] * len(brains), strict=False))
    reference = images.save(native, folder / "reference.nii.gz")
    mask = images.save(images.like(native, np.ones(native.shape, np.uint8)), folder / "mask.nii.gz")
    prepared = Prepared(write_visit(folder, **scans), reference, mask, 1000.0, False)
    files = [images.save(brain, folder / f"pose_{number}.nii.gz") for number, brain in enumerate(brains)]
    return prepared, Posed(tuple(zip(scans, files, strict=True)), frozen(TO_MNI), PASSED)


def steps_in_mni(brains: list[Image], network: torch.nn.Module, version: int) -> np.ndarray:
    """Probability of the lesion in MNI, by the steps from the crop to the sigmoid."""
    channels = np.stack([images.data(brain).transpose(2, 1, 0) for brain in brains]).astype(np.float64)
    brain = ndimage.binary_fill_holes((channels != 0).any(axis=0))
    box = ndimage.find_objects(brain.astype(int))[0]
    cropped = np.zeros_like(channels[(slice(None), *box)])
    for index, channel in enumerate(channels):
        counted = brain[box] if version == 1 else channel[box] != 0
        values = channel[box][counted]
        cropped[index][counted] = (values - values.mean()) / values.std()
    multiple = 1 if version == 1 else 32
    padding = [(0, 0)]
    for size in cropped.shape[1:]:
        missing = math.ceil(max(size, PATCH) / multiple) * multiple - size
        padding.append((missing // 2, missing - missing // 2))
    logits = sliding_window(np.pad(cropped, padding), network)
    unpadded = logits[
        tuple(slice(low, low + size) for (low, _), size in zip(padding, (2, *cropped.shape[1:]), strict=True))
    ]
    out = np.zeros(channels.shape[1:])
    if version == 1:
        weights = np.exp(unpadded - unpadded.max(axis=0))
        out[box] = (weights / weights.sum(axis=0))[1]
    else:
        out[box] = 1 / (1 + np.exp(unpadded[0] - unpadded[1]))
    return out.transpose(2, 1, 0)


def sliding_window(volume: np.ndarray, network: torch.nn.Module) -> np.ndarray:
    """Patches that overlap by half, weighted by a Gaussian of an eighth of the patch."""
    delta = np.zeros((PATCH,) * 3)
    delta[(PATCH // 2,) * 3] = 1
    gauss = ndimage.gaussian_filter(delta, PATCH / 8, mode="constant")
    gauss = np.maximum(gauss / gauss.max() * 10, 1e-6)
    total, weights = np.zeros((2, *volume.shape[1:])), np.zeros(volume.shape[1:])
    starts = []
    for size in volume.shape[1:]:
        count = math.ceil((size - PATCH) / (PATCH / 2)) + 1
        starts.append([round(value) for value in np.linspace(0, size - PATCH, count)])
    for corner in product(*starts):
        window = tuple(slice(start, start + PATCH) for start in corner)
        with torch.no_grad():
            patch = torch.from_numpy(volume[(slice(None), *window)]).float()
            total[(slice(None), *window)] += network(patch[None])[0].numpy() * gauss
        weights[window] += gauss
    return total / weights


def brought_back(values: np.ndarray, brain: Image, native: Image, order: int) -> np.ndarray:
    """Values in MNI on the grid of the scan, by SciPy."""
    pull = np.linalg.inv(brain.affine) @ TO_MNI @ native.affine
    return ndimage.affine_transform(values, pull[:3, :3], pull[:3, 3], native.shape, order=order)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("version", [1, 2])
def test_the_steps_are_those_of_strokeseg(tmp_path: Path, brains: list[Image], version: int, channels: int, half: bool):
    network = write_onnx(tmp_path / "model" / "net.onnx", channels=channels, patch=(PATCH,) * 3, half=half)
    if version == 2:
        inputs = [{"name": name, "reference": name} for name in ("T1", "FLAIR")[:channels]]
        (tmp_path / "model" / "net.json").write_text(json.dumps({"inputs": inputs}))
    prepared, posed = make_visit(tmp_path, brains[:channels])
    native = images.load(prepared.reference)
    job = make_job(tmp_path, prepared.visit)
    found = stages.segment(job, prepared, posed, tmp_path / "segment")

    expected = steps_in_mni(brains[:channels], network, version)
    probability = brought_back(expected, brains[0], native, order=1)
    carried = brought_back((expected >= 0.5).astype(float), brains[0], native, order=1 if version == 1 else 0)
    ours = images.data(images.load(found.probability))
    tolerance = 5e-3 if half else 1e-3
    inside = probability > 0.2  # where the box ends, SciPy and ITK differ in what lies outside
    assert 0.02 < (carried >= 0.5).mean() < 0.9
    assert np.abs(ours - probability)[inside].mean() < tolerance
    assert dice(images.data(images.load(found.mask)) > 0, carried >= 0.5) >= (0.99 if half else 0.999)
    assert found.model.terms.input.source == {1: "StrokeSeg 1 (StrokeSegLab)", 2: "StrokeSeg 2"}[version]
    assert "this App's brain extraction in place of its own" in found.model.terms.steps


def test_the_two_versions_differ(tmp_path: Path, brains: list[Image]):
    """Else the test above would not tell one from the other."""
    network = write_onnx(tmp_path / "net.onnx", patch=(PATCH,) * 3)
    first, second = (steps_in_mni(brains[:1], network, version) for version in (1, 2))
    assert np.abs(first - second).max() > 0.01


def test_a_threshold_of_the_user_is_applied_in_mni(tmp_path: Path, brains: list[Image]):
    network = write_onnx(tmp_path / "model" / "net.onnx", patch=(PATCH,) * 3)
    prepared, posed = make_visit(tmp_path, brains[:1])
    job = make_job(tmp_path, prepared.visit)
    job = replace(job, settings=replace(job.settings, threshold=0.6))
    found = stages.segment(job, prepared, posed, tmp_path / "segment")
    expected = steps_in_mni(brains[:1], network, 1) >= 0.6
    carried = brought_back(expected.astype(float), brains[0], images.load(prepared.reference), order=1) >= 0.5
    assert dice(images.data(images.load(found.mask)) > 0, carried) >= 0.999
