"""The device decision; the GPUs here are pretended."""

from types import SimpleNamespace

import pytest
import torch

from bids_app.errors import ExitCode, UnavailableError, UsageError
from bids_app.networks.device import choose_device, computes_bf16, set_threads


@pytest.fixture
def gpus(monkeypatch):
    """Pretend a number of GPUs; the tensors of the proof stay on the CPU."""

    def pretend(count: int, broken: bool = False):
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (12, 0))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
        properties = SimpleNamespace(name="Pretended GPU", total_memory=8 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        ones = torch.ones

        def on_cpu(*shape, device="cpu"):
            if broken:
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
            return ones(*shape)

        monkeypatch.setattr(torch, "ones", on_cpu)

    return pretend


def test_cpu_is_the_cpu_even_beside_a_gpu(gpus):
    gpus(1)
    assert choose_device("cpu").name == "cpu"


def test_auto_takes_a_gpu_if_there_is_one(gpus):
    gpus(2)
    device = choose_device("auto")
    assert (device.name, device.description, device.is_gpu) == ("cuda:0", "Pretended GPU, 8 GiB", True)


def test_auto_without_a_gpu_says_so(gpus):
    gpus(0)
    device = choose_device("auto")
    assert device.name == "cpu" and "no GPU" in device.description


@pytest.mark.parametrize(("request_", "name"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_explicit_gpu(gpus, request_, name):
    gpus(2)
    assert choose_device(request_).name == name


def test_explicit_gpu_without_one_names_the_container_flags(gpus):
    gpus(0)
    with pytest.raises(UnavailableError) as caught:
        choose_device("cuda")
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    assert "docker run" in caught.value.hint and "--gpus all" in caught.value.hint
    assert "apptainer run --nv" in caught.value.hint


def test_gpu_number_out_of_range_lists_those_there_are(gpus):
    gpus(2)
    with pytest.raises(UnavailableError, match="cuda:0, cuda:1"):
        choose_device("cuda:2")


def test_torch_without_cuda(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UnavailableError, match="built without CUDA"):
        choose_device("cuda:0")


@pytest.mark.parametrize("request_", ["auto", "cuda"])
def test_a_gpu_that_cannot_compute_is_never_replaced_by_the_cpu(gpus, request_):
    gpus(1, broken=True)
    with pytest.raises(UnavailableError, match="no kernel image") as caught:
        choose_device(request_)
    assert all(word in caught.value.hint for word in ("12.0", "sm_80 sm_90", "12.8"))


@pytest.mark.parametrize("request_", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "CPU"])
def test_malformed_requests(request_):
    with pytest.raises(UsageError, match="no device"):
        choose_device(request_)


def test_threads():
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    with pytest.raises(UsageError):
        set_threads(0)


@pytest.mark.parametrize(("avx512", "amx"), [(False, False), (True, False), (False, True)])
def test_a_processor_computes_bf16_only_with_instructions_for_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert computes_bf16("cpu") == (avx512 or amx)


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_computes_bf16_only_with_instructions_for_it(monkeypatch, able):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able and not including_emulation)
    assert computes_bf16("cuda:0") == able
