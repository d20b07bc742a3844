"""The participant level: what is to do, who does it, how it ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from bids_app import app_version
from bids_app.anomaly.folder import AnomalyFolder, read_folder
from bids_app.anomaly.slices import SHAPE, margins
from bids_app.derivatives import names
from bids_app.derivatives.description import refuse_other_pipeline, write_top_level
from bids_app.derivatives.record import Status
from bids_app.derivatives.results import Provenance
from bids_app.derivatives.run_log import Say, new_run_id
from bids_app.derivatives.sessions import RawDataset, write_raw_dataset, write_raw_participants
from bids_app.errors import AppError, BlockedError, ConfigError, ExitCode, VisitError
from bids_app.lesion.folder import model_files, model_folds, served_contrasts
from bids_app.lesion.terms import ModelTerms, read_terms
from bids_app.networks.registry import find_model, verify
from bids_app.networks.weights import folder_sha256
from bids_app.preprocessing.templates import check_spaces
from bids_app.settings import Settings, configuration_hash
from bids_app.study.models import Problem, Severity, Study, Visit
from bids_app.study.plan import UNUSABLE, ModelOutputs, ModelsInWords
from bids_app.wording import counted, duration, part_of
from bids_app.workflow.export import export_finished
from bids_app.workflow.job import Job, anomaly_folder, remember, status_of_visit
from bids_app.workflow.pool import WorkerPool, in_worker
from bids_app.workflow.progress import Progress, on_terminal
from bids_app.workflow.worker import News, Outcome, check_device, leave_failure

logger = logging.getLogger(__name__)


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


def lesion_terms(settings: Settings) -> ModelTerms:
    """The terms on which the lesion model runs, with what the user chose.

    Raises
    ------
    ConfigError
        If the model, or its card, is wrong.
    """
    return read_terms(find_model(settings.lesion_model), settings.folds).chosen(settings)


def lesion_model_in_words(settings: Settings) -> tuple[str, str]:
    """For the plan: the lesion model and its threshold, and what it is given."""
    terms = lesion_terms(settings)
    folds = f"folds {', '.join(settings.folds)}" if settings.folds else "all folds"
    volume, source = terms.min_volume_mm3.value, terms.min_volume_mm3.source
    smallest = f"lesions from {volume:g} mm3" if volume else "lesions of any size"
    return f"{settings.lesion_model}, {folds}, {terms.threshold_in_words}, {smallest} ({source})", terms.input_in_words


def models_in_words(settings: Settings) -> ModelsInWords:
    """For the plan: both models."""
    return ModelsInWords(*lesion_model_in_words(settings), anomaly_model_in_words(settings))


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


def model_outputs(settings: Settings) -> ModelOutputs:
    """What the plan must know of the models to name all files."""
    folder = anomaly_folder(settings)
    contrast = read_folder(folder).card.contrast if folder else None
    return ModelOutputs(contrast, len(model_folds(find_model(settings.lesion_model), settings.folds)) > 1)


def provenance_of(settings: Settings, study: Study) -> Provenance:
    """What all sidecars of this run share."""
    version = app_version()
    files = model_files(find_model(settings.lesion_model), settings.folds)
    folder = anomaly_folder(settings)
    anomaly = _sha256_of(read_folder(folder).files) if folder else None
    # what it comes to: the same input is the same, whether it is asked for or the model's own
    resolved = replace(settings, lesion_input=str(lesion_terms(settings).input.value))
    return Provenance(configuration_hash(resolved, version, _sha256_of(files), anomaly), version, study.root)


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
    CannotWriteError
        If the output folder holds the derivatives of another pipeline.
    ConfigError
        If a model is incomplete, was changed or has no such fold, or the plugin file is wrong.
    UnavailableError
        If a template is missing, or a GPU that was asked for.
    """
    refuse_other_pipeline(settings.out_dir)
    check_spaces(settings.standard_spaces)
    model = find_model(settings.lesion_model)
    model_files(model, settings.folds)
    lesion_terms(settings)
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
    in_worker(check_device, request)


