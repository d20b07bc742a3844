"""The top-level files of the output folder, identical for every run on the same dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bids_app import app_version
from bids_app.derivatives import names
from bids_app.derivatives.read import read_object
from bids_app.derivatives.write import write_json, write_table, write_text
from bids_app.errors import CannotWriteError
from bids_app.study.dataset import makers

BIDS_VERSION = "1.11.1"
PIPELINE = names.PIPELINE
CONTRIBUTORS = f"{PIPELINE} contributors"
DISCLAIMER = "Research use only: not a medical device."

DESCRIPTIONS = {
    "preproc": "Header repaired, reoriented to RAS+, bias field corrected inside the brain",
    "brain": "Brain mask",
    names.ANOMALY_DESC: "What departs from a healthy brain, mapped by REFLECT",
    names.TWIN_DESC: "Synthetic: the healthy twin of a brain as REFLECT draws it",
    names.LESION_DESC: "Stroke lesion found by an nnU-Net model, or drawn by hand where the sidecar says Manual",
}


def write_top_level(out_dir: Path, bids_dir: Path, configuration: str, links: Mapping[str, Path]) -> None:
    """Write dataset_description.json, .bidsignore, descriptions.tsv and README.

    Parameters
    ----------
    configuration : str
        Configuration hash of the run.
    links : mapping of str to Path
        Names and folders of reused derivative datasets. Those of earlier runs that are still there are kept, because
        sidecars name them.

    Raises
    ------
    CannotWriteError
        If `out_dir` holds the derivatives of another pipeline.
    """
    refuse_other_pipeline(out_dir)
    raw = read_object(bids_dir / names.DESCRIPTION)
    folders = _earlier_links(out_dir) | dict(links) | {names.RAW_DATASET: bids_dir}
    write_json(out_dir / names.DESCRIPTION, dataset_description(out_dir, bids_dir, raw, configuration, folders))
    write_text(out_dir / names.BIDSIGNORE, "\n".join(names.IGNORED_BY_VALIDATOR) + "\n")
    rows = [(f"desc-{label}", meaning) for label, meaning in DESCRIPTIONS.items()]
    write_table(out_dir / names.DESC_TABLE, pd.DataFrame(rows, columns=["desc_id", "description"]))
    write_json(names.sidecar(out_dir / names.DESC_TABLE), {"Description": "Meaning of the desc entities"})
    write_text(out_dir / "README", _readme())


def _code_url() -> str:
    """Where the package says that its code is, by ``[project.urls]`` of pyproject.toml; empty where it does not."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata(PIPELINE).get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a source tree that was not installed
        return ""
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Repository", "")


def dataset_description(
    out_dir: Path, bids_dir: Path, raw: Mapping[str, Any], configuration: str, folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Content of dataset_description.json.

    All links are relative, so that the folders can move together. What the raw dataset says in another type than BIDS
    wants is left out: it would make this dataset invalid too.
    """
    name = _text(raw, "Name") or bids_dir.name
    generated = {
        "Name": PIPELINE,
        "Version": app_version(),
        "ConfigurationHash": configuration,
    }
    if url := _code_url():
        generated["CodeURL"] = url
    if container := _container():
        generated["Container"] = container
    return {
        "Name": f"{name}: stroke lesions",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": _text(raw, "License") or "n/a",
        "Authors": _authors(raw, name),
        "GeneratedBy": [generated],
        "SourceDatasets": [_source_dataset(raw, bids_dir)],
        "DatasetLinks": {link: _relative(folder, out_dir) for link, folder in sorted(folders.items())},
    }


def _relative(folder: Path, out_dir: Path) -> str:
    """A relative link between two folders, however they are reached: `..` leads out of where a link leads to."""
    return os.path.relpath(folder.resolve(), out_dir.resolve())


def _text(raw: Mapping[str, Any], key: str) -> str:
    """A value that must be text; empty if it is not."""
    value = raw.get(key)
    return value.strip() if isinstance(value, str) else ""


def _authors(raw: Mapping[str, Any], name: str) -> list[str]:
    """Authors of the raw dataset, and of this App where those are fewer than the two that the validator expects.

    >>> _authors({"Authors": ["A"]}, "Cohort"), _authors({}, "Cohort")
    (['A', 'afterstroke contributors'], ['Authors of Cohort', 'afterstroke contributors'])
    """
    given = raw.get("Authors")
    valid = isinstance(given, list) and all(isinstance(author, str) and author.strip() for author in given)
    authors = given if valid and given else [f"Authors of {name}"]
    return authors if len(authors) > 1 else [*authors, CONTRIBUTORS]


def _earlier_links(out_dir: Path) -> dict[str, Path]:
    """Datasets that the derivatives of earlier runs name, as far as they are still there."""
    links = read_object(out_dir / names.DESCRIPTION).get("DatasetLinks")
    written = links if isinstance(links, dict) else {}
    folders = {name: out_dir / link for name, link in written.items() if isinstance(link, str)}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def _source_dataset(raw: Mapping[str, Any], bids_dir: Path) -> dict[str, str]:
    if doi := _text(raw, "DatasetDOI"):
        return {"DOI": doi}
    return {"URL": bids_dir.name}


def _container() -> dict[str, str] | None:
    """The container this runs in, from what the image and Apptainer say of themselves."""
    if image := os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER"):
        return {"Type": "apptainer", "URI": Path(image).name}
    if tag := os.environ.get("AFTERSTROKE_IMAGE"):
        return {"Type": "docker", "Tag": tag}
    return None


def refuse_other_pipeline(out_dir: Path) -> None:
    """Make sure that a folder holds the derivatives of this App, or none.

    Raises
    ------
    CannotWriteError
        Naming the pipeline whose derivatives it holds.
    """
    found = read_object(out_dir / names.DESCRIPTION)
    pipelines = makers(found)
    if found and PIPELINE not in pipelines:
        what = f"derivatives of {', '.join(pipelines)}" if pipelines else "another dataset"
        raise CannotWriteError(f"{out_dir} already holds {what}.", "Choose an empty output folder.")


def _readme() -> str:
    return (
        f"Stroke lesion derivatives written by {PIPELINE} {app_version()}. {DISCLAIMER}\n\n"
        "Each image has a JSON sidecar that says what it is, what it was made from and with which model.\n"
        "The folder sub-*/log holds a record of every visit: inputs, outputs, checksums, problems.\n"
    )
