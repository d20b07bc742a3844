"""From a training to small model folders that nnU-Net and the App run.

``python -m bids_app.training.embed OUT/late MODELS`` turns the folds of a training into ``MODELS/synthetic-t1w``,
``MODELS/synthetic-flair`` and ``MODELS/synthetic-late``, whose checkpoints hold the fusion alone.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bids_app import app_version
from bids_app.derivatives.write import write_json
from bids_app.errors import NoInputError
from bids_app.lesion.components import MIN_VOLUME_MM3
from bids_app.lesion.folder import CARD
from bids_app.networks.weights import folder_sha256
from bids_app.training import plans
from bids_app.training.plans import FUSIONS, Fusion
from bids_app.training.trainer import FINAL, LATEST, build_network
from bids_app.training.warm_start import branch_weights

PREFIX = "synthetic-"

TRAINING_DATA = [
    {
        "what": "head label maps 01-12 of SynthSeg (13 and 14 kept for validation, 15-18 for testing)",
        "licence": "Apache-2.0",
        "source": "https://github.com/BBillot/SynthSeg",
    },
    {
        "what": "lesion masks of the Stroke Outcome Optimization Project, patients whose id ends in neither 1 nor 3",
        "licence": "CC0 (OpenNeuro ds004889)",
        "source": "https://openneuro.org/datasets/ds004889",
    },
    {
        "what": "lesion masks of LESYMAP, subjects whose number ends in neither 1 nor 3",
        "licence": "Apache-2.0",
        "source": "https://github.com/dorianps/LESYMAP",
    },
]

TEXTURES = {
    "colin": {
        "what": "Colin27, a healthy T1w with its real texture",
        "licence": "MNI, free to use, copy, modify and distribute with attribution",
        "source": "https://www.bic.mni.mcgill.ca/ServicesAtlases",
    },
    "studyforrest": {
        "what": "studyforrest sub-02, a healthy T1w with its real texture",
        "licence": "PDDL",
        "source": "https://www.studyforrest.org",
    },
    "chris": {
        "what": "chris_t1, a healthy T1w with its real texture",
        "licence": "BSD-2-Clause",
        "source": "https://github.com/rordenlab/niivue-images",
    },
}
"""Heads whose own T1w is used, by name, where they were at hand."""

PLAIN = "MirrorUNet around nnU-Net's PlainConvUNet"
NETWORKS = {"intermediate": "MirrorUNet around IntermediateUNet", "late": f"LateFusion of two {PLAIN}"}
"""The network of a fusion in words, where it is not the plain one."""

KNOWN_FAILURES = {
    "T1w": [
        "An infarct younger than some hours, invisible on T1w, cannot be found.",
        "Small lesions, and pale ones beside wide sulci or in marked leukoaraiosis, are often missed: see the scores.",
    ],
    "FLAIR": [
        "What is bright in a FLAIR without being a stroke (marked leukoaraiosis, inflammation, tumour) may be marked.",
        "An old cavity without a bright rim looks like fluid.",
    ],
}
GENERAL_FAILURES = [
    "Trained on synthetic scans only: never fitted to a real stroke.",
    "Expects brain-extracted, bias-corrected scans in the model pose; a scan with skull or lying otherwise fails.",
]


@dataclass(frozen=True)
class Fold:
    """One trained fold.

    Attributes
    ----------
    name : str
    weights : mapping of str to torch.Tensor
        Averaged weights by parameter name.
    steps, steps_before : int
        Of this training, and of the one that it started from.
    batch_size : int
        Scans a step.
    heads : tuple of str
        Heads that it was trained on.
    finished : bool
        Whether the rate fell to its end.
    """

    name: str
    weights: Mapping[str, Tensor]
    steps: int
    steps_before: int
    batch_size: int
    heads: tuple[str, ...]
    finished: bool


def read_folds(training: Path, unfinished: bool = False) -> list[Fold]:
    """The numbered folds of a training, else the one that left nothing out.

    Parameters
    ----------
    training : Path
    unfinished : bool
        Take folds whose training goes on as they are.

    Raises
    ------
    NoInputError
        If there is no fold, or one of them without a checkpoint, or not finished.
    """
    folders = {path.name.removeprefix("fold_"): path for path in sorted(training.glob("fold_*"))}
    chosen = [name for name in folders if name.isdigit()] or list(folders)
    if not chosen:
        raise NoInputError(f"No fold in {training}.", "Train first: python -m bids_app.training.run --help")
    folds = [_read_fold(name, folders[name]) for name in chosen]
    if not unfinished and (going_on := [fold.name for fold in folds if not fold.finished]):
        raise NoInputError(
            f"The training of fold {', '.join(going_on)} in {training} is not finished.",
            "Train on with --resume, or take it as it is with --unfinished.",
        )
    return folds


def _read_fold(name: str, folder: Path) -> Fold:
    # a fold that was taken up again has both
    path = next((folder / file for file in (LATEST, FINAL) if (folder / file).exists()), None)
    if path is None:
        raise NoInputError(f"No checkpoint in {folder}.", "Train first: python -m bids_app.training.run --help")
    state = torch.load(path, map_location="cpu", weights_only=True)
    numbers = (state[key] for key in ("step", "steps_before", "batch_size"))
    return Fold(name, state["averaged_weights"], *numbers, tuple(state["heads"]), path.name == FINAL)


def final_network(fusion: Fusion, weights: Mapping[str, Tensor]) -> torch.nn.Module:
    """Network of a fusion as it is shipped: without the outputs that only training has, in evaluation mode."""
    network = build_network(fusion, extra_outputs=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # the outputs of training alone come last
            parameter.copy_(weights[name][: len(parameter)])
    return network.eval()


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State in fp16 in which tensors that shared memory still do (nnU-Net names most weights twice)."""
    halved: dict[int, Tensor] = {}
    return {name: halved.setdefault(value.data_ptr(), value.half()) for name, value in state.items()}


