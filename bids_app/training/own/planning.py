"""Which network is trained: the plans of a preset, or those of the model that the training starts from."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass

from bids_app.derivatives.write import write_json
from bids_app.errors import ConfigError
from bids_app.lesion.folder import read_json
from bids_app.training.own.dataset import FINGERPRINT, Dataset, nnunet_folders
from bids_app.training.own.start import Start
from bids_app.training.plans import (
    CONFIGURATION,
    FUSIONS,
    architecture,
    build_plans,
    for_channels,
    late_architecture,
)

SMALL, RESENC_M = "small", "resenc-m"
PRESETS = (SMALL, RESENC_M)


@dataclass(frozen=True)
class Part:
    """One network that nnU-Net trains: the whole model, or one branch of a late fusion.

    Attributes
    ----------
    fusion : str
        ``t1w``, ``flair``, ``early`` or ``intermediate``.
    number : int
        Of its nnU-Net dataset.
    """

    fusion: str
    number: int

    @property
    def channels(self) -> tuple[str, ...]:
        return FUSIONS[self.fusion].contrasts


def parts_of(fusion: str) -> tuple[Part, ...]:
    """The networks of a fusion, in the order of its channels; late fusion has one for each contrast."""
    names = ("t1w", "flair") if fusion == "late" else (fusion,)
    return tuple(Part(name, 501 + list(FUSIONS).index(name)) for name in names)


def check_preset(fusion: str, preset: str | None, start: Start | None) -> None:
    """Refuse what cannot be trained together.

    Raises
    ------
    ConfigError
        For intermediate fusion with ``resenc-m``, or a preset that is not that of the model to start from.
    """
    if fusion == "intermediate" and preset == RESENC_M:
        raise ConfigError(
            "Intermediate fusion is there for the small preset alone.", "Use --preset small, or early or late fusion."
        )
    if start is None or preset is None:
        return
    small = start.network_class in {architecture(item)["network_class_name"] for item in FUSIONS.values()}
    if small != (preset == SMALL):
        raise ConfigError(
            f"{start.name} is a {start.network_class.rpartition('.')[2]}, which is not the preset {preset}.",
            "Leave --preset out: the plans are those of the model that you start from.",
        )


def plans_for(part: Part, dataset: Dataset, preset: str | None, start: Start | None, processes: int) -> dict:
    """Content of the plans of one part, for its dataset.

    Parameters
    ----------
    start : Start or None
        Its plans are taken as they are, since its weights fit no others.
    processes : int
        For nnU-Net's fingerprint.
    """
    if start is not None:
        plans = start.plans_for(part.fusion)
    elif preset == RESENC_M:
        plans = _resenc_plans(dataset, processes)
    else:
        plans = build_plans(FUSIONS[part.fusion])
    return copy.deepcopy(plans) | {"dataset_name": dataset.name}


def _resenc_plans(dataset: Dataset, processes: int) -> dict:
    """Plans of nnU-Net's ResEnc-M planner, for the fingerprint of the data; made once."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    path = dataset.preprocessed / "nnUNetResEncUNetMPlans.json"
    if path.is_file() and CONFIGURATION in (plans := read_json(path)).get("configurations", {}):
        return plans
    with nnunet_folders(dataset.base, processes), contextlib.redirect_stdout(io.StringIO()):
        extractor = DatasetFingerprintExtractor(dataset.number, max(1, processes))
        extractor.show_progress_bar = False
        extractor.run(overwrite_existing=(dataset.preprocessed / FINGERPRINT).is_file())
        residual_encoder_unet_planners.nnUNetPlannerResEncM(dataset.number).plan_experiment()
    plans = read_json(path)
    plans["configurations"] = {CONFIGURATION: plans["configurations"][CONFIGURATION]}
    write_json(path, plans)
    return plans


def late_plans(branch: dict, channels: Sequence[str], name: str) -> dict:
    """Plans of a late fusion of networks that share the plans `branch`."""
    plans = for_channels(copy.deepcopy(branch) | {"dataset_name": name}, len(channels))
    configuration = plans["configurations"][CONFIGURATION]
    configuration["architecture"] = late_architecture(configuration["architecture"])
    return plans
