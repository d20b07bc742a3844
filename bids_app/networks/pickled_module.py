"""The weights of a network that was pickled whole, taken out without running what the file asks for.

``torch.save(module)`` writes a pickle that names the module's class and every function that rebuilds it; opening it the
usual way imports and calls them. Here each name outside a short list becomes an inert stand-in that keeps what it is
given, and the tensors are collected from the stand-ins.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bids_app.errors import ConfigError

#: What is really called: it makes tensors and containers, and nothing else. Storages are PyTorch's own affair.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}


class _StandIn:
    """What a name of the file became: takes any arguments and any state, does nothing with them."""

    def __new__(cls, *_args: Any, **_keywords: Any):
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_keywords: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Of a subclass of dict."""

    def append(self, value: Any) -> None:
        """Of a subclass of list."""

    extend = append


class _InertUnpickler(pickle.Unpickler):
    """Imports nothing but the few functions that make tensors."""

    def find_class(self, module: str, name: str) -> Any:
        # a name with a dot would be looked up in what the module itself imports
        is_storage = module == "torch" and name.endswith("Storage") and name.isidentifier()
        if (module, name) in _ALLOWED or is_storage:
            return super().find_class(module, name)
        return type("StandIn", (_StandIn,), {})


def load_pickled_module(path: Path) -> dict[str, Any]:
    """The state dict of a pickled PyTorch module; of a file that holds a plain state dict, that one.

    Parameters
    ----------
    path : Path
        File written by ``torch.save(module)``.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    ConfigError
        If the file is missing, damaged, or holds neither.
    """
    import torch

    if not path.is_file():
        raise ConfigError(f"There is no checkpoint {path}.", "Check the path.")
    if _is_program(path):
        raise ConfigError(
            f"{path} is a TorchScript program, which runs as it is opened.", "Use a file saved with torch.save(module)."
        )
    inert = SimpleNamespace(Unpickler=_InertUnpickler, load=_load, __name__="inert")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the source of a stand-in cannot be found
            content = torch.load(path, map_location="cpu", pickle_module=inert, weights_only=False)
    except Exception as error:  # a file of stand-ins can break in as many ways as there are files
        raise ConfigError(f"{path} is damaged, or no pickled network.", "Copy or download it again.") from error
    weights = dict(_tensors(content, ""))
    if not weights:
        raise ConfigError(f"{path} holds no weights.", "Use a file saved with torch.save(module).")
    return weights


def _is_program(path: Path) -> bool:
    """Whether PyTorch would hand the file to TorchScript, past the unpickler; by PyTorch's own reader and mark."""
    import torch

    try:
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:  # no zip file: the old format
        return False


def _load(stream: Any, **keywords: Any) -> Any:
    """``pickle.load``, as PyTorch calls it for files of the old format."""
    return _InertUnpickler(stream, **keywords).load()


def _tensors(found: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and tensor of all weights below a stand-in of a module, or of a dictionary of them."""
    import torch

    if isinstance(found, _StandIn):
        state = found.state if isinstance(found.state, dict) else {}
        inside = [state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        items = [item for part in inside if isinstance(part, Mapping) for item in part.items()]
    else:
        nested = found.get("state_dict", found) if isinstance(found, Mapping) else {}
        items = list(nested.items())
    for name, value in items:
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, _StandIn | OrderedDict | dict):
            yield from _tensors(value, f"{prefix}{name}.")
