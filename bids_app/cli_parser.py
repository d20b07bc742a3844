"""The command line as argparse knows it, and its way into `Settings`: command line, then file, then defaults."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from bids_app.cli_options import (
    Parser,
    absolute,
    add,
    add_flag,
    add_several,
    choice,
    hyphenated,
    labels_without,
    make_parser,
)
from bids_app.cli_training import read_training
from bids_app.errors import AppError, ConfigError, UsageError
from bids_app.lesion.inputs import KNOWN, is_input
from bids_app.settings import (
    DEFAULT_SPACE,
    NATIVE_SPACE,
    AnomalyTraining,
    Settings,
    TrainingSettings,
    available_cpus,
    read_toml,
)
from bids_app.study.plan import FORMATS
from bids_app.study.reuse import is_derivative_name, parse_derivative
from bids_app.study.single import Case
from bids_app.wording import did_you_mean

MAX_DEFAULT_THREADS = 8
"""Threads a visit by default; registration and networks gain little from more."""

_MEMORY_UNITS = {"": 2**20, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    level : str
        ``participant``, ``group``, ``case`` or ``train``.
    settings : Settings, TrainingSettings or AnomalyTraining
        One of the latter two for the level ``train``.
    dry_run : bool
        Print the plan, write nothing.
    case : Case or None
        The files of the level ``case``.
    plan_format : str
        One of the `FORMATS` of plans.
    """

    level: str
    settings: Settings | TrainingSettings | AnomalyTraining
    dry_run: bool = False
    case: Case | None = None
    plan_format: str = "text"


class _Version(argparse.Action):
    """``--version``, which looks at libraries and models only when asked."""

    def __call__(self, parser, *_) -> NoReturn:
        print(version_text(parser.verbose))
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
        settings, dry_run = read_training(arguments[1:])
        return Request("train", settings, dry_run)
    single = arguments[:1] == ["case"]
    parser = case_parser() if single else bids_parser()
    parser.verbose = any(re.fullmatch(r"-v+|--verbose", argument) for argument in arguments)
    given = _parsed(parser, arguments[single:], () if single else ("case", "train"))
    level = "case" if single else given.pop("level")
    case = _read_case(given) if single else None
    dry_run, _ = given.pop("dry_run", False), given.pop("notrack", None)
    plan_format = given.pop("plan_format", "text")
    _check_plan_format(plan_format, dry_run, level)
    if "derivatives" in given:
        given["derivatives"] = dict(given["derivatives"])
    check_values(given, UsageError, _spellings(parser))
    values = _configured(given.pop("config_file", None)) | given
    if level == "group":
        values["bids_dir"] = None
    return Request(level, complete(values), dry_run, case, plan_format)


def _parsed(parser: Parser, arguments: Sequence[str], commands: Sequence[str]) -> dict[str, Any]:
    """What is given; where it makes no sense, and begins with what is almost one of the `commands`, that is told."""
    try:
        return vars(parser.parse_args([hyphenated(argument) for argument in arguments]))
    except UsageError as error:
        first = next(iter(arguments), "")
        meant = did_you_mean(first, commands) if first and not Path(first).exists() else ""
        raise UsageError(f"{error.message}{meant}", error.hint) from error


def _spellings(parser: Parser) -> dict[str, list[str]]:
    """How each setting is called on the command line: by the first of its long options."""
    actions = reversed(parser._actions)  # of two with the same destination the first counts
    return {action.dest: [name for name in action.option_strings if name.startswith("--")][:1] for action in actions}


def bids_parser() -> argparse.ArgumentParser:
    """The parser of ``run.py BIDS_DIR OUT_DIR {participant,group}``."""
    parser = make_parser(
        "afterstroke",
        "BIDS_DIR OUT_DIR {participant,group} [options]",
        "BIDS App for MRI after a stroke: lesion masks, volumes and places from T1w and FLAIR.",
    )
    parser.add_argument("bids_dir", metavar="BIDS_DIR", type=Path, help="the BIDS dataset; never written")
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path, help="where the derivatives go")
    levels = "participant: process the visits; group: make tables and maps from OUT_DIR alone"
    parser.add_argument("level", metavar="LEVEL", type=choice(("participant", "group"), "level"), help=levels)
    _add_selection(parser.add_argument_group("which visits"))
    _add_common(parser)
    return parser


