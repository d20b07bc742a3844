"""The command line of the App: from arguments to a level, and from any error to a sentence and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import platform
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
from bids_app.environment import quiet_libraries
from bids_app.errors import NO_SPACE, AppError, CannotWriteError, ExitCode, NoInputError
from bids_app.settings import AnomalyTraining, Settings, TrainingSettings
from bids_app.study.folders import check_group_input, check_places, check_writable, check_writable_output, dataset_of

INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C
_NOT_WRITABLE = (*NO_SPACE, errno.EROFS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the App.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        An exit code of `ExitCode`, or 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    request = None
    try:
        request = read_request(arguments)
        return int(_run(request))
    except AppError as error:
        return _tell(error)
    except SystemExit as end:  # argparse, after --help and --version
        return end.code if isinstance(end.code, int) else ExitCode.OK
    except KeyboardInterrupt:
        print("afterstroke: interrupted; start it again to go on.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the plan was piped into something like head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            return _tell(CannotWriteError(f"Writing {error.filename or 'a file'} failed: {error.strerror}."))
        return _tell_unexpected(error, request, arguments)


def _run(request: Request) -> ExitCode:
    """Prepare the process, and run the level that is asked for."""
    _start_logging(request.settings.verbosity)
    quiet_libraries(request.settings.work_dir)
    if request.level == "group":
        return _group(request.settings, request.dry_run)
    if request.level == "case":
        return _case(request)
    if request.level == "train":
        return _train(request.settings, request.dry_run)
    return _participants(request.settings, request.dry_run)


def _participants(settings: Settings, dry_run: bool) -> ExitCode:
    """Find the visits, print what will be done with them, and do it."""
    from bids_app.study.index import index
    from bids_app.study.plan import render
    from bids_app.study.validation import validate

    check_places(settings)
    study = index(_without_new_database(settings) if dry_run else settings)
    if not dry_run:
        check_writable(settings)
        validate(study, settings)
    # takes seconds: last of the imports
    from bids_app.workflow.run import (
        anomaly_model_in_words,
        check_run,
        lesion_model_in_words,
        run_participants,
        visit_status,
    )

    if dry_run:  # a real run does it by itself
        check_run(settings)
    status = visit_status(settings, study)
    models = anomaly_model_in_words(settings), lesion_model_in_words(settings)
    print(render(study, settings, status, *models), flush=True)
    if not any(visit.t1w or visit.flair for visit in study.visits):
        raise NoInputError("No requested visit has a T1w or FLAIR.", "Check the labels and the filter file.")
    return ExitCode.OK if dry_run else run_participants(settings, study, status)


def _case(request: Request) -> ExitCode:
    """Make a dataset of one scan, and run it; for a dry run in a temporary folder."""
    from bids_app.derivatives.description import refuse_other_pipeline
    from bids_app.derivatives.record import refuse_other_scans
    from bids_app.study.single import check_case, make_case

    case = request.case
    check_case(case)
    settings = replace(request.settings, skip_bids_validation=True)
    check_places(replace(settings, bids_dir=dataset_of(case.scans[0])))
    refuse_other_pipeline(settings.out_dir)  # before anything is written there
    if not settings.force:
        scans = {"t1w": case.t1w, "flair": case.flair}
        refuse_other_scans(settings.out_dir, case.subject, case.session, scans)
    if not request.dry_run:
        check_writable(settings)
    with tempfile.TemporaryDirectory() if request.dry_run else nullcontext(settings.out_dir) as parent:
        root, sessions = make_case(case, Path(parent)), (case.session,) if case.session else ()
        settings = replace(settings, bids_dir=root, participants=(case.subject,), sessions=sessions)
        return _participants(settings, request.dry_run)


def _group(settings: Settings, dry_run: bool) -> ExitCode:
    """Make tables and maps of what the participant level left."""
    check_group_input(settings.out_dir)
    if dry_run:
        from bids_app.study.plan import render_group

        print(render_group(settings))
        return ExitCode.OK
    check_writable_output(settings.out_dir)
    from bids_app.group.run import run_group

    return run_group(settings)


def _train(settings: TrainingSettings | AnomalyTraining, dry_run: bool) -> ExitCode:
    """Train a lesion model or an anomaly model; either imports what takes seconds."""
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
    """Warnings always; the App's own messages with -v, everything with -vv."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.getLogger("bids_app").setLevel(level)


def _tell(error: AppError) -> int:
    """Print an error's sentence and hint, and return its exit code."""
    print(f"afterstroke: error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    return int(error.exit_code)


def _tell_unexpected(error: Exception, request: Request | None, arguments: Sequence[str]) -> int:
    """One sentence about an error that nobody foresaw, and where its details are."""
    text = _crash_text(error, arguments)
    on_screen = request is None or request.dry_run or request.settings.verbosity >= 2
    place = None if on_screen else _write_crash(text, request.settings)
    print(f"afterstroke: error: internal error, {type(error).__name__}: {error}", file=sys.stderr)
    print(f"  Please report it with {place}." if place else text, file=sys.stderr)
    return int(ExitCode.INTERNAL)


def _crash_text(error: Exception, arguments: Sequence[str]) -> str:
    trace = "".join(traceback.format_exception(error))
    system = f"Python {platform.python_version()} on {platform.platform()}"
    return f"afterstroke {app_version()}, {system}\narguments: {' '.join(arguments)}\n\n{trace}"


def _write_crash(text: str, settings: Settings) -> Path | None:
    """Keep the details of a crash in the work folder, else in the output folder; None if neither can be written."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (settings.work_dir, settings.out_dir / names.LOG_FOLDER):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except OSError:
            continue
        return folder / name
    return None


if __name__ == "__main__":
    sys.exit(main())
