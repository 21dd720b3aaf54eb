"""The boundary around every command: one sentence and an exit code for whatever goes wrong, interrupts included."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.in_process import PHANTOM, fresh_flags, run, tree
from vgjax import boundary, main
from vgjax import run as runs
from vgjax.config import ConfigError
from vgjax.data import inspect
from vgjax.evaluation import control
from vgjax.weights import verify

ROOT = Path(__file__).parents[1]


def raising(error: BaseException, cause: BaseException | None = None):
    def work():
        try:
            if cause:
                raise cause
        except BaseException:
            raise error  # noqa: B904
        raise error

    return work


MENDED = {
    "config": (ConfigError("x is\n3: set it to 4"), "x is 3: set it to 4"),
    "full": (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "'/a/b': No space left on device: make room"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded: make room"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "a"), "'a': Permission denied: mend its perm"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "a"), "name another --workdir or --store"),
    "long": (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "give a shorter name"),
    "files": (OSError(errno.EMFILE, "Too many open files", "a"), "raise the limit of open files (ulimit -n)"),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "'a': No such file or directory: mend"),
    "device": (OSError(errno.EIO, "Input/output error", "a"), "'a': Input/output error"),
    "in the way": (IsADirectoryError(errno.EISDIR, "Is a directory", ".part", None, "a"), "'a': Is a directory: mend"),
    "below Orbax": (ValueError("Error writing x [OS error 28: ENOSPC No space]"), "the disk is full: make room"),
    "memory": (MemoryError("Unable to allocate 9 TiB"), "memory does not suffice (MemoryError: Unable to allocate 9"),
    "device memory": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "memory does not suffice (RuntimeError"),
}


@pytest.mark.parametrize("name", MENDED)
def test_what_the_user_can_mend(capsys, name):
    error, match = MENDED[name]
    for work in (raising(error), raising(RuntimeError("a library's"), cause=error)):
        assert boundary.guarded(work)() == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and match in told and told.count("\n") == 1


@pytest.mark.parametrize("error", [KeyError("x"), AssertionError("a\nb"), ValueError(), RecursionError(), OSError("?")])
def test_our_own_fault_says_so_and_keeps_the_trace(capsys, tmp_path, monkeypatch, error):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert boundary.guarded(raising(error))() == 1
    told = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert told.startswith("error: a fault of vgjax itself (") and str(kept) in told and told.count("\n") == 1
    assert "in work" in kept.read_text() and type(error).__name__ in kept.read_text()


def test_a_trace_that_cannot_be_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert boundary.guarded(raising(KeyError("x")))() == 1
    assert "could not be kept (No such file or directory)" in capsys.readouterr().err


def test_codes_pass():
    assert [boundary.guarded(lambda code=code: code)() for code in (None, 0, 1, 2)] == [0, 0, 1, 2]


# ---------------------------------------------------------------- interrupts


@pytest.mark.parametrize(
    "work",
    [
        raising(KeyboardInterrupt()),
        raising(RuntimeError("a library's"), cause=KeyboardInterrupt()),
        raising(ConfigError("cannot be read"), cause=KeyboardInterrupt()),
    ],
)
def test_an_interrupt_is_one_line(capsys, work):
    assert boundary.guarded(work)() == 130
    assert capsys.readouterr().err == boundary.INTERRUPTED + "\n"


def test_an_interrupt_that_python_would_ignore_is_passed_on(capsys, monkeypatch):
    class Held:
        def __del__(self):
            raise KeyboardInterrupt

    def work():
        Held()
        for _ in range(1000):
            time.sleep(0.001)
        return 3

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with interruptible():
        assert boundary.guarded(work)() == 130


@pytest.mark.parametrize("place", ["open_run", "check_weights", "prepare", "_begin"])
def test_an_interrupt_at_any_step_ends_the_command(tmp_path, monkeypatch, place):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, place, lambda *arguments, **options: raising(KeyboardInterrupt())())
    modes = {"prepare": "prepare"}
    if place == "_begin":
        monkeypatch.setattr(runs, "prepare", lambda run: None)
    if place == "prepare":
        monkeypatch.setitem(runs.MODES, "prepare", runs.prepare)
    found = run(PHANTOM, f"--workdir={tmp_path}/run", f"--mode={modes.get(place, 'train')}")
    assert (found.code, found.lines[-1]) == (130, boundary.INTERRUPTED)
    assert tree(tmp_path) == {}


LEAVING = """
import atexit, threading, time
from vgjax import boundary

@boundary.guarded
def work():
    threading.Thread(target=time.sleep, args=(600,)).start()  # which a teardown would wait for
    print("told")
    raise KeyboardInterrupt

atexit.register(print, "handled")
boundary.leave(work())
"""


def test_an_interrupted_process_ends_without_waiting_for_threads():
    ended = subprocess.run([sys.executable, "-c", LEAVING], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "told\nhandled\n", boundary.INTERRUPTED + "\n")


@contextlib.contextmanager
def interruptible():
    """Python's own handling of SIGINT, which background jobs of a shell are started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(folder: Path, *more: str) -> subprocess.Popen:
    """A run as a process group of its own, as a shell makes one."""
    command = [
        sys.executable,
        "-m",
        "tests.moments",
        str(folder),
        "tell",
        "",
        PHANTOM,
        f"--workdir={folder}/run",
        *more,
    ]
    environment = os.environ | {
        "XLA_FLAGS": "",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent),
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sign", "wait_s"),
    [("making pictures", 0.0), ("making prior", 0.0), ("making prior", 2.0), ("stage prior: trained", 0.5)],
    ids=["rendering", "reading", "compiling", "next"],
)
def test_control_c_in_a_real_process(tmp_path, sign, wait_s):
    lines = []
    with started(tmp_path) as process:
        assert process.stderr
        for line in process.stderr:
            lines.append(line)
            if sign in line:
                time.sleep(wait_s)
                os.killpg(process.pid, signal.SIGINT)
                break
        lines += process.stderr.readlines()
        assert process.wait(timeout=120) == 130, lines
    assert lines[-1] == boundary.INTERRUPTED + "\n" and not any("Traceback" in line for line in lines)


# ---------------------------------------------------------------- the other entry points


def test_the_other_commands_share_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(verify, "verify", lambda folder: raising(MENDED["full"][0])())
    monkeypatch.setattr(control, "write_table", lambda *arguments: raising(KeyboardInterrupt())())
    monkeypatch.setattr(inspect, "inspect", lambda *arguments: raising(MENDED["memory"][0])())
    assert verify.main([str(tmp_path)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert control.main(["--rows=default"]) == 130
    assert capsys.readouterr().err.endswith(boundary.INTERRUPTED + "\n")
    monkeypatch.setattr(inspect.flags, "DEFINE_string", lambda *arguments: main._WORKDIR)  # one process, one such flag
    with fresh_flags():
        assert inspect.main(["inspect", PHANTOM]) == 2
    assert "memory does not suffice" in capsys.readouterr().err
    for arguments, match in (
        (["inspect"], "--config is missing"),
        (["inspect", "--config=nowhere.py"], "is not a file"),
        (["inspect", PHANTOM, "--config.data.image_size=0"], "data.image_size"),
    ):
        with fresh_flags():
            assert inspect.main(arguments) == 2
        assert match in capsys.readouterr().err


def test_main_shares_it(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main, "_dispatch", lambda config: raising(MENDED["quota"][0])())
    found = run(PHANTOM, f"--workdir={tmp_path}")
    assert (found.code, len(found.lines)) == (2, 1) and "quota" in found.lines[0]
