"""nnU-Net's folders: raw dataset, splits, preprocessed cases. Its environment variables are set here alone."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import write_json
from bids_app.study.folders import link
from bids_app.training.own.folds import Fold
from bids_app.training.own.prepare import Ready
from bids_app.training.plans import CONFIGURATION

READER = "NibabelIOWithReorient"
LABELS = {"background": 0, "lesion": 1}
FINGERPRINT = "dataset_fingerprint.json"
DONE = "preprocessed_cases.json"


@dataclass(frozen=True)
class Dataset:
    """One nnU-Net dataset.

    Attributes
    ----------
    base : Path
        Holds ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results``.
    number : int
    title : str
        Letters and digits.
    channels : tuple of str
        ``T1w`` and ``FLAIR``, in the order of the network.
    """

    base: Path
    number: int
    title: str
    channels: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in ``Dataset501_T1w``."""
        return f"Dataset{self.number:03d}_{self.title}"

    @property
    def raw(self) -> Path:
        return self.base / "nnUNet_raw" / self.name

    @property
    def preprocessed(self) -> Path:
        return self.base / "nnUNet_preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.base / "nnUNet_results" / self.name


@contextmanager
def nnunet_folders(base: Path, processes: int) -> Iterator[None]:
    """nnU-Net's environment for the length of a ``with`` block, in this process and those it starts.

    Parameters
    ----------
    processes : int
        For augmentation; 0 is nnU-Net's single-threaded augmenter.
    """
    folders = {name: str(base / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    wanted = folders | {"nnUNet_n_proc_DA": str(processes), "nnUNet_def_n_proc": str(max(1, processes))}
    # compiling wants a C compiler, which a container need not have
    wanted["nnUNet_compile"] = os.environ.get("nnUNet_compile", "false")  # noqa: SIM112
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def dataset_json(name: str, channels: Sequence[str], cases: int) -> dict:
    """Content of ``dataset.json``."""
    return {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": name,
        "overwrite_image_reader_writer": READER,
    }


def write_raw(dataset: Dataset, cases: Sequence[Ready]) -> None:
    """Write the raw dataset, of links: ``imagesTr/CASE_0000.nii.gz`` and ``labelsTr/CASE.nii.gz``."""
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(dataset.raw / folder, ignore_errors=True)
        (dataset.raw / folder).mkdir(parents=True)
    for case in cases:
        for number, contrast in enumerate(dataset.channels):
            link(case.channel(contrast), dataset.raw / "imagesTr" / f"{case.label}_{number:04d}.nii.gz")
        link(case.mask, dataset.raw / "labelsTr" / f"{case.label}.nii.gz")
    content = dataset_json(dataset.name, dataset.channels, len(cases))
    write_json(dataset.raw / "dataset.json", content)
    write_json(dataset.preprocessed / "dataset.json", content)


def write_splits(dataset: Dataset, folds: Sequence[Fold]) -> Path:
    """Write the folds where nnU-Net looks for them."""
    splits = [{"train": list(fold.train), "val": list(fold.validation)} for fold in folds]
    path = dataset.preprocessed / "splits_final.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(splits, indent=1))  # a list, which `write_json` does not take
    return path


def preprocess(dataset: Dataset, plans: dict, cases: Sequence[Ready], say: Callable[[str], None]) -> None:
    """Preprocess the cases with nnU-Net's own preprocessor; those that are there already stay.

    Parameters
    ----------
    plans : dict
        Content of the plans; its ``dataset_name`` is that of `dataset`.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_json(dataset.preprocessed / f"{plans['plans_name']}.json", plans)
    if not (dataset.preprocessed / FINGERPRINT).is_file():  # nnU-Net's trainer copies it
        write_json(dataset.preprocessed / FINGERPRINT, {})
    manager = PlansManager(plans)
    configuration = manager.get_configuration(CONFIGURATION)
    folder = dataset.preprocessed / configuration.data_identifier
    folder.mkdir(parents=True, exist_ok=True)
    preprocessor = configuration.preprocessor_class(verbose=False)
    content, done = dataset_json(dataset.name, dataset.channels, len(cases)), _read_done(dataset)
    for case in cases:
        if done.get(case.label) == case.fingerprint:
            continue
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):  # of an earlier, perhaps unfinished, try
            (folder / f"{case.label}{ending}").unlink(missing_ok=True)
        scans = [str(dataset.raw / "imagesTr" / f"{case.label}_{n:04d}.nii.gz") for n in range(len(dataset.channels))]
        mask = str(dataset.raw / "labelsTr" / f"{case.label}.nii.gz")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            preprocessor.run_case_save(str(folder / case.label), scans, mask, manager, configuration, content)
        done[case.label] = case.fingerprint
        write_json(dataset.preprocessed / DONE, done)
    say(f"preprocessed {len(cases)} cases for {' and '.join(dataset.channels)}")


def _read_done(dataset: Dataset) -> dict[str, str]:
    """Fingerprints of the cases that are preprocessed, by label."""
    return read_object(dataset.preprocessed / DONE)