def run_participants(
    settings: Settings,
    study: Study,
    status: Mapping[str, Status] | None = None,
    say: Say = _say,
    run_id: str | None = None,
) -> ExitCode:
    """Process every visit that is to do; return OK, or VISIT_FAILED if any visit failed.

    Parameters
    ----------
    status : mapping, optional
        What there is to do for every visit, where `visit_status` has been asked already.
    run_id : str, optional
        Name of the run; a new one where it has no log yet.

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
        say(f"Done already, and unchanged: {part_of(len(done), len(study.visits), 'visit')}.")
        if settings.keep_model_input:
            say("What the lesion model was given in them is not kept: do them again with --force.")
    exported = _export_done(done, settings, say)
    run_id, model, anomaly = run_id or new_run_id(), find_model(settings.lesion_model), anomaly_folder(settings)
    todo = _judged(todo, settings)
    jobs = [Job(visit, settings, provenance, {}, model, run_id, anomaly) for visit in todo]
    return max(exported, _run(jobs, settings, say))


def _run(jobs: Sequence[Job], settings: Settings, say: Say) -> ExitCode:
    """Process visits, saying how each ended, and at the end where everything is and what to look at first."""
    started, outcomes = time.monotonic(), []
    # a plugin tells nothing before all visits have ended
    expected = [job.visit.label for job in jobs if job.visit.usable and not settings.plugin_file]
    progress = Progress(len(jobs), expected, settings)
    with on_terminal(progress):
        for outcome in _told(_outcomes(jobs, settings, progress, say), progress, settings, say):
            outcomes.append(outcome)
    for line in summary(jobs, outcomes, settings, time.monotonic() - started):
        say(line)
    return ExitCode.OK if all(outcome.done for outcome in outcomes) else ExitCode.VISIT_FAILED


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
        try:
            export_finished(visit, settings)
        except VisitError as error:
            failed = True
            say(f"{visit.label}: the lesion was not exported. {error}")
    return ExitCode.VISIT_FAILED if failed else ExitCode.OK


def _outcomes(jobs: Sequence[Job], settings: Settings, progress: Progress, say: Say) -> Iterator[Outcome]:
    """Process the usable visits, then fail those with an error of their own without trying them.

    In this order, because the first failure may be the end of the run (``--stop-on-first-crash``).
    """
    if usable := [job for job in jobs if job.visit.usable]:
        yield from _processed(usable, settings, progress, say)
    for job in jobs:
        if not job.visit.usable:
            message = " ".join(p.message for p in job.visit.problems if p.severity is Severity.ERROR)
            yield Outcome(job.visit.label, 0.0, {}, *leave_failure(job, message))


def _processed(jobs: list[Job], settings: Settings, progress: Progress, say: Say) -> Iterator[Outcome]:
    """Process visits with the plugin that was asked for, else in workers of this machine."""

    def heard(news: News) -> None:
        progress.hear(news)
        if news.step:
            logger.info("%s: %s", news.label, news.step)
        if news.sentence:
            say(f"{news.label}: {news.sentence}")

    if settings.plugin_file:
        from bids_app.workflow.cluster import process_with_plugin

        yield from process_with_plugin(jobs, settings, heard)
        return
    with WorkerPool(settings, min(settings.workers, len(jobs)), jobs[0].model_folder) as pool:
        say(f"Device: {pool.tools.description}. Visits side by side: {pool.size}.")
        yield from pool.process(jobs, heard)


def _told(outcomes: Iterator[Outcome], progress: Progress, settings: Settings, say: Say) -> Iterator[Outcome]:
    """The outcomes; how each visit ended is said as soon as it ended.

    Raises
    ------
    AppError
        If the failure of a visit ends the whole run (no space left).
    """
    with closing(outcomes):  # also where the first failure is the end: then visits in work are let finish
        for outcome in outcomes:
            progress.end(outcome.label)
            seconds = progress.seconds_left()
            left = f"; about {duration(seconds)} left" if seconds else ""
            say(f"[{progress.ended}/{progress.total}] {outcome.label}: {describe(outcome)}{left}")
            yield outcome
            if outcome.code not in (ExitCode.OK, ExitCode.VISIT_FAILED):
                raise _Ended(outcome)
            if settings.stop_on_first_crash and not outcome.done:
                return


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
    how = "by another run" if outcome.by_another else f"in {outcome.seconds:.0f} s"
    return f"done {how}, {lesions}{doubts}"


def summary(jobs: Sequence[Job], outcomes: Sequence[Outcome], settings: Settings, seconds: float) -> Iterator[str]:
    """How a run ended, where things are, and what to look at first."""
    failed = [outcome for outcome in outcomes if not outcome.done]
    if jobs:
        done = part_of(len(outcomes) - len(failed), len(jobs), "visit")
        yield f"Done: {done}, in {duration(seconds)}."
    if failed:
        labels = ", ".join(outcome.label for outcome in failed)
        what = part_of(len(failed), len(jobs), "visit")
        yield f"Failed: {what} ({labels}). Details are in sub-*/{names.LOG_FOLDER}; the same command does what is left."
    yield f"Results are in {settings.out_dir}, each visit in its anat folder."
    finished = [outcome for outcome in outcomes if outcome.done]
    if finished:
        first = max(finished, key=_worth_a_look)
        visit = next(job.visit for job in jobs if job.visit.label == first.label)
        scan, space = visit.reference.name, visit.reference.suffix
        mask, image = names.lesion_mask(scan, space), names.preprocessed(scan, space, space)
        yield f"Look first at {first.label}{_why(first)}: {mask} over {image.name}."


def _worth_a_look(outcome: Outcome) -> tuple[bool, float]:
    """Order of visits by what may be wrong with them: doubts first, then the largest lesion."""
    return bool(outcome.summary.get("problems")), outcome.summary.get("lesion_volume_ml") or 0.0


def _why(outcome: Outcome) -> str:
    problems = outcome.summary.get("problems")
    return f" ({problems.replace(';', ', ')})" if problems else ""


def _leave_raw_participants(settings: Settings, study: Study) -> None:
    """Keep what the group level must know of the raw dataset, so that it needs the output folder alone.

    A participant whose folder cannot be written is passed over: its visits fail, and say why.
    """
    raw = _raw_dataset(study)
    state = write_raw_dataset(settings.out_dir, raw)
    for subject in sorted({visit.subject for visit in study.visits}):
        with suppress(BlockedError):  # the visit will say so
            write_raw_participants(settings.out_dir, subject, raw, state)


def _raw_dataset(study: Study) -> RawDataset:
    return RawDataset(
        name=study.name,
        visits={label: _sessions_on_disk(study.root / f"sub-{label}") for label in study.participants},
        columns=study.table.columns,
        rows=study.table.rows,
        dictionary=study.table.dictionary,
    )


def _sessions_on_disk(folder: Path) -> list[str | None]:
    """Sessions with anatomy; ``[None]``, the subject as a whole, where there is no such session."""
    found = (path.parent.name for path in folder.glob("ses-*/anat") if path.is_dir())
    return sorted(name.removeprefix("ses-") for name in found) or [None]
