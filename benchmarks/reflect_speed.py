"""Our anomaly map of a brain against REFLECT's formulas written down plainly, with the same networks: time, memory.

``python -m benchmarks.reflect_speed`` prints the table in docs/benchmarks.md. The plain version takes, as the authors'
evaluation does, all slices of the box, empty ones too, in a frame of 256 x 256, fp32, 16 at a time, and masks nothing.
Weights are random: they change no time. Each run is a process of its own and both run in turn; what counts are the
ratios within one run of this script.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    # a process counts the memory of the one that started it as its own peak: PyTorch is for the started ones alone
    from bids_app.anomaly.autoencoder import Autoencoder
    from bids_app.anomaly.model import AnomalyModel
    from bids_app.anomaly.velocity import Velocity

FRAME = (256, 256)
"""Rows and columns of a slice in the authors' evaluation."""
BATCH = 16
SHAPE, SEMIAXES = (160, 192, 160), (67, 80, 67)
"""The box, and an ellipsoid of 1.5 L in it; slices, rows, columns, in mm."""
TOLERANCE = 1e-4
"""How far the two maps may be apart in fp32."""


def make_brain() -> np.ndarray:
    """Grey values of an ellipsoid of smooth noise in the middle of the box, uint8; 0 around it."""
    # slice by slice: a whole volume of noise would be the peak of memory that networks are to be compared by
    heights, rows, columns = (
        (np.arange(size) - (size - 1) / 2) / half for size, half in zip(SHAPE, SEMIAXES, strict=True)
    )
    random = np.random.default_rng(0)
    brain = np.zeros(SHAPE, np.uint8)
    for grey, height in zip(brain, heights, strict=True):
        noise = ndimage.gaussian_filter(random.normal(size=grey.shape), 2)
        inside = height**2 + rows[:, None] ** 2 + columns**2 <= 1
        grey[inside] = np.clip(128 + 50 * noise / noise.std(), 1, 255)[inside]
    return brain


def middle(grey: np.ndarray, slices: int) -> np.ndarray:
    """So many slices from the middle of the brain; all of them if there are no more, or for 0."""
    start = (len(grey) - slices) // 2
    return grey[start : start + slices] if 0 < slices < len(grey) else grey


def make_networks(size: str, autoencoder: str) -> tuple[Autoencoder, Velocity]:
    """Networks of these sizes with random weights, the same every time."""
    import torch

    from bids_app.anomaly import autoencoder as autoencoders
    from bids_app.anomaly import velocity as velocities

    torch.manual_seed(0)
    coder = autoencoders.Autoencoder(autoencoders.SIZES["tiny-f4" if size == "tiny" else autoencoder])
    flow = velocities.Velocity(velocities.SIZES[size], coder.size.latent_channels)
    return coder.eval().requires_grad_(False), flow.eval().requires_grad_(False)


