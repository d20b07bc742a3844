"""The training commands as a user types them."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from bids_app.anomaly.autoencoder import Autoencoder
from bids_app.anomaly.focal import Focal
from bids_app.anomaly.model import Twin, load_anomaly_model
from bids_app.anomaly.morphology import Morphology
from bids_app.anomaly.usual import Usual
from bids_app.anomaly.velocity import Velocity
from bids_app.cli import main
from bids_app.cli_parser import options_markdown, read_request
from bids_app.cli_training import WHAT, training_parser
from bids_app.errors import ConfigError, ExitCode, UsageError, VisitError
from bids_app.settings import AnomalyTraining
from bids_app.training.reflect import command, folder, presets, scans
from bids_app.training.reflect.folder import add_to_card, calibrate, read_trained_autoencoder
from bids_app.training.reflect.learn import mended
from tests.anomaly.models import AUTOENCODER, VELOCITY, write_anomaly_model
from tests.training.own.study import MASKS, make_study
from tests.training.reflect.conftest import brain, some_slices


def train(root, what: str, *options: str) -> int:
    command = ["train", what, "--bids", str(root / "bids"), "--device", "cpu", "-w", str(root / "work")]
    where = [] if what == "calibrate" else ["--out", str(root / "models")]
    return main([*command, "--nprocs", "1", *where, *options])


def card_of(root, name: str) -> dict:
    return json.loads((root / "models" / name / "card.json").read_text())


@pytest.fixture
def study(tmp_path, tiny):
    make_study(tmp_path / "bids")
    return tmp_path


def test_from_scans_to_a_model(study, capsys):
    models = study / "models"
    assert train(study, "autoencoder", "--name", "ae") == ExitCode.OK
    said = capsys.readouterr().out
    assert "7 T1ws of 6 subjects, 2 of these for validation" in said and "validation_l1" in said
    assert card_of(study, "ae")["autoencoder"]["patch"] == 4
    assert train(study, "reflect", "--autoencoder", str(models / "ae"), "--name", "one") == ExitCode.OK
    card = card_of(study, "one")
    assert card["steps"] == 5 and 0 < card["threshold"] < 1 and card["healthy_scans"]["scans"] >= 2
    assert train(study, "reflect2", "--model", str(models / "one"), "--name", "two") == ExitCode.OK
    assert card_of(study, "two")["steps"] == 1 and -9 < card["scores"]["mended"] < 1
    assert f"use it with --anomaly-model {models / 'two'}" in capsys.readouterr().out
    first, second = (load_anomaly_model(models / name) for name in ("one", "two"))
    assert (first.explain(brain()).anomaly != second.explain(brain()).anomaly).any()
    work = study / "work" / "training" / "one-reflect"
    assert (work / "scans.tsv").read_text().count("\n") == 8
    header, row = (line.split("\t") for line in (work / "history.tsv").read_text().splitlines())
    assert header == ["step", "velocity_loss", "mended"] and row[0] == "3" and float(row[2]) < 1


def test_the_same_command_goes_on(study, capsys):
    assert train(study, "autoencoder") == ExitCode.OK
    weights = (study / "models" / "autoencoder" / "autoencoder.pth").read_bytes()
    assert train(study, "autoencoder") == ExitCode.OK
    assert (study / "models" / "autoencoder" / "autoencoder.pth").read_bytes() == weights
    assert "was finished before" in capsys.readouterr().out
    assert train(study, "autoencoder", "--batch", "4") == ExitCode.BAD_CONFIG
    assert "begun with other batch" in capsys.readouterr().err


def test_the_history_of_a_training_goes_on(tmp_path):
    command._add_row(tmp_path / "history.tsv", {"step": 5, "velocity_loss": 0.5, "mended": 0.1})
    for share in (0.2, 0.3):  # the second run was cut off before the checkpoint of its step 10
        command._add_row(tmp_path / "history.tsv", {"step": 10, "velocity_loss": 0.4, "mended": share})
    rows = (tmp_path / "history.tsv").read_text().splitlines()
    assert rows == ["step\tvelocity_loss\tmended", "5\t0.5\t0.1", "10\t0.4\t0.3"]


def test_a_finished_model_keeps_what_its_card_was_told(study):
    train(study, "autoencoder")
    again = ("reflect", "--autoencoder", str(study / "models" / "autoencoder"))
    assert train(study, *again) == ExitCode.OK
    add_to_card(study / "models" / "reflect", {"threshold": 0.123})
    assert train(study, *again) == ExitCode.OK
    assert card_of(study, "reflect")["threshold"] == 0.123


def test_patients_lend_their_slices_without_lesion(study, monkeypatch):
    gathered, gather = [], command.gather
    monkeypatch.setattr(command, "gather", lambda ready: gathered.append(gather(ready)) or gathered[-1])
    assert train(study, "autoencoder", "--masks", MASKS) == ExitCode.OK
    assert card_of(study, "autoencoder")["training_data"].endswith("slices without lesion")
    counts = [len(each) for each in gathered]
    assert train(study, "autoencoder", "--name", "all") == ExitCode.OK
    everything = [len(each) for each in gathered[2:]]
    assert all(some < every for some, every in zip(counts, everything, strict=True))


@pytest.mark.parametrize("options", [("--context", "1"), ("--volumetric",), ("--no-morphology", "--masked")])
def test_variants(study, options, monkeypatch):
    monkeypatch.setattr("bids_app.training.reflect.learn.STACK", 4)
    assert train(study, "autoencoder") == ExitCode.OK
    start = str(study / "models" / "autoencoder")
    assert train(study, "reflect", "--autoencoder", start, *options) == ExitCode.OK
    model = load_anomaly_model(study / "models" / "reflect")
    assert model.explain(brain()).anomaly.any()
    assert model.card.masked == ("--masked" in options)
    assert model.velocity.size.sees_neighbours == ("--no-morphology" not in options)
    assert train(study, "reflect2", "--model", str(study / "models" / "reflect")) == ExitCode.OK


def test_a_model_is_adapted(study):
    given = write_anomaly_model(study / "given")
    assert train(study, "reflect", "--init", str(given)) == ExitCode.OK
    card = card_of(study, "reflect")
    assert "from given on" in card["recipe"]
    before, after = load_anomaly_model(given), load_anomaly_model(study / "models" / "reflect")
    weights = [model.velocity.core.conv_in.weight for model in (before, after)]
    assert 0 < float((weights[0] - weights[1]).abs().max()) < 0.1
    kept = [model.autoencoder.core.decoder.conv_out.weight for model in (before, after)]
    assert float((kept[0] - kept[1]).abs().max()) < 1e-3  # fp16


def test_a_model_of_single_slices_learns_to_see_neighbours(study, capsys, monkeypatch):
    monkeypatch.setattr("bids_app.training.reflect.learn.STACK", 4)
    given = write_anomaly_model(study / "given")
    assert train(study, "reflect", "--init", str(given), "--context", "1") == ExitCode.OK
    made = study / "models" / "reflect"
    assert load_anomaly_model(made).velocity.size.context == 1
    assert train(study, "reflect", "--init", str(made), "--volumetric", "--name", "other") == ExitCode.USAGE
    assert "sees slices beside its own already" in capsys.readouterr().err


def test_a_model_keeps_its_brain_mask_and_side(study):
    given = write_anomaly_model(study / "given", masked=True, side="bright")
    assert train(study, "reflect2", "--model", str(given)) == ExitCode.OK
    assert card_of(study, "reflect2")["masked"] and card_of(study, "reflect2")["side"] == "bright"
    assert train(study, "reflect2", "--model", str(given), "--side", "dark", "--name", "dark") == ExitCode.OK
    assert card_of(study, "dark")["side"] == "dark"


def test_a_training_that_is_refused_leaves_the_table_of_the_one_before(study, capsys):
    train(study, "autoencoder")
    table = study / "work" / "training" / "autoencoder-autoencoder" / "scans.tsv"
    before = table.read_bytes()
    fewer = ("--participant-label", "01", "02", "03", "04")
    assert train(study, "autoencoder", *fewer) == ExitCode.BAD_CONFIG
    assert "begun with other scans" in capsys.readouterr().err and table.read_bytes() == before


def test_what_the_preset_says_may_be_said(study, capsys):
    train(study, "autoencoder")
    assert train(study, "autoencoder", "--latent", "f8") == ExitCode.OK
    assert "was finished before" in capsys.readouterr().out
    assert train(study, "autoencoder", "--latent", "f4") == ExitCode.BAD_CONFIG
    assert "begun with other autoencoder" in capsys.readouterr().err


def test_a_frame_that_is_too_small_is_told_before_anything_is_prepared(study, capsys):
    given = write_anomaly_model(study / "given", slice_shape=[32, 32])
    assert train(study, "reflect2", "--model", str(given)) == ExitCode.BAD_CONFIG
    assert "do not fit into them" in capsys.readouterr().err and not (study / "work").exists()


def test_validation_is_the_share_that_is_undone_and_disturbs_no_draws():
    network, coder = Velocity(VELOCITY, AUTOENCODER.latent_channels), Autoencoder(AUTOENCODER)
    for weights in network.parameters():
        weights.data.zero_()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert mended(network, coder, some_slices(), steps=2) == 0
    assert torch.equal(torch.rand(1), expected)


def test_another_autoencoder_is_another_training(study, capsys):
    train(study, "autoencoder")
    start = study / "models" / "autoencoder"
    assert train(study, "reflect", "--autoencoder", str(start)) == ExitCode.OK
    shutil.rmtree(start)
    shutil.rmtree(study / "work" / "training" / "autoencoder-autoencoder")
    assert train(study, "autoencoder", "--seed", "1") == ExitCode.OK
    assert train(study, "reflect", "--autoencoder", str(start)) == ExitCode.BAD_CONFIG
    assert "begun with other start" in capsys.readouterr().err


def test_a_broken_checkpoint_is_told(study, capsys):
    train(study, "autoencoder")
    (study / "work" / "training" / "autoencoder-autoencoder" / "latest.pth").write_bytes(b"PK\x03\x04 cut off")
    assert train(study, "autoencoder") == ExitCode.BAD_CONFIG
    assert "latest.pth" in capsys.readouterr().err


def test_held_out_scans_are_looked_at_before_the_training(study, capsys, monkeypatch):
    working = scans.grey_slices

    def with_lesions(scan, settings, folder):
        grey, clean = working(scan, settings, folder)
        held_out = scans.find_scans(settings).held_out
        return grey, np.zeros_like(clean) if scan.visit.subject in held_out else clean

    monkeypatch.setattr(scans, "grey_slices", with_lesions)
    assert train(study, "autoencoder") == ExitCode.NO_INPUT
    assert "No scan for validation" in capsys.readouterr().err
    assert not (study / "work" / "training" / "autoencoder-autoencoder" / "latest.pth").exists()


def test_a_single_scan_for_the_threshold_is_told_before_the_training(study, capsys, monkeypatch):
    working = scans.grey_slices

    def with_lesions(scan, settings, folder):
        grey, clean = working(scan, settings, folder)
        return grey, np.zeros_like(clean) if scan.visit.subject == min(scans.find_scans(settings).held_out) else clean

    monkeypatch.setattr(scans, "grey_slices", with_lesions)
    given = write_anomaly_model(study / "given")
    assert train(study, "reflect", "--init", str(given)) == ExitCode.NO_INPUT
    assert "Fewer than two scans for validation" in capsys.readouterr().err
    assert not (study / "work" / "training" / "reflect-reflect" / "latest.pth").exists()


def test_a_batch_of_no_whole_stacks_is_told_before_anything_is_prepared(study, capsys):
    given = write_anomaly_model(study / "given")
    assert train(study, "reflect", "--init", str(given), "--context", "1", "--batch", "12") == ExitCode.USAGE
    assert "no whole number of stacks" in capsys.readouterr().err
    assert not (study / "work").exists()


def test_the_preset_is_that_of_what_is_begun_with(study):
    given = write_anomaly_model(study / "given", preset="paper")
    assert train(study, "reflect2", "--model", str(given), "--accumulation", "1") == ExitCode.OK
    assert card_of(study, "reflect2")["preset"] == "paper"
    assert "corruptions" not in card_of(study, "reflect2")["recipe"]


def test_textures_and_morphology_reach_the_corruption(study, monkeypatch):
    Image.fromarray(np.full((9, 9), 200, np.uint8)).save(study / "grey.png")
    asked = AnomalyTraining("reflect", study, study, "m", textures=study, morphology=False, focal=False)
    made = command._corruption(asked, some_slices())
    assert made.changes == () and np.allclose(made.textures, 200 / 127.5 - 1, atol=0.01)
    made = command._corruption(replace(asked, textures=None, morphology=True, focal=True), some_slices())
    assert made.textures is None and made.changes == (Morphology(), Focal())


def test_missing_textures_are_told_before_anything_is_prepared(study, capsys):
    (study / "empty").mkdir()
    train(study, "autoencoder")
    capsys.readouterr()
    start = ["--autoencoder", str(study / "models" / "autoencoder"), "--textures", str(study / "empty")]
    assert train(study, "reflect", *start) == ExitCode.BAD_CONFIG
    said = capsys.readouterr()
    assert "no picture" in said.err and "prepared" not in said.out


def test_calibration_sets_the_threshold_of_a_model(study, capsys):
    given = write_anomaly_model(study / "given", threshold=None)
    assert train(study, "calibrate", "--model", str(given)) == ExitCode.OK
    threshold = json.loads((given / "card.json").read_text())["threshold"]
    assert f"threshold {threshold:.4f}, from 7 scans" in capsys.readouterr().out
    assert load_anomaly_model(given).card.threshold == threshold


def test_scans_without_healthy_slices_measure_nothing(tmp_path):
    model = load_anomaly_model(write_anomaly_model(tmp_path))
    every, none = np.ones(len(brain()), bool), np.zeros(len(brain()), bool)
    measured = calibrate(model, [(brain(0), every), (brain(1), none), (brain(2), every)])
    assert measured.scans == 2 and np.isfinite(measured.threshold)
    with pytest.raises(ConfigError, match="1 scan with healthy slices"):
        calibrate(model, [(brain(0), every), (brain(1), none)])


def test_the_threshold_is_mean_and_three_deviations_of_healthy_scans(tmp_path):
    model = load_anomaly_model(write_anomaly_model(tmp_path))
    brains = [brain(seed) for seed in range(3)]
    means = [model.explain(each).anomaly[each > 0].mean() for each in brains]
    healthy = [(each, np.ones(len(each), bool)) for each in brains]
    assert calibrate(model, healthy).threshold == round(np.mean(means) + 3 * np.std(means, ddof=1), 5)


def test_a_dry_run_writes_nothing(study, capsys):
    before = sorted(path.name for path in study.iterdir())
    assert train(study, "autoencoder", "--dry-run") == ExitCode.OK
    assert "an autoencoder, preset small" in capsys.readouterr().out
    assert sorted(path.name for path in study.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "WHAT"),
        (["train", "cats"], "'cats' is nothing to train"),
        (["train", "reflect", "--bids", "b", "--out", "o"], "either --autoencoder or --init"),
        (["train", "reflect", "--bids", "b", "--out", "o", "--autoencoder", "a", "--init", "m"], "either"),
        (["train", "reflect2", "--bids", "b", "--out", "o"], "--model"),
        (["train", "reflect", "--bids", "b", "--out", "o", "--init", "reflect", "--size", "XS"], "--size cannot"),
        (["train", "autoencoder", "--bids", "b", "--out", "o", "--epochs", "0"], "--epochs is '0'"),
        (["train", "autoencoder", "--bids", "b", "--out", "o", "--name", "a/b"], "is no name"),
        (["train", "autoencoder", "--bids", "b", "--out", "o", "--seed", "-1"], "--seed is '-1'"),
        (["train", "autoencoder", "--bids", "b", "--out", "o", "--lpips", "l"], "--preset paper"),
        (["train", "reflect", "--bids", "b", "--out", "o", "--autoencoder", "a", "--context", "-1"], "--context"),
    ],
)
def test_a_wrong_command_line_is_told(arguments, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        read_request(arguments)


def test_options_reach_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "train reflect --bids b --out o --autoencoder a --preset paper --size XS --no_morphology --focal --seed 3"
    settings = read_request(line.split()).settings
    assert settings == AnomalyTraining(
        "reflect", tmp_path / "b", tmp_path / "o", "reflect", tmp_path / "work", tmp_path / "a", preset="paper",
        size="XS", morphology=False, focal=True, seed=3, nprocs=settings.nprocs,
    )  # fmt: skip


def test_no_start_is_told(study, capsys):
    (study / "empty").mkdir()
    assert train(study, "reflect", "--autoencoder", str(study / "empty")) == ExitCode.BAD_CONFIG
    assert "holds no autoencoder" in capsys.readouterr().err
    assert train(study, "reflect2", "--model", str(study / "nowhere")) == ExitCode.BAD_CONFIG


def test_what_another_training_left_is_not_replaced(study, capsys):
    (study / "models" / "autoencoder").mkdir(parents=True)
    (study / "models" / "autoencoder" / "precious.txt").touch()
    assert train(study, "autoencoder") == ExitCode.USAGE
    assert "holds something already" in capsys.readouterr().err


def test_another_contrast_than_that_of_the_autoencoder_is_told(study, capsys):
    train(study, "autoencoder")
    start = str(study / "models" / "autoencoder")
    assert train(study, "reflect", "--autoencoder", start, "--contrast", "FLAIR") == ExitCode.BAD_CONFIG
    assert "is one of T1w, and this training one of FLAIR" in capsys.readouterr().err


def test_a_batch_of_broken_stacks_is_told(study, capsys):
    train(study, "autoencoder")
    start = str(study / "models" / "autoencoder")
    assert train(study, "reflect", "--autoencoder", start, "--context", "1", "--batch", "4") == ExitCode.USAGE
    assert "multiple of 8" in capsys.readouterr().err


def test_networks_of_a_larger_frame(study, monkeypatch):
    """As those of the preset `paper`: slices lie in the middle of it, in training and in use."""
    monkeypatch.setitem(presets.PRESETS, "small", replace(presets.PRESETS["small"], slice_shape=(80, 72)))
    train(study, "autoencoder")
    assert card_of(study, "autoencoder")["slice_shape"] == [80, 72]
    assert train(study, "reflect", "--autoencoder", str(study / "models" / "autoencoder")) == ExitCode.OK
    model = load_anomaly_model(study / "models" / "reflect")
    assert model.card.slice_shape == (80, 72)
    in_box = replace(model, card=replace(model.card, slice_shape=None))
    by_hand = in_box.explain(np.pad(brain(), [(0, 0), (8, 8), (12, 12)])).anomaly[:, 8:-8, 12:-12]
    found = model.explain(brain()).anomaly
    assert found.any() and np.allclose(found, by_hand, atol=1e-5)


def test_too_few_slices_for_a_step_are_told(study, capsys):
    assert train(study, "autoencoder", "--batch", "9999") == ExitCode.USAGE
    assert "fewer than the 9999 of one step" in capsys.readouterr().err


def test_an_autoencoder_is_read_as_it_was_written(study):
    train(study, "autoencoder")
    trained = read_trained_autoencoder(study / "models" / "autoencoder")
    network = trained.network
    assert trained.contrast == "T1w" and trained.slice_shape is None
    assert network.size.scale == 1 and network.size.latent_channels == 2


@pytest.mark.parametrize("what", WHAT)
def test_the_help_names_every_option_once(what):
    options = re.findall(r"^\| `(--[a-z-]+)", options_markdown(training_parser(what)), re.MULTILINE)
    assert {"--bids", "--device"} <= set(options) and len(options) == len(set(options))


def test_a_finished_model_does_not_become_a_masked_one(study, capsys):
    train(study, "autoencoder")
    again = ("reflect", "--autoencoder", str(study / "models" / "autoencoder"))
    assert train(study, *again) == ExitCode.OK
    assert train(study, *again, "--masked") == ExitCode.BAD_CONFIG
    assert "begun with other masked" in capsys.readouterr().err


def failing(monkeypatch, fail):
    """Let the preparation of some subjects fail: those of whom `fail` says so."""
    working = scans.grey_slices

    def grey_slices(scan, settings, folder):
        if fail(scan.visit.subject):
            raise VisitError(f"{scan.label} is broken.")
        return working(scan, settings, folder)

    monkeypatch.setattr(scans, "grey_slices", grey_slices)


def test_a_training_goes_on_without_a_scan_that_failed_when_it_was_begun(study, monkeypatch):
    usual = scans.find_scans(AnomalyTraining("reflect", study / "bids", study, "m")).held_out
    broken = {min(usual)}
    failing(monkeypatch, lambda subject: subject in broken)
    assert train(study, "autoencoder") == ExitCode.OK
    begun = scans_of(study)
    assert begun[f"sub-{min(usual)}"] == "not-prepared" and list(begun.values()).count("validation") == 2
    broken.clear()
    assert train(study, "autoencoder") == ExitCode.OK
    assert scans_of(study) == begun | {f"sub-{min(usual)}": "late"}


def scans_of(study) -> dict[str, str]:
    """Subject, and what it was used for or why it was not; the second visit of a subject is passed over."""
    with (study / "work" / "training" / "autoencoder-autoencoder" / "scans.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return {row["visit"].split("_")[0]: row["problem"].replace("n/a", "") or row["use"] for row in reversed(rows)}


def test_calibration_takes_all_scans_there_are(study, monkeypatch, capsys):
    given = write_anomaly_model(study / "given", threshold=None)
    who = ["--participant-label", "01", "02", "03", "04"]
    failing(monkeypatch, lambda subject: subject in {"02", "03"})
    assert train(study, "autoencoder", *who) == ExitCode.BAD_DATASET
    assert "Too few scans could be prepared" in capsys.readouterr().err
    assert train(study, "calibrate", "--model", str(given), *who) == ExitCode.OK
    said = capsys.readouterr().out
    assert "5 T1ws of 4 subjects, for the threshold" in said and "from 3 scans" in said


class Uneven:
    """In place of a model: every brain is as anomalous as it is dark."""

    usual = None

    def explain(self, grey: np.ndarray) -> Twin:
        return Twin(grey, np.where(grey > 0, 1 - grey / 255, 0).astype(np.float32))


def test_healthy_scans_that_differ_too_much_set_no_threshold():
    every = np.ones(2, bool)
    dark, bright = (np.full((2, 8, 8), value, np.uint8) for value in (20, 250))
    with pytest.raises(ConfigError, match="which is not in"):
        calibrate(Uneven(), [(dark, every), (bright, every)])


def test_the_share_of_healthy_brains_above_the_threshold_is_a_mean_over_them():
    every, rng = np.ones(2, bool), np.random.default_rng(0)
    brains = [rng.integers(100 + number, 250, (2, 40 + 9 * number, 40), dtype=np.uint8) for number in range(3)]
    found = calibrate(Uneven(), [(each, every) for each in brains])
    shares = [(1 - each.astype(np.float32) / 255 >= np.float32(found.threshold)).mean() for each in brains]
    assert found.above == pytest.approx(np.mean(shares), abs=1e-3) and 0 < found.above < 1


def test_healthy_brains_tell_how_many_findings_there_are_by_place():
    """Dark blocks of 27, 36 and 48 voxels, and one where dark is usual; slices that do not count are not looked at."""
    grey = np.full((8, 40, 40), 250, np.uint8)
    grey[2:5, 2:5, 2:5] = grey[2:5, 12:15, 2:6] = grey[2:5, 22:26, 2:6] = grey[2:5, 22:26, 22:26] = 20
    usual = np.full(grey.shape, 0.2, np.float32)
    usual[:, 20:, 20:] = 1.0
    model, every = Uneven(), np.ones(8, bool)
    model.usual = Usual(usual, 0 * usual)
    found = calibrate(model, [(grey, every), (grey + 1, every)])
    assert found.findings == 2 and found.above_by_place == pytest.approx((27 + 36 + 48) / grey.size)
    lower = np.arange(8) < 4
    assert calibrate(model, [(grey, every), (grey, lower)]).findings == 1.5  # 18, 24 and 32 voxels are left


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_too_little_memory_is_told(study, monkeypatch, capsys, error):
    def full(*arguments):
        raise error

    monkeypatch.setattr(command, "train_autoencoder", full)
    assert train(study, "autoencoder") == ExitCode.UNAVAILABLE
    assert "does not suffice for steps of 8 slices" in capsys.readouterr().err


def test_enough_brains_tell_what_is_usual_at_each_place(study, monkeypatch, capsys):
    monkeypatch.setattr("bids_app.anomaly.usual.SHAPE", brain().shape)
    monkeypatch.setattr(folder, "BRAINS_BY_PLACE", (3, 4))
    given = write_anomaly_model(study / "given", threshold=None)
    assert train(study, "calibrate", "--model", str(given)) == ExitCode.OK
    assert "findings" not in capsys.readouterr().out  # the same scans would judge themselves
    model = load_anomaly_model(given)
    assert model.usual.limits.shape == brain().shape
    assert "above_by_place" not in json.loads((given / "card.json").read_text())["healthy_scans"]
    (given / "usual.nii.gz").write_bytes((given / "usual.nii.gz").read_bytes()[:500])  # cut off, and mended
    assert train(study, "calibrate", "--model", str(given)) == ExitCode.OK
    assert np.array_equal(load_anomaly_model(given).usual.limits, model.usual.limits)
    monkeypatch.setattr(folder, "BRAINS_BY_PLACE", (10, 40))
    assert train(study, "calibrate", "--model", str(given)) == ExitCode.OK
    assert not (given / "usual.nii.gz").exists() and load_anomaly_model(given).usual is None


def test_no_more_brains_than_needed_tell_what_is_usual():
    assert folder.for_places(range(9)) == [] and folder.for_places(range(12)) == list(range(12))
    assert len(folder.for_places(range(500))) == 40
