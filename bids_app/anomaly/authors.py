"""Checkpoints of REFLECT's authors as this App's networks: the names of their layers, and what their files hold.

Velocity networks come as ``{"model": state_dict, "args": Namespace}`` or as a bare state dict, in the layout of latent
diffusion's ``UNetModel``; autoencoders as a whole pickled module, ``ldm.models.autoencoder.AutoencoderKL``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from bids_app.anomaly import autoencoder, velocity
from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.velocity import Velocity, VelocitySize
from bids_app.errors import ConfigError
from bids_app.networks.pickled_module import load_pickled_module
from bids_app.networks.weights import load_checkpoint

State = Mapping[str, Tensor]
Network = TypeVar("Network", Velocity, Autoencoder)

_VELOCITY_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VELOCITY_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
_AUTOENCODER_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_AUTOENCODER_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_HINT = "Use a checkpoint as train_REFLECT.py saves it, or a model folder of this App."


def read_velocity(path: Path) -> Velocity:
    """A velocity network in the authors' format, of any of their sizes and either latent.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds something else.
    """
    content = load_checkpoint(path, types=(Namespace,))
    state = _plain_names(content.get("model", content))
    for needed in ("time_embed.0.weight", "input_blocks.0.0.weight"):
        if needed not in state:
            raise ConfigError(f"{path} holds no velocity network of REFLECT: it has no {needed}.", _HINT)
    width, latent_channels = len(state["time_embed.0.weight"]) // 4, state["input_blocks.0.0.weight"].shape[1]
    known = {size.channels[0]: size for name, size in velocity.SIZES.items() if name.isupper()}
    if width not in known:
        widths = ", ".join(map(str, known))
        raise ConfigError(f"{path} is a network of {width} channels; REFLECT's sizes have {widths}.", _HINT)
    size = known[width]
    with torch.device("meta"):
        network = Velocity(size, latent_channels)
    return _loaded(network, lambda: split_qkv(renamed(state, velocity_names(size)), size.heads), path)


def read_autoencoder(path: Path) -> Autoencoder:
    """An autoencoder in the authors' format: the pickled module, or its state dict alone.

    Raises
    ------
    ConfigError
        If the file cannot be read, or holds something else.
    """
    state = _plain_names(load_pickled_module(path))
    state = {name: value for name, value in state.items() if not name.startswith("loss.")}
    if "post_quant_conv.weight" not in state:
        raise ConfigError(f"{path} holds no autoencoder of REFLECT: it has no post_quant_conv.weight.", _HINT)
    name = {4: "kl-f8", 3: "kl-f4"}.get(state["post_quant_conv.weight"].shape[0])
    if name is None:
        raise ConfigError(f"The latents of {path} have neither 3 nor 4 channels.", _HINT)
    size = autoencoder.SIZES[name]
    with torch.device("meta"):
        network = Autoencoder(size)
    flat = {key: value.flatten(1) if _is_attention(key, value) else value for key, value in state.items()}
    return _loaded(network, lambda: renamed(flat, autoencoder_names(len(size.channels), size.blocks)), path)


def velocity_names(size: VelocitySize) -> dict[str, str]:
    """Layer of ``UNetModel``, by its name there, as the layer of diffusers' ``UNet2DModel``."""
    levels = len(size.channels)
    names = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    names |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}

    def block(theirs: str, ours: str, number: int, has_attention: bool) -> None:
        names.update(_under(f"{theirs}.0", f"{ours}.resnets.{number}", _VELOCITY_RESNET))
        if has_attention:
            names.update(_under(f"{theirs}.1", f"{ours}.attentions.{number}", _VELOCITY_ATTENTION))

    count = 1
    for level in range(levels):
        for number in range(size.blocks):
            block(f"input_blocks.{count}", f"down_blocks.{level}", number, size.attention[level])
            count += 1
        if level < levels - 1:
            names[f"input_blocks.{count}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            count += 1
    names |= _under("middle_block.0", "mid_block.resnets.0", _VELOCITY_RESNET)
    names |= _under("middle_block.1", "mid_block.attentions.0", _VELOCITY_ATTENTION)
    names |= _under("middle_block.2", "mid_block.resnets.1", _VELOCITY_RESNET)
    count = 0
    for level in range(levels):
        has_attention = size.attention[levels - 1 - level]
        for number in range(size.blocks + 1):
            block(f"output_blocks.{count}", f"up_blocks.{level}", number, has_attention)
            if number == size.blocks and level < levels - 1:
                last = f"output_blocks.{count}.{1 + has_attention}.conv"
                names[last] = f"up_blocks.{level}.upsamplers.0.conv"
            count += 1
    return names


def autoencoder_names(levels: int, blocks: int) -> dict[str, str]:
    """Layer of latent diffusion's ``AutoencoderKL``, by its name there, as the layer of diffusers' class."""
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for part in ("encoder", "decoder"):
        names |= {f"{part}.conv_in": f"{part}.conv_in", f"{part}.conv_out": f"{part}.conv_out"}
        names |= {f"{part}.norm_out": f"{part}.conv_norm_out"}
        middle = f"{part}.mid_block"
        names |= _under(f"{part}.mid.block_1", f"{middle}.resnets.0", _AUTOENCODER_RESNET)
        names |= _under(f"{part}.mid.block_2", f"{middle}.resnets.1", _AUTOENCODER_RESNET)
        names |= _under(f"{part}.mid.attn_1", f"{middle}.attentions.0", _AUTOENCODER_ATTENTION)
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for number in range(blocks + 1):
            if number < blocks:
                theirs = f"encoder.down.{level}.block.{number}"
                names |= _under(theirs, f"{down}.resnets.{number}", _AUTOENCODER_RESNET)
            names |= _under(f"decoder.up.{level}.block.{number}", f"{up}.resnets.{number}", _AUTOENCODER_RESNET)
        names[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        names[f"decoder.up.{level}.upsample.conv"] = f"{up}.upsamplers.0.conv"
    return names


def renamed(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under our names; those of unknown layers keep theirs, so that loading finds them."""
    return {f"core.{name}": value for name, value in _renamed(state, names)}


def _renamed(state: State, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        yield f"{names.get(layer, layer)}.{kind}", value


def split_qkv(state: State, heads: int) -> dict[str, Tensor]:
    """Attention's queries, keys and values, which the authors stack head by head in one convolution, one by one."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if layer.endswith(".qkv"):
            parts = value.reshape(heads, 3, -1, *value.shape[1:2]).unbind(1)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                split[f"{layer.removesuffix('qkv')}{name}.{kind}"] = part.flatten(0, 1)
        else:
            split[key] = value.flatten(1) if layer.endswith(".to_out.0") and value.ndim > 2 else value
    return split


def _under(theirs: str, ours: str, layers: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{name}": f"{ours}.{layer}" for name, layer in layers.items()}


def _is_attention(name: str, value: Tensor) -> bool:
    """Whether a weight is a 1 x 1 convolution of the attention, which diffusers has as a linear layer."""
    return ".attn_1." in name and value.ndim > 2


def _plain_names(state: object) -> dict[str, Tensor]:
    """The tensors of a state dict, without what distributed training puts before their names."""
    items = state.items() if isinstance(state, Mapping) else ()
    return {str(name).removeprefix("module."): value for name, value in items if isinstance(value, Tensor)}


def _loaded(network: Network, weights: Callable[[], State], path: Path) -> Network:
    """The network with these weights, which may have any shape."""
    try:
        network.load_state_dict({name: value.float() for name, value in weights().items()}, assign=True)
    except RuntimeError as error:
        # PyTorch names what does not fit below a headline, where it has one
        first = str(error).splitlines()[:2][-1].strip()
        raise ConfigError(f"{path} does not fit REFLECT's networks: {first}", _HINT) from error
    return network.eval()
