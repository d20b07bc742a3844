"""The participant level: what is to do, who does it, how it ended."""

from __future__ import annotations

import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

from bids_app import app_version
from bids_app.anomaly.folder import AnomalyFolder, read_folder
from bids_app.anomaly.slices import SHAPE, margins
from bids_app.derivatives import names
from bids_app.derivatives.description import write_top_level
from bids_app.derivatives.read import read_object
from bids_app.derivatives.record import Status
from bids_app.derivatives.results import Provenance
from bids_app.derivatives.sessions import RawDataset, write_raw_dataset, write_raw_participants
from bids_app.errors import AppError, CannotWriteError, ConfigError, ExitCode, VisitError
from bids_app.lesion.folder import model_files, served_contrasts
from bids_app.networks.device import choose_device
from bids_app.networks.registry import find_model, verify
from bids_app.networks.weights import folder_sha256
from bids_app.preprocessing.templates import check_spaces
from bids_app.settings import Settings, configuration_hash
from bids_app.study.models import Problem, Severity, Study, Visit
from bids_app.study.plan import UNUSABLE
from bids_app.wording import counted
from bids_app.workflow.export import export_lesion_roi
from bids_app.workflow.job import Job, anomaly_folder, code_of, remember, status_of_visit
from bids_app.workflow.pool import WorkerPool
from bids_app.workflow.worker import Outcome, left_failed

Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, flush=True)


def visit_status(settings: Settings, study: Study) -> dict[str, str]:
    """What there is to do for every visit, by its label: a `Status`, or why it cannot be processed."""
    configuration, served = provenance_of(settings, study).configuration_hash, _served(settings)

    def of(visit: Visit) -> str:
        problem = _against(visit, settings, served)
        return f"{UNUSABLE}: {problem.message}" if problem else status_of_visit(settings, visit, configuration)

    return {visit.label: of(visit) for visit in study.visits}


def _served(settings: Settings) -> tuple[frozenset[str], ...]:
    """The contrasts that the lesion model runs on; T1w of one that does not say so before it is loaded."""
    return served_contrasts(find_model(settings.lesion_model), settings.folds) or (frozenset({"T1w"}),)


def unserved(visit: Visit, served: Sequence[frozenset[str]], model: str) -> Problem | None:
    """An error if a lesion model cannot use the contrasts of a visit, told before anything runs.

    Parameters
    ----------
    served : sequence of frozenset of str
        The contrasts that the model runs on, its own first and then those of its branches.
    model : str
        Its name.
    """
    if visit.reference is None or visit.reuse.lesion_mask:  # lesions drawn by hand need no model
        return None
    if any(contrasts <= set(visit.contrasts) for contrasts in served):
        return None
    missing = [contrast for contrast in names.NATIVE_SPACES if contrast in served[0] - set(visit.contrasts)]
    message = (
        f"{visit.label} has no {' and no '.join(missing)}, which the lesion model {model} needs. "
        "Choose a model for the contrasts there are with --lesion-model."
    )
    return Problem(f"no-{missing[0].lower()}", Severity.ERROR, message)


def anomaly_model_in_words(settings: Settings) -> str:
    """For the plan: its name and what it looks at."""
    folder = anomaly_folder(settings)
    if folder is None:
        return "none"
    card = read_folder(folder).card
    return f"{card.name}, of {card.contrast}: visits without one have no anomaly map"


def blocked(visit: Visit, out_dir: Path) -> Problem | None:
    """An error if a file is where a folder of the visit's outputs belongs, told before anything runs."""
    own = names.visit_folder(visit.subject, visit.session)
    folders = (names.visit_folder(visit.subject, None), own, own / "anat", names.log_folder(visit.subject))
    for folder in (out_dir / folder for folder in folders):
        if os.path.lexists(folder) and not folder.is_dir():
            message = f"{folder} is in the way: a folder for the outputs of {visit.label} belongs there. Rename it."
            return Problem("output-blocked", Severity.ERROR, message)
    return None


def _against(visit: Visit, settings: Settings, served: Sequence[frozenset[str]]) -> Problem | None:
    """What speaks against processing a visit, apart from its scans: no model for them, or no place."""
    return unserved(visit, served, settings.lesion_model) or blocked(visit, settings.out_dir)


