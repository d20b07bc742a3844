"""Training on synthetic scans: it steps, saves and resumes; what is embedded runs in stock nnU-Net and in the App."""

from __future__ import annotations

import dataclasses
import json
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from bids_app.errors import ConfigError, NoInputError
from bids_app.lesion.model import load_model, load_models
from bids_app.training import embed, plans, run, trainer
from bids_app.training.cases import make_cases
from bids_app.training.series import Material, Series, Workers, as_batch, endless, scan_number
from bids_app.training.trainer import LATEST, STABLE, Plan, Schedule, Trainer, train
from bids_app.training.warm_start import read_warm_start
from tests.networks.test_architectures import TINY
from tests.training.heads import toy_head, toy_lesion, toy_source

#: The pose's 1 mm grid, (x, y, z).
POSE_SHAPE = (197, 233, 189)
POSE_AFFINE = np.array([[1, 0, 0, -98], [0, 1, 0, -134], [0, 0, 1, -72], [0, 0, 0, 1.0]])


def material(**changes) -> Material:
    content = {
        "sources": [toy_source()],
        "lesions": [toy_lesion()],
        "validation_sources": [toy_source()],
        "validation_lesions": [toy_lesion(30.0, 16.0, "sub-0001")],
        "validation_scans": 1,
    }
    return Material(**content | changes)


def tiny(folder: Path, name: str = "late", fold: str = "0", schedule: Schedule | None = None, **changes) -> Trainer:
    plan = Plan(
        dataclasses.replace(plans.FUSIONS[name], size=TINY),
        fold,
        **{"heads": frozenset({toy_head().name}), "lesions": frozenset({toy_lesion().name})} | changes,
    )
    return Trainer(plan, schedule or Schedule(), folder / name / f"fold_{fold}", batch_size=1)


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    """Folder of a training of two steps."""
    out = tmp_path_factory.mktemp("training")
    worker = tiny(out)
    for scan in islice(endless(Series(material())), 2):
        assert worker.offer(scan, elapsed=0.0)
    assert np.isfinite(worker.mean_loss())
    worker.save(LATEST, scans=2)
    return out


