"""The whole command line on skeletons: every exit code, and that a dry run writes nothing. No image is computed."""

from __future__ import annotations

import errno
import json
import logging
import multiprocessing.synchronize
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from bids_app import cli
from bids_app.errors import ExitCode, UnavailableError
from bids_app.settings import Settings
from bids_app.study.models import Study
from bids_app.study.plan import ModelOutputs, ModelsInWords
from tests.skeletons import ONE_SESSION, TWO_SESSIONS, listing, make_empty, make_skeleton, write_scan

ROOT = Path(__file__).parents[1]


class Levels:
    """Stands for the modules that compute; remembers how it was called, and does what a test says."""

    def __init__(self):
        self.calls: list[tuple[Settings, Study | None]] = []
        self.run_ids: list[str] = []
        self.status: dict[str, str] = {}
        self.act: Callable[[], ExitCode] = lambda: ExitCode.OK

    def run_participants(self, settings: Settings, study: Study, status: object, say: object, run_id: str) -> ExitCode:
        self.calls.append((settings, study))
        self.run_ids.append(run_id)
        return self.act()

    def check_run(self, settings: Settings) -> None:
        self.checked = settings

    def visit_status(self, settings: Settings, study: Study) -> dict[str, str]:
        return self.status

    def models_in_words(self, settings: Settings) -> ModelsInWords:
        return ModelsInWords("ours", "rigid", "none")

    def model_outputs(self, settings: Settings) -> ModelOutputs:
        return ModelOutputs("T1w", True)

    def run_group(self, settings: Settings, say: object) -> ExitCode:
        self.calls.append((settings, None))
        return self.act()

    @property
    def labels(self) -> list[str]:
        """Visits of the only call."""
        [(_, study)] = self.calls
        return [visit.label for visit in study.visits]


@pytest.fixture
def levels(monkeypatch) -> Levels:
    fake = Levels()
    of_participants = "check_run", "model_outputs", "models_in_words", "run_participants", "visit_status"
    for name, functions in (("workflow", of_participants), ("group", ("run_group",))):
        module = types.ModuleType(f"bids_app.{name}.run")
        for function in functions:
            setattr(module, function, getattr(fake, function))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return fake


@pytest.fixture
def run(tmp_path: Path, levels: Levels, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs the App in `tmp_path`, and gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_skeleton(tmp_path / "raw", TWO_SESSIONS)


def participants(*options: str) -> list[str]:
    return ["raw", "out", "participant", "--skip-bids-validation", *options]


def test_participant_level(run, raw, levels):
    levels.status = {"sub-01_ses-2": "done"}
    code, out, err = run(*participants())
    assert (code, err) == (0, "")
    assert levels.labels == ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]
    assert "sub-01_ses-2: done" in out
    assert "3 visits: 2 to do, 1 done" in out


def test_selection(run, raw, levels):
    run(*participants("--participant_label", "sub-01", "--session-label", "ses-2"))
    assert levels.labels == ["sub-01_ses-2"]


