"""nnU-Net's trainer on synthetic scans: it steps, saves, resumes, and what is embedded runs in stock nnU-Net."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from bids_app.errors import NoInputError
from bids_app.training import embed, plans, run, synthesis
from bids_app.training.trainer import Material, Schedule, fit_patch, lesion_probability, preprocess, scan_number
from tests.training.heads import toy_head, toy_lesion, toy_source

#: The pose's 1 mm grid, (z, y, x).
POSE_SHAPE = (189, 233, 197)
POSE_AFFINE = np.array([[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1.0]])

TINY = plans.NetworkSize(features=(4, 6, 8), encoder_convs=(1, 1, 1), decoder_convs=(1, 1))


def material(**changes) -> Material:
    content = {
        "sources": [toy_source()],
        "lesions": [toy_lesion()],
        "validation_lesions": [toy_lesion(30.0, 16.0, "sub-0001")],
        "validation_scans": 1,
    }
    return Material(**content | changes)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Folder of a training of two steps."""
    out = tmp_path_factory.mktemp("training")
    trainer = run.make_trainer(out, 0, material(), Schedule(minutes=5, steps_per_epoch=2), size=TINY)
    trainer.initialize()
    trainer.on_train_start()
    trainer.run_epoch()
    return Path(trainer.output_folder_base)


@pytest.fixture(scope="module")
def model(results: Path, tmp_path_factory) -> Path:
    """The embedded model folder of that training."""
    folder = tmp_path_factory.mktemp("models") / "toy-t1w"
    embed.embed(results, folder, "0.0.1", "abc")
    return folder


def test_training_leaves_what_nnunet_leaves(results: Path):
    assert {path.name for path in results.iterdir()} == {"plans.json", "dataset.json", "fold_0"}
    checkpoint = torch.load(results / "fold_0" / "checkpoint_latest.pth", weights_only=False)
    assert checkpoint["step"] == 2 and checkpoint["current_epoch"] == 1
    assert checkpoint["trainer_name"] == "SyntheticLesionTrainer"
    assert not list((results / "fold_0").glob("*.partial"))


def test_a_resumed_training_goes_on_where_it_was(results: Path):
    trainer = run.make_trainer(results.parents[1], 0, material(), Schedule(minutes=5, steps_per_epoch=1), size=TINY)
    trainer.initialize()
    checkpoint = run.newest_checkpoint(results / "fold_0")
    trainer.load_checkpoint(str(checkpoint))
    saved = torch.load(checkpoint, weights_only=False)
    assert (trainer.step, trainer.current_epoch) == (2, 1)
    for (name, _), average in zip(trainer.network.named_parameters(), trainer.average, strict=True):
        assert torch.equal(average, saved["averaged_weights"][name])
    batches, _ = trainer.get_dataloaders()
    assert torch.equal(next(batches)["data"][0], scan_number(trainer.material, 2).image)


def test_a_finished_training_goes_on_from_before_the_rate_fell(tmp_path: Path):
    schedule = Schedule(minutes=1e-6, steps_per_epoch=1, cooldown=1.0)
    trainer = run.make_trainer(tmp_path, 0, material(), schedule, size=TINY)
    trainer.initialize()
    trainer.run_training()
    again = run.make_trainer(tmp_path, 0, material(), schedule, size=TINY)
    again.initialize()
    checkpoint = run.newest_checkpoint(Path(again.output_folder))
    assert checkpoint.name == "checkpoint_stable.pth"
    again.load_checkpoint(str(checkpoint))
    again.on_train_start()
    again.run_epoch()
    assert again.current_epoch == trainer.current_epoch + 1 and again.step == trainer.step + 1


def test_validation_uses_the_average_and_gives_the_weights_back(results: Path):
    trainer = run.make_trainer(results.parents[1], 0, material(), Schedule(), size=TINY)
    trainer.initialize()
    own = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.average = [torch.zeros_like(p) for p in own]
    with trainer.averaged():
        assert all((p == 0).all() for p in trainer.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(own, trainer.network.parameters(), strict=True))


def test_series_are_reproducible_and_apart():
    first, second = material(seed=0), material(seed=1)
    assert torch.equal(scan_number(first, 3).image, scan_number(first, 3).image)
    assert not torch.equal(scan_number(first, 3).image, scan_number(second, 3).image)
    assert scan_number(first, 3, validation=True).lesions in ("", "sub-0001", "sub-0001+sub-0001")


