"""Rows 67, 69, 76 and 78: signals, streams that take nothing, terminals of few signs, memory that is short at start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from terminal import done, refused
from tiny_files import hf_folder

from uwm import inspection
from uwm.cli.launch import _interrupt, _stop, _turn_deaf
from uwm.errors import INTERRUPTED

ROOT = Path(__file__).parents[2]
SLOW = """
import sys, time
from uwm.outputs import temporary
from uwm import cli
from uwm.editing import files
def stuck(*_, **__):
    try:
        print("working", file=sys.stderr, flush=True)
        time.sleep(120)
    finally:
        print("cleaning", file=sys.stderr, flush=True)
        time.sleep(1)
        print("clean", file=sys.stderr, flush=True)
files.revert = files.apply = stuck
cli.main()
"""
START = """
import sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "uwm.cli":
            {fault}
sys.meta_path.insert(0, Slow())
from uwm.__main__ import main
main()
"""
GARBAGE = """
import atexit, gc
from uwm.__main__ import main
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))
main()
"""


def start(*arguments, code=None, before=(), **options):
    """A `uwm` of its own; `before` is what it runs in."""
    program = ["-m", "uwm"] if code is None else ["-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT} | options
    command = [*before, sys.executable, *program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **pipes.pop("environment", {})}
    return subprocess.Popen(command, env=environment, **pipes)


def test_garbage_is_seldom_looked_for_and_not_at_the_end():
    process = start("--version", code=GARBAGE, text=True)
    assert process.communicate()[0].splitlines()[-1] == "50000 True"
    assert process.returncode == 0


@pytest.fixture
def slow(source, made, out):
    """`uwm apply` that says when it works, and takes its time to clean up."""
    started = []

    def run(**how):
        process = start("apply", source, made / "patch.safetensors", "-o", out, code=SLOW, text=True, **how)
        started.append(process)
        assert process.stderr.readline() == "working\n"
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_f69_a_second_signal_does_not_disturb_the_cleaning_up(number, code, slow):
    process = slow()
    process.send_signal(number)
    assert process.stderr.readline() == "cleaning\n"
    for second in (number, signal.SIGINT, signal.SIGTERM):
        process.send_signal(second)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert told.startswith("clean\n")
    assert "Traceback" not in told
    assert ("interrupted" in told) == (number == signal.SIGINT)


@pytest.mark.skipif(shutil.which("nohup") is None, reason="no program nohup")
def test_f69_nohup_is_heeded(slow):
    process = slow(before=("nohup",), stdin=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_f69_signals_are_heard_again_by_the_next_run(run_uwm, source):
    """In one process, as tests and notebooks run it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        _turn_deaf()
        done(run_uwm("inspect", source))
        assert signal.getsignal(signal.SIGTERM) is _stop
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        done(run_uwm("inspect", source))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("heard", "number", "code", "said"), [(_interrupt, 2, 130, f"{INTERRUPTED}\n"), (_stop, 15, 143, "")]
)
def test_f69_a_signal_of_which_a_library_makes_another_error_is_the_signal(heard, number, code, said, run_uwm, source):
    """As NumPy does where a signal comes while it compares types."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def compare(*_):
        try:
            heard(number, None)
        except BaseException:
            raise TypeError("Cannot compare structured arrays") from None

    try:
        with mock.patch.object(inspection, "inspect", compare):
            found = run_uwm("inspect", source)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert found == (code, "", said)


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("raise KeyboardInterrupt", 130, b"uwm: interrupted; nothing was left half-written\n"),
        ("raise MemoryError", 4, b"uwm: error: out of memory while starting; end other programs\n"),
    ],
)
def test_f69_f76_what_happens_while_the_program_starts_is_one_line(fault, code, told):
    process = start("env", code=START.format(fault=fault))
    assert (process.communicate(timeout=60), process.returncode) == ((b"", told), code)


def test_f76_hardly_anything_is_imported_before_the_program_can_be_interrupted():
    """An interrupt in it would be a traceback of Python's own."""
    code = "import sys, uwm.__main__; print(*(n for n in sys.modules if n.startswith('uwm') or n == 'dataclasses'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*found.stdout.split()} == {"uwm", "uwm.__main__", "uwm.errors", "uwm.lazy", "uwm.version"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_f67_a_full_stdout_is_one_line(more, source):
    with open("/dev/full", "wb") as full:
        process = start("inspect", source, *more, stdout=full)
        told = process.communicate(timeout=60)[1]
    assert (told, process.returncode) == (b"uwm: error: stdout: No space left on device\n", 4)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_f67_a_full_stderr_leaves_the_exit_code(tmp_path):
    with open("/dev/full", "wb") as full:
        process = start("inspect", tmp_path / "none", stderr=full)
        process.communicate(timeout=60)
    assert process.returncode == 2


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_f78_a_terminal_of_few_signs_gets_all_that_it_can_show(encoding, more, tmp_path, made):
    folder = hf_folder(tmp_path / "mødel–τ")
    for arguments in (("inspect", folder), ("apply", folder, made / "patch.safetensors", "--dry-run"), ("edit", "-h")):
        verb_more = () if arguments[-1] == "-h" else more
        process = start(*arguments, *verb_more, environment={"PYTHONIOENCODING": encoding})
        out, err = process.communicate(timeout=60)
        assert b"Traceback" not in err
        assert process.returncode in (0, 2)
        (out + err).decode(encoding)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
@pytest.mark.parametrize("name", [b"caf\xe9", b"a b\n::error::c", b"n" * 200])
def test_f78_a_path_of_any_bytes_is_read_and_shown(name, tmp_path):
    folder = hf_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)))
    for arguments in (
        ("inspect", folder),
        ("inspect", folder, "--json"),
        ("calib-check", os.fsencode(folder) + b"/no-set"),
        ("diff", folder, folder, "--json"),
    ):
        process = start(*map(os.fsdecode, arguments))
        told = b"".join(process.communicate(timeout=60))
        assert b"Traceback" not in told
        assert process.returncode == (2 if arguments[0] == "calib-check" else 0)
        assert b"\n::error::" not in told
        told.decode("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_f78_settings_of_any_bytes_are_written_down(tiny_hf, tiny_set, tmp_path, run_uwm):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(tiny_set, folder)
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out\xff"))
    code, told, err = run_uwm("edit", tiny_hf, "--calib", folder, "-o", out, "--split", "calib", "-q", "--json")
    assert (code, err) == (0, "")
    assert (out / "uwm.json").is_file()
    told.encode()
    code, told, err = run_uwm("inspect", out)
    assert (code, err) == (0, "")


def test_f78_a_usage_mistake_of_any_bytes_is_one_line(run_uwm):
    refused(run_uwm("inspect", "--no\udcff\n"), 2)