@pytest.fixture(scope="module")
def models(training: Path, tmp_path_factory) -> Path:
    """The embedded model folders of that training."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        tiny_fusions = {name: dataclasses.replace(fusion, size=TINY) for name, fusion in plans.FUSIONS.items()}
        patch.setattr(embed, "FUSIONS", tiny_fusions)
        embed.embed(training / "late", folder, "abc", "0.0.1", unfinished=True)
    return folder


def test_a_checkpoint_holds_what_resuming_needs(training: Path):
    saved = torch.load(training / "late" / "fold_0" / LATEST, weights_only=True)
    assert saved["step"] == 2 and saved["fusion"] == "late"
    assert not list(training.rglob("*.partial"))


def test_a_resumed_training_goes_on_where_it_was(training: Path):
    worker = tiny(training)
    checkpoint = run.newest_checkpoint(worker.folder)
    assert worker.load(checkpoint) == 2
    saved = torch.load(checkpoint, weights_only=True)
    assert worker.step == 2
    assert all(torch.equal(own, saved["weights"][name]) for name, own in worker.network.state_dict().items())
    kept, loaded = (optimizer["state"] for optimizer in (saved["optimizer"], worker.optimizer.state_dict()))
    assert loaded.keys() == kept.keys() and len(loaded)
    assert all(torch.equal(loaded[key][name], kept[key][name]) for key in kept for name in kept[key])
    for (name, _), average in zip(worker.network.named_parameters(), worker.average, strict=True):
        assert torch.equal(average, saved["averaged_weights"][name])


def test_a_training_can_start_from_another(training: Path, tmp_path: Path):
    worker = tiny(tmp_path)
    worker.start_from(read_warm_start(training / "late" / "fold_0" / LATEST, "0"))
    saved = torch.load(training / "late" / "fold_0" / LATEST, weights_only=True)["averaged_weights"]
    assert (worker.step, worker.steps_before) == (0, 2)
    assert all(torch.equal(weights, saved[name]) for name, weights in worker.network.named_parameters())


def test_a_training_is_not_resumed_with_other_heads_or_lesions(training: Path, tmp_path: Path):
    for changes in ({"heads": frozenset({"training_seg_05"})}, {"lesions": frozenset({"sub-0005"})}):
        with pytest.raises(ConfigError, match="trained on other heads or lesions"):
            tiny(tmp_path, **changes).load(training / "late" / "fold_0" / LATEST)


@pytest.mark.parametrize("fusion", ["t1w", "early", "late"])
def test_a_network_of_the_other_contrast_is_no_start(models: Path, tmp_path: Path, fusion: str):
    start = read_warm_start(models / "synthetic-flair", "0")
    with pytest.raises(ConfigError, match="was trained on FLAIR, which is no start for"):
        tiny(tmp_path, fusion).start_from(start)


def test_a_start_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(ConfigError, match="There is no checkpoint or model folder"):
        read_warm_start(tmp_path / "nowhere", "0")


def test_every_start_must_be_of_use(tmp_path: Path):
    networks = [("late", "0"), ("late", "1")]
    assert run.starts_of([("late", tmp_path)], networks) == {"late": tmp_path}
    with pytest.raises(ConfigError, match="t1w is not trained"):
        run.starts_of([("t1w", tmp_path)], networks)
    with pytest.raises(ConfigError, match="more than one start"):
        run.starts_of([("late", tmp_path), ("late", tmp_path / "other")], networks)


def test_a_training_is_not_begun_over_another(training: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "load_material", lambda *_: (material(), [tiny(training).plan]))
    with pytest.raises(ConfigError, match="holds a training already"):
        run.main(["late:0", "--data", str(tmp_path), "--out", str(training)])


def test_folds_do_not_see_again_the_scans_of_what_they_start_from():
    trunk, folds = [("late", "all")], [("late", str(fold)) for fold in range(5)]
    assert run.series_seed(trunk) != run.series_seed(folds) == run.series_seed(folds[::-1])


def test_early_fusion_starts_from_the_t1w_branch_of_a_late_one(training: Path, tmp_path: Path):
    early, late = tiny(tmp_path, "early"), tiny(training)
    start = read_warm_start(training / "late" / "fold_0" / LATEST, "0")
    early.start_from(start)
    late.start_from(start)
    scan = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = early.network.eval()(scan.repeat(1, 2, 1, 1, 1))[0]
    assert torch.allclose(ours, late.network.branches[0].eval()(scan)[0], atol=1e-4)
    with pytest.raises(ConfigError, match="another network"):
        tiny(tmp_path, "intermediate").start_from(start)


def test_a_training_can_go_on_from_what_was_embedded(training: Path, models: Path, tmp_path: Path):
    embedded, checkpoint = (
        read_warm_start(path, "0") for path in (models / "synthetic-late", training / "late" / "fold_0" / LATEST)
    )
    assert (embedded.fusion, embedded.steps) == (checkpoint.fusion, checkpoint.steps) == ("late", 2)
    worker = tiny(tmp_path)
    worker.start_from(embedded)
    for name, weights in worker.network.named_parameters():
        lesion_outputs = len(weights) - plans.ANATOMY_OUTPUTS * (".seg_layers." in name)
        kept, dropped = weights[:lesion_outputs], weights[lesion_outputs:]
        assert torch.allclose(kept, checkpoint.weights[name][: len(kept)], rtol=2e-3, atol=1e-4)
        assert not dropped.any()
    branch = read_warm_start(models / "synthetic-flair", "4")
    assert branch.fusion == "flair" and branch.source.name == "synthetic-flair"
    tiny(tmp_path, "flair").start_from(branch)


def test_a_run_ends_by_the_clock_and_goes_on_from_before_the_rate_fell(tmp_path: Path):
    said: list[str] = []
    schedule = Schedule(minutes=1e-6, cooldown=1.0)
    worker = tiny(tmp_path, "t1w", schedule=schedule)
    train([worker], material(), schedule, say=said.append)
    assert worker.step == 1 and any("validation" in line for line in said)
    found = json.loads((worker.folder / "validation.jsonl").read_text())
    assert found["step"] == 1 and len(found["outputs"]) == 1
    checkpoint = run.newest_checkpoint(worker.folder)
    assert checkpoint.name == STABLE and torch.load(checkpoint, weights_only=True)["step"] == 0


def test_networks_side_by_side_learn_from_what_each_may_see_alone(tmp_path: Path):
    other = tiny(tmp_path, "t1w", "1", heads=frozenset({"training_seg_02"}))
    lesionless = tiny(tmp_path, "flair", "2", lesions=frozenset())
    trainers = [tiny(tmp_path, "t1w", "0"), other, lesionless]
    scans = [scan_number(material(), number) for number in range(4)]
    for scan in scans:
        for trainer_ in trainers:
            trainer_.offer(scan, elapsed=0.0)
    healthy = sum(scan.lesions == () for scan in scans)
    assert 0 < healthy < len(scans)
    assert [trainer_.step for trainer_ in trainers] == [len(scans), 0, healthy]


def test_a_resumed_series_goes_on_with_the_next_scan():
    again = next(endless(Series(material(), 2)))
    assert torch.equal(again.image, scan_number(material(), 2).image)


def test_averaged_weights_are_there_for_a_block_and_given_back(tmp_path: Path):
    worker = tiny(tmp_path)
    own = [weights.detach().clone() for weights in worker.network.parameters()]
    worker.average = [torch.zeros_like(weights) for weights in own]
    with worker.averaged():
        assert all((weights == 0).all() for weights in worker.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(own, worker.network.parameters(), strict=True))


def test_validation_scores_what_the_network_says_by_volume_class(tmp_path: Path, monkeypatch):
    worker = tiny(tmp_path, "t1w")
    cases = list(make_cases([toy_source()], [toy_lesion()], 1, seed=0))
    truth = {id(case.image): torch.from_numpy(case.truth).float()[None, None] for case in cases}
    marks = iter([*truth.values()])

    def all_found_and_more(*_):
        mask = next(marks)
        mask[..., :2, :2, :2] = 1
        return [SimpleNamespace(logits=[torch.cat([0.5 - mask, mask - 0.5], dim=1)])]

    monkeypatch.setattr(trainer, "judged_outputs", all_found_and_more)
    (found,) = worker.validate(cases)
    assert [case.group for case in cases] == ["small", "none"] and set(found.dice) == {"small"}
    assert 0.98 < found.dice["small"] < 1 and found.false_ml == pytest.approx(0.064)
    assert str(found) == f"Dice {found.dice['small']:.2f} small, healthy 0.06 mL"


def test_series_are_reproducible_and_apart():
    first, second = material(seed=0), material(seed=1)
    assert torch.equal(scan_number(first, 3).image, scan_number(first, 3).image)
    assert not torch.equal(scan_number(first, 3).image, scan_number(second, 3).image)


@pytest.fixture
def one_thread():
    """As in the processes that make scans ahead: sums over several threads differ in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_scans_made_ahead_are_the_same_in_the_same_order(one_thread):
    inline, ahead = (endless(Series(material(), 5), Workers(count)) for count in (0, 1))
    for _ in range(2):
        assert torch.equal(next(inline).image, next(ahead).image)


