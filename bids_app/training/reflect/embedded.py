"""The anomaly model that comes with the App: REFLECT trained on synthetic healthy T1w.

``python -m bids_app.training.reflect.embedded --data DIR --out DIR`` draws the brains, trains what is not trained yet
and writes the model folder ``OUT/models/reflect-t1w``. The same command again goes on where it was cut off.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_app import app_version
from bids_app.anomaly import autoencoder as autoencoders
from bids_app.anomaly import velocity as velocities
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.focal import Focal
from bids_app.anomaly.folder import CARD
from bids_app.anomaly.model import AnomalyModel, load_anomaly_model
from bids_app.anomaly.morphology import Morphology
from bids_app.anomaly.velocity import Velocity
from bids_app.derivatives.read import read_object
from bids_app.networks.device import choose_device
from bids_app.training.embed import TEXTURES, TRAINING_DATA
from bids_app.training.record import check_record
from bids_app.training.reflect.folder import (
    for_places,
    measure,
    write_anomaly_model,
)
from bids_app.training.reflect.learn import (
    Corruption,
    Course,
    Place,
    in_words,
    mended,
    straighten,
    train_autoencoder,
    train_reflect,
)
from bids_app.training.reflect.loop import Processes, steps_taken
from bids_app.training.reflect.presets import DEFAULT, PRESETS
from bids_app.training.reflect.slices import Slices
from bids_app.training.reflect.synthetic import make_brains, slices_of
from bids_app.training.reflect.tasks import Change
from bids_app.training.series import Material
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.tissue import make_source

NAME = "reflect-t1w"
VALIDATION_BRAINS = 16
SMALL = PRESETS[DEFAULT]
CORRUPTIONS: Mapping[str, tuple[Change, ...]] = {
    "plain": (),
    "morphological": (Morphology(),),
    "focal": (Focal(),),
    "varied": (Morphology(), Focal()),
}
"""What is done to slices beside the authors' patches in the latent, by name."""
EMBEDDED = "varied"
LATENT = "f4"
"""That of the embedded model, whatever the preset has."""
SEEDS = {"train": 1, "validation": 7}
"""Of the series of synthetic brains."""


@dataclass(frozen=True)
class Brains:
    """Synthetic brains, ``(count, slices, rows, columns)`` uint8 grey values."""

    train: np.ndarray
    validation: np.ndarray


def load_brains(data: Path, out: Path, train: int, validation: int, workers: int = 1) -> Brains:
    """Brains of the training and of the validation heads, drawn once."""
    counts = {"train": train, "validation": validation}
    return Brains(**{split: _drawn(split, count, data, out, workers) for split, count in counts.items()})


def _drawn(split: str, count: int, data: Path, out: Path, workers: int) -> np.ndarray:
    path = out / f"brains_{split}_{count}.npy"
    if path.exists():
        return np.load(path, mmap_mode="r")
    heads, _ = prepare_split(data, out / "cache", split)
    sources = [make_source(head) for head in heads]
    return make_brains(Material(sources, [], [], [], seed=SEEDS[split]), count, path, workers)


