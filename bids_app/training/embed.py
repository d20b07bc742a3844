"""From a training folder to a small model folder that nnU-Net and the App run.

``python -m bids_app.training.embed RESULTS MODEL`` where RESULTS holds ``plans.json`` and ``fold_*/``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from bids_app.errors import NoInputError
from bids_app.training import plans

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth")

TRAINING_DATA = [
    {
        "what": "head label maps 01-14 of SynthSeg (15-18 kept for testing)",
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
    {
        "what": "Colin27 and the ICBM 152 2009c average, healthy T1w with their real texture",
        "licence": "MNI, free to use, copy, modify and distribute with attribution",
        "source": "https://www.bic.mni.mcgill.ca/ServicesAtlases",
    },
    {
        "what": "studyforrest sub-02, a healthy T1w with its real texture",
        "licence": "PDDL",
        "source": "https://www.studyforrest.org",
    },
]

KNOWN_FAILURES = [
    "Trained on synthetic scans only: never fitted to a real stroke.",
    "An infarct younger than some hours, invisible on T1w, cannot be found.",
    "Small lesions, and pale ones beside wide sulci or in marked leukoaraiosis, are often missed: see the scores.",
    "Expects a brain-extracted, bias-corrected scan in the model pose; a scan with skull or lying otherwise fails.",
]


def checkpoint_in(fold: Path) -> Path:
    """The most finished checkpoint of a fold.

    Raises
    ------
    NoInputError
        If there is none.
    """
    for name in CHECKPOINTS:
        if (fold / name).exists():
            return fold / name
    raise NoInputError(f"No checkpoint in {fold}.", "Train first: python -m bids_app.training.run --help")


def averaged_network(plan: dict, dataset: dict, weights: dict[str, Tensor]) -> torch.nn.Module:
    """Network of the plans with the averaged weights, in evaluation mode."""
    manager = PlansManager(plan)
    network = nnUNetTrainer.build_network_architecture(
        manager,
        manager.get_configuration(plans.CONFIGURATION),
        len(dataset["channel_names"]),
        manager.get_label_manager(dataset).num_segmentation_heads,
        enable_deep_supervision=True,
    )
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    return network.eval()


def half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State in fp16 in which tensors that shared memory still do (nnU-Net names most weights twice)."""
    halved: dict[int, Tensor] = {}
    return {name: halved.setdefault(value.data_ptr(), value.half()) for name, value in state.items()}


def small_checkpoint(state: dict[str, Tensor], epoch: int) -> dict:
    """Checkpoint that stock nnU-Net loads: weights and what its predictor reads, no optimizer.

    ``trainer_name`` is nnU-Net's own, for its predictor looks the class up by name and the network is the stock one.
    """
    return {
        "network_weights": half_precision(state),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": epoch,
        "init_args": {"configuration": plans.CONFIGURATION},
        "trainer_name": plans.TRAINER,
        "inference_allowed_mirroring_axes": None,
    }


def embed_fold(results: Path, fold: int, model: Path) -> tuple[int, int]:
    """Write one fold into the model folder; returns the steps it was trained for and its number of parameters."""
    checkpoint = torch.load(checkpoint_in(results / f"fold_{fold}"), map_location="cpu", weights_only=False)
    plan, dataset = (json.loads((results / name).read_text()) for name in ("plans.json", "dataset.json"))
    network = averaged_network(plan, dataset, checkpoint["averaged_weights"])
    target = model / f"fold_{fold}"
    target.mkdir(parents=True, exist_ok=True)
    partial = target / "checkpoint_final.pth.partial"
    torch.save(small_checkpoint(network.state_dict(), checkpoint["current_epoch"]), partial)
    partial.replace(target / "checkpoint_final.pth")
    return int(checkpoint["step"]), sum(weights.numel() for weights in network.parameters())


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file under its name only when whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def build_card(name: str, version: str, commit: str, note: str, steps: dict[str, int], parameters: int) -> dict:
    """The model's card; ``evaluate`` fills in threshold and scores."""
    return {
        "name": name,
        "version": version,
        "channels": ["T1w"],
        "space": "pose: brain-extracted, bias-corrected, rigidly aligned to MNI152NLin2009aSym, 1 mm, RAS",
        "spacing_mm": [2.0, 2.0, 2.0],
        "parameters": parameters,
        "training_data": TRAINING_DATA,
        "recipe": "bids_app.training.trainer.SyntheticLesionTrainer: nnU-Net's PlainConvUNet, Dice and top-k "
        "cross-entropy (k = 2 %) with deep supervision; an endless series of synthetic scans; AdamW; "
        "running average of the weights",
        "commit": commit,
        "note": note,
        "steps": steps,
        "threshold": 0.5,
        "min_volume_mm3": 10.0,
        "scores": {},
        "known_failures": KNOWN_FAILURES,
        "use": "Research only: not a medical device.",
    }


def embed(results: Path, model: Path, version: str = "0.1.0", commit: str = "", note: str = "") -> None:
    """Write the model folder from all folds that were trained.

    Parameters
    ----------
    results : Path
        Folder with ``plans.json``, ``dataset.json`` and ``fold_*/`` as the trainer leaves it.
    model : Path
        Model folder to write: the same names, weights in fp16, and ``card.json``. Scores and threshold of an
        earlier card are dropped, since they belong to other weights.
    version, commit, note : str
        For the card; the note tells what was special about this training.

    Raises
    ------
    NoInputError
        If there is nothing to embed.
    """
    folds = sorted(int(path.name.removeprefix("fold_")) for path in results.glob("fold_*"))
    if not folds:
        raise NoInputError(f"No fold in {results}.", "Train first: python -m bids_app.training.run --help")
    for old in model.glob("fold_*"):  # of an earlier training
        shutil.rmtree(old)
    embedded = {f"fold_{fold}": embed_fold(results, fold, model) for fold in folds}
    steps = {name: done for name, (done, _) in embedded.items()}
    parameters = max(count for _, count in embedded.values())
    for name in ("plans.json", "dataset.json"):
        write_json(model / name, json.loads((results / name).read_text()))
    write_json(model / "card.json", build_card(model.name, version, commit, note, steps, parameters))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bids_app.training.embed", description=__doc__)
    parser.add_argument("results", type=Path, help="folder with plans.json and fold_*/")
    parser.add_argument("model", type=Path, help="model folder to write; its name becomes the model's name")
    parser.add_argument("--version", default="0.1.0", help="for the card (default: %(default)s)")
    parser.add_argument("--commit", default="", help="commit of the code that trained it, for the card")
    parser.add_argument("--note", default="", help="what was special about this training, for the card")
    options = parser.parse_args(arguments)
    embed(options.results, options.model, options.version, options.commit, options.note)


if __name__ == "__main__":
    main()
