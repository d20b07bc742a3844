"""``afterstroke train autoencoder``, ``reflect``, ``reflect2`` and ``calibrate``, from the dataset to the model folder.

A second call goes on where the first was left. Started by ``torchrun``, every process trains on a GPU of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from bids_app import app_version
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.focal import Focal
from bids_app.anomaly.folder import BOTH, CARD, read_folder
from bids_app.anomaly.model import load_anomaly_model
from bids_app.anomaly.morphology import Morphology
from bids_app.anomaly.slices import SHAPE, margins
from bids_app.anomaly.tensors import as_tensor
from bids_app.anomaly.textures import find_pictures, read_textures, texture_shape
from bids_app.anomaly.velocity import Velocity, VelocitySize
from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import write_json, write_table
from bids_app.errors import ConfigError, DatasetError, ExitCode, NoInputError, UnavailableError, UsageError
from bids_app.networks.device import Device, choose_device, release_memory
from bids_app.networks.registry import embedded_models
from bids_app.networks.weights import folder_sha256, sha256
from bids_app.settings import AnomalyTraining, Settings
from bids_app.study.folders import check_places, check_writable
from bids_app.training.own.progress import Reporter, duration, reporter
from bids_app.training.record import RECORD, check_record, check_result
from bids_app.training.reflect import presets
from bids_app.training.reflect.folder import (
    Calibration,
    for_places,
    measure,
    read_trained_autoencoder,
    write_anomaly_model,
)
from bids_app.training.reflect.learn import (
    CRITIC_RATE,
    TEXTURE_COUNT,
    Corruption,
    Course,
    Place,
    in_words,
    mended,
    stacks_of,
    straighten,
    train_autoencoder,
    train_reflect,
)
from bids_app.training.reflect.loop import LATEST, Processes, Report, own_device, processes
from bids_app.training.reflect.losses import Critic
from bids_app.training.reflect.lpips import read_lpips
from bids_app.training.reflect.scans import (
    Found,
    PreparedScan,
    find_scans,
    gather,
    healthy_brains,
    prepare_scans,
    render_found,
    scan_table,
)
from bids_app.training.reflect.slices import Slices
from bids_app.training.reflect.tasks import Change, Reconstruction
from bids_app.wording import counted
from bids_app.workflow.tools import limit_threads

SCANS, HISTORY, FINISHED = "scans.tsv", "history.tsv", "finished.json"
FAILED = "failed"
"""In the record of a training: scans that could not be prepared when it was begun."""
RECORDED = (
    "step", "contrast", "preset", "morphology", "focal", "masked", "side", "seed",
)  # fmt: skip
"""Options that may not change when a training goes on."""
USE = "Research use only."
THEIR_CRITIC_FROM = 50001
SCORED = 128
"""Held-out slices that a finished network is validated on."""
STEPS_OF = {"reflect": 5, "reflect2": 1}
NOUNS = {
    "autoencoder": "an autoencoder",
    "reflect": "REFLECT-1",
    "reflect2": "REFLECT-2",
}


@dataclass(frozen=True)
class Start:
    """What a training begins with: nothing, an autoencoder, or a whole model.

    Attributes
    ----------
    autoencoder : Autoencoder or None
    velocity : Velocity or None
    slice_shape : tuple of int or None
        Rows and columns that the networks take; None is the box.
    """

    autoencoder: Autoencoder | None = None
    velocity: Velocity | None = None
    slice_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scans:
    """Prepared scans by use, and the table of all."""

    train: tuple[PreparedScan, ...]
    validation: tuple[PreparedScan, ...]
    table: pd.DataFrame

    @property
    def all(self) -> tuple[PreparedScan, ...]:
        return self.train + self.validation


def work_folder(settings: AnomalyTraining) -> Path:
    """Folder of the checkpoints and of the record of a training."""
    return settings.work_dir / "training" / f"{settings.name}-{settings.step}"


def train_anomaly(settings: AnomalyTraining, dry_run: bool = False) -> ExitCode:
    """Train a network of REFLECT on healthy scans, or calibrate a model with them.

    Parameters
    ----------
    dry_run : bool
        Print scans and plan, and write nothing.

    Raises
    ------
    AppError
        Whatever the user can mend.
    """
    started = time.monotonic()
    device = choose_device(own_device(settings.device))
    settings, start = _with_start(settings)
    if start.slice_shape:
        margins(SHAPE[1:], start.slice_shape)
    places = Settings(settings.out_dir, settings.bids_dir, settings.work_dir)
    check_places(places)
    if not settings.calibrates:
        presets.batch_of(settings, _stack(settings, start))
        check_result(work_folder(settings), settings.out_dir / settings.name)
    found = find_scans(settings)
    if dry_run:
        print(render_found(found, settings.contrast), *_plan(settings, device, start), sep="\n", flush=True)
        return ExitCode.OK
    with processes(device.name) as group, reporter() as told:
        limit_threads(settings.nprocs)
        say = told.say if group.first else lambda text: None
        say("\n".join([render_found(found, settings.contrast), *_plan(settings, device, start), ""]))
        if group.first:
            check_writable(places)
        ready = group.from_first(lambda: prepare_scans(found, settings, say))
        limit_threads(max(1, settings.nprocs // group.count))
        late = group.from_first(lambda: _late(settings, ready))
        table = scan_table(found, ready, late)
        scans = _by_use(found, [each for each in ready if each.scan.label not in late], table)
        if settings.calibrates:
            if group.first:
                write_table(work_folder(settings) / SCANS, table)
                _calibrate(settings, scans, device, say)
        else:
            _train(settings, found, scans, start, device, group, told)
        group.wait()  # whoever leaves first ends the others
        say(f"done in {duration(time.monotonic() - started)}")
    return ExitCode.OK


def _late(settings: AnomalyTraining, ready: Sequence[PreparedScan]) -> frozenset[str]:
    """Labels of scans that failed when a training was begun, and could be prepared since: it goes on without them."""
    failed = read_object(work_folder(settings) / RECORD).get(FAILED, ())
    return frozenset(each.scan.label for each in ready) & frozenset(failed)


def _by_use(found: Found, ready: Sequence[PreparedScan], table: pd.DataFrame) -> Scans:
    """Who is learned from, and who is held out.

    Raises
    ------
    DatasetError
        If there are too few of either.
    """
    held = found.among(ready).held_out
    scans = Scans(
        tuple(each for each in ready if each.scan.visit.subject not in held),
        tuple(each for each in ready if each.scan.visit.subject in held),
        table,
    )
    if len(scans.validation) < 2 or (found.learns and not scans.train):
        raise DatasetError("Too few scans could be prepared.", "See what was said of the others above.")
    return scans


def _with_start(settings: AnomalyTraining) -> tuple[AnomalyTraining, Start]:
    """What a training begins with; the contrast is that of a model, if it begins with one.

    Raises
    ------
    ConfigError
        If it cannot be used.
    """
    if settings.lpips is not None:
        read_lpips(settings.lpips)  # before hours of preparation
    if settings.textures is not None:
        find_pictures(settings.textures)
    if settings.step == "autoencoder":
        settings = presets.resolved(settings)
        return settings, Start(slice_shape=presets.preset_of(settings).slice_shape)
    if settings.step == "reflect" and settings.init is None:
        return _from_autoencoder(settings)
    _refuse_embedded(settings)
    model = load_anomaly_model(settings.init or settings.start, with_usual=False)
    card = model.card
    settings = replace(
        presets.resolved(settings, card.preset),
        contrast=card.contrast,
        masked=settings.masked or card.masked,
        side=settings.side or card.side,
    )
    return settings, Start(model.autoencoder, model.velocity, card.slice_shape)


def _from_autoencoder(settings: AnomalyTraining) -> tuple[AnomalyTraining, Start]:
    trained = read_trained_autoencoder(settings.start)
    if trained.contrast not in (None, settings.contrast):
        raise ConfigError(
            f"The autoencoder in {settings.start} is one of {trained.contrast}, and this training one of "
            f"{settings.contrast}.",
            f"Use --contrast {trained.contrast}, or train an autoencoder of {settings.contrast}.",
        )
    return presets.resolved(settings, trained.preset), Start(trained.network, slice_shape=trained.slice_shape)


def _refuse_embedded(settings: AnomalyTraining) -> None:
    embedded = {model.folder.resolve() for model in embedded_models()}
    if settings.calibrates and settings.start.resolve() in embedded:
        raise UsageError(
            f"{settings.start} comes with the App, and stays as it is.",
            "Copy the folder, calibrate the copy, and give its path as --anomaly-model.",
        )


def _plan(settings: AnomalyTraining, device: Device, start: Start) -> list[str]:
    """The plan in words."""
    places = [f"device    {device.description}", f"work      {work_folder(settings)}"]
    if settings.calibrates:
        return [f"model     {settings.start}", *places]
    lines = [f"training  {NOUNS[settings.step]}, preset {settings.preset}"]
    lines += [f"start     {settings.init or settings.start}"] if settings.init or settings.start else []
    return [*lines, *places, f"model     {settings.out_dir / settings.name}"]


def _calibrate(settings: AnomalyTraining, scans: Scans, device: Device, say: Callable[[str], None]) -> None:
    """Measure all scans, and write the threshold into the model's card."""
    folder = read_folder(settings.start).path
    places, held_out = healthy_brains(for_places(scans.all)), healthy_brains(scans.all)
    measured = measure(folder, device, places, held_out, apart=False)
    say(told_of(measured, "scans"))


