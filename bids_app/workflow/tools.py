"""The heavy things a worker loads once and keeps: the device, the brain extraction, the lesion model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bids_app.anomaly.model import AnomalyModel, load_anomaly_model
from bids_app.derivatives.write import locked
from bids_app.lesion.model import LesionModels, load_models
from bids_app.networks.device import Device, choose_device, set_threads
from bids_app.preprocessing.brain import BrainExtractor, weights_sha256
from bids_app.settings import Settings


@cache
def device(request: str) -> Device:
    """The device of this process; decided once."""
    return choose_device(request)


@cache
def brain_extractor(request: str) -> BrainExtractor:
    """The brain extraction network on the device."""
    return BrainExtractor(device(request).name)


@cache
def brain_weights() -> str:
    """Checksum of the brain extraction's weights."""
    return weights_sha256()


@cache
def lesion_models(folder: Path, folds: tuple[str, ...], request: str) -> LesionModels:
    """The lesion model, and what stands in for it, on the device."""
    return load_models(folder, folds, device(request))


@cache
def anomaly_model(folder: Path, request: str) -> AnomalyModel:
    """The anomaly model on the device."""
    return load_anomaly_model(folder, device(request))


@contextmanager
def exclusive_device(settings: Settings) -> Iterator[None]:
    """Hold the GPU, so that one visit at a time uses it, whichever worker it is in; the processor is not held."""
    if not device(settings.device).is_gpu:
        yield
        return
    with locked(settings.work_dir / f"{device(settings.device).name.replace(':', '')}.lock"):
        yield


def limit_threads(threads: int) -> None:
    """Let every library of this process use so many threads."""
    import SimpleITK as sitk

    set_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
