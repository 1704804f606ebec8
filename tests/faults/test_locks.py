"""Two runs never write one output at once, whatever process ids they have; what is dead blocks nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from terminal import done, refused

from uwm.errors import BadInput, ResourceFault
from uwm.models import loading
from uwm.outputs import MANIFEST, filled_folder, folders, locks, output_file, output_folder
from uwm.outputs.locks import Owner, lock_beside, locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from uwm.outputs import output_folder
with output_folder(Path(sys.argv[1])) as place, place.make() as folder:
    (folder / "weights").write_text("first")
    print("writing", flush=True)
    sys.stdin.readline()
"""
UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")


def hold(out, *before):
    """A process that writes an output until it is sent a line; `before` is what it runs in."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*before, sys.executable, "-c", HOLD, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, env=environment, text=True, **pipes)


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(loading, "open_checkpoint", lambda *_: pytest.fail("a model was opened"))


@pytest.fixture
def no_flock(monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)


# ---------------------------------------------------------------- verbs


def test_f72_of_two_edits_at_once_the_second_is_refused_before_the_work(
    run_uwm, tiny_hf, tiny_set, made, out, no_model
):
    words = (
        ("edit", tiny_hf, "--calib", tiny_set),
        ("finetune", tiny_hf, "--calib", tiny_set, "--method", "safe-clip"),
    )
    with output_folder(out) as place:
        for more in words:
            refused(run_uwm(*more, "-o", out), 4, f"process {os.getpid()} on ", "is writing it now")
        refused(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", out), 4, "is writing it now")
        with place.make() as folder:
            (folder / MANIFEST).write_text("{}")
    for more in words:
        refused(run_uwm(*more, "-o", out), 2, "exists; pass --overwrite")


@pytest.mark.parametrize("verb", ["tune", "compare"])
def test_f72_two_searches_in_one_folder_are_refused(verb, run_uwm, tiny_hf, tiny_set, out, no_model):
    kind = {"tune": "tune", "compare": "comparison"}[verb]
    words = (verb, tiny_hf, "--calib", tiny_set, "-o", out, *(("--methods", "uwm") if verb == "compare" else ()))
    with filled_folder(out, kind, kind):
        refused(run_uwm(*words), 4, f"process {os.getpid()} on ", "is writing it now")
        refused(run_uwm(*words, "--overwrite"), 4, "is writing it now")
    assert not out.exists()


def test_f72_two_runs_that_write_one_file_are_refused(run_uwm, tiny_hf, tiny_set, made, out, no_model):
    with output_file(out, [], False, lambda path: True):
        refused(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", out), 4, "is writing it now")
        refused(run_uwm("select", made / "scores.safetensors", "-o", out), 4, "is writing it now")
        refused(run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--html", out), 4, "is writing it now")
    assert os.listdir(out.parent) == []


def test_f09_the_name_of_a_lock_s_owner_is_shown_without_control_characters(out):
    with locked(out, lock_beside(out)):
        lock_beside(out).write_text('{"pid": 7, "host": "a\\u001b[31mb"}')
        with pytest.raises(ResourceFault, match=r"process 7 on a[^\x1b]*b is writing"), output_folder(out):
            pass


def test_f72_an_output_by_another_name_is_the_same_output(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with (
        output_folder(tmp_path / "real" / "out"),
        pytest.raises(ResourceFault, match="is writing it now"),
        output_folder(tmp_path / "link" / "out"),
    ):
        pass


def test_f72_an_output_that_was_written_while_we_waited_for_the_lock_is_seen(out, monkeypatch):
    def slow(output, lock):
        out.mkdir()
        return locked(output, lock)

    monkeypatch.setattr(folders, "locked", slow)
    with pytest.raises(BadInput, match="exists; pass --overwrite"), output_folder(out):
        pass


# ---------------------------------------------------------------- processes


def test_f68_a_killed_run_blocks_nobody(run_uwm, tiny_hf, made, out):
    with hold(out) as process:
        assert process.stdout.readline() == "writing\n"
        words = ("apply", tiny_hf, made / "patch.safetensors", "-o", out)
        refused(run_uwm(*words), 4, f"process {process.pid} on ", "is writing it now")
        process.send_signal(signal.SIGKILL)
    left = {path.name for path in out.parent.iterdir()}
    assert len(left) == 2  # the lock and the temporary folder
    code, _, _ = run_uwm(*words)
    assert code == 0
    assert os.listdir(out.parent) == ["out"]


def test_f68_what_process_1_left_blocks_nobody(run_uwm, tiny_hf, made, out):
    """In a container, every run is process 1, and so is whoever is there now."""
    lock_beside(out).write_text(json.dumps(asdict(replace(Owner.ourselves(), pid=1))))
    (out.parent / ".uwm-1-out").mkdir()  # of uwm before it had locks
    done(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", out))
    assert sorted(os.listdir(out.parent)) == [".uwm-1-out", "out"]


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no program unshare")
def test_f72_two_process_namespaces_do_not_write_one_output(out):
    if (made := subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no namespaces here: {made.stderr.strip()}")
    with hold(out, *UNSHARE) as first:
        assert first.stdout.readline() == "writing\n"
        temporary = {path.name for path in out.parent.iterdir()}
        with hold(out, *UNSHARE) as second:
            _, err = second.communicate("\n", timeout=60)
        assert second.returncode == 1
        assert "out: process 1 on " in err.splitlines()[-1]
        assert {path.name for path in out.parent.iterdir()} == temporary
        first.communicate("\n", timeout=60)
    assert first.returncode == 0
    assert (out / "weights").read_text() == "first"
    assert os.listdir(out.parent) == ["out"]


# ---------------------------------------------------------------- where the file system has no locks


def test_f74_without_flock_a_live_owner_keeps_its_lock(out, no_flock):
    with (
        output_folder(out),
        pytest.raises(ResourceFault, match=rf"process {os.getpid()} on .* is writing it now.*; if it is gone, remove"),
        output_folder(out),
    ):
        pass
    assert os.listdir(out.parent) == []


GONE = {
    "a process that ended": {"pid": 2**22 + 1},
    "its number is another process's": {"started": "1"},
    "the machine was started anew": {"boot": "before"},
}
UNKNOWN = {"another machine": {"host": "elsewhere"}, "another namespace": {"namespace": "pid:[1]"}}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE)
def test_f74_without_flock_a_lock_of_a_dead_owner_is_taken(change, out, no_flock):
    lock_beside(out).write_text(json.dumps(asdict(replace(Owner.ourselves(), **change))))
    with output_folder(out):
        assert json.loads(lock_beside(out).read_text())["pid"] == os.getpid()
    assert os.listdir(out.parent) == []


def test_f74_without_flock_and_without_proc_the_process_id_decides(out, no_flock, monkeypatch):
    monkeypatch.setattr(locks, "PROCESS", Path("/no/such/folder"))
    lock_beside(out).write_text(json.dumps(asdict(replace(Owner.ourselves(), pid=2**22 + 1))))
    with output_folder(out), pytest.raises(ResourceFault, match="is writing it now"), output_folder(out):
        pass


@pytest.mark.parametrize("change", UNKNOWN.values(), ids=UNKNOWN)
def test_f74_without_flock_an_owner_that_cannot_be_seen_keeps_its_lock(change, out, no_flock):
    lock_beside(out).write_text(json.dumps(asdict(replace(Owner.ourselves(), pid=2**22 + 1, **change))))
    with pytest.raises(ResourceFault, match=f"if it is gone, remove {lock_beside(out)}"), output_folder(out):
        pass
    assert lock_beside(out).is_file()


ODD = ("", "{", "[1]", '{"pid": 1}', '"x"', "[" * 5000, '{"pid": "1", "host": "h"}', '{"pid": true, "host": "h"}')
ODD += ('{"pid": 1, "host": ["h"]}', '{"pid": 99999999999, "host": "h"}', '{"pid": -1, "host": "h"}')


@pytest.mark.parametrize("content", ODD)
def test_f74_without_flock_a_lock_without_an_owner_is_kept(content, out, no_flock):
    lock_beside(out).write_text(content)
    with pytest.raises(ResourceFault, match="another process is writing it now"), output_folder(out):
        pass


# ---------------------------------------------------------------- planted locks


def planted_link(lock, victim):
    lock.symlink_to(victim)


def planted_hard_link(lock, victim):
    os.link(victim, lock)


def planted_pipe(lock, victim):
    os.mkfifo(lock)


PLANTED = {
    "link": (planted_link, "cannot be written: Too many levels of symbolic links"),
    "hard link": (planted_hard_link, "is a link or no regular file, which uwm never makes; remove it"),
    "pipe": (planted_pipe, "is a link or no regular file, which uwm never makes; remove it"),
}


@pytest.mark.parametrize(("plant", "message"), PLANTED.values(), ids=PLANTED)
def test_a_lock_that_somebody_planted_is_not_written_to(plant, message, tmp_path, out):
    victim = tmp_path / "victim"
    victim.write_text("theirs")
    plant(lock_beside(out), victim)
    with pytest.raises(ResourceFault, match=message), output_folder(out):
        pass
    assert victim.read_text() == "theirs"


def test_a_very_long_name_has_a_lock_and_a_temporary_name_too(tmp_path):
    long = tmp_path / ("x" * 250)
    with output_folder(long) as place, place.make() as folder:
        (folder / "weights").write_text("w")
    assert [path.name for path in tmp_path.iterdir()] == [long.name]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_f67_a_refusal_removes_the_lock_of_a_run_that_was_killed_when_it_had_written(kind, tmp_path):
    out = tmp_path / "out"
    out.mkdir() if kind == "folder" else out.touch()
    lock_beside(out).write_text(json.dumps(asdict(replace(Owner.ourselves(), pid=2**22 + 1))))
    with pytest.raises(BadInput):
        refuse_existing(kind, out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_refusal_leaves_the_lock_of_a_run_that_goes_on(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with locked(out, lock_beside(out)):
        with pytest.raises(BadInput):
            refuse_existing("folder", out)
        assert lock_beside(out).is_file()


def test_a_refusal_of_a_place_that_can_have_no_lock_says_what_it_would():
    with pytest.raises(BadInput):
        refuse_existing("folder", Path("/"))


def refuse_existing(kind, out):
    with output_folder(out) if kind == "folder" else output_file(out, [], False, lambda path: None):
        pass