def told_of(measured: Calibration, scans: str) -> str:
    """A calibration in a sentence."""
    said = f"threshold {measured.threshold:.4f}, from {measured.scans} {scans}: "
    said += f"{measured.above:.1%} of their brains lie above it"
    if measured.above_by_place is None:
        return said
    said += f", {measured.above_by_place:.1%} above the limits of their places, which makes "
    return f"{said}{measured.findings:.1f} findings a brain"


def _train(
    settings: AnomalyTraining,
    found: Found,
    scans: Scans,
    start: Start,
    device: Device,
    group: Processes,
    told: Reporter,
) -> None:
    """Train the network, and let the first process finish the model."""
    slices = _in_frame(gather(scans.train), start.slice_shape)
    held_out = _in_frame(gather(scans.validation), start.slice_shape)
    stack = _stack(settings, start)
    for these, use in ((slices, "training"), (held_out, "validation")):
        if not len(these.stacks(stack)):
            raise NoInputError(
                f"No scan for {use} has {counted(stack, 'slice')} without lesion that follow each other.",
                "Give more scans." if stack == 1 else "Give more scans, or leave out --context and --volumetric.",
            )
    if settings.step != "autoencoder" and len(set(held_out.subjects)) < 2:
        raise NoInputError(
            "Fewer than two scans for validation have slices without lesion: no threshold could be measured.",
            "Give more scans.",
        )
    course = presets.course_of(settings, len(slices), group.count, stack)
    group.from_first(lambda: _check_record(settings, found, scans, start, course, group.count))
    if group.first:
        write_table(work_folder(settings) / SCANS, scans.table)
    if group.from_first(lambda: _is_finished(settings)):
        if group.first:
            told.say(f"{settings.out_dir / settings.name} was finished before")
        return
    work = work_folder(settings)
    place = Place(work, group, _progress(told, work / HISTORY), partial(_looked_at, settings, start, held_out))
    try:
        networks = _trained(settings, slices, start, course, place)
        scores = _scores(settings, *networks, held_out) if group.first else {}
    except RuntimeError as error:
        release_memory(error)
        raise UnavailableError(
            f"The memory of {device.name} does not suffice for steps of {counted(course.batch, 'slice')}.",
            "Give a smaller --batch, and an --accumulation of several.",
        ) from error
    if group.first:
        card = _card(settings, scans, course, group.count) | {"slice_shape": start.slice_shape, "scores": scores}
        _finish(settings, scans, networks, card, device, told)


