"""The environment of the libraries: nothing is sent anywhere, nothing is written outside the work folder."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from bids_app.errors import UnavailableError

#: No telemetry, no update check, no download.
SILENCE = {
    "NIPYPE_NO_ET": "1",
    "NO_ET": "1",
    "NIPYPE_NO_MATLAB": "1",
    "DO_NOT_TRACK": "1",
    "TEMPLATEFLOW_AUTOUPDATE": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DENO_NO_UPDATE_CHECK": "1",
    "DENO_NO_PROMPT": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MPLBACKEND": "Agg",
    "PYTHONNOUSERSITE": "1",
}

#: No processes beside those of the App: without /dev/shm, joblib would warn that it can have none.
ALONE = {"JOBLIB_MULTIPROCESSING": "0"}

#: Threads that wait for others sleep: where CPUs are shared, the others get there sooner.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}

#: Folders that libraries write to; they would choose one in the home folder, which a container may not have.
CACHES = {
    "XDG_CACHE_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "NIPYPE_CONFIG_DIR": "nipype",
    "TORCH_HOME": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "NUMBA_CACHE_DIR": "numba",
    "HF_HOME": "huggingface",
    "DENO_DIR": "deno",
}

#: Names of the user; where none is set, libraries look for the one who has a number in /etc/passwd.
_USER_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "nnUNet_def_n_proc",
)


def quiet_libraries(work_dir: Path) -> None:
    """Set the environment of this process and its children; call it before any library is imported.

    A cache folder or a way to wait that the user has set stays, and so does the place where TemplateFlow's templates
    are. A home folder and a user's name are made up where a container has none, and numbers of threads that libraries
    do not understand are put right or forgotten. No folder is made here.
    """
    os.environ.update(SILENCE)
    _make_up_user(work_dir)
    for name in (*_THREAD_VARIABLES, "NUMEXPR_MAX_THREADS"):
        _put_right_threads(name)
    os.environ.setdefault("TEMPLATEFLOW_HOME", str(user_cache() / "templateflow"))
    for name, value in (WAITING | ALONE).items():
        os.environ.setdefault(name, value)
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(work_dir / "cache" / folder))


def thread_variables(threads: int) -> dict[str, str]:
    """Environment that keeps every numerical library to a number of threads, for a worker process.

    >>> thread_variables(2)["OMP_NUM_THREADS"]
    '2'
    """
    return {name: str(threads) for name in _THREAD_VARIABLES}


def _make_up_user(work_dir: Path) -> None:
    """Set a home folder and a user's name where neither the environment nor /etc/passwd has them."""
    if expanded("~") == Path("~"):
        os.environ["HOME"] = str(work_dir / "cache" / "home")
    if not any(os.environ.get(name) for name in _USER_VARIABLES) and not _has_passwd_entry():
        os.environ.update(dict.fromkeys(_USER_VARIABLES[:2], f"uid{os.getuid()}"))


def _has_passwd_entry() -> bool:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _put_right_threads(name: str) -> None:
    """Take the first number of a list, which OpenMP understands (a number for each level) and other libraries do not;
    what is no number above 0 is as if it was not set."""
    if name not in os.environ:
        return
    first = os.environ[name].partition(",")[0].strip()
    if first.isascii() and first.isdecimal() and int(first):
        os.environ[name] = first
    else:
        del os.environ[name]


def use_temporary_folder(fallback: Path) -> None:
    """Let temporary files go to `fallback` where no usual place for them can be written (a read-only container).

    Parameters
    ----------
    fallback : Path
        A folder that can be written.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.environ["TMPDIR"] = str(fallback)


def check_semaphores(what: str) -> None:
    """Make sure that processes can wait for each other, for which Linux has files in ``/dev/shm``.

    Parameters
    ----------
    what : str
        What needs it, as the beginning of a sentence.

    Raises
    ------
    UnavailableError
        If ``/dev/shm`` is full, read-only or not there.
    """
    import multiprocessing

    try:
        multiprocessing.get_context("spawn").Semaphore()
    except OSError as error:
        raise UnavailableError(
            f"{what} needs shared memory, and /dev/shm cannot be used: {error.strerror}.",
            "With Docker add --ipc=host or --shm-size=1g, with Apptainer -B /dev/shm; or free some space there.",
        ) from error


def expanded(path: Path | str) -> Path:
    """With the home folder in place of ``~``; where there is no such user, or no home, it stays (pathlib raises)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def user_cache() -> Path:
    """The user's cache folder, where a home folder may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~") / ".cache")
