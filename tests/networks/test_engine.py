"""PyTorch and ONNX Runtime behind one interface."""

import pytest
import torch

from bids_app.errors import ConfigError, UnavailableError
from bids_app.networks.device import CPU, Device
from bids_app.networks.engine import OnnxEngine, TorchEngine
from tests.networks.onnx_files import write_onnx

GPU = Device("cuda:0", "pretended")


def test_torch_engine_runs_half_precision_weights_in_single_precision():
    layer = torch.nn.Conv3d(1, 2, 3, padding=1).half()
    engine = TorchEngine(layer, 1, 2, CPU)
    logits = engine(torch.rand(2, 1, 6, 6, 6))
    assert logits.shape == (2, 2, 6, 6, 6) and logits.dtype == torch.float32
    assert not logits.requires_grad and engine.patch_size is None


def test_torch_engine_predicts_in_evaluation_mode():
    engine = TorchEngine(torch.nn.Dropout(0.9).train(), 1, 1, CPU)
    patch = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(engine(patch), patch)


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-5), (True, 5e-3)])
def test_onnx_and_torch_agree(tmp_path, half, tolerance):
    layer = write_onnx(tmp_path / "a.onnx", channels=2, half=half)
    onnx, pytorch = OnnxEngine(tmp_path / "a.onnx", CPU), TorchEngine(layer, 2, 2, CPU)
    assert (onnx.channels, onnx.outputs, onnx.patch_size) == (2, 2, (16, 16, 16))
    batch = torch.rand(3, 2, 16, 16, 16)
    logits = onnx(batch)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, pytorch(batch), atol=tolerance, rtol=tolerance)


def test_onnx_with_free_patch(tmp_path):
    write_onnx(tmp_path / "a.onnx", patch=("x", "y", "z"))
    engine = OnnxEngine(tmp_path / "a.onnx", CPU)
    assert engine.patch_size is None
    assert engine(torch.rand(1, 1, 9, 10, 11)).shape == (1, 2, 9, 10, 11)


def test_onnx_with_fixed_batch_is_fed_in_parts(tmp_path):
    layer = write_onnx(tmp_path / "a.onnx", batch=2)
    batch = torch.rand(3, 1, 16, 16, 16)
    expected = TorchEngine(layer, 1, 2, CPU)(batch)
    torch.testing.assert_close(OnnxEngine(tmp_path / "a.onnx", CPU)(batch), expected, atol=1e-5, rtol=1e-5)


def test_onnx_uses_the_threads_it_is_told(tmp_path):
    write_onnx(tmp_path / "a.onnx")
    for threads in (1, 3):
        engine = OnnxEngine(tmp_path / "a.onnx", CPU, threads=threads)
        assert engine._session.get_session_options().intra_op_num_threads == threads
    default = OnnxEngine(tmp_path / "a.onnx", CPU)
    assert default._session.get_session_options().intra_op_num_threads == torch.get_num_threads()


@pytest.mark.parametrize("content", [b"", b"not onnx", None])
def test_damaged_onnx(tmp_path, content):
    path = tmp_path / "a.onnx"
    write_onnx(path)
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(ConfigError, match=r"a\.onnx"):
        OnnxEngine(path, CPU)


def test_onnx_on_a_gpu_it_cannot_use_is_an_error_and_not_the_cpu(tmp_path, monkeypatch):
    import onnxruntime

    write_onnx(tmp_path / "a.onnx")
    with pytest.raises(UnavailableError, match="cuda:0"):
        OnnxEngine(tmp_path / "a.onnx", GPU)
    # a build with CUDA whose libraries are missing falls back by itself; that is an error as well
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning), pytest.raises(UnavailableError, match="cuda:0"):
        OnnxEngine(tmp_path / "a.onnx", GPU)
