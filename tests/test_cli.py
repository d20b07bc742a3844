"""The whole command line on skeletons: every exit code, and that a dry run writes nothing. No image is computed."""

from __future__ import annotations

import errno
import os
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
from tests.skeletons import ONE_SESSION, TWO_SESSIONS, listing, make_empty, make_skeleton, write_scan

ROOT = Path(__file__).parents[1]


class Levels:
    """Stands for the modules that compute; remembers how it was called, and does what a test says."""

    def __init__(self):
        self.calls: list[tuple[Settings, Study | None]] = []
        self.status: dict[str, str] = {}
        self.act: Callable[[], ExitCode] = lambda: ExitCode.OK

    def run_participants(self, settings: Settings, study: Study, status: object) -> ExitCode:
        self.calls.append((settings, study))
        return self.act()

    def check_run(self, settings: Settings) -> None:
        self.checked = settings

    def visit_status(self, settings: Settings, study: Study) -> dict[str, str]:
        return self.status

    def anomaly_model_in_words(self, settings: Settings) -> str:
        return "none"

    def lesion_model_in_words(self, settings: Settings) -> tuple[str, str]:
        return settings.lesion_model, "native (no card)"

    def run_group(self, settings: Settings) -> ExitCode:
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
    of_participants = "anomaly_model_in_words", "lesion_model_in_words", "check_run", "run_participants", "visit_status"
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


def test_invalid_dataset_is_code_65(run, raw):
    pytest.importorskip("bids_validator_deno")
    (raw / "sub-01/ses-1/anat/sub-01_ses-1_T1w.json").write_text("{")
    fails(run("raw", "out", "participant"), ExitCode.BAD_DATASET, "JSON_INVALID", "--skip-bids-validation")


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
    assert path.parent == tmp_path / "out" / "log"


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
        "from bids_app import cli; cli._run = lambda _: print('x' * 10**6, flush=True); cli.main(['a', 'b', 'group'])"
    )
    command = f'{sys.executable} -c "{code}" | head -c 1'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.stdout, result.stderr) == ("x", "")