def _finish(
    settings: AnomalyTraining,
    scans: Scans,
    networks: tuple[Autoencoder, Velocity | None],
    card: dict[str, Any],
    device: Device,
    told: Reporter,
) -> None:
    """Write the folder, calibrate."""
    autoencoder, velocity = networks
    folder = settings.out_dir / settings.name
    write_anomaly_model(folder, autoencoder, velocity, card)
    told.say("  ".join(f"{name} {value:g}" for name, value in card["scores"].items()))
    if velocity is None:
        told.say(f"{folder}: go on with afterstroke train reflect --autoencoder {folder}")
    else:
        measured = measure(folder, device, healthy_brains(for_places(scans.train)), healthy_brains(scans.validation))
        told.say(told_of(measured, "held-out scans"))
        told.say(f"{folder}: use it with --anomaly-model {folder}")
    work = work_folder(settings)
    write_json(work / FINISHED, {"checkpoint": sha256(work / LATEST)})


def _is_finished(settings: AnomalyTraining) -> bool:
    """Whether the model is there, made of the last checkpoint: it stays, with whatever its card was told since."""
    work = work_folder(settings)
    made = read_object(work / FINISHED).get("checkpoint")
    if made is None or not (settings.out_dir / settings.name / CARD).is_file():
        return False
    return (work / LATEST).is_file() and sha256(work / LATEST) == made


