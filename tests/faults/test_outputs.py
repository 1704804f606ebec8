"""What is written never replaces what is not ours, and is whole; places are checked before the work."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from random_patches import patch_of
from safetensors.torch import load_file, save_file
from terminal import bytes_below, done, hashes, refused
from tiny_files import hf_folder, hf_state

import uwm
from uwm import evaluating
from uwm.errors import BadInput, ResourceFault
from uwm.gate import is_junit, junit
from uwm.models import loading
from uwm.outputs import MANIFEST, output_file, output_folder, put_file
from uwm.report import html_report, is_page

PAGE = html_report({"model": {"name": "m"}, "results": {}, "differences": {}})


def always(path):
    return True


@pytest.fixture
def inputs(tmp_path, tiny_hf, tiny_set, made):
    """A model, a set and scores that a test may lose."""
    folder = tmp_path / "inputs"
    shutil.copytree(tiny_hf, folder / "model")
    shutil.copytree(tiny_set, folder / "set")
    shutil.copy(made / "scores.safetensors", folder)
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """What is refused is refused before a model is opened."""

    def opened(*_, **__):
        pytest.fail("a model was opened")

    monkeypatch.setattr(loading, "open_checkpoint", opened)
    monkeypatch.setattr(evaluating, "load", opened)


@pytest.fixture
def verbs(run_uwm, inputs):
    """Every verb that writes one file: how it is called -> its result for a place."""
    model, calib = inputs / "model", inputs / "set"
    before = {
        "score": ("score", model, "--calib", calib, "--overwrite", "-o"),
        "select": ("select", inputs / "scores.safetensors", "--overwrite", "-o"),
        "html": ("eval", model, "--pairs", calib, "--html"),
        "junit": ("eval", model, "--pairs", calib, "--junit"),
        "markdown": ("eval", model, "--pairs", calib, "--markdown"),
    }
    return {name: lambda place, words=words: run_uwm(*words, place) for name, words in before.items()}


# ---------------------------------------------------------------- inputs


INPUTS = ("model/model.safetensors", "model/config.json", "set/pairs.jsonl", "set/images/0000_safe.png")


@pytest.mark.parametrize("place", INPUTS)
@pytest.mark.parametrize("verb", ["score", "html", "junit", "markdown"])
def test_f70_no_file_of_an_input_is_replaced(verb, place, verbs, inputs, no_model):
    before = bytes_below(inputs)
    refused(verbs[verb](inputs / place), 2, "is an input or lies in one")
    assert bytes_below(inputs) == before


@pytest.mark.parametrize("verb", ["score", "select", "html", "junit", "markdown"])
def test_f70_no_new_file_goes_into_an_input(verb, verbs, inputs, no_model):
    before = bytes_below(inputs)
    place = inputs / "scores.safetensors" if verb == "select" else inputs / "set" / "new"
    refused(verbs[verb](place), 2, "input")
    assert bytes_below(inputs) == before


@pytest.mark.parametrize("verb", ["html", "junit", "markdown", "score"])
def test_f70_an_input_behind_a_link_is_not_replaced(verb, verbs, inputs, tmp_path, no_model):
    before = bytes_below(inputs)
    (tmp_path / "link").symlink_to(inputs / "model" / "model.safetensors")
    refused(verbs[verb](tmp_path / "link"), 2, "is an input or lies in one")
    assert bytes_below(inputs) == before


def test_f70_an_input_by_a_hard_link_is_not_replaced(run_uwm, inputs, tmp_path):
    os.link(inputs / "scores.safetensors", tmp_path / "same")
    found = run_uwm("select", inputs / "scores.safetensors", "-o", tmp_path / "same", "--overwrite")
    refused(found, 2, "is the input itself by another name")


def test_f70_a_folder_is_not_made_within_an_input(run_uwm, made, inputs, tmp_path):
    before = bytes_below(inputs)
    for place in ("model/out", "model/deep/out"):
        refused(run_uwm("apply", inputs / "model", made / "patch.safetensors", "-o", inputs / place), 2, "lies in one")
    refused(run_uwm("edit", inputs / "model", "--calib", inputs / "set", "-o", inputs / "set" / "out"), 2, "lies in")
    assert bytes_below(inputs) == before


def test_a_comparison_is_not_laid_over_a_checkpoint_that_it_compares(run_uwm, inputs, tmp_path):
    given = shutil.copytree(inputs / "model", tmp_path / "comparison" / "checkpoints" / "kept")
    flags = ("--calib", inputs / "set", "--methods", f"kept={given}", "-o", tmp_path / "comparison")
    refused(run_uwm("compare", inputs / "model", *flags), 2, "is the input itself or a folder around it")
    assert (given / "model.safetensors").is_file()


# ---------------------------------------------------------------- what is not ours


FOREIGN = {
    "score": b'\x02\0\0\0\0\0\0\0{}',
    "select": b"weights of somebody",
    "html": b"<!doctype html>\n<html><head><title>mine</title></head></html>",
    "junit": b'<?xml version="1.0"?><testsuites name="pytest tests"/>',
}  # fmt: skip


@pytest.mark.parametrize("verb", FOREIGN)
def test_f71_a_file_without_our_mark_is_not_replaced(verb, verbs, tmp_path, no_model):
    (tmp_path / "file").write_bytes(FOREIGN[verb])
    refused(verbs[verb](tmp_path / "file"), 2, "exists and was not written by uwm as a file of this kind")
    assert (tmp_path / "file").read_bytes() == FOREIGN[verb]


def test_f71_scores_are_no_patch(verbs, made, tmp_path):
    shutil.copy(made / "scores.safetensors", tmp_path / "file")
    refused(verbs["select"](tmp_path / "file"), 2, "was not written by uwm as a file of this kind")
    with pytest.raises(BadInput, match="holds no patch that uwm wrote"):
        uwm.Patch.load(made / "patch.safetensors").save(tmp_path / "file")
    shutil.copy(made / "patch.safetensors", tmp_path / "patch")
    assert verbs["select"](tmp_path / "patch")[0] == 0


def test_f71_our_marks_are_known(tmp_path):
    for place, data, ours in (("page", PAGE.encode(), is_page), ("gate", junit([], "uwm eval m"), is_junit)):
        (tmp_path / place).write_bytes(data)
        assert ours(tmp_path / place)
        (tmp_path / place).write_bytes(b"x" + data)
        assert not ours(tmp_path / place)


def test_f71_a_file_of_a_folder_of_ours_belongs_to_it(verbs, made, tmp_path):
    folder = shutil.copytree(made / "edited", tmp_path / "edited")
    before = hashes(folder)
    refused(verbs["select"](folder / "uwm_patch.safetensors"), 2, "belongs to the folder that uwm wrote there")
    refused(verbs["html"](folder / "report.html"), 2, "belongs to the folder that uwm wrote there")
    assert hashes(folder) == before


@pytest.mark.parametrize("kind", ["search", "comparison"])
def test_f71_a_search_is_not_replaced_by_a_model(kind, run_uwm, inputs, made, out):
    out.mkdir()
    (out / MANIFEST).write_text(json.dumps({"kind": kind}))
    words = ("apply", inputs / "model", made / "patch.safetensors", "-o", out, "--overwrite")
    refused(run_uwm(*words), 2, f"exists and holds a {kind}, so it is not replaced")
    assert (out / MANIFEST).is_file()
    (out / MANIFEST).write_text('{"kind": "\\u001b[31m"}')
    assert "\x1b" not in refused(run_uwm(*words), 2, "exists and holds a")


def test_f71_two_reports_are_not_one_file(run_uwm, inputs, tmp_path, no_model):
    (tmp_path / "link").symlink_to("report")
    flags = ("--html", tmp_path / "report", "--junit", tmp_path / "link")
    refused(run_uwm("eval", inputs / "model", "--pairs", inputs / "set", *flags), 2, "are one file; choose another")


def test_a_link_in_a_folder_that_is_filled_is_refused(run_uwm, inputs, out):
    out.mkdir()
    (out / MANIFEST).write_text('{"kind": "comparison"}')
    (out / "comparison.md").symlink_to(inputs / "set" / "pairs.jsonl")
    words = ("compare", inputs / "model", "--calib", inputs / "set", "--methods", "uwm", "-o", out)
    refused(run_uwm(*words), 2, "comparison.md: a link or no regular file, which uwm never writes; remove it")
    with pytest.raises(ResourceFault, match="a link or no regular file"):
        put_file(out / "comparison.md", b"x")
    assert (inputs / "set" / "pairs.jsonl").read_bytes().startswith(b"{")


# ---------------------------------------------------------------- devices, pipes, links


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_f71_a_device_is_written_to_and_stays_one(verbs, tmp_path):
    os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert verbs["select"](tmp_path / "null")[0] == 0
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_f67_a_device_that_is_full_is_an_error(verbs, tmp_path):
    (tmp_path / "link").symlink_to("/dev/full")
    assert verbs["select"](tmp_path / "link")[0::2] == (
        4,
        f"uwm: error: {tmp_path / 'link'}: could not write: No space left on device\n",
    )


def test_f71_stdout_is_written_to_as_a_stream(inputs, tmp_path, capfd):
    place = tmp_path / "redirected"
    with place.open("w") as stream:
        stream.write("before\n")
        stream.flush()
        for name in (f"/dev/fd/{stream.fileno()}", f"/proc/self/fd/{stream.fileno()}"):
            with output_file(Path(name), [inputs], False, always) as file:
                file.write(b"report\n")
    assert place.read_text() == "before\nreport\nreport\n"
    (tmp_path / "link").symlink_to("/dev/stdout")
    for name in ("/dev/stdout", tmp_path / "link"):
        with output_file(Path(name), [inputs], False, always) as file:
            file.write(b"report\n")
    assert capfd.readouterr().out == "report\nreport\n"
    assert (tmp_path / "link").is_symlink()


def test_f71_what_was_printed_before_comes_first(tmp_path):
    code = (
        "from pathlib import Path; from uwm.outputs import output_file; print('figures')\n"
        "with output_file(Path('/dev/stdout'), [], False, None) as file: file.write(b'report')"
    )
    with (tmp_path / "redirected").open("w") as stream:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", code], stdout=stream, check=True, cwd=root, env=environment)
    assert (tmp_path / "redirected").read_text() == "figures\nreport"


def test_f71_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with output_file(tmp_path / "pipe", [], False, always) as file:
        file.write(b"report")
    assert os.read(reader, 100) == b"report"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("verb", ["select", "html", "markdown"])
def test_f71_a_socket_and_a_loop_are_refused(verb, verbs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        refused(verbs[verb](tmp_path / "socket"), 2, "is no regular file, so it is not replaced")
    (tmp_path / "loop").symlink_to("loop")
    refused(verbs[verb](tmp_path / "loop"), 2, "links that lead to themselves")


def test_f71_a_link_is_followed_and_said(verbs, made, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/patch.safetensors")
    code, _, err = verbs["select"](tmp_path / "link")
    assert code == 0
    assert f"{tmp_path / 'link'} is a link; what is written is {tmp_path / 'real' / 'patch.safetensors'}" in err
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "real") == ["patch.safetensors"]


def test_f71_a_folder_behind_a_link_is_replaced_in_its_place(run_uwm, inputs, made, tmp_path):
    words = ("apply", inputs / "model", made / "patch.safetensors", "--overwrite", "-o")
    done(run_uwm(*words, tmp_path / "real"))
    (tmp_path / "link").symlink_to("real")
    code, _, err = run_uwm(*words, tmp_path / "link")
    assert (code, (tmp_path / "link").is_symlink(), (tmp_path / "real").is_symlink()) == (0, True, False)
    assert "is a link; what is written is" in err


def test_f71_a_place_that_cannot_be_written_to_is_found_out_before_the_work(verbs, tmp_path, no_model):
    (tmp_path / "file").touch()
    for verb, run in verbs.items():
        refused(run(tmp_path / "file" / verb), 4, f"file/{verb}")


# ---------------------------------------------------------------- permissions


def test_f79_permissions_of_what_is_replaced_stay(tmp_path):
    for mode in (0o600, 0o640):
        put_file(tmp_path / "file", b"one")
        (tmp_path / "file").chmod(mode)
        put_file(tmp_path / "file", b"two")
        with output_file(tmp_path / "file", [], True, always) as file:
            file.write(b"three")
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_f79_permissions_of_a_folder_and_of_its_files_stay(tmp_path):
    for _ in range(2):
        with output_folder(tmp_path / "out", overwrite=True) as place, place.make() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # nobody else sees it grow
            (folder / "weights").write_text("w")
            (folder / MANIFEST).write_text("{}")
        if _ == 0:
            (tmp_path / "out").chmod(0o750)
            (tmp_path / "out" / "weights").chmod(0o600)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "out/weights")]
    assert modes == [0o750, 0o600]


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o000])
def test_f79_a_new_output_has_the_umask_s_permissions(mask, tmp_path):
    before = os.umask(mask)
    try:
        with output_folder(tmp_path / "out") as place, place.make() as folder:
            (folder / "weights").write_text("w")
        with output_file(tmp_path / "file", [], False, always) as file:
            file.write(b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "file")]
    assert modes == [0o777 & ~mask, 0o666 & ~mask]


# ---------------------------------------------------------------- names of ours


def sharded_as_ours(folder):
    """A model in two shards, one of which has the name of our patch."""
    state = hf_state()
    names = {key: ("a.safetensors", "uwm_patch.safetensors")[number % 2] for number, key in enumerate(sorted(state))}
    hf_folder(folder)
    (folder / "model.safetensors").unlink()
    for shard in set(names.values()):
        save_file({key: state[key] for key in names if names[key] == shard}, folder / shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def with_folder(folder, name):
    hf_folder(folder)
    (folder / name).mkdir()
    (folder / name / "file").write_text("theirs")
    return folder


@pytest.mark.parametrize("name", ["uwm_patch.safetensors", "README.md", "report.html", MANIFEST])
def test_a_shard_or_a_folder_with_a_name_of_ours_is_refused_before_the_work(name, run_uwm, tmp_path, out, source):
    model = tmp_path / "model"
    sharded_as_ours(model) if name == "uwm_patch.safetensors" else with_folder(model, name)
    patch_of(source).save(tmp_path / "patch")
    for words in (("apply", model, tmp_path / "patch"), ("revert", model, tmp_path / "patch")):
        refused(run_uwm(*words, "-o", out), 2, f"{name}", "under which uwm writes beside the weights; rename")
    for words in (("edit", model), ("finetune", model, "--method", "safe-clip")):
        refused(run_uwm(*words, "--calib", tmp_path / "none", "-o", out), 2, "under which uwm writes")
    assert not out.exists()


def test_a_folder_with_the_name_of_an_export_is_refused_before_the_work(run_uwm, tmp_path, out):
    model = with_folder(tmp_path / "model", "open_clip")
    words = ("edit", model, "--calib", tmp_path / "none", "--also-export", "open_clip", "-o", out)
    refused(run_uwm(*words), 2, "open_clip/file has a name under which uwm writes")


def test_apply_still_writes_what_it_should(run_uwm, inputs, made, out):
    done(run_uwm("apply", inputs / "model", made / "patch.safetensors", "-o", out))
    assert load_file(out / "model.safetensors").keys() == load_file(inputs / "model" / "model.safetensors").keys()
    assert os.listdir(out.parent) == sorted(["inputs", "out"], key=os.listdir(out.parent).index)
