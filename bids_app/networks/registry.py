"""The models that come with the App: where they lie, what their checksums are, how a name becomes a folder.

``python -m bids_app.networks.registry --update`` rewrites ``data/registry.json`` from the folders in ``data/models``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_app.environment import expanded
from bids_app.errors import ConfigError
from bids_app.networks.weights import sha256
from bids_app.wording import did_you_mean

DATA = Path(__file__).parents[1] / "data"
REGISTRY = DATA / "registry.json"
MODELS = DATA / "models"
LESION, ANOMALY = "lesion", "anomaly"
DEFAULT_ANOMALY = "reflect-t1w"
MARKS = {LESION: "dataset.json", ANOMALY: "velocity.pth"}
"""What every model of a kind has in its folder, and no other model."""


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes with the App.

    Attributes
    ----------
    name : str
        What ``--lesion-model`` or ``--anomaly-model`` understands.
    kind : str
        ``lesion`` or ``anomaly``.
    folder : Path
    files : tuple of (str, str)
        Path below `folder` and sha256 of every file.
    """

    name: str
    kind: str
    folder: Path
    files: tuple[tuple[str, str], ...]


def embedded_models(registry: Path = REGISTRY) -> tuple[EmbeddedModel, ...]:
    """All models of the registry, by name.

    Raises
    ------
    ConfigError
        If the registry is missing or damaged: the installation is incomplete.
    """
    try:
        models = json.loads(registry.read_text())["models"]
        return tuple(
            EmbeddedModel(name, item["kind"], registry.parent / item["folder"], tuple(sorted(item["sha256"].items())))
            for name, item in sorted(models.items())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The model registry {registry} cannot be read: {error!r}.", "Install the App again."
        ) from error


def find_model(name_or_path: str, registry: Path = REGISTRY, kind: str = LESION) -> Path:
    """Folder (or ONNX file) of a model, by embedded name or path; a name wins over a folder of that name.

    Raises
    ------
    ConfigError
        If it is neither an embedded model nor an existing path.
    """
    models = {model.name: model for model in embedded_models(registry) if model.kind == kind}
    if name_or_path in models:
        return models[name_or_path].folder
    path = expanded(name_or_path)
    if path.exists():
        return path.resolve()
    known = ", ".join(models) or "none"
    raise ConfigError(
        f"There is no {kind} model '{name_or_path}': it is neither an embedded model nor a path."
        f"{did_you_mean(name_or_path, models)}",
        f"Embedded models: {known}.",
    )


def find_anomaly_model(name_or_path: str | None, registry: Path = REGISTRY) -> Path | None:
    """Folder of an anomaly model; of the default if none is named, None if that is not embedded.

    Raises
    ------
    ConfigError
        As `find_model`.
    """
    if name_or_path is not None:
        return find_model(name_or_path, registry, ANOMALY)
    return next((model.folder for model in embedded_models(registry) if model.name == DEFAULT_ANOMALY), None)


def verify(folder: Path, registry: Path = REGISTRY) -> None:
    """Compare the files of an embedded model with the registry; other folders have nothing to compare with and pass.

    Raises
    ------
    ConfigError
        If a file of an embedded model is missing or has another checksum.
    """
    for model in embedded_models(registry):
        if model.folder.resolve() == Path(folder).resolve():
            for name, expected in model.files:
                _verify_file(model, name, expected)


def update(registry: Path = REGISTRY, models: Path = MODELS) -> dict[str, Any]:
    """Rewrite the registry from the model folders, and return its content."""
    found = sorted((path.parent, kind) for kind, mark in MARKS.items() for path in models.glob(f"*/{mark}"))
    content = {"models": {folder.name: _entry(folder, kind, registry.parent) for folder, kind in found}}
    temporary = registry.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(registry)
    return content


def main(arguments: list[str]) -> int:
    """Command line: list the embedded models, or rewrite the registry with ``--update``."""
    if arguments not in ([], ["--update"]):
        print("usage: python -m bids_app.networks.registry [--update]", file=sys.stderr)
        return 2
    if arguments:
        update()
    for model in embedded_models():
        print(f"{model.name}\t{model.folder}\t{len(model.files)} files")
    return 0


def _entry(folder: Path, kind: str, root: Path) -> dict[str, Any]:
    """What the registry says of one model folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    card = folder / "card.json"
    return {
        "kind": kind,
        "folder": folder.relative_to(root).as_posix(),
        "sha256": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        "card": json.loads(card.read_text()) if card.is_file() else {},
    }


def _verify_file(model: EmbeddedModel, name: str, expected: str) -> None:
    """Fail if one file of an embedded model is not the one the registry knows."""
    path = model.folder / name
    if not path.is_file():
        raise ConfigError(f"The embedded model {model.name} lacks {path}.", "Install the App again.")
    if sha256(path) != expected:
        raise ConfigError(
            f"{path} of the embedded model {model.name} was changed: its checksum is not that of the registry.",
            "Install the App again, or give your own model by its path.",
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