def _stack(settings: AnomalyTraining, start: Start) -> int:
    """How many slices of a batch follow each other."""
    if settings.step == "autoencoder":
        return 1
    return stacks_of(_velocity_size(settings, start)).length


def _velocity_size(settings: AnomalyTraining, start: Start) -> VelocitySize:
    """That of the network to begin with, which may learn to see neighbours, else the one asked for.

    Raises
    ------
    UsageError
        If it sees neighbours already, and others than those asked for.
    """
    if start.velocity is None:
        return presets.velocity_size(settings)
    known = start.velocity.size
    if not settings.context and not settings.volumetric:
        return known
    size = replace(known, context=settings.context, volumetric=settings.volumetric)
    if known.sees_neighbours and known != size:
        raise UsageError(
            "The model of --init sees slices beside its own already, and others than --context and --volumetric say.",
            "Leave these options out, or begin with a model of single slices.",
        )
    return size


def _trained(
    settings: AnomalyTraining, slices: Slices, start: Start, course: Course, place: Place
) -> tuple[Autoencoder, Velocity | None]:
    """The networks after the training that was asked for."""
    if settings.step == "autoencoder":
        losses, rate = _reconstruction(settings, course, place)
        return train_autoencoder(slices, presets.autoencoder_size(settings), course, place, losses, rate), None
    corruption = _corruption(settings, slices)
    if settings.step == "reflect":
        size = _velocity_size(settings, start)
        return start.autoencoder, train_reflect(
            slices, start.autoencoder, size, course, place, corruption, start.velocity
        )
    return start.autoencoder, straighten(slices, start.autoencoder, start.velocity, course, place, corruption)


def _reconstruction(
    settings: AnomalyTraining, course: Course, place: Place
) -> tuple[Reconstruction | None, float]:
    """Losses of an autoencoder, and the rate of its critic; None for ours.

    With the weights of LPIPS they are the authors', whose critic begins at half of a shorter training.
    """
    if settings.lpips is None:
        return None, CRITIC_RATE
    perceptual = read_lpips(settings.lpips).to(place.group.device)
    begin = min(THEIR_CRITIC_FROM, course.schedule.steps // 2)
    losses = Reconstruction(Critic(64, 3, dense=True), perceptual, adversarial=0.5, adaptive=True, critic_from=begin)
    return losses, presets.PRESETS["paper"].stages["autoencoder"].rate


def _corruption(settings: AnomalyTraining, slices: Slices) -> Corruption:
    textures = None
    if settings.textures is not None:
        rng = np.random.default_rng(settings.seed)
        textures = read_textures(settings.textures, TEXTURE_COUNT, texture_shape(slices.images.shape[1:]), rng)
    return Corruption(textures, _changes(settings))


def _changes(settings: AnomalyTraining) -> tuple[Change, ...]:
    return tuple(
        change for change, asked in ((Morphology(), settings.morphology), (Focal(), settings.focal)) if asked
    )


def _in_frame(slices: Slices, shape: tuple[int, int] | None) -> Slices:
    """Slices in the middle of the frame that the networks take."""
    if shape is None:
        return slices
    return replace(slices, images=np.pad(slices.images, [(0, 0), *margins(slices.images.shape[1:], shape)]))


def _progress(told: Reporter, history: Path) -> Report:
    """Tells how far a training is, and adds a row to a table."""
    first: tuple[float, float] | None = None

    def say(step: int, progress: float, values: dict[str, float]) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (now, progress)
        elapsed, done = now - first[0], progress - first[1]
        left = f", {duration(elapsed * (1 - progress) / done)} left" if done > 0 else ""
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        told.say(f"step {step} ({progress:.0%}): {shown}{left}")
        _add_row(history, {"step": step} | {name: round(value, 6) for name, value in values.items()})

    return say


def _add_row(path: Path, row: dict[str, float]) -> None:
    """Add a step to a table of steps, which ends with it."""
    before = pd.read_csv(path, sep="\t").to_dict("records") if path.exists() else []
    write_table(path, pd.DataFrame([each for each in before if each["step"] < row["step"]] + [row]))


def _looked_at(
    settings: AnomalyTraining, start: Start, held_out: Slices, networks: Mapping[str, nn.Module]
) -> dict[str, float]:
    """Scores on the way, on a quarter of the slices of those at the end: not to take long."""
    autoencoder = networks.get("autoencoder", start.autoencoder)
    return _scores(settings, autoencoder, networks.get("velocity"), held_out, slices=SCORED // 4)


def _scores(
    settings: AnomalyTraining,
    autoencoder: Autoencoder,
    velocity: Velocity | None,
    held_out: Slices,
    slices: int = SCORED,
) -> dict[str, float]:
    """On held-out slices: the mean absolute error of an autoencoder, or the share of corruption that is undone."""
    if velocity is not None:
        steps = STEPS_OF[settings.step]
        return {"mended": round(mended(velocity, autoencoder, held_out, steps, settings.seed, slices), 4)}
    chosen = np.unique(np.linspace(0, len(held_out) - 1, slices).astype(int))
    images = as_tensor(held_out.images[chosen]).to(next(autoencoder.parameters()).device)
    with torch.inference_mode():
        made = torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in images.split(8)])
    brain = images > -1
    return {"validation_l1": round(float(F.l1_loss(made[brain], images[brain])), 5)}


