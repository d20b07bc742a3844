"""Names become folders, and changed files are noticed."""

import json
import tomllib
from pathlib import Path

import pytest

from bids_app.errors import ConfigError
from bids_app.networks import registry
from bids_app.networks.registry import embedded_models, find_anomaly_model, find_model, update, verify

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    """A data folder with one embedded model and its registry."""
    model = tmp_path / "models" / "tiny"
    (model / "fold_0").mkdir(parents=True)
    (model / "plans.json").write_text("{}")
    (model / "dataset.json").write_text("{}")
    (model / "card.json").write_text('{"version": "1"}')
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"weights")
    update(tmp_path / "registry.json", tmp_path / "models")
    return tmp_path


def test_update_lists_every_file_and_the_card(data):
    entry = json.loads((data / "registry.json").read_text())["models"]["tiny"]
    assert entry["folder"] == "models/tiny" and entry["card"] == {"version": "1"}
    assert set(entry["sha256"]) == {"plans.json", "dataset.json", "card.json", "fold_0/checkpoint_final.pth"}


def test_find_by_name_and_by_path(data):
    assert find_model("tiny", data / "registry.json") == data / "models" / "tiny"
    assert find_model(str(data / "models"), data / "registry.json") == data / "models"


def test_unknown_name_lists_the_known_ones(data):
    with pytest.raises(ConfigError, match="Embedded models: tiny"):
        find_model("huge", data / "registry.json")


def test_verify_passes_untouched_and_foreign_folders(data, tmp_path):
    verify(data / "models" / "tiny", data / "registry.json")
    verify(tmp_path / "anything", data / "registry.json")


def test_verify_notices_a_changed_and_a_missing_file(data):
    checkpoint = data / "models" / "tiny" / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(b"other")
    with pytest.raises(ConfigError, match="was changed"):
        verify(data / "models" / "tiny", data / "registry.json")
    checkpoint.unlink()
    with pytest.raises(ConfigError, match="lacks"):
        verify(data / "models" / "tiny", data / "registry.json")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"models": {"a": {}}}', '{"models": []}'])
def test_damaged_registry(tmp_path, content):
    (tmp_path / "registry.json").write_text(content)
    with pytest.raises(ConfigError, match="registry"):
        embedded_models(tmp_path / "registry.json")


def test_the_registry_of_the_app_is_up_to_date(capsys):
    assert registry.main([]) == 0
    for model in embedded_models():
        verify(model.folder)
        assert (model.folder / "card.json").is_file()


def test_command_line_refuses_other_arguments(capsys):
    assert registry.main(["--remove"]) == 2


def test_every_file_of_an_embedded_model_is_installed():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        patterns = tomllib.load(stream)["tool"]["setuptools"]["package-data"]["bids_app"]
    installed = {path for pattern in patterns for path in (ROOT / "bids_app").glob(pattern)}
    files = {model.folder / name for model in embedded_models() for name, _ in model.files}
    assert files and not files - installed


def test_the_anomaly_model_of_the_app_is_the_default():
    assert find_anomaly_model(None).name == registry.DEFAULT_ANOMALY
    assert "velocity.pth" in {name for model in embedded_models() if model.kind == "anomaly" for name, _ in model.files}