def build_card(
    name: str, fusion: Fusion, parameters: int, provenance: Mapping[str, str], folds: Sequence[Fold]
) -> dict:
    """The model's card; calibration fills in the threshold, the benchmark the scores."""
    textures = [entry for head, entry in TEXTURES.items() if head in heads_of(folds)]
    specific = [failure for contrast in fusion.contrasts for failure in KNOWN_FAILURES[contrast]]
    return {
        "name": name,
        **provenance,
        "channels": list(fusion.contrasts),
        "space": plans.SPACE,
        "input": plans.INPUT,
        "spacing_mm": [2.0, 2.0, 2.0],
        "parameters": parameters,
        "training_data": [*TRAINING_DATA, *textures],
        "heads": sorted(heads_of(folds)),
        "recipe": f"bids_app.training.trainer, {NETWORKS.get(fusion.name, PLAIN)}: Dice and cross-entropy over the "
        "patch, the lesion and the hardest voxels, with deep supervision, and the healthy anatomy as a second task; an "
        "endless series of synthetic scans; Muon; running average of the weights",
        "scans_a_step": folds[0].batch_size,
        "steps": {f"fold_{fold.name}": fold.steps for fold in folds},
        "steps_before": max(fold.steps_before for fold in folds),
        "folds": "Each fold leaves out every fifth label map and lesion mask. Where it started from another training "
        "(steps_before), that one had seen all of the training split.",
        "threshold": 0.5,
        "min_volume_mm3": MIN_VOLUME_MM3,
        "scores": {},
        "known_failures": [*GENERAL_FAILURES, *specific],
        "use": plans.USE,
    }


def write_model(
    model: Path, fusion: Fusion, folds: Sequence[Fold], provenance: Mapping[str, str], branches: Mapping[str, str]
) -> None:
    """Write one model folder; with branches, its checkpoints hold the fusion alone."""
    shutil.rmtree(model, ignore_errors=True)  # of an earlier training
    for fold in folds:
        network = final_network(fusion, fold.weights)
        part = {name: value for name, value in network.state_dict().items() if name.startswith("fusion.")}
        content = {
            "network_weights": half_precision(part if branches else network.state_dict()),
            "current_epoch": fold.steps,
            "inference_allowed_mirroring_axes": None,
        }
        save_checkpoint(model, fold.name, plans.shippable(content))
    parameters = sum(weights.numel() for weights in network.parameters())
    card = build_card(model.name, fusion, parameters, provenance, folds)
    write_descriptions(model, fusion, card | branch_keys(model, branches))