def case_parser() -> argparse.ArgumentParser:
    """The parser of ``afterstroke case``."""
    usage = "T1W [FLAIR] OUT [options], or --flair-only FLAIR OUT [options]"
    parser = make_parser("afterstroke case", usage, "Run one scan that is in no BIDS dataset, through the same code.")
    parser.add_argument("t1w", metavar="T1W", type=Path, help="a T1w scan, NIfTI")
    parser.add_argument("flair", metavar="FLAIR", type=Path, nargs="?", default=None, help="its FLAIR, NIfTI")
    parser.add_argument("out_dir", metavar="OUT", type=Path, help="where the derivatives go")
    add_flag(parser, "--flair-only", "there is no T1w: the one scan is a FLAIR")
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


def _add_common(parser: argparse.ArgumentParser) -> None:
    """The options of both commands."""
    _add_preprocessing(parser.add_argument_group("preparing the scans"))
    _add_lesions(parser.add_argument_group("finding lesions"))
    _add_anomalies(parser.add_argument_group("finding what else differs from a healthy brain"))
    _add_resources(parser.add_argument_group("on what"))
    _add_running(parser.add_argument_group("this run"))


def _add_selection(group: argparse._ArgumentGroup) -> None:
    add_several(group, "--participant-label", "participants (default: all)", "LABEL", dest="participants")
    add_several(group, "--exclude-participant-label", "participants to leave out", "LABEL", dest="excluded")
    add_several(group, "--session-label --session-id", "sessions (default: all)", "LABEL", dest="sessions")
    text = (
        'JSON that says which scans to use, as for fMRIPrep: {"t1w": {"acquisition": "mprage"}, "flair": {"run": 2}}; '
        'null is without, "*" is any'
    )
    add(group, "--bids-filter-file", text, "FILE", Path)
    text = "keep pybids's index of all participants there, for scripts and other Apps; refused if it is out of date"
    add(group, "--bids-database-dir", text, "DIR", Path)
    text = "do not run bids-validator-deno on the requested scans"
    add_flag(group, "--skip-bids-validation --skip-bids-validator", text, dest="skip_bids_validation")


def _add_preprocessing(group: argparse._ArgumentGroup) -> None:
    text = "whether the scans are brain-extracted already (default: auto)"
    group.add_argument("--skull-stripped", choices=("auto", "yes", "no"), help=text)
    text = (
        f"{NATIVE_SPACE} (always written) and standard spaces, at 1 mm (default: {DEFAULT_SPACE}); "
        "others than the default come from the TemplateFlow cache"
    )
    add_several(group, "--output-spaces", text, "SPACE")
    text = "no registration to a standard space; native outputs only"
    add_flag(group, "--no-normalization", text, "store_false", dest="normalization")
    text = "reuse brain mask, T1w and transforms of fMRIPrep or sMRIPrep, and lesion masks drawn by hand"
    add_several(group, "-d --derivatives", text, "NAME=PATH", type=parse_derivative)


