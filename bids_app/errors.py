"""Exit codes, and the exceptions that carry them to the command line.

Every error a user can cause is an `AppError`: one sentence that says what is wrong, and one hint that says what to
do. The command line has a single ``except`` that prints both and exits with the error's code.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class ExitCode(IntEnum):
    """Exit codes of the App; those above 2 follow ``sysexits.h`` and stay below the codes of signals."""

    OK = 0
    VISIT_FAILED = 1
    USAGE = 2
    BAD_DATASET = 65
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    CANNOT_WRITE = 73
    BAD_CONFIG = 78


class AppError(Exception):
    """Something the user should hear about in one sentence.

    Parameters
    ----------
    message : str
        What is wrong, as a sentence that names the file, label or option.
    hint : str, optional
        What to do about it.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self):
        # keeps the hint when the error comes back from a worker process
        return type(self), (self.message, self.hint)


class VisitError(AppError):
    """One visit cannot be finished (its file is broken, its registration failed); other visits go on."""

    exit_code = ExitCode.VISIT_FAILED


class UsageError(AppError):
    """The command line asks for something that makes no sense."""

    exit_code = ExitCode.USAGE


class DatasetError(AppError):
    """The dataset as a whole cannot be used."""

    exit_code = ExitCode.BAD_DATASET


class NoInputError(AppError):
    """There is nothing to do: no such participant, no scan, no derivative."""

    exit_code = ExitCode.NO_INPUT


class UnavailableError(AppError):
    """A device, a library or a template that was asked for is not there."""

    exit_code = ExitCode.UNAVAILABLE


class CannotWriteError(AppError):
    """The output or work folder cannot be written."""

    exit_code = ExitCode.CANNOT_WRITE


class NoSpaceError(CannotWriteError):
    """The disk is full, or a quota is used up: nothing else can be written there either."""


def no_space_left(place: Path) -> NoSpaceError:
    """The error of a full disk, or of a quota that is used up."""
    return NoSpaceError(f"No space left to write {place}.", "Free some space and start the same command again.")


class ConfigError(AppError):
    """A configuration file, filter file or model folder is wrong."""

    exit_code = ExitCode.BAD_CONFIG
