"""What the user asked for, as one frozen dataclass: read from the command line or TOML, hashed, written back."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError
from bids_app.text import read_text
from bids_app.wording import did_you_mean

DEFAULT_SPACE = "MNI152NLin2009aSym"
NATIVE_SPACE = "T1w"

#: The settings that change what is written; all others (devices, threads, paths) leave the results the same. Model and
#: folds count by the checksum of the files they are loaded from, the model's input and output spaces by what they come
#: to.
RESULT_FIELDS = (
    "lesion_input", "threshold", "min_lesion_volume", "skull_stripped", "anomaly_steps", "anomaly_threshold",
)  # fmt: skip


def available_cpus() -> int:
    """CPUs this process may use: the Slurm allocation, else the affinity mask capped by the cgroup's quota."""
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdecimal():
        return max(1, int(slurm))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _cgroup_quota() or cpus))


def _cgroup_quota() -> int | None:
    """CPUs granted by a cgroup v2 quota (a container's ``--cpus``), or None where there is no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


@dataclass(frozen=True)
class Settings:
    """Everything one run needs to know.

    Attributes
    ----------
    bids_dir, out_dir, work_dir : Path
        Absolute folders. `bids_dir` is None at the group level.
    participants, sessions, excluded : tuple of str
        Labels without prefix; empty means all (of `excluded`: none).
    nprocs, omp_nthreads : int
        CPUs in all, and threads of one worker: ``nprocs // omp_nthreads`` visits run side by side.
    memory_gb : float or None
        Memory in GiB that the run may use; None is no limit.
    low_mem : bool
        Whether visits are processed one at a time.
    device : str
        ``auto``, ``cpu`` or ``cuda[:N]``.
    folds : tuple of str
        Folds of the lesion model to run; empty means every fold the model has.
    lesion_input : str or None
        What the lesion model is given, as `lesion.inputs.parse_input` reads it; None takes what its card says.
    keep_model_input : bool
        Whether what the lesion model was given is kept with the logs.
    threshold, min_lesion_volume : float or None
        Probability in (0, 1] and mm3; None takes the model card's value, else what ``nnUNetv2_predict`` does: the most
        probable class (of two, from 0.5), lesions of any size.
    anomaly : bool
        Whether what departs from a healthy brain is mapped.
    anomaly_model : str or None
        Name or folder of the model that does it; None takes the embedded one, if there is one.
    anomaly_steps, anomaly_threshold : int, float or None
        Euler steps, and anomaly in (0, 1]; None takes the model card's value.
    skull_stripped : str
        ``auto``, ``yes`` or ``no``.
    derivatives : mapping of str to Path
        Folders of other pipelines whose brain masks, T1w, transforms or lesion masks are reused.
    """

    out_dir: Path
    bids_dir: Path | None = None
    work_dir: Path = Path("work")
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    memory_gb: float | None = None
    low_mem: bool = False
    device: str = "auto"
    plugin_file: Path | None = None
    output_spaces: tuple[str, ...] = (NATIVE_SPACE, DEFAULT_SPACE)
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    export_lesion_roi: Path | None = None
    lesion_model: str = "synthetic-late"
    folds: tuple[str, ...] = ()
    lesion_input: str | None = None
    keep_model_input: bool = False
    threshold: float | None = None
    min_lesion_volume: float | None = None
    anomaly: bool = True
    anomaly_model: str | None = None
    anomaly_steps: int | None = None
    anomaly_threshold: float | None = None
    skull_stripped: str = "auto"
    normalization: bool = True
    stop_on_first_crash: bool = False
    force: bool = False
    check_content: bool = False
    verbosity: int = 0

    @property
    def workers(self) -> int:
        """Visits that run side by side."""
        return 1 if self.low_mem else max(1, self.nprocs // self.omp_nthreads)

    @property
    def standard_spaces(self) -> tuple[str, ...]:
        """Output spaces other than the native one, the default one first; empty when normalization is off.

        The order in which they were asked for changes nothing: the first MNI space is where lesions get coordinates.
        """
        spaces = {space for space in self.output_spaces if space != NATIVE_SPACE} if self.normalization else set()
        return tuple(sorted(spaces, key=lambda space: (space != DEFAULT_SPACE, space)))


@dataclass(frozen=True)
class TrainingSettings:
    """What ``afterstroke train lesion`` was asked for.

    Attributes
    ----------
    bids_dir, out_dir, work_dir : Path
        Absolute folders: the dataset, where the model folder goes, and where everything else goes.
    masks : str
        Pattern of the lesion masks, or ``atlas`` or ``arc``.
    fusion : str
        ``t1w``, ``flair``, ``early``, ``intermediate`` or ``late``.
    name : str
        Of the model and of its folder in `out_dir`.
    init : str or None
        Name or path of the model to start from.
    preset : str or None
        ``small`` or ``resenc-m``; None is that of `init`, else ``small``.
    folds : int
        Folds of the cross-validation.
    chosen_folds : tuple of int
        Folds to train; empty means all.
    epochs : int or None
        Of 250 steps; None is the default of the training.
    participants : tuple of str
        Labels without prefix; empty means all.
    """

    bids_dir: Path
    masks: str
    out_dir: Path
    fusion: str
    name: str
    work_dir: Path = Path("work")
    init: str | None = None
    preset: str | None = None
    folds: int = 5
    chosen_folds: tuple[int, ...] = ()
    epochs: int | None = None
    participants: tuple[str, ...] = ()
    skull_stripped: str = "auto"
    device: str = "auto"
    nprocs: int = 1
    verbosity: int = 0

    @property
    def trained_folds(self) -> tuple[int, ...]:
        """The folds that are asked for."""
        return self.chosen_folds or tuple(range(self.folds))


@dataclass(frozen=True)
class AnomalyTraining:
    """What ``afterstroke train autoencoder``, ``reflect``, ``reflect2`` or ``calibrate`` was asked for.

    Attributes
    ----------
    step : str
        One of these four words.
    bids_dir, out_dir, work_dir : Path
        As of `TrainingSettings`.
    name : str
        Of the model and of its folder in `out_dir`.
    start : Path or None
        Folder or file to begin with: the autoencoder of ``reflect``, the model of ``reflect2`` and of ``calibrate``.
    init : Path or None
        Model folder that ``reflect`` adapts, with its autoencoder.
    contrast : str
        ``T1w`` or ``FLAIR``; of ``reflect2`` and ``calibrate`` that of the model.
    masks : str or None
        Pattern of lesion masks: slices with lesion are left out. None: all scans are healthy.
    preset : str or None
        ``small`` or ``paper``; None is that of what the training begins with, else ``small``.
    latent, size : str or None
        Of the autoencoder (``f4`` or ``f8``) and of the velocity network; None is that of the preset.
    context : int
        Slices on either side that the velocity network sees as channels.
    volumetric : bool
        Whether it has convolutions across slices.
    morphology : bool or None
        Whether slices are corrupted by deformation too; None is as in the preset.
    focal : bool or None
        Whether they are corrupted by blotches of another tone; None likewise.
    masked : bool
        Whether the model leaves out what lies outside of the brain before it blurs differences.
    side : str or None
        Which differences its map counts: ``both``, ``bright`` or ``dark``; None is that of the model to begin with,
        else ``both``.
    textures, lpips : Path or None
        Folders of texture images, and of the weights of LPIPS.
    epochs, batch, accumulation : int or None
        None is that of the preset.
    seed : int
    participants : tuple of str
        Labels without prefix; empty means all.
    """

    step: str
    bids_dir: Path
    out_dir: Path
    name: str
    work_dir: Path = Path("work")
    start: Path | None = None
    init: Path | None = None
    contrast: str = "T1w"
    masks: str | None = None
    preset: str | None = None
    latent: str | None = None
    size: str | None = None
    context: int = 0
    volumetric: bool = False
    morphology: bool | None = None
    focal: bool | None = None
    masked: bool = False
    side: str | None = None
    textures: Path | None = None
    lpips: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    accumulation: int | None = None
    seed: int = 0
    participants: tuple[str, ...] = ()
    skull_stripped: str = "auto"
    device: str = "auto"
    nprocs: int = 1
    verbosity: int = 0

    @property
    def calibrates(self) -> bool:
        """Whether nothing is trained: a threshold is measured."""
        return self.step == "calibrate"


def configuration_hash(settings: Settings, version: str, model_sha256: str, anomaly_sha256: str | None) -> str:
    """Eight hexadecimal digits over version, model and those settings that change the results.

    Parameters
    ----------
    model_sha256 : str
        Over the files that are loaded: the chosen folds, and no others.
    anomaly_sha256 : str or None
        Over the files of the anomaly model; None where it does not run.
    """
    content = {name: _plain(getattr(settings, name)) for name in RESULT_FIELDS}
    content |= {"version": version, "model_sha256": model_sha256, "anomaly_sha256": anomaly_sha256}
    content["standard_spaces"] = settings.standard_spaces
    content["derivatives"] = sorted(settings.derivatives)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=4).hexdigest()


def to_toml(settings: Settings) -> str:
    """The settings as TOML that `read_toml` and ``--config-file`` understand; unset values are left out."""
    lines, tables = [], []
    for item in fields(settings):
        value = _plain(getattr(settings, item.name))
        if isinstance(value, dict):
            rows = [f"{json.dumps(key)} = {json.dumps(path)}" for key, path in sorted(value.items())]
            tables += [f"\n[{item.name}]", *rows] if rows else []
        elif value is not None:
            lines.append(f"{item.name} = {json.dumps(value)}")
    return "\n".join(lines + tables) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a configuration file, with the types of `Settings`.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not TOML, or names something that is no setting.
    """
    try:
        content = tomllib.loads(read_text(path).content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from error
    known = {item.name: item.type for item in fields(Settings)}
    if unknown := sorted(set(content) - set(known)):
        suggestion = did_you_mean(unknown[0], known)
        raise ConfigError(
            f"{path} sets {', '.join(unknown)}, which is no setting.{suggestion}",
            f"Known settings: {', '.join(sorted(known))}.",
        )
    return {name: _typed(path, name, str(known[name]), value) for name, value in content.items()}


def _plain(value: Any) -> Any:
    """`value` in the types that JSON and TOML know."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {key: str(path) for key, path in value.items()}
    return value


def _typed(path: Path, name: str, kind: str, value: Any) -> Any:
    """A TOML value as the type of the setting `name`, whose annotation is `kind`."""
    expected = {"Path": str, "tuple": list, "bool": bool, "int": int, "float": (int, float), "str": str}
    expected["Mapping"] = dict
    wanted = next(types for start, types in expected.items() if kind.startswith(start))
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        found = type(value).__name__
        raise ConfigError(f"{path}: the value of {name} is a {found}, not a {kind}.", "Correct that line.")
    if kind.startswith("Path"):
        return Path(value)
    if kind.startswith("tuple"):
        return tuple(str(item) for item in value)
    if kind.startswith("Mapping"):
        return {key: _folder(path, f"{name}.{key}", folder) for key, folder in value.items()}
    return float(value) if kind.startswith("float") else value


def _folder(path: Path, name: str, value: Any) -> Path:
    """One folder of a table of folders."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}: the value of {name} is {value!r}, not a folder.", "Correct that line.")
    return Path(value)
