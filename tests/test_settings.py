from __future__ import annotations

import os
from pathlib import Path

import pytest

from bids_app.errors import ConfigError
from bids_app.settings import RESULT_FIELDS, Settings, available_cpus, configuration_hash, read_toml, to_toml


def test_toml_goes_out_and_comes_back(tmp_path: Path):
    settings = Settings(
        out_dir=Path("/data/out"),
        participants=("01", "02"),
        threshold=0.4,
        derivatives={"fmriprep": Path("/data/fmriprep"), 'odd "name"': Path("/x")},
        normalization=False,
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(settings))
    assert Settings(**read_toml(path)) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folds = 3", "folds"),
        ("nprocs = '4'", "nprocs"),
        ("nprocs = true", "nprocs"),
        ("colour = 'red'", "colour"),
        ("nprocs = ", "not valid TOML"),
        ("[derivatives]\nfp = 3", r"derivatives\.fp"),
        ("[derivatives]\nfp = ''", r"derivatives\.fp"),
    ],
)
def test_a_wrong_configuration_file_is_named(tmp_path: Path, text: str, said: str):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        read_toml(path)
    assert "wrong.toml" in caught.value.message


def test_a_missing_configuration_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_toml(tmp_path / "none.toml")


def test_the_hash_follows_what_changes_results_and_nothing_else():
    start = Settings(out_dir=Path("/a"))
    known = configuration_hash(start, "1.0", "abc", None)
    elsewhere = Settings(out_dir=Path("/b"), nprocs=8, device="cpu", force=True, keep_model_input=True)
    assert configuration_hash(elsewhere, "1.0", "abc", None) == known
    changed = [
        Settings(out_dir=Path("/a"), threshold=0.3),
        Settings(out_dir=Path("/a"), lesion_input="native"),
        Settings(out_dir=Path("/a"), output_spaces=("T1w", "MNI152NLin2009cAsym")),
        Settings(out_dir=Path("/a"), normalization=False),
        Settings(out_dir=Path("/a"), skull_stripped="yes"),
        Settings(out_dir=Path("/a"), derivatives={"fmriprep": Path("/f")}),
    ]
    hashes = [configuration_hash(settings, "1.0", "abc", None) for settings in changed]
    hashes += [configuration_hash(start, "1.1", "abc", None), configuration_hash(start, "1.0", "abd", None)]
    hashes.append(configuration_hash(start, "1.0", "abc", "abc"))
    assert len({known, *hashes}) == len(hashes) + 1


def test_what_comes_to_the_same_has_the_same_hash():
    spaces = ("T1w", "MNI152NLin6Asym", "MNI152NLin2009aSym")
    alike = [
        (Settings(out_dir=Path("/a"), lesion_model="./m"), Settings(out_dir=Path("/a"), lesion_model="/data/m")),
        # which folds are loaded is in the checksum of the model
        (Settings(out_dir=Path("/a")), Settings(out_dir=Path("/a"), folds=("0", "1"))),
        (Settings(out_dir=Path("/a"), output_spaces=spaces), Settings(out_dir=Path("/a"), output_spaces=spaces[::-1])),
        (
            Settings(out_dir=Path("/a"), normalization=False),
            Settings(out_dir=Path("/a"), normalization=False, output_spaces=spaces),
        ),
    ]
    for one, other in alike:
        assert configuration_hash(one, "1.0", "abc", None) == configuration_hash(other, "1.0", "abc", None)
    assert alike[2][0].standard_spaces == alike[2][1].standard_spaces == ("MNI152NLin2009aSym", "MNI152NLin6Asym")


def test_result_fields_are_settings():
    assert all(hasattr(Settings(out_dir=Path("/a")), name) for name in RESULT_FIELDS)


def test_standard_spaces_leave_out_the_native_one():
    assert Settings(out_dir=Path("/a")).standard_spaces == ("MNI152NLin2009aSym",)
    assert Settings(out_dir=Path("/a"), normalization=False).standard_spaces == ()


def test_cpus_of_a_slurm_job_come_first(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert available_cpus() == 3
    for nonsense in ("abc", "2.5", "-1", ""):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", nonsense)
        assert 1 <= available_cpus() <= os.cpu_count()
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert available_cpus() >= 1


@pytest.mark.parametrize(("nprocs", "threads", "workers"), [(8, 4, 2), (2, 4, 1), (9, 4, 2)])
def test_visits_side_by_side(nprocs: int, threads: int, workers: int):
    assert Settings(out_dir=Path("/a"), nprocs=nprocs, omp_nthreads=threads).workers == workers
