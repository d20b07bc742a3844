"""nnU-Net's own trainer, with a report after each epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from bids_app.networks.device import computes_bf16
from bids_app.training.own.progress import Epoch

#: Logits at full resolution, or at every level of deep supervision.
Logits = Tensor | list[Tensor]


def in_bf16(forward: Callable[[Tensor], Logits]) -> Callable[[Tensor], Logits]:
    """A network's ``forward`` in mixed precision on a CPU; the logits come out in fp32, as losses want them."""

    def mixed(volume: Tensor) -> Logits:
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(volume)
        return [level.float() for level in logits] if isinstance(logits, list) else logits.float()

    return mixed


class OwnTrainer(nnUNetTrainer):
    """nnU-Net's trainer, quiet, with a report after each epoch.

    In mixed precision not only on a GPU but also on processors that compute bf16, which nnU-Net leaves in fp32.
    A network that compares both sides (`MirrorUNet`) is trained and run without mirroring: brains lie in one pose, and
    mirrored along left-right it would see the same thing again.
    """

    on_epoch: Callable[[Epoch], None] = staticmethod(lambda epoch: None)

    def print_to_log_file(self, *args, also_print_to_console=True, add_timestamp=True):
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def initialize(self):
        super().initialize()
        if self.device.type == "cpu" and computes_bf16("cpu"):
            self.network.forward = in_bf16(self.network.forward)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy, patch, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if "MirrorUNet" in self.configuration_manager.network_arch_class_name:
            axes, self.inference_allowed_mirroring_axes = (), None
        return rotation, dummy, patch, axes

    def on_epoch_end(self):
        super().on_epoch_end()
        value = self.logger.get_value
        began, ended = value("epoch_start_timestamps", step=None), value("epoch_end_timestamps", step=None)
        recent = [end - start for start, end in zip(began[-10:], ended[-10:], strict=True)]
        self.on_epoch(
            Epoch(
                number=self.current_epoch,
                total=self.num_epochs,
                loss=float(value("train_losses", step=-1)),
                pseudo_dice=float(value("mean_fg_dice", step=-1)),
                seconds_left=sum(recent) / len(recent) * (self.num_epochs - self.current_epoch),
            )
        )

    def set_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Weights of the network before the first step."""
        getattr(self.network, "_orig_mod", self.network).load_state_dict(weights)

    def stop_workers(self) -> None:
        """End the processes of the augmentation, if there are any."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if hasattr(loader, "_finish"):
                with contextlib.suppress(Exception):  # the training is over, one way or another
                    loader._finish()
