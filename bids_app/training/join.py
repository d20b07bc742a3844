"""A late fusion of finished T1w and FLAIR networks, whichever trainings they come from.

``python -m bids_app.training.join MODELS --data DIR --cache DIR --commit HASH`` writes ``MODELS/synthetic-late`` over
``MODELS/synthetic-t1w`` and ``MODELS/synthetic-flair``, which stay as they are: the better training of each contrast
may be taken. The convolution of each fold is fitted to synthetic scans of the heads and lesions that this fold left
out, so that it weighs the branches by what they say beyond what the fold was trained on. (A fold that started from a
training on everything had met them there: see ``steps_before`` in the cards of the branches.)
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from bids_app import app_version
from bids_app.errors import ConfigError
from bids_app.lesion.components import MIN_VOLUME_MM3
from bids_app.lesion.folder import CARD, read_folder, read_json
from bids_app.lesion.model import LesionModel, load_model
from bids_app.training import anatomy, plans
from bids_app.training.anatomy import Head, LesionMask
from bids_app.training.cases import Case, make_cases
from bids_app.training.embed import PREFIX, branch_keys, save_checkpoint, write_descriptions
from bids_app.training.evaluate import batch_of
from bids_app.training.fusion import FUSION_PARAMETERS, Fused, fit_fusion, fusion_checkpoint
from bids_app.training.plans import FUSIONS
from bids_app.training.store import prepare_split
from bids_app.training.synthesis.tissue import make_source

LATE = FUSIONS["late"]
SEED = 100
"""Of the scans of the first fold; apart from those of validation and test."""

RECIPE = (
    "bids_app.training.join: the two networks as they are, and in each fold a 1 x 1 x 1 convolution over their logits, "
    "fitted by Dice and cross-entropy to synthetic scans of the heads and lesions that the fold left out"
)


def left_out_cases(heads: Sequence[Head], lesions: Sequence[LesionMask], fold: str, per_class: int) -> list[Case]:
    """Synthetic cases of those heads and lesions of the training split that a fold left out."""
    number = int(fold)
    sources = [make_source(head) for head in anatomy.left_out(heads, number)]
    return list(make_cases(sources, anatomy.left_out(lesions, number), per_class, seed=SEED + number))


def fit_branches(branches: Sequence[LesionModel], cases: Iterable[Case]) -> Fused:
    """The fusion of some models of one contrast and one fold each."""
    return fit_fusion((_logits(branches, case), case.truth.ravel()) for case in cases)


def _logits(branches: Sequence[LesionModel], case: Case) -> np.ndarray:
    """``(4, n)``: background and lesion of the first branch, then of the second."""
    parts = [model.engines[0](batch_of(case.image, model.channels))[0] for model in branches]
    return torch.cat(parts).flatten(1).numpy()


def join(models: Path, cases_of: Callable[[str], Sequence[Case]], commit: str, version: str, note: str = "") -> Path:
    """Write the late fusion of the T1w and the FLAIR model in a folder.

    Parameters
    ----------
    models : Path
        Folder with ``synthetic-t1w`` and ``synthetic-flair``; an older ``synthetic-late`` is replaced.
    cases_of : callable
        Cases for a fold, by its name.
    commit, version, note : str
        For the card.

    Raises
    ------
    ConfigError
        If a branch is missing or incomplete, or if the two have other folds.
    """
    branches = {name: models / f"{PREFIX}{name.lower()}" for name in LATE.contrasts}
    target = models / f"{PREFIX}{LATE.name}"
    folds, card = _common_folds(branches), _card({name: read_json(path / CARD) for name, path in branches.items()})
    fitted, scans = {}, {}
    for fold in folds:
        cases = cases_of(fold)
        fitted[fold] = fit_branches([load_model(path, (fold,)) for path in branches.values()], cases)
        scans[f"fold_{fold}"] = len(cases)
    shutil.rmtree(target, ignore_errors=True)  # an older one is good until all folds are fitted
    for fold, fused in fitted.items():
        save_checkpoint(target, fold, fusion_checkpoint(fused))
    provenance = {"name": target.name, "version": version, "commit": commit, "note": note}
    fusion = {"scans": scans} | branch_keys(target, {name: f"../{path.name}" for name, path in branches.items()})
    write_descriptions(target, LATE, provenance | card | fusion)
    return target


def _common_folds(branches: Mapping[str, Path]) -> tuple[str, ...]:
    """Names of the folds that both branches have."""
    first, second = (tuple(name for name, _ in read_folder(path).checkpoints) for path in branches.values())
    if first != second or not all(map(str.isdigit, first)):
        raise ConfigError(
            f"The models {' and '.join(path.name for path in branches.values())} do not have the same numbered folds.",
            "Train the same folds of both: python -m bids_app.training.run --help",
        )
    return first


def _card(branches: Mapping[str, dict]) -> dict:
    """What the card of a late fusion says, given those of its branches."""

    def every(key: str) -> list:
        found = [entry for card in branches.values() for entry in card[key]]
        return [entry for index, entry in enumerate(found) if entry not in found[:index]]

    return {
        "channels": list(branches),
        "space": plans.SPACE,
        "input": plans.INPUT,
        "spacing_mm": next(iter(branches.values()))["spacing_mm"],
        "parameters": sum(card["parameters"] for card in branches.values()) + FUSION_PARAMETERS,
        "training_data": every("training_data"),
        "heads": sorted(every("heads")),
        "recipe": RECIPE,
        "threshold": 0.5,
        "min_volume_mm3": MIN_VOLUME_MM3,
        "scores": {},
        "known_failures": every("known_failures"),
        "use": plans.USE,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.join", description=__doc__)
    parser.add_argument("models", type=Path, help="folder with synthetic-t1w and synthetic-flair")
    parser.add_argument("--data", type=Path, required=True, help="folder with label_maps/ and lesion_masks/")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the prepared data (OUT/cache of training)")
    parser.add_argument("--per-class", type=int, default=4, help="scans a head and volume class (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--version", default=app_version(), help="for the card (default: %(default)s)")
    parser.add_argument("--commit", required=True, help="commit of this code, for the card")
    parser.add_argument("--note", default="", help="for the card")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    heads, lesions = prepare_split(options.data, options.cache, "train")

    def cases_of(fold: str) -> list[Case]:
        return left_out_cases(heads, lesions, fold, options.per_class)

    print(join(options.models, cases_of, options.commit, options.version, options.note))


if __name__ == "__main__":
    main()
