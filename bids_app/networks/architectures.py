"""The networks that this project adds to nnU-Net's own: a small U-Net that compares both sides, and two fusions.

They take the arguments that nnU-Net hands to every network of a ``plans.json`` (``input_channels``, ``num_classes``,
``deep_supervision``, then those of ``arch_kwargs``), so that nnU-Net trains and runs them like its own wherever this
package is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import Tensor, nn

SHRINK = 2
_SUBVOXELS = SHRINK**3


def fold_voxels(volume: Tensor) -> Tensor:
    """Blocks of 2 x 2 x 2 voxels as channels: ``(n, c, z, y, x)`` to ``(n, 8 c, z/2, y/2, x/2)``."""
    n, channels, *shape = volume.shape
    halves = [part for size in shape for part in (size // SHRINK, SHRINK)]
    blocks = volume.reshape(n, channels, *halves).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return blocks.reshape(n, channels * _SUBVOXELS, *halves[::2])


def unfold_voxels(volume: Tensor) -> Tensor:
    """The inverse of `fold_voxels`: ``(n, 8 c, z, y, x)`` to ``(n, c, 2 z, 2 y, 2 x)``."""
    n, channels, *shape = volume.shape
    blocks = volume.reshape(n, channels // _SUBVOXELS, SHRINK, SHRINK, SHRINK, *shape)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, -1, *(SHRINK * size for size in shape))


class MirrorUNet(nn.Module):
    """A U-Net of nnU-Net that sees a brain and its mirror image, and computes at half the resolution.

    A stroke is most easily told from a wide sulcus by the other side, so the network gets the volume flipped along its
    last axis (left-right in nnU-Net's order) as further channels. Blocks of 2 x 2 x 2 voxels become channels before the
    first convolution and logits become voxels again after the last (pixel shuffle, Shi et al., CVPR 2016): the first
    stage of a plain U-Net at full resolution takes two thirds of the time and few of the parameters.

    Parameters
    ----------
    input_channels, num_classes : int
    deep_supervision : bool
        Whether a list of logits, from full resolution down, is returned instead of those at full resolution.
    extra_outputs : int
        Further outputs at half the resolution, for training alone: see `with_extra`.
    core_class : type
        U-Net to wrap; it gets all other arguments.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        extra_outputs: int = 0,
        core_class: type[nn.Module] = PlainConvUNet,
        **arguments,
    ):
        super().__init__()
        self.lesion_outputs = num_classes * _SUBVOXELS
        self.core = core_class(
            input_channels=2 * input_channels * _SUBVOXELS,
            num_classes=self.lesion_outputs + extra_outputs,
            deep_supervision=deep_supervision,
            **arguments,
        )

    @property
    def decoder(self) -> nn.Module:
        """Where nnU-Net switches deep supervision on and off."""
        return self.core.decoder

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        return self.with_extra(volume)[0]

    def with_extra(self, volume: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """Logits as `forward` gives them, and the extra outputs, ``(n, extra_outputs, z/2, y/2, x/2)``."""
        both = torch.cat([volume, volume.flip(-1)], dim=1)
        folded = fold_voxels(both).contiguous(memory_format=torch.channels_last_3d)
        outputs = self.core(folded)
        if not isinstance(outputs, list):
            return unfold_voxels(outputs[:, : self.lesion_outputs]), outputs[:, self.lesion_outputs :]
        logits = [unfold_voxels(level[:, : self.lesion_outputs]) for level in outputs]
        return logits, outputs[0][:, self.lesion_outputs :]

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's own initialisation."""
        PlainConvUNet.initialize(module)


class IntermediateUNet(nn.Module):
    """Two encoders, one decoder: the features of both contrasts are joined at every skip and at the bottleneck.

    Joined by concatenation and a 1 x 1 x 1 convolution: our definition of intermediate fusion, since the published one
    (Di Matteo et al. 2026) does not say more. Takes the arguments of nnU-Net's ``PlainConvUNet``; the first half
    of the input channels goes to the first encoder.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        n_conv_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = False,
        **arguments,
    ):
        super().__init__()
        self.encoders = nn.ModuleList(
            PlainConvEncoder(
                input_channels // 2,
                n_stages,
                features_per_stage,
                n_conv_per_stage=n_conv_per_stage,
                return_skips=True,
                **arguments,
            )
            for _ in range(2)
        )
        convolution = self.encoders[0].conv_op
        self.joints = nn.ModuleList(convolution(2 * width, width, 1) for width in features_per_stage)
        self.decoder = UNetDecoder(self.encoders[0], num_classes, n_conv_per_stage_decoder, deep_supervision)
        del self.decoder.encoder  # it is listed here already, and would be saved twice

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        halves = volume.chunk(2, dim=1)
        features = zip(*(encoder(half) for encoder, half in zip(self.encoders, halves, strict=True)), strict=True)
        return self.decoder([joint(torch.cat(pair, dim=1)) for joint, pair in zip(self.joints, features, strict=True)])

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's own initialisation."""
        PlainConvUNet.initialize(module)


class LateFusion(nn.Module):
    """One whole network a contrast, and a learned 1 x 1 x 1 convolution over their concatenated logits.

    As in StrokeSeg (Di Matteo et al. 2026, and the export code of its authors). It starts as the plain mean of
    the branches.

    Parameters
    ----------
    input_channels, num_classes : int
    deep_supervision : bool
        Whether a list of logits, from full resolution down, is returned.
    branch_class : type
        Network of each contrast; it gets all other arguments.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        branch_class: type[nn.Module] = MirrorUNet,
        **arguments,
    ):
        super().__init__()
        self.branches = nn.ModuleList(
            branch_class(input_channels=1, num_classes=num_classes, deep_supervision=deep_supervision, **arguments)
            for _ in range(input_channels)
        )
        self.fusion = nn.Conv3d(input_channels * num_classes, num_classes, 1)
        self.start_as_mean()

    def start_as_mean(self) -> None:
        """Let the fusion be the plain mean of the branches' logits."""
        classes = self.fusion.out_channels
        with torch.no_grad():
            mean = torch.eye(classes).repeat(1, len(self.branches)) / len(self.branches)
            self.fusion.weight.copy_(mean.view_as(self.fusion.weight))
            self.fusion.bias.zero_()

    @property
    def decoder(self) -> LateFusion:
        """Where nnU-Net switches deep supervision on and off: here, for all branches."""
        return self

    @property
    def deep_supervision(self) -> bool:
        """Whether a list of logits is returned."""
        return self.branches[0].decoder.deep_supervision

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        for branch in self.branches:
            branch.decoder.deep_supervision = enabled

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        return self.fuse(self.apart(volume))

    def apart(self, volume: Tensor) -> list[Tensor | list[Tensor]]:
        """What each branch says of its contrast."""
        return [branch(part) for branch, part in zip(self.branches, volume.split(1, dim=1), strict=True)]

    def fuse(self, logits: Sequence[Tensor | list[Tensor]]) -> Tensor | list[Tensor]:
        """Fused logits from those of the branches, level by level under deep supervision."""
        if isinstance(logits[0], list):
            return [self.fusion(torch.cat(level, dim=1)) for level in zip(*logits, strict=True)]
        return self.fusion(torch.cat(list(logits), dim=1))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """nnU-Net's own initialisation of the branches; the fusion starts as their mean."""
        PlainConvUNet.initialize(module)
        if isinstance(module, LateFusion):  # the last that nnU-Net visits
            module.start_as_mean()
