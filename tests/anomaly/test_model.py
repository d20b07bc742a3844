"""A model folder is read, runs on a whole brain, and is refused in a sentence where it is wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.folder import DARK, SIDES, read_folder
from bids_app.anomaly.model import load_anomaly_model
from bids_app.anomaly.residual import anomaly_map
from bids_app.anomaly.velocity import Velocity, begun, with_context
from bids_app.errors import ConfigError, VisitError
from tests.anomaly.ldm import AutoencoderKL, UNetModel
from tests.anomaly.models import VELOCITY, write_anomaly_model


def brain(slices=12):
    grey = np.zeros((slices, 64, 48), np.uint8)
    grey[2:-2, 8:56, 8:40] = np.random.default_rng(0).integers(1, 256, (slices - 4, 48, 32))
    return grey


@pytest.mark.parametrize("context", [0, 1])
def test_twin_and_map_are_there_inside_the_brain_alone(tmp_path, context):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "m", replace(VELOCITY, context=context)))
    grey = brain()
    twin = model.explain(grey)
    assert twin.healthy.shape == twin.anomaly.shape == grey.shape
    assert (twin.healthy[grey == 0] == 0).all() and (twin.anomaly[grey == 0] == 0).all()
    assert twin.healthy[grey > 0].min() >= 1 and twin.healthy.max() <= 255
    assert twin.anomaly.min() >= 0 and 0 < twin.anomaly.max() <= 1


def test_steps_and_mask_change_the_map(tmp_path):
    plain = load_anomaly_model(write_anomaly_model(tmp_path / "m")).explain(brain()).anomaly
    model = load_anomaly_model(write_anomaly_model(tmp_path / "masked", masked=True))
    assert not np.allclose(model.explain(brain()).anomaly, plain)
    assert not np.allclose(model.explain(brain(), 1).anomaly, model.explain(brain(), 2).anomaly)


def test_an_empty_brain_has_no_twin(tmp_path):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "m"))
    assert not model.explain(np.zeros((4, 64, 48), np.uint8)).anomaly.any()


def test_files_of_the_authors_run_in_their_frame(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": UNetModel(3, 64, 4).state_dict()}, tmp_path / "0000200.pt")
    torch.save(AutoencoderKL(3, (1, 2, 4)).state_dict(), tmp_path / "VAE-Medical-klf4.pt")
    folder = read_folder(tmp_path)
    assert folder.of_authors and folder.card.slice_shape == (256, 256) and folder.card.threshold is None
    (tmp_path / "card.json").write_text(json.dumps({"slice_shape": [64, 64], "steps": 1, "threshold": 0.036}))
    twin = load_anomaly_model(tmp_path).explain(brain(5))
    assert twin.anomaly.shape == (5, 64, 48) and twin.anomaly.max() > 0


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"contrast": "T2w"}, "contrast T2w"),
        ({"steps": 0}, "steps 0"),
        ({"side": "left"}, "side left"),
        ({"threshold": 2}, "threshold 2"),
        ({"threshold": "high"}, "no card of an anomaly model"),
        ({"velocity": None}, "no card of an anomaly model"),
        ({"masked": "false"}, "no card of an anomaly model"),
        ({"velocity": {"channels": [8, 8], "wings": 2}}, "describes no networks"),
        ({"velocity": {"channels": [8, 8], "heads": 0, "attention": [True, True]}}, "describes no networks"),
        ({"velocity": {"channels": [], "heads": 2, "attention": []}}, "describes no networks"),
        ({"velocity": {"channels": [8, 8], "heads": 2, "attention": [False, False], "context": -1}}, "describes no"),
        ({"velocity": {"channels": [16, 16], "heads": 2, "attention": [False, False]}}, "does not fit"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path, card, said):
    folder = write_anomaly_model(tmp_path / "m", **card)
    with pytest.raises(ConfigError, match=said):
        load_anomaly_model(folder)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no anomaly model"):
        load_anomaly_model(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no anomaly model"):
        load_anomaly_model(tmp_path)


def test_networks_that_do_not_belong_together_are_refused(tmp_path):
    torch.save(UNetModel(4, 64, 4).state_dict(), tmp_path / "v.pt")
    torch.save(AutoencoderKL(3, (1, 2, 4)).state_dict(), tmp_path / "VAE.pt")
    with pytest.raises(ConfigError, match="do not belong together"):
        load_anomaly_model(tmp_path)


@pytest.mark.parametrize("more", [{"context": 1}, {"volumetric": True}])
def test_a_network_that_begins_to_see_neighbours_says_what_it_said_before(more):
    torch.manual_seed(0)
    single, latents = Velocity(VELOCITY, 2).eval(), torch.randn(3, 2, 12, 12)
    network = begun(single, replace(VELOCITY, **more)).eval()
    seen = with_context(latents, network.size.context)
    torch.testing.assert_close(network(seen, 0.5), single(latents, 0.5), atol=1e-5, rtol=0)


def test_a_network_begins_with_none_of_another_size():
    with pytest.raises(ValueError, match="cannot begin"):
        begun(Velocity(VELOCITY, 2), replace(VELOCITY, channels=(16, 16)))


def test_a_model_that_ran_away_is_refused(tmp_path):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "model"))
    with torch.no_grad():
        model.velocity.core.conv_out.bias.fill_(float("inf"))
    with pytest.raises(VisitError, match="range of numbers"):
        model.explain(brain())


def test_too_little_memory_is_told(tmp_path, monkeypatch):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "model"))

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Autoencoder, "encode", full)
    with pytest.raises(VisitError, match="ran out of memory for the anomaly model tiny"):
        model.explain(brain())


def test_slices_that_do_not_fit_into_the_frame_of_a_model_are_told(tmp_path):
    model = load_anomaly_model(write_anomaly_model(tmp_path / "model", slice_shape=[32, 32]))
    with pytest.raises(ConfigError, match="do not fit into them"):
        model.explain(brain())


def test_with_a_brain_mask_nothing_outside_of_it_counts():
    twin, latent = torch.zeros(1, 1, 64, 48), torch.zeros(1, 2, 16, 12)
    brain = torch.zeros(1, 1, 64, 48, dtype=torch.bool)
    brain[..., :32, :] = True
    inside, outside = torch.zeros(1, 1, 64, 48), torch.zeros(1, 1, 64, 48)
    inside[..., 12, 12], outside[..., 52, 36] = 0.3, 0.3
    plain = anomaly_map(twin, inside, latent, latent)
    assert plain.max() > 0 and anomaly_map(twin, outside, latent, latent).max() > 0
    torch.testing.assert_close(anomaly_map(twin, inside, latent, latent, brain), plain)
    assert anomaly_map(twin, outside, latent, latent, brain).max() == 0


def test_a_side_counts_only_what_is_brighter_or_darker_than_the_twin():
    seen, twin = torch.zeros(1, 1, 64, 48), torch.zeros(1, 1, 64, 48)
    seen[..., 16, 12], seen[..., 48, 36] = 0.3, -0.3
    latent = torch.zeros(1, 2, 16, 12)
    both, bright, dark = (anomaly_map(twin, seen, latent, latent, side=side)[0] for side in SIDES)
    assert bright[16, 12] > 0 == bright[48, 36] and dark[48, 36] > 0 == dark[16, 12]
    torch.testing.assert_close(bright + dark, both)
    moved = latent + 0.1  # of latents, every difference counts
    assert anomaly_map(twin, seen, moved, latent, side=DARK)[0, 16, 12] > 0