def _add_lesions(group: argparse._ArgumentGroup) -> None:
    text = f"embedded model, nnU-Net v2 folder or ONNX file (default: {_default('lesion_model')})"
    add(group, "--lesion-model", text, "NAME|PATH")
    add_several(group, "--folds", "folds of the model (default: all it has)", "FOLD")
    text = (
        f"what the model is given: {KNOWN}, with the bias field corrected or not (default: what its card says; without "
        "a card native, as nnUNetv2_predict takes it)"
    )
    add(group, "--lesion-input", text, "INPUT")
    text = "keep what the model was given, in sub-*/log/RUN/model-input"
    add_flag(group, "--keep-model-input", text)
    text = "lesion where the probability is at least P, in (0, 1] (default: its card's, else as nnUNetv2_predict)"
    add(group, "--threshold", text, "P", float)
    text = "leave out lesions smaller than this, in mm3 (default: its card's, else none)"
    add(group, "--min-lesion-volume", text, "MM3", float)
    text = "also write *_label-lesion_roi.nii.gz there, which fMRIPrep reads beside a raw T1w"
    add(group, "--export-lesion-roi", text, "DIR", Path)


def _add_anomalies(group: argparse._ArgumentGroup) -> None:
    text = "embedded model, model folder, or folder with two files of REFLECT's authors (default: the embedded one)"
    add(group, "--anomaly-model", text, "NAME|PATH")
    add(group, "--anomaly-steps", "steps from a brain to its healthy twin (default: the model's)", "N", int)
    text = "a finding where the anomaly is at least A, in (0, 1] (default: the model's)"
    add(group, "--anomaly-threshold", text, "A", float)
    add_flag(group, "--no-anomaly", "lesions only", "store_false", dest="anomaly")


def _add_resources(group: argparse._ArgumentGroup) -> None:
    text = "intermediate files, kept to resume (default: work, in the current folder)"
    add(group, "-w --work-dir", text, "DIR", Path)
    text = "CPUs in all (default: those this job may use)"
    add(group, "--nprocs --n-procs --nthreads --n-cpus", text, "N", int, dest="nprocs")
    text = f"threads of one visit; NPROCS // N visits run side by side (default: NPROCS, at most {MAX_DEFAULT_THREADS})"
    add(group, "--omp-nthreads", text, "N", int)
    text = "memory that may be used, in MB or with K, M, G or T, as 16G (default: no limit)"
    add(group, "--mem --mem-mb", text, "SIZE", memory_gb, dest="memory_gb")
    add(group, "--mem-gb", "the same in GB", "GB", memory_in_gb, dest="memory_gb")
    add_flag(group, "--low-mem", "process one visit at a time, whatever CPUs there are")
    text = "where the networks run: auto takes a GPU if there is one, cuda fails without (default: auto)"
    add(group, "--device", text, "{auto,cpu,cuda[:N]}")
    add(group, "--use-plugin", "nipype plugin file, for SLURM, PBS or SGE", "FILE", Path, dest="plugin_file")


def _add_running(group: argparse._ArgumentGroup) -> None:
    add(group, "--config-file", "TOML with any of these settings; the command line takes precedence", "FILE", Path)
    add_flag(group, "--dry-run", "print the plan, with the files, time and disk space of a run, and write nothing")
    text = "how the plan is printed: text; short: a line each visit; tsv and json: for programs, with --dry-run"
    group.add_argument(
        "--plan-format", metavar="{text,short,tsv,json}", type=choice(tuple(FORMATS), "format"), help=text
    )
    add_flag(group, "--force", "process again what is done")
    text = "recognise what is done by reading all its files, not by their sizes and times"
    add_flag(group, "--check-content", text)
    add_flag(group, "--stop-on-first-crash", "end at the first visit that fails")
    add_flag(group, "--notrack", "accepted for scripts of other Apps; nothing is ever tracked")
    add_flag(group, "-v --verbose", "more messages; -vv for all", "count", dest="verbosity")
    text = "print the version; with -v also the libraries' versions and the models' checksums"
    group.add_argument("--version", action=_Version, nargs=0, help=text)


def _participant(text: str) -> str:
    return text.removeprefix("sub-")


def version_text(verbose: bool = False) -> str:
    """The version, in one line; or also Python, the libraries, and name and sha256 of each embedded model's files."""
    from bids_app import app_version

    lines = [f"afterstroke {app_version()}"]
    return "\n".join([*lines, *_libraries(), *_models()] if verbose else lines)