def framed(grey: np.ndarray, frame: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Slices from -1 to 1 in the middle of a frame, ``(n, 1, *frame)``; rows and columns where they lie."""
    corner = [(size - length) // 2 for size, length in zip(frame, grey.shape[1:], strict=True)]
    place = (slice(corner[0], corner[0] + grey.shape[1]), slice(corner[1], corner[1] + grey.shape[2]))
    values = np.full((len(grey), 1, *frame), -1, np.float32)
    values[:, 0, place[0], place[1]] = grey / 127.5 - 1
    return values, place


def plain_maps(
    coder: Autoencoder, flow: Velocity, grey: np.ndarray, steps: int, frame: tuple[int, int] = FRAME
) -> np.ndarray:
    """Anomaly maps by the formulas of Beizaee et al. (MICCAI 2025; ``evaluate_REFLECT.py``), nothing left out or saved.

    Parameters
    ----------
    coder, flow : Autoencoder, Velocity
        Latents of the autoencoder are already scaled.
    grey : ndarray
        ``(slices, rows, columns)`` uint8; 0 outside of the brain.
    steps : int
        Euler steps.
    frame : tuple of int
        Rows and columns that the networks see.

    Returns
    -------
    ndarray
        The shape of `grey`, in [0, 1].
    """
    import torch

    device = next(flow.parameters()).device
    maps = []
    with torch.no_grad():
        for start in range(0, len(grey), BATCH):
            values, place = framed(grey[start : start + BATCH], frame)
            latent = coder.encode(torch.from_numpy(values).to(device))
            moved = latent
            for k in range(steps):
                moved = moved + flow(moved, k / steps) / steps
            pixels = (coder.decode(moved) - coder.decode(latent)).abs()[:, 0].cpu().numpy()
            cells = (moved - latent).abs().mean(dim=1).cpu().numpy()
            for pixel, cell in zip(pixels, cells, strict=True):
                image = ndimage.gaussian_filter(2.5 * np.clip(pixel, 0, 0.4), 3)
                coarse = ndimage.gaussian_filter(2.5 * np.clip(cell, 0, 0.4), 1)
                zoom = [large / small for large, small in zip(image.shape, coarse.shape, strict=True)]
                fine = ndimage.zoom(coarse, zoom, order=1, mode="mirror", grid_mode=True)
                maps.append((0.5 * image + 0.5 * fine)[place])
    return np.stack(maps)


def our_model(coder: Autoencoder, flow: Velocity, frame: tuple[int, int] | None, device: str) -> AnomalyModel:
    """The networks as the App runs them; without a frame on the box itself."""
    from bids_app.anomaly.folder import Card
    from bids_app.anomaly.model import made_ready
    from bids_app.networks.device import choose_device

    return made_ready(Card("random", slice_shape=frame), "", coder, flow, choose_device(device))


def largest_difference(size: str, autoencoder: str, steps: int, device: str) -> float:
    """Between both maps of the middle slice, inside the brain, when the networks see the same frame."""
    grey = middle(make_brain(), 1)
    frame = grey.shape[1:] if size == "tiny" else FRAME
    coder, flow = (network.to(device) for network in make_networks(size, autoencoder))
    plain = plain_maps(coder, flow, grey, steps, frame)
    ours = our_model(coder, flow, frame, device).explain(grey, steps).anomaly
    return float(np.abs(plain - ours)[grey > 0].max())


def prepared(which: str, options: argparse.Namespace) -> tuple[Callable[[np.ndarray], object], bool]:
    """A function that maps a brain, and whether it takes empty slices too."""
    coder, flow = make_networks(options.size, options.autoencoder)
    if which == "ours":
        model = our_model(coder, flow, None if options.size == "tiny" else FRAME, options.device)
        return (lambda grey: model.explain(grey, options.step)), False
    coder, flow = coder.to(options.device), flow.to(options.device)
    return (lambda grey: plain_maps(coder, flow, grey, options.step)), True


def measure(which: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a brain, and MiB at the peak: of GPU memory, or beyond a process with PyTorch and a brain alone."""
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel  # noqa: F401 its import is no part of the measurement

    torch.set_num_threads(options.threads)
    brain = make_brain()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run, takes_empty = prepared(which, options)
    whole = len(brain) if takes_empty else int(brain.any(axis=(1, 2)).sum())
    shown = middle(brain, options.slices)
    timed = min(len(shown), whole)
    if options.device != "cpu":
        run(middle(brain, BATCH))  # starts the GPU and picks its kernels
    cpu, wall = time.process_time(), time.perf_counter()
    run(shown)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if options.device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    return {"cpu": cpu * whole / timed, "wall": wall * whole / timed, "mib": peak}


def in_process(what: str, size: str, step: int, options: argparse.Namespace) -> dict[str, float]:
    """`measure`, or the difference of the maps, in a fresh interpreter."""
    arguments = ["--one", what, "--size", size, "--step", str(step)]
    for name in ("autoencoder", "threads", "device", "slices"):
        arguments += [f"--{name}", str(getattr(options, name))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, "-m", "benchmarks.reflect_speed", *arguments]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def row(size: str, step: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    difference = in_process("difference", size, step, options)["difference"]
    if options.device == "cpu" and difference > TOLERANCE:
        raise SystemExit(f"The maps of {size} differ by {difference:.1e}.")
    clock = "cpu" if options.device == "cpu" else "wall"
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(options.repeats):
        for which, runs in found.items():
            runs.append(in_process(which, size, step, options))
    plain, ours = (min(run[clock] for run in runs) for runs in found.values())
    memory = " | ".join(f"{max(run['mib'] for run in runs):.0f}" for runs in found.values())
    coder = "tiny-f4" if size == "tiny" else options.autoencoder
    return (
        f"| {size}, {coder} | {step} | {options.slices or 'all'} | {plain:.1f} | {ours:.1f} | {plain / ours:.2f} "
        f"| {memory} | {difference:.0e} |"
    )


def compare(options: argparse.Namespace) -> None:
    """Print the table."""
    clock = "CPU" if options.device == "cpu" else "wall"
    print(
        f"| networks | steps | slices timed | plain, {clock} s a brain | ours, {clock} s a brain | times faster "
        "| MiB plain | MiB ours | largest difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for step in options.steps:
            print(row(size, step, options), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reflect_speed", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny"], help="tiny XS S M L XL (default: tiny)")
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 5], help="Euler steps (default: 1 5)")
    parser.add_argument("--autoencoder", default="kl-f8", help="of sizes other than tiny (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=0, help="time so many and scale up (default: the whole brain)")
    parser.add_argument("--repeats", type=int, default=1, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--one", choices=("plain", "ours", "difference"), help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one == "difference":
        found = largest_difference(options.size, options.autoencoder, options.step, options.device)
        print(json.dumps({"difference": found}))
    elif options.one:
        print(json.dumps(measure(options.one, options)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
