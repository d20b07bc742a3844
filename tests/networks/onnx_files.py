"""Small ONNX networks: one convolution, as StrokeSeg's files in everything but size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


def write_onnx(
    path: Path,
    channels: int = 1,
    outputs: int = 2,
    patch: tuple[int | str, ...] = (16, 16, 16),
    half: bool = False,
    batch: int | str = "batch",
) -> torch.nn.Module:
    """Write a 3x3x3 convolution as ONNX and return the same convolution as a PyTorch module."""
    torch.manual_seed(1)
    layer = torch.nn.Conv3d(channels, outputs, 3, padding=1)
    dtype, kind = (np.float16, TensorProto.FLOAT16) if half else (np.float32, TensorProto.FLOAT)
    arrays = {"w": layer.weight.detach().numpy(), "b": layer.bias.detach().numpy()}
    node = helper.make_node("Conv", ["input", "w", "b"], ["output"], pads=[1] * 6, kernel_shape=[3] * 3)
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("input", kind, [batch, channels, *patch])],
        [helper.make_tensor_value_info("output", kind, [batch, outputs, *patch])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return layer
