"""The command line as argparse knows it, and its way into `Settings`: command line, then file, then defaults."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from bids_app.errors import AppError, ConfigError, UsageError
from bids_app.settings import DEFAULT_SPACE, NATIVE_SPACE, Settings, TrainingSettings, available_cpus, read_toml
from bids_app.study.reuse import is_derivative_name, parse_derivative
from bids_app.study.single import Case

MAX_DEFAULT_THREADS = 8
"""Threads a visit by default; registration and networks gain little from more."""

_MEMORY_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_CONTRACT = """\
Options may be written with underscores for hyphens (--participant_label), labels with their prefix (sub-01).
Put the options after the positional arguments. Nothing is ever sent or downloaded.

exit codes: 0 done; 1 a visit failed; 2 usage; 65 the dataset is unusable; 66 no input; 69 a device or template is
missing; 70 internal error; 73 cannot write; 78 bad configuration

To run one scan that is in no BIDS dataset: afterstroke case T1W [FLAIR] OUT (see: afterstroke case --help)
To train a lesion model on your own masks: afterstroke train lesion (see: afterstroke train lesion --help)
Research use only: not a medical device."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    level : str
        ``participant``, ``group``, ``case`` or ``train``.
    settings : Settings or TrainingSettings
        `TrainingSettings` for the level ``train``.
    dry_run : bool
        Print the plan, write nothing.
    case : Case or None
        The files of the level ``case``.
    """

    level: str
    settings: Settings | TrainingSettings
    dry_run: bool = False
    case: Case | None = None


class _Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        hint = f"See {self.prog} --help."
        if message.startswith("the following arguments are required"):
            hint = f"Put {self.positionals} first, then the options. {hint}"
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint)

    @property
    def positionals(self) -> str:
        return " ".join(str(action.metavar) for action in self._actions if not action.option_strings)


class _Version(argparse.Action):
    """``--version``, which reads the models only when asked."""

    def __call__(self, parser, *_) -> NoReturn:
        print(version_text())
        parser.exit()


def read_request(arguments: Sequence[str]) -> Request:
    """Understand a command line.

    Raises
    ------
    UsageError
        If it makes no sense.
    ConfigError
        If the configuration file does not.
    SystemExit
        After ``--help`` and ``--version``.
    """
    if arguments[:1] == ["train"]:
        return _read_training(arguments[1:])
    single = arguments[:1] == ["case"]
    parser = case_parser() if single else bids_parser()
    given = vars(parser.parse_args([_hyphenated(argument) for argument in arguments[single:]]))
    level = "case" if single else given.pop("level")
    case = _read_case(given) if single else None
    dry_run, _ = given.pop("dry_run", False), given.pop("notrack", None)
    if "derivatives" in given:
        given["derivatives"] = dict(given["derivatives"])
    check_values(given, UsageError, {action.dest: action.option_strings[-1:] for action in parser._actions})
    values = _configured(given.pop("config_file", None)) | given
    if level == "group":
        values["bids_dir"] = None
    return Request(level, complete(values), dry_run, case)


def bids_parser() -> argparse.ArgumentParser:
    """The parser of ``run.py BIDS_DIR OUT_DIR {participant,group}``."""
    parser = _parser(
        "afterstroke",
        "BIDS_DIR OUT_DIR {participant,group} [options]",
        "BIDS App for MRI after a stroke: lesion masks, volumes and places from T1w and FLAIR.",
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="the BIDS dataset; never written")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="where the derivatives go")
    levels = "participant: process the visits; group: make tables and maps from OUT_DIR alone"
    parser.add_argument("level", metavar="LEVEL", choices=("participant", "group"), help=levels)
    _add_selection(parser.add_argument_group("which visits"))
    _add_common(parser)
    return parser


def case_parser() -> argparse.ArgumentParser:
    """The parser of ``afterstroke case``."""
    usage = "T1W [FLAIR] OUT [options], or --flair-only FLAIR OUT [options]"
    parser = _parser("afterstroke case", usage, "Run one scan that is in no BIDS dataset, through the same code.")
    parser.add_argument("t1w", metavar="T1W", type=Path, help="a T1w scan, NIfTI")
    parser.add_argument("flair", metavar="FLAIR", type=Path, nargs="?", default=None, help="its FLAIR, NIfTI")
    parser.add_argument("out_dir", metavar="OUT", type=Path, help="where the derivatives go")
    _add_flag(parser, "--flair-only", "there is no T1w: the one scan is a FLAIR")
    label = "what to call the case (default: taken from the name of the scan)"
    parser.add_argument("--participant-label", dest="label", metavar="LABEL", type=_participant, help=label)
    _add_common(parser)
    return parser


def _read_case(given: dict) -> Case:
    """The files of the level ``case``, taken out of what was given.

    Raises
    ------
    UsageError
        If they are not what they are called.
    """
    first, second, label = given.pop("t1w"), given.pop("flair"), given.pop("label", None)
    if given.pop("flair_only", False):
        if second is not None:
            raise UsageError("--flair-only takes one scan, the FLAIR.", "Leave out the option or the T1w.")
        return Case(None, first, label)
    if re.search("flair", first.name, re.IGNORECASE) and not re.search("t1", first.name, re.IGNORECASE):
        raise UsageError(f"{first.name} is called a FLAIR.", "Give the T1w before it, or say --flair-only.")
    return Case(first, second, label)


def train_parser() -> argparse.ArgumentParser:
    """The parser of ``afterstroke train lesion``."""
    parser = _parser(
        "afterstroke train",
        "lesion --bids DIR --masks PATTERN --out DIR --fusion FUSION [options]",
        "Train a lesion model on your own scans and masks, with nnU-Net. The same command again goes on.",
    )
    parser.add_argument("what", metavar="lesion", choices=("lesion",), help="what is trained: lesion models")
    group = parser.add_argument_group("scans and masks")
    _add(group, "--bids", "the BIDS dataset; never written", "DIR", Path, dest="bids_dir", required=True)
    text = (
        "where the masks are: a path below DIR or an absolute one, with {subject}, {session} and stars, as in "
        "'derivatives/manual/sub-{subject}/**/*_mask.nii.gz'; or atlas (ATLAS v2.0) or arc (ds004884). "
        "Empty masks are healthy brains"
    )
    _add(group, "--masks", text, "PATTERN", required=True)
    _add_several(group, "--participant-label", "participants (default: all)", "LABEL", dest="participants")
    text = "whether the scans are brain-extracted already (default: auto)"
    group.add_argument("--skull-stripped", choices=("auto", "yes", "no"), help=text)
    _add_model_options(parser.add_argument_group("the model"))
    _add_training_options(parser.add_argument_group("this run"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    text = "what the model sees: one contrast, or both joined at the input, at the features or at the logits"
    choices = ("t1w", "flair", "early", "intermediate", "late")
    group.add_argument("--fusion", choices=choices, required=True, help=text)
    _add(group, "--out", "where the model folder goes", "DIR", Path, dest="out_dir", required=True)
    _add(group, "--name", "name of the model and its folder (default: that of the fusion)", "NAME")
    text = "start from an embedded model or a folder, and adapt it (default: from chance)"
    _add(group, "--init", text, "NAME|PATH")
    text = "small: as the embedded models; resenc-m: nnU-Net's planner, for a GPU (default: that of --init, else small)"
    group.add_argument("--preset", choices=("small", "resenc-m"), help=text)
    _add(group, "--folds", "folds of the cross-validation, by subject (default: 5)", "N", int)
    text = "train these alone, counted from 0 (default: all)"
    _add_several(group, "--fold", text, "K", type=int, dest="chosen_folds")
    _add(group, "--epochs", "of 250 steps each (default: 1000; with --init 200)", "N", int)


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    text = "where the networks are trained (default: auto)"
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help=text)
    text = "CPUs: scans prepared side by side, threads, augmentation (default: those this job may use)"
    _add(group, "--nprocs", text, "N", int)
    text = "prepared scans and checkpoints, kept to go on (default: work, in the current folder)"
    _add(group, "-w --work-dir", text, "DIR", Path)
    _add_flag(group, "--dry-run", "print cases, problems, folds and plan, and write nothing")
    _add_flag(group, "-v --verbose", "more messages; -vv for all", "count", dest="verbosity")


def _read_training(arguments: Sequence[str]) -> Request:
    """Understand the command line of ``afterstroke train lesion``."""
    parser = train_parser()
    given = vars(parser.parse_args([_hyphenated(argument) for argument in arguments]))
    dry_run, _ = given.pop("dry_run", False), given.pop("what")
    for name in ("nprocs", "epochs"):
        if given.get(name, 1) < 1:
            raise UsageError(f"--{name} is '{given[name]}', which is not 1 or more.")
    given.setdefault("name", given["fusion"])
    if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.+-]*", given["name"]):
        raise UsageError(f"'{given['name']}' is no name for a model.", "Use letters, digits, '_', '.', '+' and '-'.")
    done = {name: _absolute(value) for name, value in given.items()}
    done["participants"] = _labels(done.get("participants", ()), "sub-")
    done["chosen_folds"] = tuple(dict.fromkeys(done.get("chosen_folds", ())))
    done.setdefault("work_dir", Path("work").absolute())
    done.setdefault("nprocs", available_cpus())
    return Request("train", TrainingSettings(**done), dry_run)


def _parser(prog: str, usage: str, description: str) -> _Parser:
    return _Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog=_CONTRACT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    """The options of both commands."""
    _add_preprocessing(parser.add_argument_group("preparing the scans"))
    _add_lesions(parser.add_argument_group("finding lesions"))
    _add_anomalies(parser.add_argument_group("finding what else departs from a healthy brain"))
    _add_resources(parser.add_argument_group("on what"))
    _add_running(parser.add_argument_group("this run"))


def _add(group: argparse._ArgumentGroup, option: str, text: str, metavar: str, type=str, **more: Any) -> None:
    """Add an option that takes a value; `option` may hold several spellings."""
    group.add_argument(*option.split(), help=text, metavar=metavar, type=type, **more)


def _add_several(group: argparse._ArgumentGroup, option: str, text: str, metavar: str, **more: Any) -> None:
    """Add an option that takes several values, at once or by being given again."""
    _add(group, option, text, metavar, nargs="+", action="extend", **more)


def _add_flag(group: argparse._ArgumentGroup, option: str, text: str, action: str = "store_true", **more: Any) -> None:
    """Add an option without a value."""
    group.add_argument(*option.split(), help=text, action=action, **more)


def _add_selection(group: argparse._ArgumentGroup) -> None:
    _add_several(group, "--participant-label", "participants (default: all)", "LABEL", dest="participants")
    _add_several(group, "--exclude-participant-label", "participants to leave out", "LABEL", dest="excluded")
    _add_several(group, "--session-label --session-id", "sessions (default: all)", "LABEL", dest="sessions")
    text = (
        'JSON that says which scans to use, as for fMRIPrep: {"t1w": {"acquisition": "mprage"}, "flair": {"run": 2}}; '
        'null is without, "*" is any'
    )
    _add(group, "--bids-filter-file", text, "FILE", Path)
    text = "keep pybids's index there, of all participants, and use it again"
    _add(group, "--bids-database-dir", text, "DIR", Path)
    text = "do not run bids-validator-deno on the requested scans"
    _add_flag(group, "--skip-bids-validation --skip-bids-validator", text, dest="skip_bids_validation")


def _add_preprocessing(group: argparse._ArgumentGroup) -> None:
    text = "whether the scans are brain-extracted already (default: auto)"
    group.add_argument("--skull-stripped", choices=("auto", "yes", "no"), help=text)
    text = (
        f"{NATIVE_SPACE} (always written) and standard spaces, at 1 mm (default: {DEFAULT_SPACE}); "
        "others than the default come from the TemplateFlow cache"
    )
    _add_several(group, "--output-spaces", text, "SPACE")
    text = "no registration to a standard space; native outputs only"
    _add_flag(group, "--no-normalization", text, "store_false", dest="normalization")
    text = "reuse brain mask, T1w and transforms of fMRIPrep or sMRIPrep, and lesion masks drawn by hand"
    _add_several(group, "-d --derivatives", text, "NAME=PATH", type=parse_derivative)


def _add_lesions(group: argparse._ArgumentGroup) -> None:
    text = f"embedded model, nnU-Net v2 folder or ONNX file (default: {_default('lesion_model')})"
    _add(group, "--lesion-model", text, "NAME|PATH")
    _add_several(group, "--folds", "folds of the model (default: all it has)", "FOLD")
    text = "lesion where the probability is at least P, in (0, 1] (default: the model's, else 0.5)"
    _add(group, "--threshold", text, "P", float)
    text = "leave out lesions smaller than this, in mm3 (default: the model's, else 10)"
    _add(group, "--min-lesion-volume", text, "MM3", float)
    text = "also write *_label-lesion_roi.nii.gz there, which fMRIPrep reads beside a raw T1w"
    _add(group, "--export-lesion-roi", text, "DIR", Path)


def _add_anomalies(group: argparse._ArgumentGroup) -> None:
    text = "embedded model, model folder, or folder with two files of REFLECT's authors (default: the embedded one)"
    _add(group, "--anomaly-model", text, "NAME|PATH")
    _add(group, "--anomaly-steps", "steps from a brain to its healthy twin (default: the model's)", "N", int)
    text = "a finding where the anomaly is at least A, in (0, 1] (default: the model's)"
    _add(group, "--anomaly-threshold", text, "A", float)
    _add_flag(group, "--no-anomaly", "lesions only", "store_false", dest="anomaly")


def _add_resources(group: argparse._ArgumentGroup) -> None:
    text = "intermediate files, kept to resume (default: work, in the current folder)"
    _add(group, "-w --work-dir", text, "DIR", Path)
    _add(group, "--nprocs", "CPUs in all (default: those this job may use)", "N", int)
    text = f"threads of one visit; NPROCS // N visits run side by side (default: NPROCS, at most {MAX_DEFAULT_THREADS})"
    _add(group, "--omp-nthreads", text, "N", int)
    text = "memory that may be used, in MB or with K, M, G or T, as 16G (default: no limit)"
    _add(group, "--mem", text, "SIZE", memory_gb, dest="memory_gb")
    text = "where the networks run: auto takes a GPU if there is one, cuda fails without (default: auto)"
    _add(group, "--device", text, "{auto,cpu,cuda[:N]}")
    _add(group, "--use-plugin", "nipype plugin file, for SLURM, PBS or SGE", "FILE", Path, dest="plugin_file")


def _add_running(group: argparse._ArgumentGroup) -> None:
    _add(group, "--config-file", "TOML with any of these settings; the command line goes before it", "FILE", Path)
    _add_flag(group, "--dry-run", "print the plan and write nothing")
    _add_flag(group, "--force", "process again what is done")
    _add_flag(group, "--stop-on-first-crash", "end at the first visit that fails")
    _add_flag(group, "--notrack", "accepted for scripts of other Apps; nothing is ever tracked")
    _add_flag(group, "-v --verbose", "more messages; -vv for all", "count", dest="verbosity")
    group.add_argument("--version", action=_Version, nargs=0, help="print the version and the models' checksums")


def _participant(text: str) -> str:
    return text.removeprefix("sub-")


def version_text() -> str:
    """Version, and name and sha256 of the files of each embedded model."""
    from bids_app import app_version
    from bids_app.networks.registry import embedded_models

    lines = [f"afterstroke {app_version()}"]
    try:
        models = embedded_models()
    except ConfigError as error:
        return "\n".join([*lines, f"no embedded models: {error.message}"])
    for model in models:
        lines += [f"model {model.name}", *(f"  {checksum}  {name}" for name, checksum in model.files)]
    return "\n".join(lines)


def memory_gb(text: str) -> float:
    """Memory in GiB of a size as fMRIPrep writes it: a number of MB, or a number with a unit.

    >>> memory_gb("16G"), memory_gb("8192"), memory_gb("1.5GB")
    (16.0, 8.0, 1.5)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 16G or 16000 (MB)")
    return float(match[1]) * _MEMORY_UNITS[match[2].upper()] / 2**30


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "threshold": (lambda value: 0 < value <= 1, "a probability above 0 and at most 1"),
    "min_lesion_volume": (lambda value: math.isfinite(value) and value >= 0, "a volume of 0 mm3 or more"),
    "anomaly_steps": (lambda value: value >= 1, "1 or more"),
    "anomaly_threshold": (lambda value: 0 < value <= 1, "an anomaly above 0 and at most 1"),
    "nprocs": (lambda value: value >= 1, "1 or more"),
    "omp_nthreads": (lambda value: value >= 1, "1 or more"),
    "memory_gb": (lambda value: value > 0, "more than 0"),
    "device": (lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value), "auto, cpu, cuda or cuda:N"),
    "skull_stripped": (lambda value: value in ("auto", "yes", "no"), "auto, yes or no"),
    "folds": (lambda value: all(re.fullmatch(r"(fold_)?(\d+|all)", str(fold)) for fold in value), "numbers, or all"),
    "output_spaces": (
        lambda value: all(re.fullmatch(r"[0-9A-Za-z+]+(:res-0?1)?", space) for space in value),
        "names of spaces at 1 mm, as MNI152NLin2009aSym",
    ),
    "derivatives": (
        lambda value: all(map(is_derivative_name, value)),
        "names of letters, digits, '_', '.', '+' and '-' other than raw, which is the dataset itself",
    ),
}  # fmt: skip


