"""The command line of the App: from arguments to a level, and from any error to a sentence and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from bids_app import app_version
from bids_app.cli_parser import Request, read_request
from bids_app.derivatives import names
from bids_app.environment import check_semaphores, quiet_libraries, use_temporary_folder
from bids_app.errors import NO_SPACE, AppError, CannotWriteError, ExitCode
from bids_app.process import Stopped, leave_lost_folder, output_failure, prepare
from bids_app.settings import AnomalyTraining, Settings, TrainingSettings
from bids_app.study.folders import check_group_input, check_places, check_writable, check_writable_output, dataset_of
from bids_app.wording import in_one_line

_KILLED = 128  # what a shell adds to the number of the signal that ended a program
_NOT_WRITABLE = (*NO_SPACE, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the App.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name. By default those of the process, which is then made ready: its streams,
        its encoding, its signals.

    Returns
    -------
    int
        An exit code of `ExitCode`, or that of a program ended by a signal: 130 after Ctrl-C, 143 after SIGTERM.
    """
    if argv is None:
        prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    request = None
    try:
        request = read_request(arguments)
        code = int(_run(request, arguments))
        return _told_all(code) if request.dry_run else code
    except AppError as error:
        return _tell(error)
    except SystemExit as end:  # argparse, after --help and --version
        return _told_all(end.code) if isinstance(end.code, int) else ExitCode.OK
    except KeyboardInterrupt as error:
        return _tell_interrupted(error)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            return _tell(CannotWriteError(f"Writing {error.filename or 'a file'} failed: {error.strerror}."))
        return _tell_unexpected(error, request, arguments)


def _run(request: Request, arguments: Sequence[str]) -> ExitCode:
    """Prepare the process, and run the level that is asked for."""
    _start_logging(request.settings.verbosity)
    leave_lost_folder()  # paths are absolute by now
    quiet_libraries(request.settings.work_dir)
    if request.level == "group":
        return _group(request.settings, request.dry_run, arguments)
    if request.level == "case":
        return _case(request, arguments)
    if request.level == "train":
        return _train(request.settings, request.dry_run)
    return _participants(request, arguments)


def _participants(request: Request, arguments: Sequence[str]) -> ExitCode:
    """Find the visits, print what will be done with them, and do it."""
    from bids_app.derivatives.description import refuse_other_pipeline
    from bids_app.derivatives.run_log import logged
    from bids_app.study.dataset import open_dataset
    from bids_app.study.index import index, nothing_to_process
    from bids_app.study.plan import rendered
    from bids_app.study.validation import validate

    settings, dry_run = request.settings, request.dry_run
    open_dataset(settings.bids_dir)  # what is wrong with it explains most of what is wrong with the places
    check_places(settings)
    study = index(_without_new_database(settings) if dry_run else settings)
    refuse_other_pipeline(settings.out_dir)  # before a log is written there
    if not dry_run:
        check_writable(settings)
        use_temporary_folder(settings.work_dir)
    with nullcontext() if dry_run else logged(settings.out_dir, arguments) as log:
        study = validate(study, settings, None if dry_run else settings.work_dir)
        # takes seconds: last of the imports
        from bids_app.workflow.given import with_masks_judged
        from bids_app.workflow.run import check_run, model_outputs, models_in_words, run_participants, visit_status

        if dry_run:  # a real run does it by itself
            check_run(settings)
            study = with_masks_judged(study)
        status = visit_status(settings, study)
        files = model_outputs(settings) if dry_run else None
        plan = rendered(request.plan_format, study, settings, status, models_in_words(settings), files)
        log.say(plan) if log else print(plan, flush=True)
        if not any(visit.t1w or visit.flair for visit in study.visits):
            raise nothing_to_process(study, settings)
        return ExitCode.OK if dry_run else run_participants(settings, study, status, log.say, log.run_id)


def _case(request: Request, arguments: Sequence[str]) -> ExitCode:
    """Make a dataset of one scan, and run it; for a dry run in a temporary folder."""
    from bids_app.derivatives.description import refuse_other_pipeline
    from bids_app.derivatives.record import refuse_other_scans
    from bids_app.study.single import check_case, make_case

    case = request.case
    check_case(case, request.settings.out_dir)
    settings = replace(request.settings, skip_bids_validation=True)
    datasets = {dataset for scan in case.scans if (dataset := dataset_of(scan))}
    check_places(settings, *datasets)
    refuse_other_pipeline(settings.out_dir)  # before anything is written there
    if not settings.force:
        scans = {"t1w": case.t1w, "flair": case.flair}
        refuse_other_scans(settings.out_dir, case.subject, case.session, scans)
    if not request.dry_run:
        check_writable(settings)
    with tempfile.TemporaryDirectory() if request.dry_run else nullcontext(settings.out_dir) as parent:
        root, sessions = make_case(case, Path(parent)), (case.session,) if case.session else ()
        settings = replace(settings, bids_dir=root, participants=(case.subject,), sessions=sessions)
        return _participants(replace(request, settings=settings), arguments)