def branch_keys(model: Path, branches: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What the card of a late fusion says of its branches: where they lie, and which weights it was fitted to."""
    if not branches:
        return {}
    sums = {name: checkpoints_sha256(model / folder) for name, folder in branches.items()}
    return {"branches": dict(branches), "branches_sha256": sums}


def checkpoints_sha256(model: Path) -> str:
    """One checksum over the checkpoints of a model folder."""
    return folder_sha256(model.glob("fold_*/checkpoint_final.pth"))


def save_checkpoint(model: Path, fold: str, checkpoint: dict) -> None:
    """Write the checkpoint of one fold of a model folder."""
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoint_final.pth")


def write_descriptions(model: Path, fusion: Fusion, card: Mapping) -> None:
    """Write plans, dataset description and card of a model folder."""
    write_json(model / "plans.json", plans.build_plans(fusion))
    write_json(model / "dataset.json", plans.build_dataset(fusion, len(card["heads"])))
    write_json(model / CARD, dict(card))


def heads_of(folds: Sequence[Fold]) -> set[str]:
    """All heads that any of these folds was trained on."""
    return {head for fold in folds for head in fold.heads}


def branch_folds(folds: Sequence[Fold], index: int) -> list[Fold]:
    """The folds of one branch of a late fusion, as folds of a model of its own."""
    return [replace(fold, weights=branch_weights(fold.weights, index)) for fold in folds]


def embed(
    training: Path, models: Path, commit: str, version: str | None = None, note: str = "", unfinished: bool = False
) -> list[Path]:
    """Write the model folders of all folds that were trained.

    Parameters
    ----------
    training : Path
        Folder with ``fold_*/`` as the trainer leaves it, named after the fusion.
    models : Path
        Where the model folders go. Those of an earlier training are replaced: their scores and thresholds belong to
        other weights.
    commit, version, note : str
        For the cards: the code that trained them, and what was special about this training.
    unfinished : bool
        As for `read_folds`.

    Returns
    -------
    list of Path
        One model folder; three for a late fusion.

    Raises
    ------
    NoInputError
        If there is nothing to embed.
    """
    folds, fusion = read_folds(training, unfinished), FUSIONS[training.name]
    provenance = {"version": version or app_version(), "commit": commit, "note": note}
    branches = {}
    if fusion.name == "late":
        for index, name in enumerate(fusion.contrasts):
            single = FUSIONS[name.lower()]
            write_model(models / f"{PREFIX}{single.name}", single, branch_folds(folds, index), provenance, {})
            branches[name] = f"../{PREFIX}{single.name}"
    write_model(models / f"{PREFIX}{fusion.name}", fusion, folds, provenance, branches)
    names = [*map(str.lower, branches), fusion.name]
    return [models / f"{PREFIX}{name}" for name in names]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.embed", description=__doc__)
    parser.add_argument("training", type=Path, help="folder with fold_*/, named after the fusion")
    parser.add_argument("models", type=Path, help="folder that gets the model folders")
    parser.add_argument("--version", default=app_version(), help="for the cards (default: %(default)s)")
    parser.add_argument("--commit", required=True, help="commit of the code that trained them, for the cards")
    parser.add_argument("--note", default="", help="what was special about this training, for the cards")
    parser.add_argument("--unfinished", action="store_true", help="take folds whose training goes on as they are")
    options = parser.parse_args(arguments)
    facts = {name: getattr(options, name) for name in ("commit", "version", "note", "unfinished")}
    for model in embed(options.training, options.models, **facts):
        print(model)


if __name__ == "__main__":
    main()