def _libraries() -> Iterator[str]:
    """Python and the libraries that the App asks for, as they are installed; none of them is imported."""
    import platform
    from importlib.metadata import PackageNotFoundError, requires, version

    yield f"Python {platform.python_version()} on {platform.platform()}"
    try:
        wanted = [re.match(r"[\w.-]+", item)[0] for item in requires("afterstroke") or () if "extra ==" not in item]
    except PackageNotFoundError:  # run from the repository
        wanted = []
    for name in sorted(wanted, key=str.lower):
        try:
            yield f"  {name} {version(name)}"
        except PackageNotFoundError:
            yield f"  {name} is not installed"


def _models() -> Iterator[str]:
    """The embedded models, and checksum and name of each of their files."""
    from bids_app.networks.registry import embedded_models

    try:
        models = embedded_models()
    except ConfigError as error:
        yield f"no embedded models: {error.message}"
        return
    for model in models:
        yield f"model {model.name}"
        yield from (f"  {checksum}  {name}" for name, checksum in model.files)


def memory_gb(text: str) -> float:
    """Memory in GiB of a size as fMRIPrep writes it: a number of MB, or a number with a unit.

    >>> memory_gb("16G"), memory_gb("8192"), memory_gb("1.5GB")
    (16.0, 8.0, 1.5)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is no size such as 16G or 16000 (MB)")
    return float(match[1]) * _MEMORY_UNITS[match[2].upper()] / 2**30


def memory_in_gb(text: str) -> float:
    """Memory in GiB of a number of GB, as MRIQC takes it."""
    return memory_gb(text if re.search("[A-Za-z]", text) else f"{text}G")


def _check_plan_format(plan_format: str, dry_run: bool, level: str) -> None:
    """Refuse a format that would be mixed with other lines, or that a level has not."""
    if plan_format in ("tsv", "json") and not dry_run:
        raise UsageError(f"--plan-format {plan_format} belongs to --dry-run.", "Add that, or use text or short.")
    if plan_format != "text" and level == "group":
        raise UsageError("The plan of the group level has one format.", "Leave out --plan-format.")


_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "lesion_input": (is_input, KNOWN),
    "threshold": (lambda value: 0 < value <= 1, "a probability above 0 and at most 1"),
    "min_lesion_volume": (lambda value: math.isfinite(value) and value >= 0, "a volume of 0 mm3 or more"),
    "anomaly_steps": (lambda value: value >= 1, "1 or more"),
    "anomaly_threshold": (lambda value: 0 < value <= 1, "an anomaly above 0 and at most 1"),
    "nprocs": (lambda value: value >= 1, "1 or more"),
    "omp_nthreads": (lambda value: value >= 1, "1 or more"),
    "memory_gb": (lambda value: value > 0, "more than 0"),
    "device": (lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value), "auto, cpu, cuda or cuda:N"),
    "skull_stripped": (lambda value: value in ("auto", "yes", "no"), "auto, yes or no"),
    "folds": (
        lambda value: all(re.fullmatch(r"\d+|all", fold) for fold in labels_without(map(str, value), "fold_")),
        "numbers, or all",
    ),
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
    done = {name: absolute(value) for name, value in values.items()}
    for name, prefix in (("participants", "sub-"), ("excluded", "sub-"), ("sessions", "ses-"), ("folds", "fold_")):
        if name in done:
            done[name] = labels_without(done[name], prefix)
    done["work_dir"] = done.get("work_dir") or absolute(Path("work"))
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


def _default(name: str) -> Any:
    return next(item.default for item in fields(Settings) if item.name == name)


def _spaces(spaces: Iterable[str]) -> tuple[str, ...]:
    """The native space, which is always written, then the others as asked for; ``anat`` is fMRIPrep's name for it."""
    bare = [space.partition(":")[0] for space in spaces]
    return tuple(dict.fromkeys((NATIVE_SPACE, *(space for space in bare if space not in (NATIVE_SPACE, "anat")))))
