"""The 2-D network: a U-Net of nnU-Net on blocks of 2 x 2 pixels, which sees the mirrored slice as well."""

from __future__ import annotations

import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

SHRINK = 2
FEATURES = (32, 64, 128, 192, 256)


class SliceUNet(nn.Module):
    """Lesion logits of slices.

    Blocks of 2 x 2 pixels are channels inside (pixel shuffle, Shi et al., CVPR 2016), which makes a step three times as
    fast as at full resolution.

    Parameters
    ----------
    features : sequence of int
        Channels of each resolution, from 2 mm down.
    """

    def __init__(self, features: tuple[int, ...] = FEATURES):
        super().__init__()
        stages = len(features)
        self.core = PlainConvUNet(
            input_channels=2 * SHRINK**2,
            n_stages=stages,
            features_per_stage=features,
            conv_op=nn.Conv2d,
            kernel_sizes=3,
            strides=[1] + [2] * (stages - 1),
            n_conv_per_stage=2,
            num_classes=SHRINK**2,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
        self.core.apply(InitWeights_He(1e-2))
        for outputs in self.core.decoder.seg_layers:
            nn.init.zeros_(outputs.weight)
            nn.init.constant_(outputs.bias, -3.0)  # few pixels are lesion

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Logits from full resolution down.

        Parameters
        ----------
        slices : torch.Tensor
            ``(n, 2, rows, columns)``: the slice and its mirror image, or zeros in a sagittal one, which has none. Both
            sizes are multiples of 32.

        Returns
        -------
        list of torch.Tensor
            ``(n, 1, rows / 2**level, columns / 2**level)``.
        """
        levels = self.core(F.pixel_unshuffle(slices, SHRINK))
        return [F.pixel_shuffle(level.float(), SHRINK) for level in levels]
