"""Loading checkpoints without running their code, and checksums of model files."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bids_app.errors import ConfigError

#: How PyTorch names the type it refused.
_FORBIDDEN = re.compile(r"GLOBAL (\S+) w(?:as|hose)")


def load_checkpoint(path: Path, device: str = "cpu", types: Iterable[type] = ()) -> dict[str, Any]:
    """Contents of a PyTorch checkpoint, with tensors, plain Python values and NumPy scalars only.

    A pickle can run any code when it is opened; here everything but the types that nnU-Net's checkpoints need (tensors,
    containers, `torch.device`, NumPy scalars and dtypes) is refused before it is built.

    Parameters
    ----------
    path : Path
        File written by `torch.save`.
    device : str
        Where the tensors are put.
    types : iterable of type
        Further types that may be built, harmless ones.

    Raises
    ------
    ConfigError
        If the file is missing, damaged, holds a forbidden type (named in the message) or is no dictionary.
    """
    import pickle

    import torch

    if not path.is_file():
        raise ConfigError(f"There is no checkpoint {path}.", "Check the model folder.")
    try:
        with _allowed_types(types), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except PermissionError as error:
        raise ConfigError(f"The checkpoint {path} may not be read.", "Change its permissions.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(f"The checkpoint {path} is damaged or incomplete.", "Copy or download it again.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path} holds a {kind}, not a checkpoint.", "Use a file as its training saved it.")
    return content


def network_weights(checkpoint: dict[str, Any], file: Path) -> dict[str, Any]:
    """The network's weights of a checkpoint, without what distributed or compiled training puts before their names.

    Parameters
    ----------
    checkpoint : dict
        From `load_checkpoint`.
    file : Path
        Where it was read from, for the message.

    Raises
    ------
    ConfigError
        If it holds none.
    """
    import torch

    weights = checkpoint.get("network_weights")
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{file} holds no network_weights.", "Use a checkpoint saved by nnU-Net.")
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in weights.items()}


def sha256(path: Path) -> str:
    """Checksum of a file, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(paths: Iterable[Path]) -> str:
    """One checksum over the names and contents of several files, whatever their order and wherever their folder lies.

    Names are taken relative to the deepest folder that holds all files, so that swapping two folds' checkpoints is
    seen and moving the model is not.
    """
    files = [Path(path).resolve() for path in paths]
    root = Path(os.path.commonpath([path.parent for path in files]))
    lines = sorted(f"{path.relative_to(root).as_posix()} {sha256(path)}" for path in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _allowed_types(further: Iterable[type]) -> AbstractContextManager:
    """The types beyond PyTorch's own list that nnU-Net's checkpoints hold: NumPy scalars of its training log."""
    import numpy as np
    import torch

    # NumPy 1 and NumPy 2 name the same function differently in their pickles
    scalar = np._core.multiarray.scalar
    dtypes = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    scalars = [(scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar")]
    return torch.serialization.safe_globals([np.dtype, *dtypes, *scalars, *further])


def _refusal(path: Path, error: Exception) -> ConfigError:
    """The error for a pickle that was refused: forbidden type, or no pickle at all."""
    found = _FORBIDDEN.search(str(error))
    if not found:
        return ConfigError(f"The checkpoint {path} is damaged or no checkpoint.", "Copy or download it again.")
    return ConfigError(
        f"The checkpoint {path} holds a {found.group(1)}: this file could run code when opened, so it was not opened.",
        "Use one that holds weights and plain values only.",
    )
