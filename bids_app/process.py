"""The process of a command, made ready before anything heavy is imported: its streams, encoding, folder and signals.

What a job is started with is not what a person has at a terminal: standard output may be closed, or read by a program
that stops reading; the locale may know ASCII alone; the current folder may be gone; and process 1 of a container hears
no signal that it has not asked for.
"""

from __future__ import annotations

import errno
import io
import locale
import os
import resource
import signal
import sys

_OPEN_FILES = 4096  # a graph of nipype and the files of five folds stay far below; some clusters allow 256

#: Nobody reads on: what was printed so far is what was wanted.
_NOT_READ = (errno.EPIPE, errno.EIO)


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end, which it does as after Ctrl-C.

    Attributes
    ----------
    signal : signal.Signals
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = signal.Signals(number)


class Stream(io.TextIOWrapper):
    """A text stream that is given up, instead of raising, when it can be written no more.

    A run goes on when what it prints is piped into ``head``, or its terminal is closed.

    Attributes
    ----------
    failure : OSError or None
        Why it was given up.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Write to nowhere from now on; what is still in the buffer goes there as well."""
        self.failure = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def prepare() -> None:
    """Make this process ready; it may be started anew, with the same arguments, to read and write UTF-8."""
    _open_closed_streams()
    _use_utf8()
    guard_streams()
    _allow_open_files()
    hear_signals()


def guard_streams() -> None:
    """Let neither a character that the encoding does not know, nor a reader that went away, raise an error."""
    sys.stdout = sys.__stdout__ = _guarded(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _guarded(sys.stderr, 2)


def output_failure() -> OSError | None:
    """Why standard output was given up; None where it was not, or where its reader had read enough."""
    error = getattr(sys.stdout, "failure", None)
    return error if error and error.errno not in _NOT_READ else None


def leave_lost_folder() -> None:
    """Go to the root folder where the current one was removed or may not be entered: libraries ask for it."""
    if not has_current_folder():
        os.chdir(os.sep)


def has_current_folder() -> bool:
    """Whether the current folder is still there, and may be entered."""
    try:
        os.chdir(os.getcwd())  # noqa: PTH109
    except OSError:
        return False
    return True


def hear_signals() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does; one that was switched off (``nohup``) stays off."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _: object) -> None:
    raise Stopped(number)


def _open_closed_streams() -> None:
    """Open streams that were closed: the next file opened would get the number, and what is printed would go there."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free


def _use_utf8() -> None:
    """Start Python anew in its UTF-8 mode where the locale names another encoding.

    File names, sidecars and tables are UTF-8 whatever the locale of a job says; the mode cannot be changed later.
    """
    encodings = {sys.getfilesystemencoding(), locale.getencoding()}
    chosen = "utf8" in sys._xoptions  # whoever says so on Python's command line gets what he says, and this ends
    if chosen or {name.lower().replace("-", "") for name in encodings} == {"utf8"} or not sys.executable:
        return
    try:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    except OSError:  # then file names in ASCII are all there is
        return


def _guarded(stream: io.TextIOBase | None, number: int) -> io.TextIOBase:
    if stream is None:
        buffer, encoding = io.open(number, "wb", closefd=False), "utf-8"  # noqa: SIM115, UP020
    elif type(stream) is io.TextIOWrapper:
        encoding, buffer = stream.encoding, stream.detach()
    else:  # a test or a notebook has put its own in place
        return stream
    os.set_blocking(number, True)
    return Stream(buffer, encoding=encoding, errors="backslashreplace", line_buffering=True)


def _allow_open_files() -> None:
    """Raise the number of files that may be open, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
