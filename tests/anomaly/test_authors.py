"""The authors' checkpoints load, and compute what a plain implementation computes from the same weights."""

import pickle
import sys
from argparse import Namespace
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize

from bids_app.anomaly import autoencoder, velocity
from bids_app.anomaly.authors import read_autoencoder, read_velocity, renamed, split_qkv, velocity_names
from bids_app.anomaly.residual import anomaly_map
from bids_app.anomaly.transport import transport
from bids_app.anomaly.velocity import Velocity
from bids_app.errors import ConfigError
from tests.anomaly import ldm

MULTIPLES = {4: (1, 2, 4, 4), 3: (1, 2, 4)}


def randomized(module, seed=0):
    """Weights large enough that every layer matters; the authors' own begin with zeros in many layers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            spread = 0.3 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
            value.copy_(spread * torch.randn(value.shape, generator=generator) + float(value.ndim == 1) * 0.5)
    return module.eval()


def save_module(module, path, monkeypatch):
    """Pickle a module whole, under the names of the authors' packages, which are not there when it is read."""
    package = ModuleType("ldm.models.autoencoder")
    for name in ("AutoencoderKL", "Encoder", "Decoder", "ResnetBlock", "AttnBlock"):
        kind = getattr(ldm, name)
        monkeypatch.setattr(kind, "__module__", package.__name__)
        setattr(package, name, kind)
    for name in ("ldm", "ldm.models", package.__name__):
        monkeypatch.setitem(sys.modules, name, package)
    torch.save(module, path)
    for name in ("ldm", "ldm.models", package.__name__):
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module", params=[4, 3], ids=["f8", "f4"])
def theirs(request):
    channels = request.param
    return (
        randomized(ldm.UNetModel(channels, 64, 4), seed=1),
        randomized(ldm.AutoencoderKL(channels, MULTIPLES[channels], width=128), seed=2),
    )


def test_velocity_equals_a_plain_implementation(theirs, tmp_path):
    network, _ = theirs
    torch.save({"model": network.state_dict(), "args": Namespace(model="UNet_XS")}, tmp_path / "v.pt")
    ours = read_velocity(tmp_path / "v.pt")
    latent, time = torch.randn(2, ours.latent_channels, 12, 8), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = network(latent, time)
        assert torch.allclose(ours(latent, time), expected, atol=1e-4 * expected.abs().max())
    assert expected.std() > 0.01


def test_anomaly_map_equals_the_formulas(theirs, tmp_path, monkeypatch):
    network, coder = theirs
    torch.save({"model": network.state_dict()}, tmp_path / "v.pt")
    save_module(coder, tmp_path / "vae.pt", monkeypatch)
    ours, coding = read_velocity(tmp_path / "v.pt"), read_autoencoder(tmp_path / "vae.pt")
    slices = torch.rand(2, 1, 64, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    steps = 3
    with torch.no_grad():
        z = 0.18215 * coder.encode_mean(slices)
        moved = z.clone()
        for k in range(steps):
            moved = moved + network(moved, torch.full((2,), k / steps)) / steps
        twin, seen = coder.decode(moved / 0.18215), coder.decode(z / 0.18215)
        latent = coding.encode(slices)
        carried = transport(ours, latent, steps)
        found = anomaly_map(coding.decode(carried), coding.decode(latent), carried, latent)
    expected = []
    for k in range(2):
        image = gaussian_filter(2.5 * np.clip(np.abs((twin - seen)[k, 0].numpy()), 0, 0.4), 3)
        cells = gaussian_filter(2.5 * np.clip(np.abs((moved - z)[k].numpy()).mean(0), 0, 0.4), 1)
        expected.append(0.5 * image + 0.5 * resize(cells, (64, 32), order=1))
    assert np.allclose(latent.numpy(), z.numpy(), atol=1e-4)
    assert np.allclose(found.numpy(), np.array(expected), atol=1e-4)
    assert found.std() > 0.01


@pytest.mark.parametrize("name", ["XS", "S", "M", "L", "XL"])
def test_every_size_has_the_authors_number_of_weights(name):
    millions = {"XS": 16.13, "S": 64.41, "M": 144.86, "L": 257.47, "XL": 579.18}[name]
    with torch.device("meta"):
        network = Velocity(velocity.SIZES[name], 4)
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 2) == millions


