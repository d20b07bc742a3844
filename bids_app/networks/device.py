"""The one device decision of a run: made from ``--device``, proved by a small computation, never changed silently."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bids_app.errors import UnavailableError, UsageError

MEMORY_HINT = "Use --device cpu, or free the GPU from other programs."
GPU_HINT = (
    "In Docker add `--gpus all` to `docker run`, in Apptainer use `apptainer run --nv`; "
    "or compute on the processor with `--device cpu`."
)


@dataclass(frozen=True)
class Device:
    """Where the networks run.

    Attributes
    ----------
    name : str
        ``cpu`` or ``cuda:N``, as PyTorch understands it.
    description : str
        For the log and the sidecars, as in ``NVIDIA A100, 40 GiB``.
    """

    name: str
    description: str

    @property
    def is_gpu(self) -> bool:
        return self.name.startswith("cuda")


CPU = Device("cpu", "CPU")


def choose_device(request: str = "auto") -> Device:
    """Decide where the networks run, and prove that this device works.

    Parameters
    ----------
    request : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``.

    Raises
    ------
    UsageError
        If the request is none of these.
    UnavailableError
        If a GPU was asked for and there is none or not that many, or if the chosen GPU cannot compute. With ``auto``
        a GPU that is there and does not work is an error as well: falling back to the processor would only look like
        a slow run.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", request):
        raise UsageError(f"'{request}' is no device.", "Use auto, cpu, cuda or cuda:N, as in --device cuda:0.")
    if request == "cpu":
        return CPU
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0 and request == "auto":
        return Device("cpu", "CPU, no GPU found")
    index = int(request.partition(":")[2] or 0)
    _require_gpu(request, index, count)
    _prove(index)
    properties = torch.cuda.get_device_properties(index)
    return Device(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")


def set_threads(threads: int) -> None:
    """Let PyTorch (and the ONNX engines made afterwards) use so many CPU threads.

    Raises
    ------
    UsageError
        If `threads` is below one.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads make no sense.", "Use at least one.")
    import torch

    torch.set_num_threads(threads)


def computes_bf16(name: str) -> bool:
    """Whether a device has instructions for bf16. GPUs from before 2020 and most processors imitate it; a processor is
    45 times slower with it than with fp32.

    Parameters
    ----------
    name : str
        ``cpu`` or ``cuda:N``.
    """
    import torch

    if name.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def release_memory(error: RuntimeError) -> None:
    """After an error of PyTorch, cuDNN or the processor's allocator that means that memory ran out, give back what a
    GPU holds in reserve; any other error is raised again."""
    import torch

    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in words):
        raise error
    torch.cuda.empty_cache()


def _require_gpu(request: str, index: int, count: int) -> None:
    """Fail with a sentence if GPU number `index` of `count` does not exist."""
    import torch

    if torch.version.cuda is None:
        raise UnavailableError(
            f"--device {request} needs a GPU, but this PyTorch ({torch.__version__}) was built without CUDA.",
            f"Install a CUDA build of PyTorch. {GPU_HINT}",
        )
    if count == 0:
        raise UnavailableError(f"--device {request} needs a GPU, but no GPU can be seen from here.", GPU_HINT)
    if index >= count:
        seen = ", ".join(f"cuda:{i}" for i in range(count))
        raise UnavailableError(f"There is no GPU {request}; the GPUs here are {seen}.", GPU_HINT)


def _prove(index: int) -> None:
    """Compute a small convolution on the GPU; a build for other architectures fails here and not in the first visit."""
    import torch

    try:
        ones = torch.ones(1, 1, 4, 4, 4, device=f"cuda:{index}")
        total = torch.nn.functional.conv3d(ones, ones[..., :2, :2, :2]).sum().item()
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnavailableError(f"The GPU cuda:{index} cannot compute: {reason}.", _architectures(index)) from error
    if total != 216.0:  # 27 positions of a 2x2x2 kernel of ones
        raise UnavailableError(f"The GPU cuda:{index} computes wrong numbers.", "Use another GPU or --device cpu.")


def _architectures(index: int) -> str:
    """A hint that compares the GPU's architecture with those this PyTorch was built for."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    built = " ".join(torch.cuda.get_arch_list()) or "none"
    return (
        f"The GPU has compute capability {major}.{minor}; this PyTorch (CUDA {torch.version.cuda}) was built for "
        f"{built}. Check the driver, install a PyTorch for this GPU, or use --device cpu."
    )
