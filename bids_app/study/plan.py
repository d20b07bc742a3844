"""What a run will do, as text: printed by ``--dry-run`` and at the start of every run."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bids_app import app_version
from bids_app.derivatives import names
from bids_app.settings import Settings
from bids_app.study.choice import RULE
from bids_app.study.estimate import estimate
from bids_app.study.models import Problem, Scan, Severity, Study, Visit
from bids_app.study.unused import Unused
from bids_app.wording import counted, disk_space, duration, in_one_line, listed, printable

TO_DO = "to do"
DONE = "done"
UNUSABLE = "cannot be processed"
AGAIN = "to do again"

#: Reasons why something is not used, and paths of each, that the plan shows.
REASONS_SHOWN, PATHS_SHOWN = 100, 5


@dataclass(frozen=True)
class ModelsInWords:
    """The models of a run, for people; nothing is said of what is empty.

    Attributes
    ----------
    lesion : str
        The lesion model with its threshold.
    lesion_input : str
        What it is given.
    anomaly : str
        The anomaly model and its contrast.
    """

    lesion: str = ""
    lesion_input: str = ""
    anomaly: str = ""


UNNAMED = ModelsInWords()


@dataclass(frozen=True)
class ModelOutputs:
    """What must be known of the models to name all files that a run would write.

    Attributes
    ----------
    anomaly_contrast : str or None
        ``T1w`` or ``FLAIR``: what the anomaly model sees; None where there is none.
    uncertainty : bool
        Whether the lesion model has folds that can disagree.
    """

    anomaly_contrast: str | None
    uncertainty: bool


def rendered(
    plan_format: str,
    study: Study,
    settings: Settings,
    status: Mapping[str, str],
    models: ModelsInWords = UNNAMED,
    outputs: ModelOutputs | None = None,
) -> str:
    """The plan of a run in one of `FORMATS`.

    Parameters
    ----------
    status, models
        As for `render`.
    outputs : ModelOutputs or None
        None does not name the files that would be written.
    """
    return FORMATS[plan_format](study, settings, status, models, outputs)


def render(
    study: Study,
    settings: Settings,
    status: Mapping[str, str],
    models: ModelsInWords = UNNAMED,
    outputs: ModelOutputs | None = None,
) -> str:
    """The plan of a run.

    Parameters
    ----------
    status : mapping of str to str
        What there is to do for each visit, by its label (``to do``, ``done``, ``outdated``, ...); why nothing can be
        done starts with `UNUSABLE` and a colon.
    models : ModelsInWords
        What is said of the models.
    outputs : ModelOutputs or None
        Name the files that would be written, and estimate time and disk space; None does not.

    Returns
    -------
    str
        Plain text of several lines, for a terminal as for a log file.
    """
    states = {visit.label: visit_state(visit, settings, status) for visit in study.visits}
    lines = [f"afterstroke {app_version()}: plan", *_header(study, settings, models), *_problems(study.problems)]
    if study.unused:
        lines += ["", *render_unused(study.unused)]
    for visit in study.visits:
        lines += ["", *_visit(visit, states[visit.label])]
        if outputs and _is_to_do(states[visit.label]):
            lines += _written(visit, expected_files(visit, settings, outputs))
    end = [_estimate_in_words(states, settings)] if outputs else []
    return "\n".join([*lines, "", *end, _summary(study, settings, states)])


def render_short(
    study: Study,
    settings: Settings,
    status: Mapping[str, str],
    models: ModelsInWords = UNNAMED,
    outputs: ModelOutputs | None = None,
) -> str:
    """The plan, a line each visit: its label, its state, its contrasts, the codes of its problems."""
    states = {visit.label: visit_state(visit, settings, status) for visit in study.visits}
    width = max(map(len, states), default=0)
    lines = []
    for visit in study.visits:
        codes = ",".join(problem.code for problem in visit.problems)
        cells = (f"{visit.label:<{width}}", _in_short(states[visit.label]), "+".join(visit.contrasts), codes)
        lines.append("  ".join(cell for cell in cells if cell))
    estimated = [_estimate_in_words(states, settings)] if outputs else []
    return "\n".join([*lines, *estimated, _summary(study, settings, states)])


def render_tsv(
    study: Study,
    settings: Settings,
    status: Mapping[str, str],
    models: ModelsInWords = UNNAMED,
    outputs: ModelOutputs | None = None,
) -> str:
    """The plan as a table, a row each visit; columns are those of `_row`, lists are joined by semicolons."""
    rows = [_row(visit, settings, status, outputs) for visit in study.visits]
    header = "\t".join(_row(Visit("", None, None, None), settings, status, outputs))
    return "\n".join([header, *("\t".join(map(_cell, row.values())) for row in rows)])


def render_json(
    study: Study,
    settings: Settings,
    status: Mapping[str, str],
    models: ModelsInWords = UNNAMED,
    outputs: ModelOutputs | None = None,
) -> str:
    """The plan as one JSON object: what is used, the visits (as `_row`), the estimate."""
    states = {visit.label: visit_state(visit, settings, status) for visit in study.visits}
    expected = estimate(sum(map(_is_to_do, states.values())), settings)
    content = {
        "Version": app_version(),
        "Dataset": str(study.root),
        "Output": str(settings.out_dir),
        "WorkFolder": str(settings.work_dir),
        "LesionModel": settings.lesion_model,
        "LesionInput": models.lesion_input,
        "AnomalyModel": models.anomaly,
        "Device": settings.device,
        "Spaces": [*_native_spaces(study), *settings.standard_spaces],
        "VisitsSideBySide": settings.workers,
        "Visits": [_row(visit, settings, status, outputs) for visit in study.visits],
        "WithoutAnatomy": list(study.without_anatomy),
        "Estimate": {"Seconds": expected.seconds, "OutputMB": expected.output_mb, "WorkMB": expected.work_mb},
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


FORMATS = {"text": render, "short": render_short, "tsv": render_tsv, "json": render_json}
"""How a plan may be written. The last two are for programs, and for dry runs only."""


def _row(
    visit: Visit, settings: Settings, status: Mapping[str, str], outputs: ModelOutputs | None
) -> dict[str, str | list[str] | None]:
    """A visit in the formats for programs. `files` are relative to the output folder; only what is to do has any."""
    state, _, reason = visit_state(visit, settings, status).partition(": ")
    errors = " ".join(problem.message for problem in visit.problems if problem.severity is Severity.ERROR)
    files = expected_files(visit, settings, outputs) if outputs and _is_to_do(state) else ()
    return {
        "participant_id": f"sub-{visit.subject}",
        "session_id": f"ses-{visit.session}" if visit.session else None,
        "state": state,
        "reason": reason or errors or None,
        "t1w": visit.t1w.path.name if visit.t1w else None,
        "flair": visit.flair.path.name if visit.flair else None,
        "reused": list(visit.reuse.sources),
        "problems": [problem.code for problem in visit.problems],
        "messages": [problem.message for problem in visit.problems],
        "files": list(map(str, files)),
    }


def _cell(value: str | list[str] | None) -> str:
    """A value of a table, in one line and without tabs."""
    return in_one_line("; ".join(value) if isinstance(value, list) else value or "") or "n/a"


def _is_to_do(state: str) -> bool:
    return _in_short(state) not in (DONE, UNUSABLE)


def _written(visit: Visit, files: Iterable[PurePosixPath]) -> Iterator[str]:
    """The images, tables and transforms that would be written for a visit, without what their names have in common.

    Sidecars and what belongs to its participant are told in the formats for programs only.
    """
    folder = names.visit_folder(visit.subject, visit.session) / "anat"
    start = f"{visit.label}_"
    found = [file.name.removeprefix(start) for file in files if file.parent == folder and file.suffix != ".json"]
    yield f"  writes   {counted(len(found), 'file')} {folder / start}..., images and tables with a sidecar each:"
    indent = " " * 13
    yield from textwrap.wrap(
        ", ".join(found), 118, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _estimate_in_words(states: Mapping[str, str], settings: Settings) -> str:
    """What a run would take."""
    visits = sum(map(_is_to_do, states.values()))
    if not visits:
        return "Nothing is to do."
    expected = estimate(visits, settings)
    gpu = "" if settings.device == "cpu" else " (less with a GPU)"
    where = ", if each had as many CPUs here," if settings.plugin_file else ""
    output, work = disk_space(expected.output_mb), disk_space(expected.work_mb)
    return (
        f"Estimate: about {duration(expected.seconds)} on {counted(settings.nprocs, 'CPU')}{gpu}{where}; "
        f"{output} in the output folder, at most {work} in the work folder."
    )


def render_unused(unused: Sequence[Unused]) -> Iterator[str]:
    """What looks like data and is not used: a line each, and of a reason that many have, the first and their number."""
    by_sentence: dict[str, list[Unused]] = {}
    for item in unused:
        by_sentence.setdefault(item.sentence, []).append(item)
    yield f"not used: {counted(len(unused), 'file or folder', 'files and folders')}"
    for sentence, items in list(by_sentence.items())[:REASONS_SHOWN]:
        for item in items[:PATHS_SHOWN]:
            advice = f" ({item.advice})" if item.advice else ""
            yield printable(f"  {item.path}: {sentence}{advice}")
        if len(items) > PATHS_SHOWN:
            yield f"  and {len(items) - PATHS_SHOWN} more: {sentence}"
    if left := sum(len(items) for items in list(by_sentence.values())[REASONS_SHOWN:]):
        yield f"  and {left} more, for other reasons"


def render_group(settings: Settings) -> str:
    """The plan of the group level."""
    participants = sum(1 for path in settings.out_dir.glob("sub-*/"))
    return (
        f"afterstroke {app_version()}: plan\n  output  {settings.out_dir}\n\n"
        f"{counted(participants, 'participant')}: group tables and maps are to be written to the output folder."
    )


def visit_state(visit: Visit, settings: Settings, status: Mapping[str, str]) -> str:
    """What will happen to a visit: its problems and ``--force`` come before its status."""
    if not visit.usable:
        return UNUSABLE
    state = str(status.get(visit.label, TO_DO))
    if state.startswith(UNUSABLE):
        return state
    if state == DONE:
        return f"{AGAIN} (--force)" if settings.force else DONE
    return TO_DO if state == TO_DO else f"{AGAIN} ({state})"


def expected_images(visit: Visit, settings: Settings) -> tuple[PurePosixPath, ...]:
    """Images that are always written for a visit, relative to the output folder (sidecars and tables not counted)."""
    if visit.reference is None:
        return ()
    scan, native = visit.reference.name, visit.reference.suffix
    images = []
    for space in (native, *settings.standard_spaces):
        images += [names.preprocessed(scan, native, space), names.brain_mask(scan, space)]
        images += [names.lesion_mask(scan, space), names.lesion_instances(scan, space)]
        if visit.flair_to_align:
            images.append(names.preprocessed(visit.flair.name, "FLAIR", space))
        if visit.reuse.lesion_mask is None:  # a mask drawn by hand has no probability
            images.append(names.lesion_probability(scan, space))
    return tuple(images)


def expected_files(visit: Visit, settings: Settings, outputs: ModelOutputs) -> tuple[PurePosixPath, ...]:
    """Every file of a visit whose steps all succeed, relative to the output folder, sidecars included.

    The first are `expected_images`; what belongs to its participant as a whole comes last.
    """
    if visit.reference is None:
        return ()
    scan, native = visit.reference.name, visit.reference.suffix
    files = [*expected_images(visit, settings), names.lesion_table(scan, native)]
    if outputs.uncertainty and visit.reuse.lesion_mask is None:
        files += [names.lesion_uncertainty(scan, space) for space in (native, *settings.standard_spaces)]
    if outputs.anomaly_contrast in visit.contrasts:
        files += _anomaly_files(visit, settings, outputs.anomaly_contrast)
    files.append(names.sessions_table(visit.subject))
    files += [names.sidecar(file) for file in files]
    if visit.flair_to_align:
        files.append(names.transform(visit.flair.name, "FLAIR", native, ".txt"))
    for space in settings.standard_spaces:
        files += [names.transform(scan, native, space), names.transform(scan, space, native)]
    files += [names.visit_record(visit.subject, visit.session), names.raw_participants(visit.subject)]
    return tuple(sorted(dict.fromkeys(files), key=lambda file: (len(file.parts) < 3, file.parent, file.name)))


def _anomaly_files(visit: Visit, settings: Settings, contrast: str) -> list[PurePosixPath]:
    """Images and tables that an anomaly model adds to a visit."""
    scan, native = visit.reference.name, visit.reference.suffix
    seen = next(each.name for each in (visit.t1w, visit.flair) if each and each.suffix == contrast)
    files = [names.findings(scan, native), names.findings_table(scan, native)]
    for space in (native, *settings.standard_spaces):
        files += [names.anomaly_map(scan, space), names.anomaly_mask(scan, space)]
        files.append(names.healthy_twin(seen, contrast, space))
    return files


def _header(study: Study, settings: Settings, models: ModelsInWords) -> Iterator[str]:
    facts = {
        "dataset": f"{study.root} ({study.name}): {counted(len(study.participants), 'participant')}, "
        f"{counted(len(study.visits), 'visit')} asked for",
        "output": f"{settings.out_dir}",
        "work folder": f"{settings.work_dir}",
        "lesion model": models.lesion or settings.lesion_model,
        **({"model input": models.lesion_input} if models.lesion_input else {}),
        **({"anomaly model": models.anomaly} if models.anomaly else {}),
        "device": settings.device,
        "spaces": ", ".join((*_native_spaces(study), *settings.standard_spaces)),
        "processors": f"{counted(settings.nprocs, 'CPU')}, {counted(settings.omp_nthreads, 'thread')} a visit: "
        f"{counted(settings.workers, 'visit')} at a time",
    }
    for name, folder in settings.derivatives.items():
        facts[f"reused {name}"] = str(folder)
    codes = {problem.code for visit in study.visits for problem in visit.problems}
    if codes & {"several-t1w", "several-flair"}:
        facts["scan choice"] = RULE
    if idle := _without_visits(study, settings):
        facts["no visit of"] = f"{', '.join(idle)} (sessions or filter file)"
    if study.without_anatomy:
        facts["left out"] = f"{listed(study.without_anatomy)} (no anat folder)"
    if study.notes:
        facts["to know"] = "; ".join(study.notes)
    width = max(map(len, facts))
    return (f"  {name:<{width}}  {value}" for name, value in facts.items())


def _native_spaces(study: Study) -> list[str]:
    """The spaces of the scans that visits are processed in."""
    found = {visit.reference.suffix for visit in study.visits if visit.reference}
    return [space for space in names.NATIVE_SPACES if space in found]


def _without_visits(study: Study, settings: Settings) -> list[str]:
    """Participants asked for by name of whom no visit is left."""
    present = {visit.subject for visit in study.visits}
    asked = [label for label in settings.participants if label not in settings.excluded]
    return [f"sub-{label}" for label in asked if label not in present]


def _visit(visit: Visit, state: str) -> Iterator[str]:
    yield f"{visit.label}: {state}"
    yield f"  T1w      {_scan(visit.t1w)}"
    yield f"  FLAIR    {_scan(visit.flair)}"
    for source in visit.reuse.sources:
        yield f"  reused   {source}"
    yield from _problems(visit.problems)


def _problems(problems: Iterable[Problem]) -> Iterator[str]:
    """One line for each problem, the worst first."""
    for problem in sorted(problems, key=lambda problem: list(Severity).index(problem.severity), reverse=True):
        yield f"  {problem.severity:<8} {problem.message} [{problem.code}]"


def _scan(scan: Scan | None) -> str:
    return scan.path.name if scan else "none"


def _summary(study: Study, settings: Settings, states: Mapping[str, str]) -> str:
    if not states:
        return "No visit to process."
    by_state = Counter(_in_short(state) for state in states.values())
    order = sorted(by_state, key=lambda state: (state in (DONE, UNUSABLE), state))
    parts = [f"{by_state[state]} {state}{_codes(study) if state == UNUSABLE else ''}" for state in order]
    images = sum(len(expected_images(visit, settings)) for visit in study.visits if _is_to_do(states[visit.label]))
    return f"{counted(len(study.visits), 'visit')}: {', '.join(parts)}. At least {counted(images, 'image')} to write."


def _in_short(state: str) -> str:
    """A state without the reasons that follow its colon."""
    return state.partition(":")[0]


def _codes(study: Study) -> str:
    """Why visits cannot be processed, as `` (no-t1w)``; nothing where the lesion model alone is why."""
    codes = {problem.code for visit in study.visits for problem in visit.problems if problem.severity is Severity.ERROR}
    return f" ({', '.join(sorted(codes))})" if codes else ""