def test_a_coarser_target_keeps_what_fills_half_of_its_voxel():
    scan = scan_number(material(), 0)
    target = torch.zeros_like(scan.target)
    target[0, 0:2, 0:2, 0] = 1
    target[0, 4, 4, 4] = 1
    batch = as_batch([dataclasses.replace(scan, target=target)], 2)
    assert batch.targets[1][0, 0, 0, 0, 0] == 1 and batch.targets[1].sum() == 1


def test_rate_warms_up_stays_and_falls():
    schedule = Schedule(warmup_steps=10, cooldown=0.25)
    assert schedule.factor(0, 0.0) == pytest.approx(0.1)
    assert schedule.factor(500, 0.5) == 1
    assert schedule.factor(500, 0.875) == pytest.approx(0.5)
    assert schedule.factor(500, 1.2) == pytest.approx(0.01)
    assert Schedule(cooldown=0.0).factor(500, 0.99) == 1


def test_a_late_fusion_becomes_three_models(models: Path):
    assert {path.name for path in models.iterdir()} == {"synthetic-t1w", "synthetic-flair", "synthetic-late"}
    loaded = load_models(models / "synthetic-late")
    assert [model.channels for model in loaded.models] == [("T1w", "FLAIR"), ("T1w",), ("FLAIR",)]
    checkpoint = torch.load(models / "synthetic-late" / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert set(checkpoint["network_weights"]) == {"fusion.weight", "fusion.bias"}


def test_embedded_models_are_small_and_safe_to_unpickle(models: Path):
    path = models / "synthetic-t1w" / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=True)
    assert all(value.dtype == torch.float16 for value in checkpoint["network_weights"].values())
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    parameters = sum(v.numel() for v in {v.data_ptr(): v for v in checkpoint["network_weights"].values()}.values())
    assert path.stat().st_size < 2 * parameters + 60_000
    card = json.loads((models / "synthetic-t1w" / "card.json").read_text())
    assert (card["name"], card["version"], card["commit"]) == ("synthetic-t1w", "0.0.1", "abc")
    assert card["steps"] == {"fold_0": 2} and card["steps_before"] == 0 and card["channels"] == ["T1w"]
    assert json.loads((models / "synthetic-t1w" / "dataset.json").read_text())["numTraining"] == 1
    assert not any("Colin27" in entry["what"] for entry in card["training_data"])