def _whole(brains: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Brains, and that all of their slices count."""
    return ((brain, brain.any(axis=(1, 2))) for brain in brains)


def all_slices(brains: np.ndarray) -> Slices:
    """Their slices, every brain a subject of its own."""
    return slices_of(brains, [f"{number:03d}" for number in range(len(brains))])


@dataclass(frozen=True)
class Recipe:
    """What is trained, and for how long.

    Attributes
    ----------
    autoencoder, flow, reflow : int or float
        Optimizer steps, or minutes if `timed`; no reflow leaves REFLECT-1.
    timed : bool
    batch : int or None
        Slices that go through a network together; None as in the preset.
    rate : float
        Share of the preset's learning rates.
    corruption : str
        See `CORRUPTIONS`.
    context : int
    volumetric : bool
        See `velocity.VelocitySize`.
    latent : str
        ``f4`` or ``f8``.
    """

    autoencoder: float
    flow: float
    reflow: float
    timed: bool = False
    batch: int | None = None
    rate: float = 1.0
    corruption: str = EMBEDDED
    context: int = 0
    volumetric: bool = False
    latent: str = LATENT

    @property
    def name(self) -> str:
        """Name of the folder of the flow's checkpoints."""
        slices = "-volumetric" if self.volumetric else f"-{2 * self.context + 1}-slices" if self.context else ""
        latent = "" if self.latent == LATENT else f"-{self.latent}"
        return self.corruption + slices + latent

    @property
    def of_autoencoder(self) -> dict[str, Any]:
        """What the autoencoder depends on."""
        return {name: getattr(self, name) for name in ("autoencoder", "timed", "batch", "rate", "latent")}

    @property
    def straight(self) -> str:
        """Name of the folder of the reflow's checkpoints."""
        return f"{self.name}-straight"

    @property
    def model(self) -> str:
        """Name of the model that comes of it."""
        return NAME if self.name == EMBEDDED else f"{NAME}-{self.name}"


@dataclass(frozen=True)
class Workshop:
    """Where a recipe is carried out."""

    slices: Slices
    recipe: Recipe
    out: Path
    device: str = "cpu"
    workers: int = 0
    init: AnomalyModel | None = None

    def autoencoder(self) -> Autoencoder:
        """Trained, or as it was trained before: here, or in the model to begin with."""
        if self.init is not None:
            return self.init.autoencoder
        course = self._course("autoencoder", self.recipe.autoencoder)
        size = autoencoders.SIZES[SMALL.latents[self.recipe.latent]]
        return train_autoencoder(self.slices, size, course, self._place("autoencoder"))

    def velocity(self, autoencoder: Autoencoder) -> Velocity:
        """REFLECT-1, or REFLECT-2 if the recipe has steps for it."""
        known = self.init.velocity.size if self.init else velocities.SIZES[SMALL.velocity]
        size = replace(known, context=self.recipe.context, volumetric=self.recipe.volumetric)
        course = self._course("reflect", self.recipe.flow)
        corruption = Corruption(changes=CORRUPTIONS[self.recipe.corruption])
        place = self._place(self.recipe.name)
        begin = self.init.velocity if self.init else None
        first = train_reflect(self.slices, autoencoder, size, course, place, corruption, begin)
        if not self.recipe.reflow:
            return first
        course = self._course("reflect2", self.recipe.reflow)
        place = self._place(self.recipe.straight)
        return straighten(self.slices, autoencoder, first, course, place, corruption)

    def _course(self, step: str, length: float) -> Course:
        """That of the preset, for so many steps or minutes."""
        limit = {"minutes": length} if self.recipe.timed else {"steps": int(length)}
        course = SMALL.course(step, self.recipe.rate, self.recipe.batch, **limit, save_minutes=3)
        return replace(course, workers=self.workers)

    def _place(self, name: str) -> Place:
        def say(step: int, progress: float, values: dict[str, float]) -> None:
            print(f"{name} step {step} ({progress:.0%}) {values}", flush=True)

        return Place(self.out / name, Processes(0, 1, torch.device(self.device)), say)

    def steps(self, name: str) -> int:
        """Those that a training has taken; none without one."""
        return steps_taken(self.out / name)


def describe(workshop: Workshop, brains: Brains, heads: Sequence[str], commit: str, before: Mapping[str, int]) -> dict:
    """What the card says beside the threshold, after the training; `before` are the steps of the model that it began
    with."""
    recipe = workshop.recipe
    textures = [texture for head, texture in TEXTURES.items() if head in heads]
    return {
        "name": recipe.model,
        "version": app_version(),
        "commit": commit,
        "contrast": "T1w",
        "steps": 1 if recipe.reflow else 5,
        "masked": False,
        "preset": DEFAULT,
        "training_data": [TRAINING_DATA[0], *textures],
        "recipe": "bids_app.training.reflect.embedded: REFLECT-1"
        + (", then REFLECT-2" if recipe.reflow else "")
        + ", procedural textures"
        + in_words(CORRUPTIONS[recipe.corruption])
        + "; L1, structural and adversarial loss of the autoencoder; Muon; running average of the weights",
        "heads": list(heads),
        "brains": {"train": len(brains.train), "validation": len(brains.validation)},
        "optimizer_steps": {
            "autoencoder": before.get("autoencoder", workshop.steps("autoencoder")),
            "reflect1": before.get("reflect1", 0) + workshop.steps(recipe.name),
            "reflect2": workshop.steps(recipe.straight),
        },
        "known_failures": [
            f"Trained on synthetic scans of {len(heads)} heads, {len(textures)} of them with their real texture: its "
            "idea of a healthy brain is narrow.",
            "What looks unlike the training scans (motion, bias field, a scanner of another kind) is marked too.",
            "The healthy twin is a picture of what is usual, not of what this brain was before.",
        ],
        "use": "Research use only.",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw brains, train, calibrate, write the model folder."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.reflect.embedded", description=__doc__)
    text = "folder with label_maps/, lesion_masks/ and whole_head/"
    parser.add_argument("--data", type=Path, required=True, help=text)
    parser.add_argument("--out", type=Path, required=True, help="folder for brains, checkpoints and models")
    parser.add_argument("--brains", type=int, default=160, help="synthetic brains to train with (default: %(default)s)")
    steps = {step: stage.steps for step, stage in SMALL.stages.items()}
    parser.add_argument("--autoencoder-steps", type=int, default=steps["autoencoder"], help="default: %(default)s")
    parser.add_argument("--flow-steps", type=int, default=steps["reflect"], help="default: %(default)s")
    text = "0: stop at REFLECT-1 (default: %(default)s)"
    parser.add_argument("--reflow-steps", type=int, default=steps["reflect2"], help=text)
    text = "wall-clock limits of the three trainings, in place of steps"
    parser.add_argument("--minutes", type=float, nargs=3, metavar=("AUTOENCODER", "FLOW", "REFLOW"), help=text)
    parser.add_argument("--batch", type=int, help="slices that go through a network together (default: the preset's)")
    parser.add_argument("--rate", type=float, default=1.0, help="share of the preset's learning rates (default: 1)")
    text = "beside the authors' patches (default: %(default)s)"
    parser.add_argument("--corruption", choices=list(CORRUPTIONS), default=EMBEDDED, help=text)
    parser.add_argument("--context", type=int, default=0, help="slices on either side (default: %(default)s)")
    parser.add_argument("--volumetric", action="store_true", help="convolutions across slices")
    text = "cells of the latents: 4 or 8 pixels on a side (default: %(default)s; with --init those of the model)"
    parser.add_argument("--latent", choices=list(SMALL.latents), default=LATENT, help=text)
    text = "model folder to begin with: its autoencoder is kept, its velocity network trained on"
    parser.add_argument("--init", type=Path, help=text)
    parser.add_argument("--commit", default="n/a", help="commit of the code, for the card")
    text = "threads that draw brains, processes that draw batches (default: %(default)s)"
    parser.add_argument("--workers", type=int, default=1, help=text)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    brains = load_brains(options.data, options.out, options.brains, VALIDATION_BRAINS, options.workers)
    lengths = options.minutes or (options.autoencoder_steps, options.flow_steps, options.reflow_steps)
    init = load_anomaly_model(options.init) if options.init else None
    latent = f"f{init.autoencoder.size.factor}" if init else options.latent
    shape = options.corruption, options.context, options.volumetric, latent
    recipe = Recipe(*lengths, options.minutes is not None, options.batch, options.rate, *shape)
    if not recipe.flow or not (recipe.autoencoder or options.init):
        parser.error("nothing is trained in 0 steps or minutes: only the reflow may have none")
    device = choose_device(options.device)
    loaders = options.workers if options.workers > 1 else 0
    if init is None:
        record = recipe.of_autoencoder | {"brains": options.brains}
        check_record(options.out / "autoencoder", "autoencoder", record)
    record = asdict(recipe) | {"init": init.sha256 if init else "", "brains": options.brains}
    check_record(options.out / recipe.name, recipe.name, record)
    workshop = Workshop(all_slices(brains.train), recipe, options.out, device.name, loaders, init)
    autoencoder = workshop.autoencoder()
    velocity = workshop.velocity(autoencoder)
    folder = options.out / "models" / recipe.model
    heads = [head.name for head in prepare_split(options.data, options.out / "cache", "train")[0]]
    before = read_object(options.init / CARD).get("optimizer_steps", {}) if options.init else {}
    card = describe(workshop, brains, heads, options.commit, before)
    held_out = mended(velocity, autoencoder, all_slices(brains.validation), card["steps"])
    write_anomaly_model(folder, autoencoder, velocity, card | {"scores": {"mended": round(held_out, 4)}})
    measure(folder, device, _whole(for_places(brains.train)), _whole(brains.validation))
    print(folder)


if __name__ == "__main__":
    main()