def test_the_validator_runs_unless_skipped(run, raw, levels, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(
        "bids_app.study.validation.validator_command",
        lambda: asked.append(True) or ["echo", '{"issues": {"issues": []}}'],
    )
    assert run(*participants())[0] == 0
    assert not asked
    assert run("raw", "out", "participant")[0] == 0
    assert asked


def test_group_level(run, levels, tmp_path):
    (tmp_path / "out" / "sub-01").mkdir(parents=True)
    assert run("absent", "out", "group")[0] == 0
    assert levels.calls[0][0].bids_dir is None


def test_dry_run_of_the_group_level_writes_nothing(run, levels, tmp_path):
    (tmp_path / "out" / "sub-01").mkdir(parents=True)
    before = listing(tmp_path)
    code, out, _ = run("raw", "out", "group", "--dry-run")
    assert (code, levels.calls, "1 participant: " in out) == (0, [], True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("more", [[], ["--bids-database-dir", "db"], ["--export-lesion-roi", "rois"], ["-vv"]])
def test_dry_run_writes_nothing(run, raw, levels, tmp_path, more):
    before = listing(tmp_path)
    code, out, _ = run("raw", "out", "participant", "--dry-run", *more)
    assert (code, levels.calls) == (0, [])
    assert "sub-01_ses-1: to do" in out
    assert listing(tmp_path) == before


def test_dry_run_uses_a_database_that_is_there(run, raw, tmp_path):
    run(*participants("--bids-database-dir", "db"))
    before = listing(tmp_path / "db")
    assert before
    assert run("raw", "out", "participant", "--dry-run", "--bids-database-dir", "db")[0] == 0
    assert listing(tmp_path / "db") == before


def test_a_failed_visit_is_code_1(run, raw, levels):
    levels.act = lambda: ExitCode.VISIT_FAILED
    assert run(*participants())[0] == 1


def test_a_visit_without_t1w_is_left_to_the_run(run, levels, tmp_path):
    make_skeleton(tmp_path / "raw", ["sub-01_FLAIR"])
    code, out, _ = run(*participants())
    assert (code, len(levels.calls)) == (0, 1)
    assert "its FLAIR takes its place" in out


def fails(result: tuple[int, str, str], code: ExitCode, *told: str) -> None:
    """Check that a run ended with a code and a sentence, and no traceback."""
    found, out, err = result
    assert found == code, err
    assert err.startswith("afterstroke: error: ")
    assert "Traceback" not in err + out
    for text in told:
        assert text in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["raw", "out"],
        ["raw", "raw", "participant"],
        ["raw", "raw/sub-01/out", "participant"],
        ["raw", "out", "participant", "-w", "raw/work"],
        ["raw", "out", "participant", "-w", "out/work"],
        ["raw", "out", "participant", "--bids-database-dir", "raw/db"],
        ["case", "raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "raw/sub-01/out"],
        ["case", "raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "raw/sub-01/out", "--dry-run"],
        ["case", "raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "out", "-w", "out/work"],
        ["raw", "out", "participant", "--threshold", "7"],
        ["raw", "out", "participant", "--derivatives", "x"],
        ["case", "raw"],
    ],
)
def test_usage_is_code_2_and_writes_nothing(run, raw, tmp_path, arguments):
    before = listing(tmp_path)
    fails(run(*arguments), ExitCode.USAGE)
    assert listing(tmp_path) == before


def test_what_is_no_dataset_is_code_65(run, tmp_path):
    (tmp_path / "raw").mkdir()
    fails(run(*participants()), ExitCode.BAD_DATASET, "dataset_description.json")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_invalid_dataset_is_code_65_and_the_dry_run_says_so(run, levels, tmp_path, more):
    pytest.importorskip("bids_validator_deno")
    make_skeleton(tmp_path / "raw", ["sub-01_run-1_acq-a_T1w"])
    result = run("raw", "out", "participant", *more)
    fails(result, ExitCode.BAD_DATASET, "FILENAME_MISMATCH", "--skip-bids-validation")
    assert not levels.calls


def test_one_invalid_visit_ends_no_run(run, raw, levels):
    pytest.importorskip("bids_validator_deno")
    (raw / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json").write_text('{"Manufacturer": "Somebody",}')
    make_skeleton(raw, ["sub-03_run-1_acq-a_T1w"])
    code, out, _ = run("raw", "out", "participant")
    assert code == 0  # of the run that is not made here
    assert "sub-03: cannot be processed" in out
    assert "sub-01_ses-1: to do" in out
    assert "[invalid-sidecar]" in out
    [(_, study)] = levels.calls
    assert [visit.usable for visit in study.visits] == [True, True, True, False]


def test_no_input_is_code_66(run, raw, levels, tmp_path):
    fails(run("absent", "out", "participant"), ExitCode.NO_INPUT, "absent does not exist")
    fails(run(*participants("--participant-label", "77")), ExitCode.NO_INPUT, "sub-77", "01, 02")
    fails(run(*participants("--session-label", "77")), ExitCode.NO_INPUT, "ses-77", "1, 2")
    fails(run(*participants("--derivatives", "x=absent")), ExitCode.NO_INPUT, "absent")
    fails(run("case", "absent.nii", "out"), ExitCode.NO_INPUT, "absent.nii")
    make_empty(make_skeleton(tmp_path / "func", []), "sub-01/func/sub-01_task-x_bold.nii.gz")
    fails(run("func", "out", "participant", "--skip-bids-validation"), ExitCode.NO_INPUT, "No requested visit")
    fails(run("raw", "nowhere", "group"), ExitCode.NO_INPUT, "nowhere")
    (tmp_path / "empty").mkdir()
    fails(run("raw", "empty", "group"), ExitCode.NO_INPUT, "empty holds no participant")
    assert levels.calls == []


def test_the_dataset_is_told_before_the_places(run, tmp_path):
    fails(run("absent", "absent/sub-01/out", "participant"), ExitCode.NO_INPUT, "absent does not exist")
    (tmp_path / "dicom" / "a").mkdir(parents=True)
    (tmp_path / "dicom" / "a" / "IM1.dcm").touch()
    fails(run("dicom", "dicom", "participant"), ExitCode.BAD_DATASET, "dcm2niix", "BIDScoin")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_forgotten_output_folder_is_told(run, levels, tmp_path, more):
    write_scan(tmp_path / "t1.nii.gz")
    write_scan(tmp_path / "flair.nii.gz")
    fails(run("case", "t1.nii.gz", "flair.nii.gz", *more), ExitCode.USAGE, "the output folder is missing", "OUT")


def test_a_folder_in_the_place_of_a_scan_is_told(run, tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM1.dcm").touch()
    fails(run("case", "series", "out"), ExitCode.USAGE, "folder of DICOM", "dcm2niix", "HeuDiConv")


def test_no_scan_is_told_with_what_is_not_used(run, levels, tmp_path):
    make_empty(make_skeleton(tmp_path / "raw", []), "sub-01/Anat/sub-01_T1w.nii.gz")
    result = run(*participants())
    fails(result, ExitCode.NO_INPUT, "No requested visit has a T1w or FLAIR", "rename it to anat")
    assert "filter file" not in result[2]


def test_what_is_unavailable_is_code_69(run, raw, levels):
    def no_gpu():
        raise UnavailableError("There is no GPU.", "With Docker, use --gpus all.")

    levels.act = no_gpu
    fails(run(*participants("--device", "cuda")), ExitCode.UNAVAILABLE, "There is no GPU.", "--gpus all")


def test_a_bug_is_code_70_and_leaves_its_details(run, raw, levels, tmp_path):
    def bug():
        raise ZeroDivisionError("unforeseen")

    levels.act = bug
    fails(run(*participants()), ExitCode.INTERNAL, "ZeroDivisionError: unforeseen", "crash-")
    [crash] = (tmp_path / "work").glob("crash-*.txt")
    text = crash.read_text()
    assert "Traceback" in text
    assert "--skip-bids-validation" in text
    code, _, err = run(*participants("-vv"))
    assert (code, "Traceback" in err) == (ExitCode.INTERNAL, True)


def test_a_crash_that_cannot_be_kept_is_shown(run, raw, levels, tmp_path, monkeypatch):
    def bug():
        raise ZeroDivisionError("unforeseen")

    levels.act = bug
    monkeypatch.setattr(cli, "_write_crash", lambda *_: None)
    code, _, err = run(*participants())
    assert (code, "Traceback" in err) == (ExitCode.INTERNAL, True)


def test_crash_goes_to_the_output_where_the_work_folder_cannot_be_written(tmp_path):
    (tmp_path / "work").write_text("a file")
    path = cli._write_crash("text", Settings(out_dir=tmp_path / "out", work_dir=tmp_path / "work"))
    assert path.parent == tmp_path / "out" / "logs"


def test_what_cannot_be_written_is_code_73(run, raw, levels, tmp_path):
    (tmp_path / "out").write_text("a file")
    fails(run(*participants()), ExitCode.CANNOT_WRITE, str(tmp_path / "out"))
    fails(run("raw", "good", "participant", "-w", "out/work"), ExitCode.CANNOT_WRITE, "-w")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "x.nii.gz")

    levels.act = full
    fails(run("raw", "good", "participant", "--skip-bids-validation"), ExitCode.CANNOT_WRITE, "x.nii.gz", "No space")


def test_bad_configuration_is_code_78(run, raw, tmp_path):
    (tmp_path / "bad.toml").write_text("thresh = 1")
    (tmp_path / "bad.json").write_text('{"t2": {}}')
    fails(run(*participants("--config-file", "bad.toml")), ExitCode.BAD_CONFIG, "thresh")
    fails(run(*participants("--bids-filter-file", "bad.json")), ExitCode.BAD_CONFIG, "t2")


def test_interruption_is_code_130(run, raw, levels):
    def interrupt():
        raise KeyboardInterrupt

    levels.act = interrupt
    code, _, err = run(*participants())
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(run, option):
    code, out, _ = run(option)
    assert (code, "afterstroke" in out) == (0, True)
    assert run("case", option)[0] == 0


def test_environment_is_quiet_before_the_level_runs(run, raw, levels, tmp_path):
    seen = {}
    levels.act = lambda: seen.update(os.environ) or ExitCode.OK
    run(*participants())
    assert (seen["NIPYPE_NO_ET"], seen["MPLCONFIGDIR"]) == ("1", str(tmp_path / "work/cache/matplotlib"))


def test_case_goes_the_way_of_all_visits(run, levels, tmp_path):
    write_scan(tmp_path / "head 1.nii.gz")
    write_scan(tmp_path / "flair.nii")
    code, out, err = run("case", "head 1.nii.gz", "flair.nii", "out", "--threshold", "0.3")
    assert (code, err) == (0, "")
    [(settings, study)] = levels.calls
    assert levels.labels == ["sub-head1"]
    assert (settings.threshold, settings.bids_dir) == (0.3, study.root)
    assert study.root == tmp_path / "out/sourcedata/raw"
    assert study.visits[0].flair.path.resolve() == tmp_path / "flair.nii"
    assert "sub-head1: to do" in out


def test_case_processes_only_itself(run, levels, tmp_path):
    for name in ("a.nii", "b.nii"):
        run("case", write_scan(tmp_path / name), "out")
    assert [visit.label for visit in levels.calls[1][1].visits] == ["sub-b"]


def test_case_of_one_session_leaves_the_other_alone(run, raw, levels):
    for session in ("1", "2"):
        run("case", f"raw/sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz", "out")
    assert [visit.label for visit in levels.calls[1][1].visits] == ["sub-01_ses-2"]


def test_case_writes_nothing_into_the_output_of_others(run, levels, tmp_path):
    write_scan(tmp_path / "head.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"GeneratedBy": {"Name": "fMRIPrep"}}')
    before = listing(tmp_path)
    fails(run("case", "head.nii.gz", "out"), ExitCode.CANNOT_WRITE, "derivatives of fMRIPrep")
    assert listing(tmp_path) == before


def test_dry_run_of_a_case_writes_nothing(run, levels, tmp_path):
    write_scan(tmp_path / "head.nii.gz")
    before = listing(tmp_path)
    code, out, _ = run("case", "head.nii.gz", "out", "--dry-run")
    assert (code, levels.calls, "sub-head: to do" in out) == (0, [], True)
    assert listing(tmp_path) == before


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_start_loads_no_heavy_library(option):
    heavy = ("torch", "bids", "nipype", "numpy", "nibabel", "nilearn", "pandas", "SimpleITK", "nnunetv2", "scipy")
    code = (
        f"import resource, sys; from bids_app.cli import main; assert main(['{option}']) == 0; "
        f"usage = resource.getrusage(resource.RUSAGE_SELF); cpu = usage.ru_utime + usage.ru_stime; "
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules]); print('CPU', cpu)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    *_, loaded, cpu = result.stdout.splitlines()
    assert loaded == "LOADED []"
    assert float(cpu.split()[1]) < 0.5


def test_run_py_gives_the_exit_code(tmp_path):
    make_skeleton(tmp_path / "raw", ONE_SESSION)
    result = python("run.py", str(tmp_path / "raw"), str(tmp_path / "raw"), "participant")
    assert result.returncode == ExitCode.USAGE
    assert result.stderr.startswith("afterstroke: error: The output folder is the dataset")


def test_plan_may_be_piped_into_a_program_that_stops_reading(tmp_path):
    code = (
        "import sys; from bids_app import cli; sys.argv = ['', 'a', 'b', 'group', '--dry-run']; "
        "cli._run = lambda *_: print('x' * 10**6, flush=True) or 0; sys.exit(cli.main())"
    )
    command = f'set -o pipefail; {sys.executable} -c "{code}" | head -c 1'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "x", "")


def test_errors_are_one_line(run, raw, tmp_path):
    for arguments in (["raw", "raw", "participant"], [*participants("--participant-label", "77")], ["raw", "out"]):
        _, _, err = run(*arguments)
        assert err.startswith("afterstroke: error: ") and err.count("\n") == 1
    (tmp_path / "bad.toml").write_text("threshold = 0.3\nthreshold = = 2\n")
    code, _, err = run(*participants("--config-file", "bad.toml"))
    assert (code, err.count("\n")) == (ExitCode.BAD_CONFIG, 1)


def test_a_bug_in_a_dry_run_is_one_line_that_says_how_to_see_more(run, raw, levels, monkeypatch):
    monkeypatch.setattr(sys.modules["bids_app.workflow.run"], "visit_status", lambda *_: 1 / 0)
    code, _, err = run(*participants("--dry-run"))
    assert (code, err.count("\n")) == (ExitCode.INTERNAL, 1)
    assert "ZeroDivisionError: division by zero. Add -vv" in err
    code, _, err = run(*participants("--dry-run", "-vv"))
    assert (code, "Traceback" in err) == (ExitCode.INTERNAL, True)


def logs(tmp_path: Path) -> list[str]:
    """Texts of the logs of all runs."""
    return [path.read_text(encoding="utf-8") for path in sorted((tmp_path / "out" / "logs").glob("*.log"))]


def test_a_run_leaves_a_log_of_what_it_said(run, raw, levels, tmp_path):
    def say_something() -> ExitCode:
        logging.getLogger("bids_app.x").warning("something is doubtful")
        logging.getLogger("bids_app.x").info("a step")
        logging.getLogger("another").info("a library's chat")
        return ExitCode.OK

    levels.act = say_something
    code, out, err = run(*participants("--participant-label", "02"))
    [text] = logs(tmp_path)
    assert code == 0
    assert "command: afterstroke raw out participant --skip-bids-validation --participant-label 02\n" in text
    assert "sub-02_ses-1: to do" in text
    assert "WARNING something is doubtful" in text and "INFO a step" in text and "chat" not in text
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ended after", text, re.MULTILINE)
    path = tmp_path / "out" / "logs" / f"{levels.run_ids[0]}.log"
    assert path.is_file()
    assert out.splitlines()[-1] == f"Log: {path}"
    assert "a step" not in err


def test_the_log_has_what_ended_the_run(run, raw, levels, tmp_path):
    def fail():
        raise UnavailableError("There is no GPU.", "Use another.")

    levels.act = fail
    run(*participants())
    assert "ERROR There is no GPU. Use another.\n" in logs(tmp_path)[0]
    levels.act = lambda: 1 / 0
    run(*participants())
    assert any("ZeroDivisionError" in text and "Traceback" in text for text in logs(tmp_path))


@pytest.mark.parametrize(("options", "shown"), [([], False), (["-v"], True), (["-vv"], True)])
def test_verbose_says_on_the_screen_what_the_log_has_anyway(raw, tmp_path, options, shown):
    code = (
        "import sys, logging; from bids_app import cli; "
        "cli._run = lambda request, _: cli._start_logging(request.settings.verbosity) "
        "or logging.getLogger('bids_app.x').info('a step') or logging.getLogger('another').info('chat') or 0; "
        "sys.exit(cli.main(['raw', 'out', 'participant', *sys.argv[1:]]))"
    )
    result = python("-c", code, *options)
    assert (result.returncode, "INFO bids_app.x: a step" in result.stderr) == (0, shown)
    assert "chat" not in result.stderr


def test_training_says_where_dev_shm_cannot_be_used(run, raw, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    command = ["train", "lesion", "--bids", "raw", "--masks", "x", "--out", "models", "--fusion", "late"]
    fails(run(*command), ExitCode.UNAVAILABLE, "Training needs shared memory", "--ipc=host")


def test_runs_do_not_share_a_log_and_the_group_level_has_one(run, raw, levels, tmp_path):
    run(*participants())
    run(*participants())
    (tmp_path / "out" / "sub-01").mkdir(parents=True)
    run("raw", "out", "group")
    assert len(logs(tmp_path)) == 3


def test_no_log_is_left_in_the_output_of_another_pipeline(run, raw, levels, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    before = listing(tmp_path)
    fails(run(*participants()), ExitCode.CANNOT_WRITE, "derivatives of fMRIPrep")
    assert listing(tmp_path) == before


def test_a_log_that_cannot_be_written_ends_no_run(run, raw, levels, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("a file")
    assert run(*participants())[0] == 0


def test_plan_formats(run, raw, levels):
    levels.status = {"sub-01_ses-2": "done"}
    code, out, _ = run(*participants("--dry-run", "--plan-format", "short"))
    assert (code, out.splitlines()[1]) == (0, "sub-01_ses-2  done  T1w")
    code, out, _ = run(*participants("--dry-run", "--plan-format", "json"))
    assert [visit["state"] for visit in json.loads(out)["Visits"]] == ["to do", "done", "to do"]
    code, out, _ = run(*participants("--dry-run", "--plan-format", "tsv"))
    assert [line.split("\t")[2] for line in out.splitlines()] == ["state", "to do", "done", "to do"]