def test_every_name_of_every_size_is_known():
    for name in ("XS", "S", "M", "L", "XL"):
        size = velocity.SIZES[name]
        with torch.device("meta"):
            theirs = ldm.UNetModel(4, size.channels[0], size.heads)
            ours = Velocity(size, 4)
        mapped = split_qkv(renamed(theirs.state_dict(), velocity_names(size)), size.heads)
        assert {key: value.shape for key, value in mapped.items()} == {
            key: value.shape for key, value in ours.state_dict().items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["S", "M", "L", "XL"])
def test_larger_velocity_networks_compute_the_same(name):
    size = velocity.SIZES[name]
    network = randomized(ldm.UNetModel(4, size.channels[0], size.heads))
    with torch.device("meta"):
        ours = Velocity(size, 4).eval()
    ours.load_state_dict(split_qkv(renamed(network.state_dict(), velocity_names(size)), size.heads), assign=True)
    latent, time = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = network(latent, time)
        assert torch.allclose(ours(latent, time), expected, atol=1e-4 * expected.abs().max())
    assert expected.std() > 0.01


def test_bare_and_distributed_state_dicts_load(tmp_path):
    network = randomized(ldm.UNetModel(4, 64, 4))
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, tmp_path / "v.pt")
    ours = read_velocity(tmp_path / "v.pt")
    assert ours.latent_channels == 4 and ours.size.dropout == 0.4  # for those who train on
    assert not ours.training


def test_an_autoencoders_state_dict_loads(tmp_path):
    coder = randomized(ldm.AutoencoderKL(3, MULTIPLES[3]))
    torch.save(coder.state_dict(), tmp_path / "vae.pt")
    assert read_autoencoder(tmp_path / "vae.pt").size == autoencoder.SIZES["kl-f4"]


def first_layers(width):
    return {
        "time_embed.0.weight": torch.zeros(4 * width, 1),
        "input_blocks.0.0.weight": torch.zeros(width, 4, 3, 3),
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"a": torch.zeros(1)}}, "holds no velocity network"),
        (first_layers(20), "20 channels"),
        (first_layers(64), "not fit"),
    ],
)
def test_other_files_are_refused_in_a_sentence(content, said, tmp_path):
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ConfigError, match=said):
        read_velocity(tmp_path / "v.pt")


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickled_module_runs_no_code(zip_format, tmp_path):
    module = torch.nn.Linear(2, 2)
    module.bomb = Bomb(tmp_path / "ran")
    torch.save(module, tmp_path / "vae.pt", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ConfigError, match="holds no autoencoder of REFLECT"):
        read_autoencoder(tmp_path / "vae.pt")
    assert not (tmp_path / "ran").exists()


class Program(torch.nn.Module):
    """Code that TorchScript runs when a file of it is opened."""

    def __init__(self, marker: str):
        super().__init__()
        self.marker: str = marker

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker, self.training = state
        torch.save(torch.zeros(1), self.marker)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore")  # TorchScript is on its way out; its files are not
def test_a_torchscript_program_is_not_opened(tmp_path):
    marker = tmp_path / "ran"
    torch.jit.script(Program(str(marker))).save(tmp_path / "vae.pt")
    torch.jit.load(tmp_path / "vae.pt")
    assert marker.exists()  # it is such a program
    marker.unlink()
    with pytest.raises(ConfigError, match="TorchScript program"):
        read_autoencoder(tmp_path / "vae.pt")
    assert not marker.exists()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "vae.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="damaged, or no pickled network"):
        read_autoencoder(tmp_path / "vae.pt")
