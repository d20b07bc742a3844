"""The process of a command as jobs start it: real processes, whose level is a few lines of Python."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bids_app import process

ROOT = Path(__file__).parents[1]

#: A command whose level is what stands in a test; its arguments are those of any other command.
SCRIPT = """
import os, sys, time
from pathlib import Path
from bids_app import cli

def level(request, arguments):
{body}
    return 0

cli._run = level
sys.exit(cli.main())
"""


@pytest.fixture
def command(tmp_path: Path):
    """The command line of a level that does `body`, in the test's own folder."""

    def make(body: str, *options: str) -> list[str]:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / "command.py").write_text(SCRIPT.format(body=lines), encoding="utf-8")
        return [sys.executable, str(tmp_path / "command.py"), "/bids", "/out", "group", "-w", "/work", *options]

    return make


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def shell(line: str, arguments: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess:
    """Run a line of bash in which ``"$@"`` is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", "bash", *arguments],
        capture_output=True, text=True, encoding="utf-8", cwd=folder, env=environment(**more), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("reader", ["head -n 1", "true", "head -c 1"])
def test_a_run_goes_on_when_nobody_reads_what_it_prints(command, tmp_path, reader):
    body = "for n in range(3000): print('line', n, flush=True)\nPath('done').touch()"
    ended = shell(f'"$@" | {reader}', command(body), tmp_path)
    assert (ended.returncode, ended.stderr, (tmp_path / "done").exists()) == (0, "", True)


def test_a_visit_that_failed_is_told_by_the_code_when_nobody_reads(command, tmp_path):
    ended = shell('"$@" | head -n 1', command("for n in range(3000): print('line', n)\nreturn 1"), tmp_path)
    assert ended.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_under_standard_output_ends_no_run_but_is_told_of_a_plan(command, tmp_path):
    body = "print('a line', flush=True)\nPath('done').touch()"
    ended = shell('"$@" > /dev/full', command(body), tmp_path)
    assert (ended.returncode, (tmp_path / "done").exists()) == (0, True)
    ended = shell('"$@" > /dev/full', command(body, "--dry-run"), tmp_path)
    assert ended.returncode == 73
    assert ended.stderr == "afterstroke: error: Standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_goes_into_no_file_where_standard_output_is_closed(command, tmp_path, closed):
    body = "file = open('data', 'w')\nprint('a line', flush=True)\nos.write(1, b'from a library')\nfile.write('x')"
    assert shell(f'"$@" {closed}', command(body), tmp_path).returncode == 0
    assert (tmp_path / "data").read_text() == "x"


#: What a job may be started with: by PYTHONIOENCODING, or by a locale that knows ASCII alone.
ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "xx_YY.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_names_are_utf_8_whatever_the_locale(command, tmp_path, encoding):
    (tmp_path / "Müller ☃").write_text("Größe", encoding="utf-8")
    body = (
        "print(os.listdir(), arguments[-1])\n"
        "assert Path('Müller ☃').read_text() == 'Größe'\n"
        "assert arguments[-1] == 'Ångström', ascii(arguments[-1])\n"
        "Path('copy').write_text('Größe')"
    )
    arguments = [*command(body), "--lesion-model", "Ångström"]
    ended = subprocess.run(arguments, capture_output=True, cwd=tmp_path, env=environment(**encoding), check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "copy").read_bytes() == "Größe".encode()


def test_whoever_switches_the_utf_8_mode_off_gets_that_and_no_loop(command, tmp_path):
    arguments = command("print(sys.flags.utf8_mode)")
    arguments[1:1] = ["-X", "utf8=0"]
    ended = shell('"$@"', arguments, tmp_path, LC_ALL="C", PYTHONCOERCECLOCALE="0")
    assert (ended.returncode, ended.stdout) == (0, "0\n")


def test_the_current_folder_may_be_gone(command, tmp_path):
    lost = tmp_path / "lost"
    lost.mkdir()
    arguments = command("from bids_app.process import leave_lost_folder\nleave_lost_folder()\nprint(os.getcwd())")
    ended = shell(f'rmdir {lost}; "$@"', arguments, lost)
    assert (ended.returncode, ended.stdout) == (0, "/\n")
    ended = shell(f'mkdir {lost}; cd {lost}; rmdir {lost}; "$@"', arguments[:-2], tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("afterstroke: error: The current folder has been removed")
    assert ended.stderr.count("\n") == 1


def started(arguments: list[str], folder: Path) -> subprocess.Popen:
    """A command in a session of its own, that has come to the file ``begun``."""
    found = subprocess.Popen(
        arguments, cwd=folder, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 30
    while not (folder / "begun").exists():
        assert found.poll() is None and time.monotonic() < until, found.communicate()
        time.sleep(0.02)
    return found


WAIT = "Path('begun').touch()\ntime.sleep(60)"


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_ends_the_command_in_a_sentence(command, tmp_path, number, code, told):
    run = started(command(WAIT), tmp_path)
    run.send_signal(number)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out, err) == (code, "", f"afterstroke: {told}; the same command goes on.\n")


def test_what_nohup_switched_off_stays_off(command, tmp_path):
    arguments = command("Path('begun').touch()\ntime.sleep(1)\nPath('done').touch()")
    run = started(["nohup", *arguments], tmp_path)
    run.send_signal(signal.SIGHUP)
    run.communicate(timeout=20)
    assert (run.returncode, (tmp_path / "done").exists()) == (0, True)


def can_unshare(*options: str) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", *options, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_unshare("--pid", "--fork"), reason="may not make a process 1")
def test_process_1_of_a_container_hears_sigterm(command, tmp_path):
    own = ["unshare", "--pid", "--fork", "--kill-child"]
    run = started([*own, *command(f"assert os.getpid() == 1\n{WAIT}")], tmp_path)
    [child] = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    _, err = run.communicate(timeout=20)
    assert (run.returncode, err) == (143, "afterstroke: ended by SIGTERM; the same command goes on.\n")


@pytest.mark.skipif(not can_unshare("--user", "--map-user=12345"), reason="may not be another user")
def test_neither_a_home_folder_nor_an_entry_in_passwd_is_needed(command, tmp_path):
    body = (
        "import getpass\n"
        "from bids_app.environment import quiet_libraries\n"
        "quiet_libraries(request.settings.work_dir)\n"
        "print(os.getuid(), Path.home(), getpass.getuser(), os.environ['TEMPLATEFLOW_HOME'])"
    )
    line = 'unshare --user --map-user=12345 env -u HOME -u USER -u LOGNAME -u LNAME -u USERNAME -u XDG_CACHE_HOME "$@"'
    ended = shell(line, command(body), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "12345 /work/cache/home uid12345 /work/cache/home/.cache/templateflow\n"


def test_more_files_may_be_open_than_some_clusters_say(command, tmp_path):
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1024:
        pytest.skip("this machine allows few files itself")
    body = "import resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024)"
    assert shell('ulimit -S -n 64; "$@"', command(body), tmp_path).stdout == "True\n"


def test_streams_of_a_test_or_a_notebook_stay(capsys):
    before = sys.stdout, sys.stderr
    process.guard_streams()
    assert (sys.stdout, sys.stderr) == before
    assert process.output_failure() is None
