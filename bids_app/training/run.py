"""Train lesion networks on synthetic scans: ``python -m bids_app.training.run --data DIR --out DIR NETWORK ...``."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from bids_app.errors import ConfigError
from bids_app.training import anatomy
from bids_app.training.anatomy import Head, LesionMask
from bids_app.training.plans import FUSIONS
from bids_app.training.series import Material, Workers
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.tissue import make_source
from bids_app.training.trainer import ALL, FINAL, LATEST, STABLE, Plan, Schedule, Trainer, train
from bids_app.training.warm_start import read_warm_start

FOLDS = (*map(str, range(anatomy.FOLDS)), ALL)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.run", description=__doc__)
    parser.add_argument("networks", nargs="+", type=network, metavar="NETWORK",
                        help=f"FUSION:FOLD; a fusion is one of {', '.join(FUSIONS)} (late trains the T1w and the FLAIR "
                        f"network and their fusion), a fold 0-{anatomy.FOLDS - 1}, which leaves out every "
                        f"{anatomy.FOLDS}th head and lesion, or {ALL}, which leaves out nothing")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--out", type=Path, required=True, help="folder for prepared data, log and checkpoints")
    parser.add_argument("--init", type=start, action="append", default=[], metavar="FUSION=START",
                        help="begin the networks of a fusion with another training's checkpoint, or with a model "
                        "folder made of one; may be repeated")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoints in OUT, if any")
    parser.add_argument("--minutes", type=float, default=60.0, help="time of this run (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=Schedule.rate, help="learning rate (default: %(default)s)")
    parser.add_argument("--cooldown", type=float, default=Schedule.cooldown,
                        help="last share of the time over which the rate falls (default: %(default)s)")
    parser.add_argument("--validate-every", type=int, default=Schedule.validate_every, metavar="STEPS",
                        help="steps between validations (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="scans a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1,
                        help="processes that make scans; 0: the training process does (default: %(default)s)")
    parser.add_argument("--gpu-workers", type=int, default=0, metavar="N",
                        help="so many of them use the GPU (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser.parse_args(arguments)


def network(text: str) -> tuple[str, str]:
    """Fusion and fold from ``FUSION:FOLD``."""
    fusion, _, fold = text.partition(":")
    if fusion not in FUSIONS or fold not in FOLDS:
        raise argparse.ArgumentTypeError(f"{text} is not FUSION:FOLD, as in late:0 or t1w:{ALL}")
    return fusion, fold


def start(text: str) -> tuple[str, Path]:
    """Fusion and where to begin, from ``FUSION=START``."""
    fusion, _, path = text.partition("=")
    if fusion not in FUSIONS or not path:
        raise argparse.ArgumentTypeError(f"{text} is not FUSION=START, as in late=models/synthetic-late")
    return fusion, Path(path)


def starts_of(given: Sequence[tuple[str, Path]], networks: Sequence[tuple[str, str]]) -> dict[str, Path]:
    """Where each fusion begins.

    Raises
    ------
    ConfigError
        If a fusion has two starts, or is not trained.
    """
    starts = dict(given)
    unused = sorted(set(starts) - {fusion for fusion, _ in networks})
    if unused or len(starts) < len(given):
        why = f"{unused[0]} is not trained" if unused else "a fusion has more than one start"
        raise ConfigError(f"--init cannot be followed: {why}.", "Give one start for each fusion that is trained.")
    return starts


def seen_by(fold: str, items: Sequence[Head] | Sequence[LesionMask]) -> frozenset[str]:
    """Names of the heads or lesions that a fold trains on."""
    return frozenset(item.name for item in (items if fold == ALL else anatomy.without_fold(items, int(fold))))


def load_material(
    data: Path, cache: Path, networks: Sequence[tuple[str, str]], device: str = "cpu"
) -> tuple[Material, list[Plan]]:
    """What some networks are trained with, and which of it each may see.

    Parameters
    ----------
    data, cache : Path
        See `bids_app.training.store.prepare`.
    networks : sequence of (str, str)
        Fusion and fold of each.
    device : str
        Where scans are made in the training process.

    Returns
    -------
    material : Material
        Heads and lesions of the training split that any of the networks may see, and those for validation.
    plans : list of Plan
    """
    heads, lesions = prepare_split(data, cache, "train")
    plans = [Plan(FUSIONS[name], fold, seen_by(fold, heads), seen_by(fold, lesions)) for name, fold in networks]
    validation_heads, validation_lesions = prepare_split(data, cache, "validation")
    material = Material(
        sources=[make_source(head, device) for head in heads if any(head.name in plan.heads for plan in plans)],
        lesions=[lesion for lesion in lesions if any(lesion.name in plan.lesions for plan in plans)],
        validation_sources=[make_source(head, device) for head in validation_heads],
        validation_lesions=validation_lesions,
        seed=series_seed(networks),
    )
    return material, plans


def series_seed(networks: Sequence[tuple[str, str]]) -> int:
    """Seed of the series of some networks: folds must not see again what the training saw that they start from."""
    return zlib.crc32(" ".join(sorted(":".join(each) for each in networks)).encode()) % 10**6


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
    made_on = "cpu" if options.workers else options.device
    material, plans = load_material(options.data, options.out / "cache", options.networks, made_on)
    schedule = Schedule(
        options.minutes, options.rate, cooldown=options.cooldown, validate_every=options.validate_every
    )
    starts, trainers, scans = starts_of(options.init, options.networks), [], 0
    for plan in plans:
        folder = options.out / plan.fusion.name / f"fold_{plan.fold}"
        trainer = Trainer(plan, schedule, folder, options.device, options.batch)
        checkpoint = newest_checkpoint(folder)
        if checkpoint is not None and not options.resume:
            raise ConfigError(f"{folder} holds a training already.", "Go on with --resume, or choose another --out.")
        if checkpoint is not None:
            scans = max(scans, trainer.load(checkpoint))
            print(f"{trainer.name}: resumed from {checkpoint.name} at step {trainer.step}", flush=True)
        elif plan.fusion.name in starts:
            trainer.start_from(read_warm_start(starts[plan.fusion.name], plan.fold))
        trainers.append(trainer)
    workers = Workers(options.workers, options.gpu_workers)
    train(trainers, material, schedule, workers, scans, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
