"""The command lines of ``afterstroke train``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_app.anomaly.folder import SIDES
from bids_app.cli_options import absolute, add, add_flag, add_several, hyphenated, labels_without, make_parser
from bids_app.errors import UsageError
from bids_app.networks.registry import ANOMALY, find_model
from bids_app.settings import AnomalyTraining, TrainingSettings, available_cpus
from bids_app.wording import did_you_mean

LESION, CALIBRATE = "lesion", "calibrate"
NETWORKS = {
    "autoencoder": "Train the autoencoder of an anomaly model on healthy scans.",
    "reflect": "Train the flow of an anomaly model (REFLECT-1) on healthy scans, with an autoencoder that is trained.",
    "reflect2": "Make an anomaly model that takes several steps need one (REFLECT-2), on healthy scans.",
}
WHAT = (LESION, *NETWORKS, CALIBRATE)
MAX_CONTEXT, MAX_SEED = 3, 2**32 - 1
_POSITIVE = ("nprocs", "epochs", "batch", "accumulation")


def training_parser(what: str) -> argparse.ArgumentParser:
    """The parser of ``afterstroke train WHAT``."""
    if what == LESION:
        return _lesion_parser()
    return _calibration_parser() if what == CALIBRATE else _network_parser(what)


def read_training(arguments: Sequence[str]) -> tuple[TrainingSettings | AnomalyTraining, bool]:
    """Settings, and whether the plan alone is wanted.

    Raises
    ------
    UsageError
        If the command line makes no sense.
    """
    what = arguments[0] if arguments else ""
    if what not in WHAT:
        _overview().parse_args(list(arguments))
        raise UsageError(f"'{what}' is nothing to train.{did_you_mean(what, WHAT)}", f"Say one of {', '.join(WHAT)}.")
    given = vars(training_parser(what).parse_args([hyphenated(argument) for argument in arguments[1:]]))
    dry_run = given.pop("dry_run", False)
    for name in _POSITIVE:
        if given.get(name, 1) < 1:
            raise UsageError(f"--{name} is '{given[name]}', which is not 1 or more.")
    values = _completed(given, what)
    if what == LESION:
        values["chosen_folds"] = tuple(dict.fromkeys(values.get("chosen_folds", ())))
        return TrainingSettings(**values), dry_run
    return _anomaly_settings(what, values), dry_run


def _completed(given: dict[str, Any], what: str) -> dict[str, Any]:
    """Values with the defaults that no class knows: a name, absolute folders, CPUs counted."""
    given.setdefault("name", given["fusion"] if what == LESION else what)
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.+-]*", given["name"]):
        raise UsageError(f"'{given['name']}' is no name for a model.", "Use letters, digits, '_', '.', '+' and '-'.")
    done = {name: absolute(value) for name, value in given.items()}
    done["participants"] = labels_without(done.get("participants", ()), "sub-")
    done["work_dir"] = done.get("work_dir") or absolute(Path("work"))
    done.setdefault("nprocs", available_cpus())
    return done


def _anomaly_settings(what: str, values: dict[str, Any]) -> AnomalyTraining:
    for name, most in (("context", MAX_CONTEXT), ("seed", MAX_SEED)):
        if not 0 <= values.get(name, 0) <= most:
            raise UsageError(f"--{name} is '{values[name]}', which is not a number from 0 to {most}.")
    if "lpips" in values and values.get("preset") != "paper":
        raise UsageError("--lpips belongs to --preset paper.", "Add that, or leave out --lpips.")
    if what == "reflect" and ("start" in values) == ("init" in values):
        raise UsageError("train reflect begins with either --autoencoder or --init.", "Give one of them.")
    if "init" in values and (other := {"size", "contrast"} & set(values)):
        raise UsageError(f"--init keeps the networks of the model: --{min(other)} cannot be chosen.", "Leave it out.")
    for option, field in (("init", "init"), ("model", "start")):
        if option in values:
            values[field] = find_model(values.pop(option), kind=ANOMALY)
    if what == CALIBRATE:
        values["out_dir"] = values["start"]
    return AnomalyTraining(step=what, **values)


def _overview() -> argparse.ArgumentParser:
    parser = make_parser("afterstroke train", "WHAT [options]", "Train a model. See: afterstroke train WHAT --help")
    text = (
        "lesion: a lesion model on your masks; autoencoder, reflect, reflect2: an anomaly model on healthy scans, "
        "in this order; calibrate: the threshold of an anomaly model"
    )
    parser.add_argument("what", metavar="WHAT", help=text)
    return parser


def _lesion_parser() -> argparse.ArgumentParser:
    """The parser of ``afterstroke train lesion``."""
    parser = make_parser(
        "afterstroke train lesion",
        "--bids DIR --masks PATTERN --out DIR --fusion FUSION [options]",
        "Train a lesion model on your own scans and masks, with nnU-Net. The same command again goes on.",
    )
    group = parser.add_argument_group("scans and masks")
    _add_dataset(group)
    text = (
        "where the masks are: a path below DIR or an absolute one, with {subject}, {session} and stars, as in "
        "'derivatives/manual/sub-{subject}/**/*_mask.nii.gz'; or atlas (ATLAS v2.0) or arc (ds004884). "
        "Empty masks are healthy brains"
    )
    add(group, "--masks", text, "PATTERN", required=True)
    _add_scans(group)
    _add_model_options(parser.add_argument_group("the model"))
    _add_training_options(parser.add_argument_group("this run"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    text = "what the model sees: one contrast, or both joined at the input, at the features or at the logits"
    choices = ("t1w", "flair", "early", "intermediate", "late")
    group.add_argument("--fusion", choices=choices, required=True, help=text)
    add(group, "--out", "where the model folder goes", "DIR", Path, dest="out_dir", required=True)
    add(group, "--name", "name of the model and its folder (default: that of the fusion)", "NAME")
    text = "start from an embedded model or a folder, and adapt it (default: random weights)"
    add(group, "--init", text, "NAME|PATH")
    text = "small: as the embedded models; resenc-m: nnU-Net's planner, for a GPU (default: that of --init, else small)"
    group.add_argument("--preset", choices=("small", "resenc-m"), help=text)
    add(group, "--folds", "folds of the cross-validation, by subject (default: 5)", "N", int)
    text = "train these alone, counted from 0 (default: all)"
    add_several(group, "--fold", text, "K", type=int, dest="chosen_folds")
    add(group, "--epochs", "of 250 steps each (default: 1000; with --init 200)", "N", int)


def _network_parser(what: str) -> argparse.ArgumentParser:
    start = {"autoencoder": "", "reflect": "(--autoencoder PATH | --init MODEL) ", "reflect2": "--model PATH "}[what]
    description = f"{NETWORKS[what]} The same command again goes on."
    parser = make_parser(f"afterstroke train {what}", f"--bids DIR {start}--out DIR [options]", description)
    group = parser.add_argument_group("healthy scans")
    _add_healthy(group)
    text = "lesion masks of patients, as for train lesion: slices with lesion are left out (default: none have lesions)"
    add(group, "--masks", text, "PATTERN")
    group = parser.add_argument_group("the model")
    if what == "reflect":
        text = "folder of train autoencoder, or VAE-Medical-*.pt of REFLECT's authors"
        add(group, "--autoencoder", text, "PATH", Path, dest="start")
        add(group, "--init", "adapt this model, with its autoencoder, instead of beginning anew", "NAME|PATH")
    if what == "reflect2":
        add(group, "--model", "folder of train reflect, or embedded model", "NAME|PATH", required=True)
    else:
        text = "what the model sees (default: T1w)"
        group.add_argument("--contrast", choices=("T1w", "FLAIR"), help=text)
    add(group, "--out", "where the model folder goes", "DIR", Path, dest="out_dir", required=True)
    add(group, "--name", f"name of the model and its folder (default: {what})", "NAME")
    text = "small: for a laptop; paper: networks, schedule and corruption of REFLECT's authors, for a GPU (default: "
    text += "small)" if what == "autoencoder" else "that of what is begun with, else small)"
    group.add_argument("--preset", choices=("small", "paper"), help=text)
    if what == "autoencoder":
        text = "pixels on a side of a latent cell, 4 or 8 (default: that of the preset)"
        group.add_argument("--latent", choices=("f4", "f8"), help=text)
        text = (
            "with --preset paper: folder with vgg16-397923af.pth (of torchvision) and vgg.pth (of LPIPS 0.1), for LPIPS"
            " and the authors' critic (default: structural loss)"
        )
        add(group, "--lpips", text, "DIR", Path)
    else:
        _add_flow(group, sizes=what == "reflect")
    _add_schedule(parser.add_argument_group("the training"))
    _add_training_options(parser.add_argument_group("this run"))
    return parser


def _calibration_parser() -> argparse.ArgumentParser:
    text = "Measure the threshold of an anomaly model on healthy scans it has not seen, and write it into its card."
    parser = make_parser("afterstroke train calibrate", "--bids DIR --model PATH [options]", text)
    _add_healthy(parser.add_argument_group("healthy scans"))
    text = "model folder, or folder with two files of REFLECT's authors; its card is written anew"
    add(parser, "--model", text, "PATH", required=True)
    _add_training_options(parser.add_argument_group("this run"))
    return parser


def _add_dataset(group: argparse._ArgumentGroup, more: str = "") -> None:
    add(group, "--bids", f"the BIDS dataset{more}; never written", "DIR", Path, dest="bids_dir", required=True)


def _add_scans(group: argparse._ArgumentGroup) -> None:
    add_several(group, "--participant-label", "participants (default: all)", "LABEL", dest="participants")
    text = "whether the scans are brain-extracted already (default: auto)"
    group.add_argument("--skull-stripped", choices=("auto", "yes", "no"), help=text)


def _add_healthy(group: argparse._ArgumentGroup) -> None:
    _add_dataset(group, ", or the folder of IXI's T1w")
    _add_scans(group)


def _add_flow(group: argparse._ArgumentGroup, sizes: bool) -> None:
    if sizes:
        text = "of the velocity network (default: that of the preset)"
        group.add_argument("--size", choices=("tiny", "XS", "S", "M", "L", "XL"), help=text)
        add(group, "--context", "slices on either side that it sees too, 2.5-D (default: 0)", "N", int)
        add_flag(group, "--volumetric", "convolutions across slices, 3-D")
    text = "folder of pictures, as of DTD, to corrupt with (default: patterns that are drawn)"
    add(group, "--textures", text, "DIR", Path)
    text = "corrupt slices by making fluid spaces wider or narrower (default: with --preset small)"
    add_flag(group, "--morphology", text, argparse.BooleanOptionalAction)
    text = "corrupt them by blotches of another tone; without both, corruption is the authors' (default: likewise)"
    add_flag(group, "--focal", text, argparse.BooleanOptionalAction)
    text = "differences that the map counts: where the brain is brighter than its twin, darker, or both (default: both)"
    group.add_argument("--side", choices=SIDES, help=text)
    add_flag(group, "--masked", "set differences outside of the brain to zero before the map is blurred")


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    add(group, "--epochs", "times that all slices are seen (default: the steps or epochs of the preset)", "N", int)
    add(group, "--batch", "slices that go through the network together (default: those of the preset)", "N", int)
    add(group, "--accumulation", "batches of one step (default: those of the preset)", "N", int)
    add(group, "--seed", "of the random numbers (default: 0)", "N", int)


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    text = "where the networks are trained (default: auto)"
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help=text)
    text = "CPUs: scans prepared side by side, threads, augmentation (default: those this job may use)"
    add(group, "--nprocs", text, "N", int)
    text = "prepared scans and checkpoints, kept to go on (default: work, in the current folder)"
    add(group, "-w --work-dir", text, "DIR", Path)
    add_flag(group, "--dry-run", "print what was found, what cannot be used, and the plan; write nothing")
    add_flag(group, "-v --verbose", "more messages; -vv for all", "count", dest="verbosity")
