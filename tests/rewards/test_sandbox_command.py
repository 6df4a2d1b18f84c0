"""Programs under `command`: what they leave is removed, what they write has a limit, interpreters that do not start."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohort.rewards import Rewards, unit_tests_reward
from cohort.rewards.sandbox import folder as folders
from cohort.rewards.sandbox.folder import remove, scratch, size
from cohort.rewards.sandbox.layers import NONE, TMP_SIZE, Limits, find_layers
from cohort.rewards.sandbox.run import run_command, try_command
from cohort.types import UserError

LIMITS = Limits(4)
OVER = "wrote over 64 MiB of files"
PYTHON = f"{sys.executable} -I -S {{file}}"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the programs' folders. Not pytest's, which other users cannot enter."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        monkeypatch.setattr("tempfile.tempdir", path)
        yield Path(path)
        assert list(Path(path).glob("cohort-*")) == []


NESTED = "import os\nfor i in range({}):\n    os.mkdir({!r}); os.chdir({!r}); open('x', 'w').close()\nprint(6)\n"
LEAVE = {
    "1,100 folders": NESTED.format(1100, "d", "d"),
    "folders that cannot be read": (
        "import os\nfor mode in (0, 0o300, 0o100, 0o400, 0o555):\n"
        "    os.umask(0); os.makedirs(f'a{mode}/b/c'); open(f'a{mode}/b/f', 'w').close()\n"
        "    os.mkdir(f'a{mode}/b/z', mode); os.mkdir(f'e{mode}', mode)\n"
        "os.umask(0o777); os.makedirs('last'); print(6)"
    ),
    "links and odd names": (
        "import os\nos.symlink('.', 'self'); os.symlink('/etc', 'etc'); os.symlink('nowhere', 'broken')\n"
        "os.mkdir('d'); os.symlink('..', 'd/up')\n"
        "for name in (b'\\xff', b'\\n', b'-rf', b'n' * 255):\n    os.mkdir(name); os.mkdir(name + b'/' + name)\n"
        "open('a', 'w').close(); os.link('a', 'b'); print(6)"
    ),
    "many entries": (
        "import os\nfor i in range(600): os.mkdir(str(i)) if i % 2 else open(str(i), 'w').close()\nprint(6)"
    ),
}


@pytest.mark.parametrize("what", LEAVE)
def test_nothing_is_left(temporary: Path, what: str) -> None:
    verdict = run_command(PYTHON, LEAVE[what], [("", "6")], False, LIMITS, find_layers())
    assert verdict.ok, verdict.reason


def test_paths_longer_than_the_system_allows(temporary: Path) -> None:
    verdict = run_command(PYTHON, NESTED.format(300, "n" * 250, "n" * 250), [("", "6")], False, LIMITS, find_layers())
    assert verdict.reason in ("", OVER)


def test_removal_of_what_a_sandbox_forbids(tmp_path: Path) -> None:
    with scratch() as path:
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{path}/socket")
        server.close()
        os.makedirs(f"{path}/a/b/c")
        os.mkfifo(f"{path}/a/b/pipe")
        if os.geteuid() == 0:
            os.chown(f"{path}/a/b", 12345, 12345)
            os.mknod(f"{path}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chmod(f"{path}/a/b", 0)
        os.chmod(path, 0)
    assert not os.path.exists(path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    os.chmod(outside, 0o555)
    with scratch() as path:
        os.symlink(outside, f"{path}/link")
        os.makedirs(f"{path}/d")
        os.symlink(outside, f"{path}/d/link")
    assert (outside / "kept").exists() and stat.S_IMODE(outside.stat().st_mode) == 0o555


def test_a_folder_that_cannot_be_removed_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders._warned.clear()
    for name in ("first", "second"):
        (tmp_path / name / "a").mkdir(parents=True)
        (tmp_path / name / "b").touch()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "not permitted")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "cohort"):
        patched.setattr(os, "rmdir", refused)
        remove(str(tmp_path / "first"))
        remove(str(tmp_path / "second"))
        remove(str(tmp_path / "gone"))
    assert ["first, which a program left, cannot be removed" in r.getMessage() for r in caplog.records] == [True]
    assert [path.name for path in (tmp_path / "first").iterdir()] == ["a"]


FILL = {
    "files": "for i in range(200): open(str(i), 'wb').write(block)",
    "files in folders": "for i in range(200): os.mkdir(str(i)); open(f'{i}/x', 'wb').write(block)",
    "long paths": "for i in range(200): os.mkdir('n' * 250); os.chdir('n' * 250); open('x', 'wb').write(block)",
    "deleted files": (
        "kept = []\nfor i in range(50):\n    kept.append(open('x', 'wb')); kept[-1].write(block); os.remove('x')"
    ),
    "entries": "for i in range(10**6): open(str(i), 'wb').close()",
    "allocated": "for i in range(200): os.posix_fallocate(os.open(str(i), os.O_CREAT | os.O_RDWR), 0, 16 << 20)",
    "folders that cannot be read": (
        "os.umask(0)\nfor i in range(200): os.mkdir(str(i), 0o300); open(f'{i}/x', 'wb').write(block)"
    ),
}


@pytest.mark.parametrize("how", FILL)
def test_what_a_program_writes_has_a_limit(temporary: Path, how: str) -> None:
    most = 0
    usage = folders.size

    def noted(*arguments: Any) -> int:
        nonlocal most
        found = usage(*arguments)
        most = max(most, found)
        return found

    source = f"import os, time\nblock = bytes(16 << 20)\n{FILL[how]}\ntime.sleep(5)\nprint(6)"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cohort.rewards.sandbox.run.size", noted)
        verdict = run_command(PYTHON, source, [("", "6")], False, Limits(2), find_layers())
    private = find_layers().bubblewrap is None
    # Where creating a file is slow, the limit of processor time comes first.
    refused = {"allocated": ["exit 1"], "entries": [OVER, "exit -9", "exit 137"]}.get(
        how, ["exit 1"] if private else [OVER]
    )
    assert not verdict.ok and verdict.reason in refused, verdict.reason
    assert most < (TMP_SIZE if private else 512 << 20)


def test_files_of_an_honest_program(temporary: Path) -> None:
    source = "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(bytes(9 << 20)); print(f.tell())"
    assert run_command(PYTHON, source, [("", str(9 << 20))], False, LIMITS, find_layers()).ok
    # A large input is no file that the program writes.
    source = "import sys, time\nprint(len(sys.stdin.read())); sys.stdout.flush(); time.sleep(0.1)"
    assert run_command(PYTHON, source, [("x" * (80 << 20), str(80 << 20))], False, LIMITS, find_layers()).ok


def test_processes_of_a_program_without_a_sandbox(temporary: Path) -> None:
    source = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    for i in range(10**6):\n        open(str(i), 'w').close(); time.sleep(0.001)\n"
        "print(6)"
    )
    assert run_command(PYTHON, source, [("", "6")], False, LIMITS, NONE).ok


def test_surrogates_in_programs_and_inputs(temporary: Path) -> None:
    source = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())  # \ud800"
    verdict = run_command(PYTHON, source, [("\udcff", "\ufffd"), ("\ud800", "\ufffd\ufffd\ufffd")], False, LIMITS, NONE)
    assert verdict.total == 2


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def starts(command: str, **options: Any) -> None:
    Rewards([unit_tests_reward(command=command, **options)])


def test_interpreters_that_start(temporary: Path) -> None:
    starts(PYTHON)
    starts("perl {file}.pl")
    starts("sh {file}")
    # A compiler refuses an empty program, and says something else where there is none.
    starts("""perl -e 'open F, $ARGV[0] or die "no file"; -s F or die "no main"' {file}""")
    assert run_command("sed -n -f{file}.sed", "p", [("a\nb", "a\nb")], False, LIMITS, find_layers()).ok
    assert run_command("grep --file={file}", "a", [("a\nb", "a")], False, LIMITS, find_layers()).ok
    assert run_command("perl My{file}.pl", "print $0 =~ /Myprogram.pl$/", [("", "1")], False, LIMITS, find_layers()).ok


def test_interpreters_that_do_not_start(temporary: Path) -> None:
    layers = find_layers()
    wrapped = script(temporary / "wrapped", "#!/no/such/interpreter")
    forks = script(temporary / "forks", "#!/bin/sh\n/bin/true; /bin/cat $1")
    for command, said in {
        "perl -Q {file}": r"exit \d+; it said 'Unrecognized switch: -Q",
        f"{sys.executable} --no-such-option {{file}}": r"exit 2; it said .unknown option --no-such-option",
        f"{wrapped} {{file}}": r"exit 1; it said .*(No such file|denied)",
        f"{forks} {{file}}": r"exit \d+; it said",
    }.items():
        with pytest.raises(UserError, match=rf"(?s)does not start in the sandbox.*{said}"):
            starts(command)
        with pytest.raises(UserError, match="does not start"):
            run_command(command, "print 6", [("", "6")], False, LIMITS, layers)
    for command, said in {
        "perl '{file}": "No closing quotation",
        "perl": "it must name the program's file once",
        "perl {file} {file}": "it must name the program's file once",
        "perl {file}/x": "{file} stands for a whole path; add letters to it, no folders",
        "no-such-thing {file}": "no such program",
        "{file}": "no such program",
        "": "it must name the program's file once",
    }.items():
        with pytest.raises(UserError, match=f"unit_tests' command {command!r}: {said}"):
            try_command(command, LIMITS, layers)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_missing_library(temporary: Path) -> None:
    (temporary / "a.c").write_text("int f(void) { return 1; }")
    (temporary / "b.c").write_text("int f(void); int main(void) { return !f(); }")
    run = {"cwd": temporary, "check": True}
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "liba.so", "a.c"], **run)  # type: ignore[call-overload]
    subprocess.run(["cc", "-o", "b", "b.c", "-L.", "-la"], **run)  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"exit 127; it said .*error while loading shared libraries: liba\.so"):
        starts(f"{temporary}/b {{file}}")


def test_an_environment_whose_home_cannot_be_read(temporary: Path) -> None:
    # As `python -m venv --copies` makes it: the interpreter is a copy, its library is elsewhere.
    (temporary / "venv" / "bin").mkdir(parents=True)
    interpreter = temporary / "venv" / "bin" / "python"
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    (temporary / "venv" / "pyvenv.cfg").write_text(f"home = {temporary}/nowhere/bin\n")
    if subprocess.run([interpreter, "-c", ""], capture_output=True).returncode == 0:
        pytest.skip("this Python knows its home")
    with pytest.raises(UserError, match=r"(?s)does not start in the sandbox.*No module named 'encodings'"):
        starts(f"{interpreter} {{file}}")


def test_an_interpreter_that_needs_more_memory(temporary: Path) -> None:
    with pytest.raises(UserError, match=r"does not start in the sandbox.*has 4 MiB of memory"):
        starts("perl {file}", memory_mb=4)


def test_the_size_of_a_folder_that_changes(temporary: Path) -> None:
    with scratch() as path:
        (Path(path) / "a").mkdir()
        (Path(path) / "a" / "b").write_bytes(bytes(10_000))
        with contextlib.suppress(FileNotFoundError):
            os.symlink("/", f"{path}/root")
        assert 10_000 <= size(path, 0, 1 << 30) < 80_000
        shutil.rmtree(f"{path}/a")
        started = time.monotonic()
        assert size(f"{path}/a", 0, 1 << 30) == 0 and time.monotonic() - started < 5