def test_embedding_nothing_is_an_error(tmp_path: Path):
    (tmp_path / "late").mkdir()
    with pytest.raises(NoInputError):
        embed.embed(tmp_path / "late", tmp_path / "models", "abc")


def test_an_unfinished_training_is_embedded_only_on_request(training: Path, tmp_path: Path):
    with pytest.raises(NoInputError, match=r"fold 0 in .* is not finished"):
        embed.embed(training / "late", tmp_path, "abc")
    assert not list(tmp_path.iterdir())


def posed_scan(seed: int = 0) -> nib.Nifti1Image:
    """A toy brain on the pose's 1 mm grid, darker on one side."""
    rng = np.random.default_rng(seed)
    pose = np.zeros(POSE_SHAPE, np.float32)
    pose[30:160, 30:200, 20:160] = rng.uniform(1, 2, (130, 170, 140))
    pose[40:70, 60:90, 60:90] = 0.2
    return nib.Nifti1Image(pose, POSE_AFFINE)


@pytest.mark.parametrize("name", ["synthetic-t1w", "synthetic-flair"])
def test_stock_nnunet_says_the_same_as_the_app(models: Path, tmp_path: Path, name: str):
    nib.save(posed_scan(), tmp_path / "scan.nii.gz")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(models / name), None)
    data, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(tmp_path / "scan.nii.gz")])
    _, theirs = predictor.predict_single_npy_array(data, properties, save_or_return_probabilities=True)
    ours = load_model(models / name).predict([posed_scan()]).probability.get_fdata()
    assert np.allclose(theirs[1].transpose(2, 1, 0), ours, atol=0.01)


@pytest.mark.parametrize("order", ["RAS", "LAS", "LIA"])
def test_a_mirrored_storage_changes_nothing_in_world_space(models: Path, order: str):
    scan = posed_scan()
    turn = nib.orientations.ornt_transform(nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(order))
    model = load_model(models / "synthetic-t1w")
    straight, stored = (model.predict([image]).probability for image in (scan, scan.as_reoriented(turn)))
    back = nib.as_closest_canonical(stored)
    assert np.allclose(back.get_fdata(), straight.get_fdata(), atol=1e-4)


def test_the_fused_answer_is_the_convolution_of_the_branches(models: Path):
    fused, t1w, flair = load_models(models / "synthetic-late").models
    scan = torch.randn(1, 2, *plans.PATCH)
    parts = torch.cat([t1w.engines[0](scan[:, :1]), flair.engines[0](scan[:, 1:])], dim=1)
    expected = fused.engines[0].network.fusion(parts)
    assert torch.allclose(fused.engines[0](scan), expected, atol=1e-5)


def test_command_line_has_its_options():
    options = run.parse(["--data", "in", "--out", "out", "--resume", "--init", "late=start", "early:2", "late:all"])
    assert options.resume and options.init == [("late", Path("start"))]
    assert options.networks == [("early", "2"), ("late", run.ALL)]


@pytest.mark.parametrize("wrong", [["late:5"], ["late"], ["middle:0"], ["late:0", "--init", "late"]])
def test_command_line_says_what_a_network_looks_like(wrong: list[str], capsys):
    with pytest.raises(SystemExit):
        run.parse(["--data", "in", "--out", "out", *wrong])
    assert ", as in late" in capsys.readouterr().err


def test_head_name_travels_into_the_scan():
    assert scan_number(material(), 0).head == toy_head().name