def test_rate_warms_up_stays_and_falls():
    schedule = Schedule(warmup_steps=10, cooldown=0.25)
    assert schedule.factor(0, 0.0) == pytest.approx(0.1)
    assert schedule.factor(500, 0.5) == 1
    assert schedule.factor(500, 0.875) == pytest.approx(0.5)
    assert schedule.factor(500, 1.2) == pytest.approx(0.01)


def test_loss_feels_what_is_missed_and_what_is_falsely_marked(results: Path):
    trainer = run.make_trainer(results.parents[1], 0, material(), Schedule(), size=TINY)
    trainer.initialize()
    empty, sick = torch.zeros(1, 1, *synthesis.PATCH), torch.zeros(1, 1, *synthesis.PATCH)
    sick[..., 30:44, 30:44, 30:44] = 1  # 22 mL
    nothing, marked = (5 * torch.cat([1 - 2 * mask, 2 * mask - 1], dim=1) for mask in (empty, sick))

    def loss(output, target):
        return float(trainer.loss([output, output[..., ::2, ::2, ::2]], [target, target[..., ::2, ::2, ::2]]))

    assert loss(nothing, empty) < 0.1 and loss(marked, sick) < -0.9
    assert loss(marked, empty) > 1 and loss(nothing, sick) > 1


def test_the_default_network_has_the_size_it_promises():
    network = embed.averaged_network(plans.build_plans(), plans.build_dataset(1), {})
    assert sum(p.numel() for p in network.parameters()) == 887112


def test_embedded_model_is_small_and_safe_to_unpickle(model: Path):
    path = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    assert all(value.dtype == torch.float16 for value in checkpoint["network_weights"].values())
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    parameters = sum(v.numel() for v in {v.data_ptr(): v for v in checkpoint["network_weights"].values()}.values())
    assert path.stat().st_size < 2 * parameters + 60_000
    card = json.loads((model / "card.json").read_text())
    assert (card["name"], card["version"], card["commit"], card["steps"]) == ("toy-t1w", "0.0.1", "abc", {"fold_0": 2})


def test_embedding_nothing_is_an_error(tmp_path):
    with pytest.raises(NoInputError):
        embed.embed(tmp_path, tmp_path / "model")


@pytest.fixture
def scan_in_pose(tmp_path) -> Path:
    """A toy T1w on the pose's 1 mm grid."""
    pose = np.zeros(POSE_SHAPE, np.float32)
    pose[20:160, 30:200, 30:160] = synthesis.average_pairs(torch.rand(141, 171, 131)).numpy() + 1
    pose[60:90, 60:90, 40:70] = 0.2
    path = tmp_path / "toy_T1w.nii.gz"
    nib.save(nib.Nifti1Image(pose.transpose(2, 1, 0), POSE_AFFINE), path)
    return path


def test_stock_nnunet_runs_the_embedded_model(model: Path, scan_in_pose: Path):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    reader = predictor.plans_manager.image_reader_writer_class()
    data, properties = reader.read_images([str(scan_in_pose)])
    mask, probability = predictor.predict_single_npy_array(data, properties, save_or_return_probabilities=True)
    assert mask.shape == POSE_SHAPE and probability.shape == (2, *POSE_SHAPE)
    inside = preprocess(scan_in_pose, predictor)
    expected = lesion_probability(predictor.network, inside)
    assert inside.shape == (1, 1, *synthesis.PATCH)
    # both ways give the same map: the patch holds the whole brain, in its middle
    middle = probability[1][20:160, 30:200, 30:160][1:-1:2, 1:-1:2, 1:-1:2]
    assert abs(float(expected.mean()) - float(middle.mean())) < 0.2


def test_fit_patch_pads_and_crops_about_the_middle():
    data = np.arange(6.0)[None, :, None, None] * np.ones((1, 6, 4, 3))
    fitted = fit_patch(data, (4, 6, 3))
    assert fitted.shape == (1, 1, 4, 6, 3)
    assert fitted[0, 0, :, 2, 0].tolist() == [1, 2, 3, 4] and fitted[0, 0, 0, 0, 0] == 0


def test_command_line_has_its_options():
    options = run.parse(["--data", "in", "--out", "out", "--resume", "--minutes", "5", "--fold", "2"])
    assert (options.resume, options.minutes, options.fold, options.device) == (True, 5.0, 2, "cpu")


def test_head_name_travels_into_the_scan():
    assert scan_number(material(), 0).head == toy_head().name
