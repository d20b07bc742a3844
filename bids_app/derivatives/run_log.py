"""The log of a run: what it said, its plan and its warnings, each with its time, in one file of the output folder."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from bids_app import app_version
from bids_app.derivatives import names
from bids_app.errors import AppError
from bids_app.wording import duration

Say = Callable[[str], None]


class RunLog(logging.Handler):
    """Takes lines, and the messages of the App's loggers. A log that cannot be written any more ends no run.

    Attributes
    ----------
    run_id : str
        Name of the run: date, time and eight random digits.
    path : Path
    """

    def __init__(self, out_dir: Path, run_id: str):
        super().__init__(logging.INFO)
        self.run_id, self.path = run_id, out_dir / names.run_log(run_id)
        self._stream: IO[str] | None = None
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def say(self, line: str) -> None:
        """Print a line, and keep it."""
        print(line, flush=True)
        self.note(line)

    def note(self, line: str) -> None:
        """Keep a line, and print nothing."""
        if self._stream:
            with suppress(OSError):
                self._stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}\n")
                self._stream.flush()

    def emit(self, record: logging.LogRecord) -> None:
        self.note(f"{record.levelname} {record.getMessage()}")

    def close(self) -> None:
        if self._stream:
            with suppress(OSError):
                self._stream.close()
        super().close()


def new_run_id() -> str:
    """Name of a run's log and of its folders of details: date, time and eight random digits."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"


@contextmanager
def logged(out_dir: Path, arguments: Sequence[str]) -> Iterator[RunLog]:
    """Keep a log of what is done inside, from the command to how it ended.

    Parameters
    ----------
    arguments : sequence of str
        The command line, without the program.
    """
    log, started = RunLog(out_dir, new_run_id()), time.monotonic()
    log.note(f"afterstroke {app_version()}, Python {platform.python_version()} on {platform.platform()}")
    log.note(f"process {os.getpid()} on {socket.gethostname()}, in {os.getcwd()}")  # noqa: PTH109
    log.note(f"command: afterstroke {shlex.join(arguments)}")
    logging.getLogger().addHandler(log)
    try:
        yield log
        log.say(f"Log: {log.path}")
    except BaseException as error:
        log.note(_last_words(error))
        raise
    finally:
        log.note(f"ended after {duration(time.monotonic() - started)}")
        logging.getLogger().removeHandler(log)
        log.close()


def _last_words(error: BaseException) -> str:
    """What ended a run before its end: a sentence, or the details of what nobody foresaw."""
    if isinstance(error, AppError):
        return f"ERROR {error}"
    if isinstance(error, KeyboardInterrupt):
        return "ERROR interrupted"
    return f"ERROR internal error\n{''.join(traceback.format_exception(error))}"
