"""Train a lesion network on synthetic scans: ``python -m bids_app.training.run --data DIR --out DIR``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bids_app.training import anatomy, plans, synthesis
from bids_app.training.trainer import Material, Schedule, SyntheticLesionTrainer


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.run", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared data, log and checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT, if any")
    parser.add_argument("--minutes", type=float, default=60.0, help="time of this run (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=0, help="0-4: another seed and other heads (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=Schedule.rate, help="learning rate (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--healthy", type=Path, nargs="*", default=[], metavar="T1W",
                        help="healthy brain-extracted T1w in the pose, to log false lesions on")
    return parser.parse_args(arguments)


def load_material(options: argparse.Namespace) -> Material:
    """Heads and lesions of the training split, and lesions of the validation split."""
    heads, lesions = anatomy.prepare(options.data, options.out / "cache")
    chosen = anatomy.training_subset(anatomy.in_split(heads, "train"), options.fold)
    return Material(
        sources=[synthesis.make_source(head, options.device) for head in chosen],
        lesions=anatomy.in_split(lesions, "train"),
        validation_lesions=anatomy.in_split(lesions, "validation"),
        seed=options.fold,
        healthy_images=tuple(options.healthy),
    )


def make_trainer(
    out: Path, fold: int, material: Material, schedule: Schedule, device: str = "cpu",
    size: plans.NetworkSize | None = None,
) -> SyntheticLesionTrainer:
    """Trainer whose results go to ``out/results``; leaves ``plans.json`` and ``dataset.json`` there."""
    # nnU-Net takes its folders from the environment only, under this name
    os.environ["nnUNet_results"] = str(out / "results")  # noqa: SIM112
    contents = plans.build_plans(size)
    described = plans.build_dataset(len(material.sources))
    trainer = SyntheticLesionTrainer(
        contents | {"continue_training": False}, plans.CONFIGURATION, fold, described, torch.device(device)
    )
    trainer.attach(material, schedule)
    for name, content in (("plans.json", contents), ("dataset.json", described)):
        (Path(trainer.output_folder_base) / name).write_text(json.dumps(content, indent=1))
    return trainer


def newest_checkpoint(folder: Path) -> Path | None:
    """Where to go on: the latest checkpoint, or, after a finished run, the one from before the rate fell."""
    for name in ("checkpoint_latest.pth", "checkpoint_stable.pth", "checkpoint_final.pth"):
        if (folder / name).exists():
            return folder / name
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    trainer = make_trainer(
        options.out, options.fold, load_material(options), Schedule(options.minutes, options.rate), options.device
    )
    trainer.initialize()
    checkpoint = newest_checkpoint(Path(trainer.output_folder)) if options.resume else None
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
        trainer.print_to_log_file(f"resumed from {checkpoint.name} at step {trainer.step}")
    trainer.run_training()


if __name__ == "__main__":
    main()
