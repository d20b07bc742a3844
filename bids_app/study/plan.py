"""What a run will do, as text: printed by ``--dry-run`` and at the start of every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from bids_app import app_version
from bids_app.derivatives import names
from bids_app.settings import Settings
from bids_app.study.choice import RULE
from bids_app.study.models import Scan, Severity, Study, Visit
from bids_app.wording import counted, listed

TO_DO = "to do"
DONE = "done"
UNUSABLE = "cannot be processed"
AGAIN = "to do again"


def render(study: Study, settings: Settings, status: Mapping[str, str], anomaly_model: str = "") -> str:
    """The plan of a run.

    Parameters
    ----------
    status : mapping of str to str
        What there is to do for each visit, by its label (``to do``, ``done``, ``outdated``, ...); why nothing can be
        done starts with `UNUSABLE` and a colon.
    anomaly_model : str
        The anomaly model in words; nothing is said of it without.

    Returns
    -------
    str
        Plain text of several lines, for a terminal as for a log file.
    """
    states = {visit.label: visit_state(visit, settings, status) for visit in study.visits}
    lines = [f"afterstroke {app_version()}: plan", *_header(study, settings, anomaly_model)]
    for visit in study.visits:
        lines += ["", *_visit(visit, states[visit.label])]
    return "\n".join([*lines, "", _summary(study, settings, states)])


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


def _header(study: Study, settings: Settings, anomaly_model: str) -> Iterator[str]:
    facts = {
        "dataset": f"{study.root} ({study.name}): {counted(len(study.participants), 'participant')}, "
        f"{counted(len(study.visits), 'visit')} asked for",
        "output": f"{settings.out_dir}",
        "work folder": f"{settings.work_dir}",
        "lesion model": _model(settings),
        **({"anomaly model": anomaly_model} if anomaly_model else {}),
        "device": settings.device,
        "spaces": ", ".join((*_native_spaces(study), *settings.standard_spaces)),
        "processors": f"{counted(settings.nprocs, 'CPU')}, {counted(settings.omp_nthreads, 'thread')} a visit: "
        f"{counted(settings.workers, 'visit')} at a time",
    }
    for name, folder in settings.derivatives.items():
        facts[f"reused {name}"] = str(folder)
    if any(problem.code.startswith("several-") for visit in study.visits for problem in visit.problems):
        facts["scan choice"] = RULE
    if idle := _without_visits(study, settings):
        facts["no visit of"] = f"{', '.join(idle)} (sessions or filter file)"
    if study.without_anatomy:
        facts["left out"] = f"{listed(study.without_anatomy)} (no anat folder)"
    width = max(map(len, facts))
    return (f"  {name:<{width}}  {value}" for name, value in facts.items())


def _native_spaces(study: Study) -> list[str]:
    """The spaces of the scans that visits are processed in."""
    found = {visit.reference.suffix for visit in study.visits if visit.reference}
    return [space for space in names.NATIVE_SPACES if space in found]


def _model(settings: Settings) -> str:
    folds = f"folds {', '.join(settings.folds)}" if settings.folds else "all folds"
    threshold = f"threshold {settings.threshold:g}" if settings.threshold is not None else "its own threshold"
    return f"{settings.lesion_model}, {folds}, {threshold}"


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
    for problem in sorted(visit.problems, key=lambda problem: list(Severity).index(problem.severity), reverse=True):
        yield f"  {problem.severity:<8} {problem.message} [{problem.code}]"


def _scan(scan: Scan | None) -> str:
    return scan.path.name if scan else "none"


def _summary(study: Study, settings: Settings, states: Mapping[str, str]) -> str:
    if not states:
        return "No visit to process."
    by_state = Counter(_in_short(state) for state in states.values())
    order = sorted(by_state, key=lambda state: (state in (DONE, UNUSABLE), state))
    parts = [f"{by_state[state]} {state}{_codes(study) if state == UNUSABLE else ''}" for state in order]
    images = sum(
        len(expected_images(visit, settings))
        for visit in study.visits
        if _in_short(states[visit.label]) not in (DONE, UNUSABLE)
    )
    return f"{counted(len(study.visits), 'visit')}: {', '.join(parts)}. At least {counted(images, 'image')} to write."


def _in_short(state: str) -> str:
    """A state without the reasons that follow its colon."""
    return state.partition(":")[0]


def _codes(study: Study) -> str:
    """Why visits cannot be processed, as `` (no-t1w)``; nothing where the lesion model alone is why."""
    codes = {problem.code for visit in study.visits for problem in visit.problems if problem.severity is Severity.ERROR}
    return f" ({', '.join(sorted(codes))})" if codes else ""
