"""Checkpoints are read without running them, and checksums see what matters."""

import argparse
import os
import pickle

import numpy as np
import pytest
import torch

from bids_app.errors import ConfigError
from bids_app.networks.weights import folder_sha256, load_checkpoint, sha256


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_everything_nnunet_saves_is_read_back(tmp_path):
    content = {
        "network_weights": {"a": torch.arange(3.0).half()},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {
            "mean_fg_dice": [np.float64(0.5)],
            "loss": [np.float32(1.5)],
            "epoch": [np.int64(3)],
            "on": np.bool_(1),
        },
        "_best_ema": np.float64(0.75),
        "current_epoch": 5,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu"), "plans": {"a": [1]}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, tmp_path / "c.pth")
    read = load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(read["network_weights"]["a"], torch.arange(3.0).half())
    assert read["logging"] == content["logging"] and read["_best_ema"] == 0.75
    assert read["init_args"] == content["init_args"] and read["inference_allowed_mirroring_axes"] == (0, 1, 2)


@pytest.mark.parametrize("zip_format", [True, False])
def test_forbidden_type_is_named_and_never_run(tmp_path, zip_format):
    marker = tmp_path / "ran"
    path = tmp_path / "bad.pth"
    torch.save({"weights": Bomb(f"touch {marker}")}, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ConfigError, match=r"bad\.pth.*(posix|os)\.system.*could run code"):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_class_is_forbidden_too(tmp_path):
    torch.save({"args": argparse.Namespace(a=1)}, tmp_path / "c.pth")
    with pytest.raises(ConfigError, match=r"argparse\.Namespace"):
        load_checkpoint(tmp_path / "c.pth")


def test_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "c.pth"
    path.write_bytes(pickle.dumps(Bomb(f"touch {tmp_path / 'ran'}")))
    with pytest.raises(ConfigError):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_file(tmp_path, share):
    torch.save({"a": torch.zeros(5000)}, tmp_path / "c.pth")
    whole = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ConfigError, match=r"c\.pth.*damaged"):
        load_checkpoint(tmp_path / "c.pth")


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\x00" * 500, b"PK\x03\x04garbage"])
def test_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.pth"):
        load_checkpoint(tmp_path / "c.pth")


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(ConfigError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pth")


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_folder_checksum(tmp_path):
    def model(place, first, second):
        for fold, content in (("fold_0", first), ("fold_1", second)):
            (tmp_path / place / fold).mkdir(parents=True)
            (tmp_path / place / fold / "c.pth").write_bytes(content)
        return sorted((tmp_path / place).rglob("*.pth"))

    here, there, swapped, other = (
        model("here", b"1", b"2"),
        model("there", b"1", b"2"),
        model("swapped", b"2", b"1"),
        model("other", b"1", b"3"),
    )
    assert folder_sha256(here) == folder_sha256(list(reversed(here))) == folder_sha256(there)
    assert len({folder_sha256(files) for files in (here, swapped, other, here[:1])}) == 4
