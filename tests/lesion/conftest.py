"""One thread is enough for tiny networks, and keeps the tests quick on a busy machine."""

import os

import pytest
import torch

os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it once, when it is imported


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
