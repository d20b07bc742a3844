"""The environment of the libraries: nothing is sent anywhere, nothing is written outside the work folder."""

from __future__ import annotations

import os
from pathlib import Path

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
    are. No folder is made here.
    """
    os.environ.update(SILENCE)
    os.environ.setdefault("TEMPLATEFLOW_HOME", str(user_cache() / "templateflow"))
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(work_dir / "cache" / folder))


def thread_variables(threads: int) -> dict[str, str]:
    """Environment that keeps every numerical library to a number of threads, for a worker process.

    >>> thread_variables(2)["OMP_NUM_THREADS"]
    '2'
    """
    return {name: str(threads) for name in _THREAD_VARIABLES}


def expanded(path: Path | str) -> Path:
    """With the home folder in place of ``~``; where there is no such user, or no home, it stays (pathlib raises)."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def user_cache() -> Path:
    """The user's cache folder, where a home folder may be missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~") / ".cache")
