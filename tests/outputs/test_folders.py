"""Outputs appear whole or not at all, whatever stops the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from uwm.errors import BadInput, ResourceFault
from uwm.outputs import MANIFEST, check_folder, new_folder, put_file

STALE, RETIRED = ".uwm-0123456789abcdef-out", ".uwm-old-0123456789abcdef-out"  # as a killed run leaves them


@pytest.fixture
def old(tmp_path):
    """An earlier output."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_text("old")
    return tmp_path / "out"


def fill(output, text="new"):
    with new_folder(output) as folder:
        (folder / "weights").write_text(text)


def assert_only(output, text):
    """`output` is whole and stands alone."""
    assert os.listdir(output.parent) == [output.name]
    assert {path.name: path.read_text() for path in output.iterdir()} == {"weights": text}


def interrupted(output, error):
    with new_folder(output) as folder:
        (folder / "weights").write_text("half")
        raise error


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_output_appears_at_the_end(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "weights").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
    assert_only(tmp_path / "deep" / "out", "new")


def test_an_earlier_output_is_replaced_whole(old):
    (old / "leftover").touch()
    fill(old)
    assert_only(old, "new")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_body_that_raises_leaves_nothing_and_the_old_output_intact(old, error):
    with pytest.raises(error):
        interrupted(old, error)
    assert_only(old, "old")


def test_a_body_that_raises_leaves_no_new_output(tmp_path):
    with pytest.raises(BadInput, match="bad pair"):
        interrupted(tmp_path / "out", BadInput("bad pair"))
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_in_the_body_is_a_resource_fault(old):
    with pytest.raises(ResourceFault, match="out: could not write: No space left on device"):
        interrupted(old, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert_only(old, "old")


@pytest.mark.parametrize("call", ["os.fsync", "os.mkdir", "os.rename"])
def test_a_disk_that_fails_at_any_step_leaves_the_old_output(old, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(call, full_disk)
        with pytest.raises(ResourceFault, match="No space left"):
            fill(old)
    assert_only(old, "old")
    fill(old)
    assert_only(old, "new")


def test_a_second_rename_that_fails_brings_the_old_output_back(old, monkeypatch):
    rename, calls = os.rename, []

    def second_fails(*arguments, **options):
        calls.append(arguments)
        return full_disk() if len(calls) == 2 else rename(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", second_fails)
        with pytest.raises(ResourceFault, match="No space left"):
            fill(old)
    assert_only(old, "old")


def test_what_a_killed_run_left_is_removed_and_named(old, caplog):
    stale = old.parent / STALE
    stale.mkdir()
    (stale / "weights").write_text("half")
    fill(old)
    assert_only(old, "new")
    assert f"removing {stale}, left by a run that was killed" in caplog.text


def test_stopped_between_the_two_renames_the_old_output_comes_back(tmp_path):
    retired = tmp_path / RETIRED
    retired.mkdir()
    (retired / "weights").write_text("old")
    with pytest.raises(ValueError, match="later"):
        interrupted(tmp_path / "out", ValueError("later"))
    assert_only(tmp_path / "out", "old")


def test_stopped_after_the_second_rename_the_new_output_stays(old):
    retired = old.parent / RETIRED
    retired.mkdir()
    (retired / "weights").write_text("older")
    with pytest.raises(ValueError, match="later"):
        interrupted(old, ValueError("later"))
    assert_only(old, "old")


def test_one_process_does_not_write_an_output_twice_at_once(old):
    with new_folder(old) as folder:
        with pytest.raises(ResourceFault, match="is writing it now"):
            fill(old, "inner")
        (folder / "weights").write_text("outer")
    assert_only(old, "outer")


def test_other_people_s_files_are_left_alone(tmp_path):
    names = [STALE.replace("-out", "-other"), ".uwm-notes-out", f"{STALE}.bak", STALE[1:], ".uwm-123-out"]
    for name in names:
        (tmp_path / name).mkdir()
    fill(tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "out"])


def test_killed_while_writing_the_old_output_stays_and_the_next_run_goes_on(old):
    program = (
        "import sys, time, pathlib\n"
        "from uwm.outputs import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(old)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout.readline() == b"writing\n"
    with pytest.raises(ResourceFault, match=f"process {process.pid} on .* is writing it now"):
        fill(old)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (old / "weights").read_text() == "old"
    assert len(os.listdir(old.parent)) == 3  # the output, the lock and the temporary folder
    fill(old)
    assert_only(old, "new")


# ---------------------------------------------------------------- before the work


def test_a_free_output_is_fine(tmp_path, old):
    check_folder(tmp_path / "new", [old], overwrite=False)
    check_folder(tmp_path / "a" / "b" / "new", [old], overwrite=False)
    (old / MANIFEST).touch()
    assert check_folder(old, [tmp_path / "model"], overwrite=True) == old


def test_a_folder_that_uwm_did_not_write_is_never_replaced(tmp_path, old):
    with pytest.raises(BadInput, match="was not written by uwm"):
        check_folder(old, [], overwrite=True)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", [], overwrite=True)


def test_an_output_that_exists_needs_overwrite(old):
    with pytest.raises(BadInput, match="exists; pass --overwrite"):
        check_folder(old, [], overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_is_a_file_is_bad_input(tmp_path, overwrite):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="exists and is no folder"):
        check_folder(tmp_path / "file", [], overwrite)


@pytest.mark.parametrize("spelling", ["out", "out/", "./out", "sub/../out", "link"])
@pytest.mark.parametrize("source", ["out", "out/weights"])
def test_an_output_that_is_the_input_is_bad_input(old, spelling, source):
    (old.parent / "sub").mkdir()
    (old.parent / "link").symlink_to("out")
    with pytest.raises(BadInput, match="is the input itself"):
        check_folder(old.parent / spelling, [old.parent / source], overwrite=True)


def test_an_output_that_holds_the_input_deeper_down_is_bad_input(tmp_path):
    (tmp_path / "all" / "models" / "clip").mkdir(parents=True)
    with pytest.raises(BadInput, match="input"):
        check_folder(tmp_path / "all", [tmp_path / "all" / "models" / "clip"], overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_to_is_a_resource_fault(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ResourceFault, match="not writable"):
        check_folder(tmp_path / "locked" / "sub" / "out", [], overwrite=False)


# ---------------------------------------------------------------- single files


def test_a_file_is_replaced_whole(tmp_path):
    put_file(tmp_path / "new" / "file", b"one")
    put_file(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path / "new") == ["file"]


@pytest.mark.parametrize("call", ["os.fsync", "os.replace"])
def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path, monkeypatch, call):
    put_file(tmp_path / "file", b"one")
    monkeypatch.setattr(call, full_disk)
    with pytest.raises(ResourceFault, match="file: could not write: No space left"):
        put_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]