def check_values(values: Mapping[str, Any], error: type[AppError], labels: Mapping[str, Sequence[str]]) -> None:
    """Make sure that settings are in their range.

    Parameters
    ----------
    error : type of AppError
        What to raise: `UsageError` for the command line, `ConfigError` for a file.
    labels : mapping of str to sequence of str
        How the user knows each setting, as ``("--threshold",)``.
    """
    for name, (allowed, wanted) in _RULES.items():
        value = values.get(name)
        if value is not None and not allowed(value):
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple | dict) else value
            raise error(f"{' '.join(labels.get(name, ())) or name} is '{shown}', which is not {wanted}.")


def complete(values: Mapping[str, Any]) -> Settings:
    """Settings of given values: labels without prefix, each once; folders absolute; CPUs counted."""
    done = {name: _absolute(value) for name, value in values.items()}
    for name, prefix in (("participants", "sub-"), ("excluded", "sub-"), ("sessions", "ses-"), ("folds", "fold_")):
        if name in done:
            done[name] = _labels(done[name], prefix)
    done.setdefault("work_dir", Path("work").absolute())
    done["output_spaces"] = _spaces(done.get("output_spaces", (DEFAULT_SPACE,)))
    done.setdefault("nprocs", available_cpus())
    done["omp_nthreads"] = min(done["nprocs"], done.get("omp_nthreads", MAX_DEFAULT_THREADS))
    return Settings(**done)


