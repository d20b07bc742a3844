"""What runs a network: one small interface over PyTorch and ONNX Runtime.

An engine maps a batch of patches to logits. Callers know its channels, outputs and patch size, and nothing of the
library behind it. Another runtime joins here: OpenVINO in bf16 was measured to be 4 times faster than PyTorch in fp32
on a processor with nnU-Net's standard network; an `OpenVinoEngine` with these four members is all it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from bids_app.errors import ConfigError, UnavailableError
from bids_app.networks.device import GPU_HINT, Device


class Engine(Protocol):
    """A network ready to run.

    Attributes
    ----------
    channels, outputs : int
        Channels of its input and of its logits.
    patch_size : tuple of int or None
        The only spatial size it takes, or None if any (that its strides allow) will do.
    device : torch.device
        Where it computes, and where its logits are.
    """

    channels: int
    outputs: int
    patch_size: tuple[int, ...] | None
    device: torch.device

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits, float32, shape (n, outputs, \\*spatial), of a batch of shape (n, channels, \\*spatial)."""
        ...


class TorchEngine:
    """A PyTorch module; fp32 on a processor, autocast to fp16 on a GPU as nnU-Net does.

    Parameters
    ----------
    network : torch.nn.Module
        Maps (n, channels, \\*spatial) to logits (n, outputs, \\*spatial).

    Attributes
    ----------
    network : torch.nn.Module
        The same, ready on its device.
    """

    def __init__(self, network: torch.nn.Module, channels: int, outputs: int, device: Device):
        self.channels = channels
        self.outputs = outputs
        self.patch_size = None
        self.device = torch.device(device.name)
        self.network = network.float().to(self.device).eval()
        if device.is_gpu:
            torch.backends.cudnn.benchmark = True  # all patches have one size

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            return self.network(batch.to(self.device, torch.float32)).float()


class OnnxEngine:
    """An ONNX file run by ONNX Runtime, with fp16 or fp32 inputs and, as StrokeSeg's files, perhaps a fixed patch.

    Parameters
    ----------
    path : Path
        File with one input (n, channels, \\*spatial) and logits (n, outputs, \\*spatial) as first output.
    device : Device
    threads : int, optional
        CPU threads; those of PyTorch if not given. ONNX Runtime's own default ignores the allocation of a cluster job.

    Raises
    ------
    ConfigError
        If the file is no ONNX network with an input of known channels.
    UnavailableError
        If a GPU was chosen and this ONNX Runtime cannot use it.
    """

    def __init__(self, path: Path, device: Device, threads: int | None = None):
        self._session = _session(path, device, threads or torch.get_num_threads())
        tensor, result = self._session.get_inputs()[0], self._session.get_outputs()[0]
        if len(self._session.get_inputs()) != 1 or not isinstance(tensor.shape[1], int):
            raise ConfigError(f"{path} does not have one input with a fixed number of channels.", "Export it again.")
        self.channels = tensor.shape[1]
        self.outputs = _outputs(path, result.shape)
        spatial = tensor.shape[2:]
        self.patch_size = tuple(spatial) if all(isinstance(size, int) for size in spatial) else None
        # the network computes where the session is; patches and logits pass through main memory
        self.device = torch.device("cpu")
        self._input = tensor.name
        self._dtype = np.float16 if tensor.type == "tensor(float16)" else np.float32
        self._batch = tensor.shape[0] if isinstance(tensor.shape[0], int) else None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        values = np.ascontiguousarray(batch.cpu().numpy(), dtype=self._dtype)
        size = self._batch or len(values)
        parts = [self._run(values[start : start + size], size) for start in range(0, len(values), size)]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32, copy=False))

    def _run(self, values: np.ndarray, size: int) -> np.ndarray:
        """Logits of at most `size` patches; a file with a fixed batch gets its missing patches as zeros."""
        missing = [(0, size - len(values))] + [(0, 0)] * (values.ndim - 1)
        padded = np.pad(values, missing) if len(values) < size else values
        return self._session.run(None, {self._input: padded})[0][: len(values)]


def _session(path: Path, device: Device, threads: int):
    """An ONNX Runtime session on the device that was chosen, on no other."""
    import onnxruntime

    wanted = "CUDAExecutionProvider" if device.is_gpu else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise UnavailableError(
            f"This ONNX Runtime cannot use {device.name}.", "Install onnxruntime-gpu, or use --device cpu."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    settings = {"device_id": int(device.name.partition(":")[2] or 0)} if device.is_gpu else {}
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[(wanted, settings)])
    except Exception as error:  # ONNX Runtime raises classes of its own for every kind of damage
        raise ConfigError(
            f"{path} is no ONNX network that this App can run: {_first_line(error)}.", "Copy or export it again."
        ) from error
    if session.get_providers()[0] != wanted:  # it falls back to the processor without a word
        raise UnavailableError(f"ONNX Runtime could not start on {device.name}.", GPU_HINT)
    return session


def _outputs(path: Path, shape: list) -> int:
    """Channels of the logits."""
    if len(shape) < 3 or not isinstance(shape[1], int):
        raise ConfigError(f"The output of {path} does not have a fixed number of channels.", "Export it again.")
    return shape[1]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
