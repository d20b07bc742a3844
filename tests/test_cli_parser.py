"""From the command line and the configuration file to `Settings`."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bids_app import cli_parser
from bids_app.cli_parser import Request, bids_parser, case_parser, memory_gb, read_request, version_text
from bids_app.errors import ConfigError, UsageError
from bids_app.settings import Settings, to_toml

BASE = ["raw", "out", "participant"]


def request(*options: str) -> Request:
    return read_request([*BASE, *options])


def settings(*options: str) -> Settings:
    return request(*options).settings


def test_defaults_are_those_of_the_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(cli_parser, "available_cpus", lambda: 20)
    monkeypatch.chdir(tmp_path)
    expected = Settings(
        out_dir=tmp_path / "out", bids_dir=tmp_path / "raw", work_dir=tmp_path / "work", nprocs=20, omp_nthreads=8
    )
    assert request() == Request("participant", expected)


#: Every option, with a value, and the setting it makes.
OPTIONS = [
    ("--participant-label sub-01 02 01", "participants", ("01", "02")),
    ("--participant_label 01", "participants", ("01",)),
    ("--participant-label 01 --participant-label 02", "participants", ("01", "02")),
    ("--participant-label=01", "participants", ("01",)),
    ("--exclude-participant-label sub-03", "excluded", ("03",)),
    ("--session-label ses-1 2 ses-2", "sessions", ("1", "2")),
    ("--session_label 1", "sessions", ("1",)),
    ("--session-id 1", "sessions", ("1",)),
    ("--bids-filter-file f.json", "bids_filter_file", Path("f.json").absolute()),
    ("--bids-database-dir db", "bids_database_dir", Path("db").absolute()),
    ("--skip-bids-validation", "skip_bids_validation", True),
    ("--skip_bids_validator", "skip_bids_validation", True),
    ("-w /scratch", "work_dir", Path("/scratch")),
    ("--work-dir ~/w", "work_dir", Path("~/w").expanduser()),
    ("--nprocs 3", "nprocs", 3),
    ("--nprocs 4 --omp-nthreads 2", "omp_nthreads", 2),
    ("--nprocs 2 --omp_nthreads 4", "omp_nthreads", 2),
    ("--mem 16G", "memory_gb", 16.0),
    ("--device cpu", "device", "cpu"),
    ("--device cuda", "device", "cuda"),
    ("--device cuda:1", "device", "cuda:1"),
    ("--use-plugin p.yml", "plugin_file", Path("p.yml").absolute()),
    ("--output-spaces MNI152NLin6Asym:res-1 anat", "output_spaces", ("T1w", "MNI152NLin6Asym")),
    ("--output-spaces T1w", "output_spaces", ("T1w",)),
    ("-d a=/x --derivatives b=/y", "derivatives", {"a": Path("/x"), "b": Path("/y")}),
    ("--lesion-model mine", "lesion_model", "mine"),
    ("--folds 0 fold_1", "folds", ("0", "1")),
    ("--folds all", "folds", ("all",)),
    ("--lesion-input native-brain:n4", "lesion_input", "native-brain:n4"),
    ("--keep-model-input", "keep_model_input", True),
    ("--threshold 0.3", "threshold", 0.3),
    ("--min-lesion-volume 0", "min_lesion_volume", 0.0),
    ("--skull-stripped yes", "skull_stripped", "yes"),
    ("--stop-on-first-crash", "stop_on_first_crash", True),
    ("--no-normalization", "normalization", False),
    ("--export-lesion-roi rois", "export_lesion_roi", Path("rois").absolute()),
    ("--force", "force", True),
    ("-vv", "verbosity", 2),
    ("--notrack", "participants", ()),
    ("--config-file empty.toml", "threshold", None),
    ("--dry-run", "threshold", None),
]


@pytest.mark.parametrize(("options", "name", "value"), OPTIONS, ids=[option[0] for option in OPTIONS])
def test_every_option(options, name, value, tmp_path, monkeypatch):
    if "empty.toml" in options:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.toml").write_text("")
    assert getattr(settings(*options.split()), name) == value


def test_no_option_is_untested():
    tested = {word.partition("=")[0].replace("_", "-") for options, *_ in OPTIONS for word in options.split()}
    for parser in (bids_parser(), case_parser()):
        for action in parser._actions:
            if action.option_strings and action.dest not in ("help", "version", "label"):
                assert tested & {*action.option_strings, "-vv"}, action.option_strings


def test_every_option_has_help():
    assert all(action.help for parser in (bids_parser(), case_parser()) for action in parser._actions)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--threshold 0", "--threshold"),
        ("--threshold 1.5", "--threshold is '1.5'"),
        ("--threshold nan", "--threshold"),
        ("--threshold high", "--threshold"),
        ("--lesion-input pose", "--lesion-input is 'pose', which is not native, native-brain, rigid or affine"),
        ("--lesion-input rigid:bias", "--lesion-input is 'rigid:bias'"),
        ("--min-lesion-volume -1", "--min-lesion-volume"),
        ("--min-lesion-volume inf", "--min-lesion-volume"),
        ("--nprocs 0", "--nprocs"),
        ("--omp-nthreads 0", "--omp-nthreads"),
        ("--mem lots", "lots"),
        ("--mem 0", "--mem"),
        ("--device gpu", "--device"),
        ("--device cuda:x", "--device"),
        ("--skull-stripped maybe", "maybe"),
        ("--folds one", "--folds is 'one'"),
        ("--output-spaces MNI:res-2", "--output-spaces"),
        ("--derivatives nothing", "NAME=PATH"),
        ("--unknown", "--unknown"),
        ("--participant-lab 01", "--participant-lab"),
        ("--participant-label", "expected at least one"),
    ],
)
def test_values_that_make_no_sense(options, told):
    with pytest.raises(UsageError) as caught:
        settings(*options.split())
    assert told in caught.value.message


@pytest.mark.parametrize("arguments", [[], ["raw"], ["raw", "out"], ["raw", "out", "session"]])
def test_positional_arguments_are_needed(arguments):
    with pytest.raises(UsageError):
        read_request(arguments)


def test_options_before_positional_arguments_are_explained():
    with pytest.raises(UsageError) as caught:
        read_request(["--participant-label", "01", *BASE])
    assert "BIDS_DIR OUT_DIR LEVEL first" in caught.value.hint


def test_dry_run_is_of_the_request():
    assert request("--dry-run").dry_run
    assert not request().dry_run


def test_group_needs_no_dataset():
    group = read_request(["anything", "out", "group"])
    assert (group.level, group.settings.bids_dir) == ("group", None)


def test_file_goes_before_defaults_and_the_command_line_before_the_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('threshold = 0.2\nnprocs = 3\nparticipants = ["sub-01"]\nout_dir = "elsewhere"\nfolds = [1]\n'
                    'stop_on_first_crash = true\n[derivatives]\nprep = "/prep"\n')  # fmt: skip
    found = settings("--config-file", str(path), "--threshold", "0.4")
    assert (found.threshold, found.nprocs, found.omp_nthreads, found.participants) == (0.4, 3, 3, ("01",))
    assert (found.folds, found.stop_on_first_crash, found.derivatives) == (("1",), True, {"prep": Path("/prep")})
    assert found.out_dir == Path("out").absolute()
    assert settings("--config-file", str(path), "-d", "x=/x").derivatives == {"x": Path("/x")}


def test_settings_written_as_a_file_are_read_back(tmp_path):
    path = tmp_path / "config.toml"
    given = settings(
        "--threshold", "0.4", "--participant-label", "01", "-d", "a=/x", "--mem", "8G", "--no-normalization"
    )
    path.write_text(to_toml(given))
    assert settings("--config-file", str(path)) == given


@pytest.mark.parametrize(
    "content",
    [
        "threshold = 2.0", 'lesion_input = "pose"', "lesion_input = 1", "nprocs = 0", 'device = "gpu"', "unknown = 1",
        "nprocs = ", 'threshold = "a"', 'folds = ["x"]',
    ],
)
def test_file_that_makes_no_sense_is_a_bad_configuration(tmp_path, content):
    path = tmp_path / "config.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        settings("--config-file", str(path))


@pytest.mark.parametrize("line", ['raw = "/x"', '"a b" = "/x"', "x = 3"])
def test_folders_in_a_file_follow_the_rules_of_the_command_line(tmp_path, line):
    path = tmp_path / "config.toml"
    path.write_text(f"[derivatives]\n{line}")
    with pytest.raises(ConfigError, match=r"config\.toml.* derivatives"):
        settings("--config-file", str(path))


def test_file_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot be read"):
        settings("--config-file", "absent.toml")


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [("2048", 2), ("512M", 0.5), ("2g", 2), ("1T", 1024), ("1.5GB", 1.5), ("3GiB", 3), ("1048576K", 1)],
)
def test_memory(text, gigabytes):
    assert memory_gb(text) == gigabytes
    for wrong in ("", "G", "-1", "1X", "1 2"):
        with pytest.raises(argparse.ArgumentTypeError):
            memory_gb(wrong)


def test_case():
    one = read_request(["case", "a.nii", "out", "--participant-label", "sub-7", "--threshold", "0.3"])
    assert (one.level, one.case.t1w, one.case.flair, one.case.label) == ("case", Path("a.nii"), None, "7")
    assert (one.settings.threshold, one.settings.out_dir) == (0.3, Path("out").absolute())
    two = read_request(["case", "a.nii", "b.nii", "out"])
    assert (two.case.t1w, two.case.flair, two.case.label) == (Path("a.nii"), Path("b.nii"), None)
    with pytest.raises(UsageError):
        read_request(["case", "a.nii"])


def test_case_of_a_flair_alone():
    alone = read_request(["case", "a.nii", "out", "--flair-only"])
    assert (alone.case.t1w, alone.case.flair) == (None, Path("a.nii"))
    with pytest.raises(UsageError, match="takes one scan"):
        read_request(["case", "a.nii", "b.nii", "out", "--flair-only"])
    for name in ("sub-1_FLAIR.nii.gz", "AX_flair_5.nii"):
        with pytest.raises(UsageError, match="is called a FLAIR") as told:
            read_request(["case", name, "out"])
    assert read_request(["case", "flair-study_T1w.nii", "out"]).case.flair is None
    assert "--flair-only" in told.value.hint


def test_version_names_the_models(monkeypatch, tmp_path):
    from bids_app.networks import registry

    model = registry.EmbeddedModel("small", "lesion", tmp_path, (("fold_0/checkpoint_final.pth", "abc123"),))
    monkeypatch.setattr(registry, "embedded_models", lambda: (model,))
    lines = version_text().splitlines()
    assert lines[0].startswith("afterstroke ")
    assert lines[1:] == ["model small", "  abc123  fold_0/checkpoint_final.pth"]

    def fail():
        raise ConfigError("no registry")

    monkeypatch.setattr(registry, "embedded_models", fail)
    assert version_text().splitlines()[1] == "no embedded models: no registry"