def options_markdown(parser: argparse.ArgumentParser) -> str:
    """The options of a parser as Markdown tables, for docs/usage.md."""
    lines = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            lines += [f"**{group.title}**", "", "| option | meaning |", "|---|---|", *map(_markdown_row, actions), ""]
    return "\n".join(lines)


def _markdown_row(action: argparse.Action) -> str:
    value = (
        f" {action.metavar or '{' + ','.join(action.choices) + '}'}"
        if action.nargs != 0 and action.option_strings
        else ""
    )
    several = " ..." if action.nargs == "+" else ""
    name = ", ".join(action.option_strings) or str(action.metavar)
    return f"| `{name}{value}{several}` | {action.help} |".replace("|PATH", "\\|PATH")


def _configured(path: Path | None) -> dict[str, Any]:
    """Values of the configuration file, checked."""
    if path is None:
        return {}
    values = read_toml(path)
    check_values(values, ConfigError, {name: (f"{path}:", name) for name in _RULES})
    return values


def _hyphenated(argument: str) -> str:
    """An option with hyphens for underscores; everything else as it is.

    >>> _hyphenated("--participant_label"), _hyphenated("--derivatives=my_name=x"), _hyphenated("sub_01")
    ('--participant-label', '--derivatives=my_name=x', 'sub_01')
    """
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value if argument.startswith("--") else argument


def _default(name: str) -> Any:
    return next(item.default for item in fields(Settings) if item.name == name)


def _absolute(value: Any) -> Any:
    """Paths, also those in a mapping, as absolute ones."""
    if isinstance(value, Path):
        return value.expanduser().absolute()
    if isinstance(value, Mapping):
        return {key: _absolute(path) for key, path in value.items()}
    return value


def _labels(labels: Iterable[str], prefix: str) -> tuple[str, ...]:
    """Labels without prefix, each once, in the order given.

    >>> _labels(["sub-01", "02", "01", "sub-03/"], "sub-")
    ('01', '02', '03')
    """
    return tuple(dict.fromkeys(label.rstrip("/").removeprefix(prefix) for label in labels))


def _spaces(spaces: Iterable[str]) -> tuple[str, ...]:
    """The native space, which is always written, then the others as asked for; ``anat`` is fMRIPrep's name for it."""
    bare = [space.partition(":")[0] for space in spaces]
    return tuple(dict.fromkeys((NATIVE_SPACE, *(space for space in bare if space not in (NATIVE_SPACE, "anat")))))
