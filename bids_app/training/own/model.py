"""The model folder that ``--lesion-model`` takes: plans, dataset description, checkpoints and card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bids_app import app_version
from bids_app.derivatives.write import atomic, write_json
from bids_app.lesion.components import MIN_VOLUME_MM3
from bids_app.lesion.folder import CARD
from bids_app.networks.weights import load_checkpoint
from bids_app.training.fusion import FUSION_PARAMETERS, Fused, fusion_checkpoint, mean_of_branches
from bids_app.training.own.dataset import dataset_json
from bids_app.training.own.train import FINAL
from bids_app.training.plans import CONFIGURATION, INPUT, SPACE, USE, shippable


@dataclass(frozen=True)
class Facts:
    """What a card says of a training.

    Attributes
    ----------
    name : str
    channels : tuple of str
    dataset : str
        Name of the dataset.
    cases, subjects : int
    recipe : str
        How it was trained, in words.
    folds : tuple of int
        Those that are in the folder.
    notes : tuple of str
    threshold : float
    scores : mapping
        Of `scores.summary`; empty before they are known.
    branches : mapping of str to str
        Contrast and folder of the branches of a late fusion.
    """

    name: str
    channels: tuple[str, ...]
    dataset: str
    cases: int
    subjects: int
    recipe: str
    folds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    threshold: float = 0.5
    scores: Mapping = field(default_factory=dict)
    branches: Mapping[str, str] = field(default_factory=dict)


def write_network_folder(folder: Path, plans: dict, checkpoints: Mapping[int, Path], facts: Facts) -> None:
    """Write the folder of a network that nnU-Net trained.

    Parameters
    ----------
    checkpoints : mapping of int to Path
        Final checkpoint of each fold, as nnU-Net saved it.
    """
    _write_descriptions(folder, plans, facts)
    for fold, path in checkpoints.items():
        _save(shippable(load_checkpoint(path)), folder / f"fold_{fold}" / FINAL)
    write_card(folder, plans, facts, _parameters(next(iter(checkpoints.values()))))


def write_fusion_folder(
    folder: Path, plans: dict, fusions: Mapping[int, Fused | None], branches: Mapping[str, Path], facts: Facts
) -> None:
    """Write the top folder of a late fusion; its checkpoints hold the fusion alone.

    Parameters
    ----------
    fusions : mapping of int to Fused
        The fusion of each fold; None is the mean of the branches.
    branches : mapping of str to Path
        Contrast and model folder, below `folder`.
    """
    _write_descriptions(folder, plans, facts)
    for fold, fused in fusions.items():
        _save(fusion_checkpoint(fused or mean_of_branches()), folder / f"fold_{fold}" / FINAL)
    first = next(iter(fusions))
    count = sum(_parameters(branch / f"fold_{first}" / FINAL) for branch in branches.values()) + FUSION_PARAMETERS
    write_card(folder, plans, facts, count)


def write_card(folder: Path, plans: dict, facts: Facts, parameters: int) -> None:
    """Write ``card.json``."""
    content = {
        "name": facts.name,
        "version": app_version(),
        "channels": list(facts.channels),
        "space": SPACE,
        "input": INPUT,
        "spacing_mm": list(plans["configurations"][CONFIGURATION]["spacing"]),
        "parameters": parameters,
        "training_data": [{"what": facts.dataset, "cases": facts.cases, "subjects": facts.subjects}],
        "recipe": facts.recipe,
        "folds": list(facts.folds),
        "threshold": facts.threshold,
        "min_volume_mm3": MIN_VOLUME_MM3,
        "scores": {"cross_validation": dict(facts.scores)} if facts.scores else {},
        "notes": list(facts.notes),
        "use": USE,
    }
    if facts.branches:
        content["branches"] = dict(facts.branches)
    write_json(folder / CARD, content)


def _write_descriptions(folder: Path, plans: dict, facts: Facts) -> None:
    """Write plans and dataset description, and forget the folds of an earlier training."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_other_folds(folder, facts.folds)
    write_json(folder / "plans.json", plans)
    dataset = dataset_json(plans["dataset_name"], facts.channels, facts.cases)
    write_json(folder / "dataset.json", dataset)


def _remove_other_folds(folder: Path, folds: Sequence[int]) -> None:
    wanted = {f"fold_{fold}" for fold in folds}
    for old in folder.glob("fold_*"):
        if old.name not in wanted:
            shutil.rmtree(old)


def _save(checkpoint: dict, path: Path) -> None:
    with atomic(path) as temporary:
        torch.save(checkpoint, temporary)


def _parameters(checkpoint: Path) -> int:
    """Number of weights in a checkpoint, each counted once, however many names it has."""
    weights = load_checkpoint(checkpoint)["network_weights"]
    return sum(value.numel() for value in {value.data_ptr(): value for value in weights.values()}.values())
