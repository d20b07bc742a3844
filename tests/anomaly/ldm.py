"""Latent diffusion's U-Net and autoencoder, written plainly from their published description.

The layers have the names that REFLECT's checkpoints use, and nothing is shared with the App: what these compute with
some weights, the App must compute with the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


def norm(width, eps=1e-5):
    return nn.GroupNorm(32, width, eps=eps)


class ResBlock(nn.Module):
    def __init__(self, before, after, time_width):
        super().__init__()
        self.in_layers = nn.Sequential(norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_width, after))
        self.out_layers = nn.Sequential(norm(after), nn.SiLU(), nn.Dropout(0.4), nn.Conv2d(after, after, 3, padding=1))
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x, time):
        h = self.in_layers(x) + self.emb_layers(time)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm = norm(width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, _time):
        n, width, *size = x.shape
        flat = x.reshape(n, width, -1)
        each = width // self.heads
        out = []
        for head in self.qkv(self.norm(flat)).reshape(n, self.heads, 3 * each, -1).unbind(1):
            q, k, v = head.split(each, dim=1)
            weights = torch.softmax(torch.einsum("nct,ncs->nts", q, k) / math.sqrt(each), dim=-1)
            out.append(torch.einsum("nts,ncs->nct", weights, v))
        return (flat + self.proj_out(torch.cat(out, dim=1))).reshape(n, width, *size)


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, _time):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, _time):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Plain(nn.Conv2d):
    def forward(self, x, _time):
        return super().forward(x)


class UNetModel(nn.Module):
    def __init__(self, latent_channels, width, heads, multiples=(1, 2, 4), blocks=2):
        super().__init__()
        time_width = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(1, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.input_blocks = nn.ModuleList([nn.ModuleList([Plain(latent_channels, width, 3, padding=1)])])
        kept, now = [width], width
        for level, multiple in enumerate(multiples):
            for _ in range(blocks):
                block = [ResBlock(now, multiple * width, time_width), AttentionBlock(multiple * width, heads)]
                self.input_blocks.append(nn.ModuleList(block))
                now = multiple * width
                kept.append(now)
            if level < len(multiples) - 1:
                self.input_blocks.append(nn.ModuleList([Downsample(now)]))
                kept.append(now)
        middle = [ResBlock(now, now, time_width), AttentionBlock(now, heads), ResBlock(now, now, time_width)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, multiple in reversed(list(enumerate(multiples))):
            for number in range(blocks + 1):
                before = now + kept.pop()
                now = multiple * width
                block = [ResBlock(before, now, time_width), AttentionBlock(now, heads)]
                if level and number == blocks:
                    block.append(Upsample(now))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1))

    def forward(self, x, t):
        time = self.time_embed(t[:, None])
        kept = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x, time)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, time)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:
                x = layer(x, time)
        return self.out(x)


class ResnetBlock(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.norm1, self.conv1 = norm(before, 1e-6), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after, 1e-6), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("nct,ncs->nts", q, k) * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out(torch.einsum("nts,ncs->nct", weights, v).view_as(x))


def middle(width):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = ResnetBlock(width, width), AttnBlock(width), ResnetBlock(width, width)
    return mid


class Encoder(nn.Module):
    def __init__(self, width, multiples, z_channels, blocks=2):
        super().__init__()
        self.conv_in = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList()
        now = width
        for level, multiple in enumerate(multiples):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(blocks):
                stage.block.append(ResnetBlock(now, multiple * width))
                now = multiple * width
            if level < len(multiples) - 1:
                stage.downsample = nn.Module()
                stage.downsample.conv = nn.Conv2d(now, now, 3, stride=2)
            self.down.append(stage)
        self.mid = middle(now)
        self.norm_out, self.conv_out = norm(now, 1e-6), nn.Conv2d(now, 2 * z_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "downsample"):
                x = stage.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, width, multiples, z_channels, blocks=2):
        super().__init__()
        now = width * multiples[-1]
        self.conv_in = nn.Conv2d(z_channels, now, 3, padding=1)
        self.mid = middle(now)
        stages = []
        for level, multiple in reversed(list(enumerate(multiples))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(blocks + 1):
                stage.block.append(ResnetBlock(now, multiple * width))
                now = multiple * width
            if level:
                stage.upsample = nn.Module()
                stage.upsample.conv = nn.Conv2d(now, now, 3, padding=1)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out, self.conv_out = norm(now, 1e-6), nn.Conv2d(now, 1, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            if hasattr(stage, "upsample"):
                x = stage.upsample.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    def __init__(self, z_channels, multiples, width=128):
        super().__init__()
        self.encoder = Encoder(width, multiples, z_channels)
        self.decoder = Decoder(width, multiples, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.loss = nn.Linear(2, 2)  # theirs holds a perceptual loss and a discriminator

    def encode_mean(self, x):
        return self.quant_conv(self.encoder(x)).chunk(2, dim=1)[0]

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))
