"""Our predictor against nnU-Net's own on the same model folders and scan: time, memory, agreement.

``python -m benchmarks.inference`` prints the table in docs/benchmarks.md. Both run in turn, each in a process of its
own, with the same threads and networks; what counts are the ratios within one run of this script.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

#: Non-zero box in mm of the brain that is predicted: an average adult, and a large head.
BRAINS = {"average": (145, 176, 137), "large": (168, 196, 160)}

#: Table rows: name, resampling of the plans, brain, folds, mirrored axes.
CASES = {
    "one fold, one window": ("resample_torch_fornnunet", "average", 1, None),
    "one fold, one window, nnU-Net's default resampling": ("resample_data_or_seg_to_shape", "average", 1, None),
    "one fold, 8 windows": ("resample_torch_fornnunet", "large", 1, None),
    "five folds, one window": ("resample_torch_fornnunet", "average", 5, None),
    "one fold, one window, 8 mirrors": ("resample_torch_fornnunet", "average", 1, (0, 1, 2)),
}


def make_brain(box: tuple[int, int, int]):
    """An ellipsoid of smooth noise in the middle of an MNI grid of 1 mm, zero around it."""
    from scipy import ndimage

    from bids_app.images import on_affine

    shape = np.array((197, 233, 189))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-98, -134, -72)
    axes = [(np.arange(size) - (size - 1) / 2) / (side / 2) for size, side in zip(shape, box, strict=True)]
    inside = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) <= 1
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 3)
    return on_affine(np.where(inside, 100 + 1000 * noise, 0).astype(np.float32), affine)


def write_model(folder: Path, resampling: str, folds: int, mirror_axes: tuple[int, ...] | None) -> Path:
    """A model folder with networks of the embedded models' size and random weights."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    from bids_app.training.plans import build_dataset, build_plans

    plans = build_plans()
    configuration = plans["configurations"]["3d_fullres"]
    for role, order in (("data", 3), ("probabilities", 1), ("seg", 1)):
        spline = {"order": order, "order_z": 0} if resampling == "resample_data_or_seg_to_shape" else {}
        configuration[f"resampling_fn_{role}"] = resampling
        configuration[f"resampling_fn_{role}_kwargs"] = {"is_seg": role == "seg", "force_separate_z": False, **spline}
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(build_dataset(1)))
    network = configuration["architecture"]
    for fold in range(folds):
        torch.manual_seed(fold)
        module = get_network_from_plans(
            network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"], 1, 2
        )
        checkpoint = {
            "network_weights": module.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "inference_allowed_mirroring_axes": mirror_axes,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def ours(model: Path, scan, device: str):
    """A function that predicts the scan with this App."""
    from bids_app.lesion.model import load_model
    from bids_app.networks.device import choose_device

    loaded = load_model(model, device=choose_device(device))
    return lambda: np.asarray(loaded.predict([scan]).probability.dataobj)


def theirs(model: Path, scan, device: str):
    """A function that predicts the scan with nnU-Net, in process, from an array that was already read."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device(device), allow_tqdm=False)
    folds = tuple(range(len(list(model.glob("fold_*")))))
    predictor.initialize_from_trained_model_folder(str(model), folds)
    values = np.asarray(scan.dataobj).transpose(2, 1, 0)[None]

    def predict():
        _, probabilities = predictor.predict_single_npy_array(
            values, {"spacing": [1.0, 1.0, 1.0]}, None, None, save_or_return_probabilities=True
        )
        return probabilities[1].transpose(2, 1, 0)

    return predict


def measure(which: str, model: Path, brain: str, device: str, repeats: int, result: Path) -> dict[str, float]:
    """Load a model, predict some times, and tell the best time and the memory that predicting took beyond loading."""
    scan = make_brain(BRAINS[brain])
    with contextlib.redirect_stdout(io.StringIO()):
        started = time.process_time()
        predict = (ours if which == "ours" else theirs)(model, scan, device)
        loading = time.process_time() - started
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []
        for _ in range(repeats):
            cpu, wall = time.process_time(), time.perf_counter()
            probability = predict()
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
    np.save(result, probability)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "load": loading,
        "cpu": min(cpu for cpu, _ in times),
        "wall": min(wall for _, wall in times),
        "memory_mib": (peak - before) / 1024,
    }


def in_process(arguments: list[str], threads: int) -> dict[str, float]:
    """`measure` in a fresh interpreter with so many threads."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "nnUNet_def_n_proc": str(threads)}
    command = [sys.executable, "-m", "benchmarks.inference", *arguments]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def compare(options: argparse.Namespace) -> None:
    """Print the table."""
    clock = "cpu" if options.device == "cpu" else "wall"
    print(
        f"| case | nnU-Net, {clock} s | ours, {clock} s | times faster | MiB nnU-Net | MiB ours | mean abs difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (resampling, brain, folds, mirror_axes) in CASES.items():
        with tempfile.TemporaryDirectory() as work:
            model = write_model(Path(work) / "model", resampling, folds, mirror_axes)
            found = {}
            for which in ("theirs", "ours"):
                arguments = ["--one", which, "--model", str(model), "--brain", brain, "--device", options.device]
                arguments += ["--repeats", str(options.repeats), "--result", f"{work}/{which}.npy"]
                found[which] = in_process(arguments, options.threads)
            difference = np.abs(np.load(f"{work}/ours.npy") - np.load(f"{work}/theirs.npy")).mean()
        old, new = found["theirs"], found["ours"]
        print(
            f"| {name} | {old[clock]:.2f} | {new[clock]:.2f} | {old[clock] / new[clock]:.1f} "
            f"| {old['memory_mib']:.0f} | {new['memory_mib']:.0f} | {difference:.1e} |",
            flush=True,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="predictions, of which the best counts")
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--brain", default="average", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        values = measure(options.one, options.model, options.brain, options.device, options.repeats, options.result)
        print(json.dumps(values))
    else:
        compare(options)


if __name__ == "__main__":
    main()