def _group(settings: Settings, dry_run: bool, arguments: Sequence[str]) -> ExitCode:
    """Make tables and maps of what the participant level left."""
    check_group_input(settings.out_dir)
    if dry_run:
        from bids_app.study.plan import render_group

        print(render_group(settings))
        return ExitCode.OK
    check_writable_output(settings.out_dir)
    use_temporary_folder(settings.out_dir)
    from bids_app.derivatives.run_log import logged
    from bids_app.group.run import run_group

    with logged(settings.out_dir, arguments) as log:
        return run_group(settings, log.say)


def _train(settings: TrainingSettings | AnomalyTraining, dry_run: bool) -> ExitCode:
    """Train a lesion model or an anomaly model; either imports what takes seconds."""
    if not dry_run:
        check_semaphores("Training")
    if isinstance(settings, AnomalyTraining):
        from bids_app.training.reflect.command import train_anomaly

        return train_anomaly(settings, dry_run)
    from bids_app.training.own.run import train_lesion

    return train_lesion(settings, dry_run)


def _without_new_database(settings: Settings) -> Settings:
    """Settings for a dry run, which must not create the database of pybids."""
    database = settings.bids_database_dir
    return (
        settings
        if database and database.is_dir() and any(database.iterdir())
        else replace(settings, bids_database_dir=None)
    )


def _start_logging(verbosity: int) -> None:
    """Warnings always; the App's own messages with -v, everything with -vv. A log file has the App's own anyway."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    screen = logging.StreamHandler()
    screen.setLevel(level)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING, handlers=[screen])
    logging.getLogger("bids_app").setLevel(min(level, logging.INFO))


def _tell(error: AppError) -> int:
    """Print an error in one line, and return its exit code."""
    print(f"afterstroke: error: {in_one_line(str(error))}", file=sys.stderr)
    return int(error.exit_code)


def _told_all(code: int) -> int:
    """The exit code of a command that was to print something; another one where its last lines could not be."""
    sys.stdout.flush()
    if error := output_failure():
        return _tell(CannotWriteError(f"Standard output cannot be written: {error.strerror}."))
    return code


def _tell_interrupted(error: KeyboardInterrupt) -> int:
    """Say that nothing is lost, and return the code that a shell gives a program ended by this signal."""
    number = error.signal if isinstance(error, Stopped) else signal.SIGINT
    what = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    print(f"afterstroke: {what}; the same command goes on.", file=sys.stderr)
    return _KILLED + number


def _tell_unexpected(error: Exception, request: Request | None, arguments: Sequence[str]) -> int:
    """One sentence about an error that nobody foresaw, and where its details are."""
    text = _crash_text(error, arguments)
    dry_run = request is not None and request.dry_run
    verbose = request is None or request.settings.verbosity >= 2
    place = None if verbose or dry_run else _write_crash(text, request.settings)
    if place:
        hint = f"Please report it with {place}."
    elif dry_run and not verbose:
        hint = "Add -vv to see the details, and please report it with them."
    else:
        hint = "Please report it with what follows."
    print(f"afterstroke: error: {in_one_line(f'internal error, {_named(error)}. {hint}')}", file=sys.stderr)
    if not place and (verbose or not dry_run):
        print(text, file=sys.stderr)
    return int(ExitCode.INTERNAL)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")


def _crash_text(error: Exception, arguments: Sequence[str]) -> str:
    trace = "".join(traceback.format_exception(error))
    system = f"Python {platform.python_version()} on {platform.platform()}"
    return f"afterstroke {app_version()}, {system}\narguments: {' '.join(arguments)}\n\n{trace}"


def _write_crash(text: str, settings: Settings) -> Path | None:
    """Keep the details of a crash in the work folder, else in the output folder; None if neither can be written."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (settings.work_dir, settings.out_dir / names.RUN_LOGS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None


if __name__ == "__main__":
    sys.exit(main())