def _card(settings: AnomalyTraining, scans: Scans, course: Course, processes: int) -> dict[str, Any]:
    """What the card says beside sizes, scores and threshold."""
    before = f" from {settings.init.name} on" if settings.init else ""
    with_masks = ", slices without lesion" if settings.masks else ""
    recipe = f"afterstroke train {settings.step}{before}, preset {settings.preset}: {course.schedule.steps} steps of "
    recipe += f"{course.batch * course.schedule.accumulation * processes} slices"
    if settings.step != "autoencoder":
        recipe += in_words(_changes(settings))
    return {
        "name": settings.name,
        "version": app_version(),
        "contrast": settings.contrast,
        **({"steps": STEPS_OF[settings.step]} if settings.step in STEPS_OF else {}),
        "masked": settings.masked,
        "side": settings.side or BOTH,
        "preset": settings.preset,
        "training_data": f"{len(scans.train)} scans{with_masks}",
        "recipe": recipe,
        "use": USE,
    }


def _weights_sha256(path: Path | None) -> str:
    """Over the networks in a folder, or a file; the card may have been calibrated meanwhile."""
    if path is None or path.is_file():
        return sha256(path) if path else ""
    return folder_sha256(file for file in path.iterdir() if file.suffix in (".pth", ".pt"))


def _files_digest(folder: Path | None) -> str:
    """Over names and sizes of the files below a folder: other files in the same place are other textures."""
    if folder is None:
        return ""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _networks(settings: AnomalyTraining, start: Start) -> dict[str, Any]:
    """Sizes of what is trained."""
    if settings.step == "autoencoder":
        return {"autoencoder": presets.autoencoder_size(settings).to_card()}
    return {"velocity": _velocity_size(settings, start).to_card()}


def _check_record(
    settings: AnomalyTraining, found: Found, scans: Scans, start: Start, course: Course, processes: int
) -> None:
    """Refuse to go on with other scans or settings than the training was begun with.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    content = {name: getattr(settings, name) for name in RECORDED}
    work, used = work_folder(settings), {each.scan.label: each.fingerprint for each in scans.all}
    failed = [each.label for each in found.scans if each.label not in used]
    content |= _networks(settings, start) | {
        "start": _weights_sha256(settings.init or settings.start),
        "textures": _files_digest(settings.textures),
        "lpips": _files_digest(settings.lpips),
        "steps": course.schedule.steps,
        "batch": course.batch,
        "accumulation": course.schedule.accumulation,
        "processes": processes,
        "result": str(settings.out_dir / settings.name),
        "scans": used,
        FAILED: read_object(work / RECORD).get(FAILED, failed),
    }
    check_record(work, settings.name, content)
