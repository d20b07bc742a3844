"""Train a lesion network on synthetic scans: ``python -m bids_app.training.run --data DIR --out DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bids_app.training import anatomy
from bids_app.training.plans import FUSIONS
from bids_app.training.series import Material
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.tissue import make_source
from bids_app.training.trainer import FINAL, LATEST, STABLE, Schedule, Trainer
from bids_app.training.warm_start import read_warm_start

ALL = "all"
"""Name of the training that no fold is left out of; the folds start from it."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.run", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared data, log and checkpoints")
    parser.add_argument("--fusion", choices=FUSIONS, default="late",
                        help="late trains the T1w and the FLAIR network and their fusion (default: %(default)s)")
    parser.add_argument("--fold", choices=[*map(str, range(anatomy.FOLDS)), ALL], default="0",
                        help="what is left out: every fifth head and lesion, or nothing (default: %(default)s)")
    parser.add_argument("--init", type=Path, metavar="START",
                        help="begin with another training's checkpoint, or with a model folder made of one")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUT, if any")
    parser.add_argument("--minutes", type=float, default=60.0, help="time of this run (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=Schedule.rate, help="learning rate (default: %(default)s)")
    parser.add_argument("--cooldown", type=float, default=Schedule.cooldown,
                        help="last share of the time over which the rate falls (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="scans a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1,
                        help="processes that make scans; 0: on the device (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser.parse_args(arguments)


def load_material(data: Path, cache: Path, fold: str, workers: int = 0, device: str = "cpu") -> Material:
    """Heads and lesions of the training split without those of the fold, and heads and lesions for validation.

    Scans are made on ``device``; worker processes make them on the CPU.
    """
    at = "cpu" if workers else device
    heads, lesions = prepare_split(data, cache, "train")
    if fold != ALL:
        heads, lesions = (anatomy.without_fold(items, int(fold)) for items in (heads, lesions))
    validation_heads, validation_lesions = prepare_split(data, cache, "validation")
    return Material(
        sources=[make_source(head, at) for head in heads],
        lesions=lesions,
        validation_sources=[make_source(head, at) for head in validation_heads],
        validation_lesions=validation_lesions,
        seed=anatomy.FOLDS if fold == ALL else int(fold),
        workers=workers,
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """Where to go on: the latest checkpoint, or, after a finished run, the one from before the rate fell."""
    for name in (LATEST, STABLE, FINAL):
        if (folder / name).exists():
            return folder / name
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    trainer = Trainer(
        FUSIONS[options.fusion],
        load_material(options.data, options.out / "cache", options.fold, options.workers, options.device),
        Schedule(options.minutes, options.rate, cooldown=options.cooldown),
        options.out / options.fusion / f"fold_{options.fold}",
        options.device,
        options.batch,
        say=lambda line: print(line, flush=True),
    )
    checkpoint = newest_checkpoint(trainer.folder) if options.resume else None
    if checkpoint is not None:
        trainer.load(checkpoint)
        print(f"resumed from {checkpoint.name} at step {trainer.step}", flush=True)
    elif options.init is not None:
        trainer.start_from(read_warm_start(options.init, options.fold))
    trainer.run()


if __name__ == "__main__":
    main()