def provenance_of(settings: Settings, study: Study) -> Provenance:
    """What all sidecars of this run share."""
    version = app_version()
    files = model_files(find_model(settings.lesion_model), settings.folds)
    folder = anomaly_folder(settings)
    anomaly = _sha256_of(read_folder(folder).files) if folder else None
    return Provenance(configuration_hash(settings, version, _sha256_of(files), anomaly), version, study.root)


def _sha256_of(files: Sequence[Path]) -> str:
    return _model_sha256(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@cache
def _model_sha256(stamps: tuple[tuple[Path, int, int], ...]) -> str:
    """Checksum of a model, read once a run; the stamps make it another model when a file is replaced."""
    return folder_sha256(path for path, *_ in stamps)


def check_run(settings: Settings) -> None:
    """Refuse, before any work and without writing, what could not be processed.

    Raises
    ------
    ConfigError
        If a model is incomplete, was changed or has no such fold, or the plugin file is wrong.
    UnavailableError
        If a template is missing, or a GPU that was asked for.
    """
    check_spaces(settings.standard_spaces)
    model = find_model(settings.lesion_model)
    model_files(model, settings.folds)
    verify(model)
    if folder := anomaly_folder(settings):
        check_anomaly_model(read_folder(folder), settings)
        verify(folder)
    if settings.plugin_file:
        from bids_app.workflow.cluster import read_plugin

        read_plugin(settings.plugin_file)  # the device is that of another machine
    elif settings.device.startswith("cuda"):
        _check_device(settings.device)


def check_anomaly_model(model: AnomalyFolder, settings: Settings) -> None:
    """Refuse an anomaly model whose frame is too small for a brain, and, unless a threshold is given, one that nobody
    has calibrated."""
    if model.card.slice_shape:
        margins(SHAPE[1:], model.card.slice_shape)
    if model.card.threshold is None and settings.anomaly_threshold is None:
        raise ConfigError(
            f"The anomaly model {model.card.name} has no threshold in its card.",
            "Give one with --anomaly-threshold, or measure it on healthy scans (afterstroke train calibrate).",
        )


def _check_device(request: str) -> None:
    """Look for the GPU in a process of its own: this one must hold no part of it while the workers use it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        process.submit(choose_device, request).result()


def run_participants(
    settings: Settings, study: Study, status: Mapping[str, Status] | None = None, say: Say = _say
) -> ExitCode:
    """Process every visit that is to do; return OK, or VISIT_FAILED if any visit failed.

    Parameters
    ----------
    status : mapping, optional
        What there is to do for every visit, where `visit_status` has been asked already.

    Raises
    ------
    AppError
        If nothing can be processed: no device, no template, no model, OUT cannot be written.
    """
    check_run(settings)
    provenance = provenance_of(settings, study)
    write_top_level(settings.out_dir, study.root, provenance.configuration_hash, settings.derivatives)
    _leave_raw_participants(settings, study)
    status = visit_status(settings, study) if status is None else status
    todo = [visit for visit in study.visits if settings.force or status[visit.label] != Status.DONE]
    done = [] if settings.force else [visit for visit in study.visits if status[visit.label] == Status.DONE]
    for visit in done:
        remember(settings, visit)
    if done:
        say(f"{len(done)} of {len(study.visits)} visits are done already and unchanged.")
    exported = _export_done(done, settings, say)
    run_id, model, anomaly = new_run_id(), find_model(settings.lesion_model), anomaly_folder(settings)
    todo = _judged(todo, settings)
    jobs = [Job(visit, settings, provenance, {}, model, run_id, anomaly) for visit in todo]
    return max(exported, _report(_outcomes(jobs, settings, say), len(jobs), settings, say))


def _judged(visits: Sequence[Visit], settings: Settings) -> list[Visit]:
    """The visits; those that cannot be processed have an error that says so."""
    served = _served(settings)
    problems = [_against(visit, settings, served) for visit in visits]
    return [
        replace(visit, problems=(*visit.problems, problem)) if problem else visit
        for visit, problem in zip(visits, problems, strict=True)
    ]


def _export_done(visits: Sequence[Visit], settings: Settings, say: Say) -> ExitCode:
    """Export the lesions of visits that are done already; those that are to do are exported when they are done."""
    failed = False
    for visit in visits if settings.export_lesion_roi else ():
        mask = settings.out_dir / names.lesion_mask(visit.reference.name, visit.reference.suffix)
        try:
            export_lesion_roi(visit, mask, settings.export_lesion_roi)
        except VisitError as error:
            failed = True
            say(f"{visit.label}: the lesion was not exported. {error}")
    return ExitCode.VISIT_FAILED if failed else ExitCode.OK


def new_run_id() -> str:
    """Name of a run's folder of logs: date, time and eight random digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


def _outcomes(jobs: list[Job], settings: Settings, say: Say) -> Iterator[Outcome]:
    """Process the usable visits, then fail those with an error of their own without trying them.

    In this order, because the first failure may be the end of the run (``--stop-on-first-crash``).
    """
    if usable := [job for job in jobs if job.visit.usable]:
        yield from _processed(usable, settings, say)
    for job in jobs:
        if not job.visit.usable:
            message = " ".join(p.message for p in job.visit.problems if p.severity is Severity.ERROR)
            yield left_failed(job, message)


def _processed(jobs: list[Job], settings: Settings, say: Say) -> Iterator[Outcome]:
    """Process visits with the plugin that was asked for, else in workers of this machine."""
    if settings.plugin_file:
        from bids_app.workflow.cluster import process_with_plugin

        yield from process_with_plugin(jobs, settings)
        return
    with WorkerPool(settings, min(settings.workers, len(jobs)), jobs[0].model_folder) as pool:
        say(f"Device: {pool.tools.description}. Visits side by side: {pool.size}.")
        yield from pool.process(jobs)


def _report(outcomes: Iterator[Outcome], total: int, settings: Settings, say: Say) -> ExitCode:
    """Say how each visit ended, as soon as it ended.

    Raises
    ------
    AppError
        If the failure of a visit ends the whole run (no space left).
    """
    failed = []
    for number, outcome in enumerate(outcomes, start=1):
        say(f"[{number}/{total}] {outcome.label}: {describe(outcome)}")
        if outcome.done:
            continue
        failed.append(outcome)
        if outcome.code is not ExitCode.VISIT_FAILED:
            raise _Ended(outcome)
        if settings.stop_on_first_crash:
            break
    if failed:
        say(f"{len(failed)} of {total} visits failed: {', '.join(o.label for o in failed)}. See sub-*/log/.")
    return ExitCode.VISIT_FAILED if failed else ExitCode.OK


class _Ended(AppError):
    """The failure of one visit that ends the run."""

    def __init__(self, outcome: Outcome):
        super().__init__(outcome.error)
        self.exit_code = outcome.code


def describe(outcome: Outcome) -> str:
    """One line on how a visit ended."""
    if not outcome.done:
        return f"FAILED after {outcome.seconds:.0f} s. {outcome.error}"
    row = outcome.summary
    count, volume = row["lesion_count"], row["lesion_volume_ml"]
    lesions = f"{counted(count, 'lesion')}, {volume:.2f} mL" if count else "no lesion"
    doubts = f" (look at: {row['problems']})" if row.get("problems") else ""
    return f"done in {outcome.seconds:.0f} s, {lesions}{doubts}"


def _leave_raw_participants(settings: Settings, study: Study) -> None:
    """Keep what the group level must know of the raw dataset, so that it needs the output folder alone.

    A participant whose folder cannot be written is passed over: its visits fail, and say why.
    """
    raw = _raw_dataset(study)
    state = write_raw_dataset(settings.out_dir, raw)
    for subject in sorted({visit.subject for visit in study.visits}):
        try:
            write_raw_participants(settings.out_dir, subject, raw, state)
        except CannotWriteError as error:
            if code_of(settings, error) is not ExitCode.VISIT_FAILED:
                raise


def _raw_dataset(study: Study) -> RawDataset:
    header, rows = _participants_table(study.root / "participants.tsv")
    key = header.index("participant_id") if "participant_id" in header else None
    return RawDataset(
        name=study.name,
        visits={label: _sessions_on_disk(study.root / f"sub-{label}") for label in study.participants},
        columns=header,
        rows={} if key is None else {row[key].removeprefix("sub-"): row for row in rows if len(row) > key},
        dictionary=read_object(study.root / "participants.json"),
    )


def _sessions_on_disk(folder: Path) -> list[str | None]:
    """Sessions with anatomy; ``[None]``, the subject as a whole, where there is no such session."""
    found = (path.parent.name for path in folder.glob("ses-*/anat") if path.is_dir())
    return sorted(name.removeprefix("ses-") for name in found) or [None]


def _participants_table(path: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the raw table; nothing where there is none that can be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return (), []
    header, *rows = [tuple(line.split("\t")) for line in lines if line.strip()] or [()]
    return header, rows
