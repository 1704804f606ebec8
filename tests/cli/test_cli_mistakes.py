"""Every mistake as the terminal shows it: one clear line, the right exit code, nothing written, no traceback."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ARCH
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB, done, hashes, refused


def edit(run_uwm, tiny_hf, calib, tmp_path, *more):
    """An edit that must not write -> its result."""
    result = run_uwm("edit", tiny_hf, "--calib", calib, "-o", tmp_path / "deep" / "out", *more)
    assert not (tmp_path / "deep").exists()
    assert not [*tmp_path.rglob(".uwm-*"), *Path(calib).parent.glob(".uwm-*")]
    return result


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--mass", "0"], 2, ["mass 0.0: expected a number between 0 and 1"]),
        (["--mass", "1"], 2, ["mass 1.0: expected a number between 0 and 1"]),
        (["--mass", "-1"], 2, ["mass -1.0: expected a number between 0 and 1"]),
        (["--mass", "nan"], 2, ["--mass", "expected a finite number"]),
        (["--text-mass", "2"], 2, ["mass 2.0"]),
        (["--alpha", "1"], 1, ["--alpha 1 changes nothing"]),
        (["--alpha", "inf"], 2, ["--alpha inf: expected a finite number"]),
        (["--alpha", "1e30"], 2, ["--alpha 1e+30: expected a finite number"]),
        (["--method", "best"], 2, ["--method 'best': expected one of uwm"]),
        (["--device", "cuda:99"], 4, ["--device cuda:99: not available on this machine; try --device cpu"]),
        (["--device", "gpu"], 2, ["--device 'gpu': expected auto, cpu, cuda"]),
        (["--dtype", "int8"], 2, ["--dtype 'int8': expected one of auto, float32"]),
        (["--holdout", "1"], 2, ["--holdout 1.0: expected a share between 0 and 1"]),
        (["--split", "x"], 2, ["no pair has split 'x'; the set has calib, test"]),
        (["--eval-split", "calib"], 2, ["'calib' holds pairs that calibration uses"]),
        (["--text-layers", "fc9"], 2, ["--text-layers 'fc9' matches no weight", "blocks 0–1 with q_proj"]),
        (["--vision-layers", "vision.9.fc2"], 2, ["'vision.9.fc2' matches no weight", "blocks 0–2"]),
        (["--text-layers", "none", "--vision-layers", "none"], 2, ["no weight is chosen"]),
        (["--no-quick-gelu"], 2, ["its config says quick_gelu True; drop the flag"]),
        (["--zero-shot", "nope"], 2, ["--zero-shot nope: no such folder, and no data set of that name", "cifar10"]),
        (["--zero-shot", "cifar10"], 2, ["--zero-shot cifar10: say with --data-root (or UWM_DATA_ROOT)"]),
        (["--zero-shot", "dtd", "--data-root", "nope"], 2, ["--zero-shot dtd: no dtd/dtd in --data-root nope"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_setting(flags, code, words, run_uwm, tiny_hf, tiny_set, tmp_path):
    refused(edit(run_uwm, tiny_hf, tiny_set, tmp_path, *flags), code, *words)


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_f77_cuda_that_is_not_there(run_uwm, tiny_hf, tiny_set, tmp_path):
    refused(edit(run_uwm, tiny_hf, tiny_set, tmp_path, "--device", "cuda"), 4, "--device cuda: not available")


def test_wrong_model(run_uwm, tiny_hf, tiny_open_clip, tiny_set, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no header")
    for model, flags, word in (
        (tmp_path / "nope", (), "nope: no such file or folder"),
        (tmp_path / "empty", (), "no weights in this folder; expected one of model.safetensors"),
        (tmp_path / "text.safetensors", (), "text.safetensors: "),
        (tiny_hf / "model.safetensors", (), "bare weights do not say their activation; pass --quick-gelu"),
        (tiny_open_clip / "open_clip_model.safetensors", (), "or --arch with an open_clip name"),
        (tiny_open_clip / "open_clip_model.safetensors", ("--arch", "ViT-9"), "--arch 'ViT-9' is not known"),
    ):
        refused(edit(run_uwm, model, tiny_set, tmp_path, *flags), 2, word)


@pytest.fixture
def broken_set(tiny_set, tmp_path):
    """Change line 3 of a copy of the set."""

    def change(old, new):
        shutil.copytree(tiny_set, tmp_path / "set", dirs_exist_ok=True)
        lines = (tmp_path / "set" / "pairs.jsonl").read_text().splitlines()
        assert old in lines[2]
        lines[2] = lines[2].replace(old, new, 1)
        (tmp_path / "set" / "pairs.jsonl").write_text("\n".join(lines))
        return tmp_path / "set"

    return change


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ('"concept"', '"konzept"', 2, ["pairs.jsonl:3: unknown key 'konzept'; expected id, concept, safe_text"]),
        ('{"id": ', '{"id" ', 2, ["pairs.jsonl:3:7: not valid JSON"]),
        ("0002_safe.png", "none.png", 2, ["pairs.jsonl:3: picture 'images/none.png' does not exist"]),
        ("images/0002_safe.png", "../out.png", 3, ["pairs.jsonl:3: picture '../out.png' lies outside"]),
        ("images/0002_safe.png", "/etc/hostname", 3, ["pairs.jsonl:3: picture '/etc/hostname' lies outside"]),
        ("images/0002_safe.png", "https://x.org/a.png", 3, ["pairs.jsonl:3: 'https://x.org/a.png' is a URL"]),
        ('"0002"', '"0001"', 2, ["pairs.jsonl:3: id '0001' was already used in line 2"]),
    ],
    ids=["key", "JSON", "missing", "outside", "absolute", "URL", "id"],
)
def test_wrong_line(old, new, code, words, run_uwm, tiny_hf, broken_set, tmp_path):
    calib = broken_set(old, new)
    refused(edit(run_uwm, tiny_hf, calib, tmp_path), code, *words)
    refused(run_uwm("calib-check", calib), code, *words)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_corrupt_picture(content, run_uwm, tiny_hf, broken_set, tmp_path):
    calib = broken_set("", "")
    (calib / "images" / "0002_unsafe.png").write_bytes(content)
    refused(edit(run_uwm, tiny_hf, calib, tmp_path, *ALL_OF_CALIB), 2, "0002_unsafe.png: not a picture")


def test_no_set_and_empty_set(run_uwm, tiny_hf, tmp_path):
    refused(edit(run_uwm, tiny_hf, tmp_path / "nope", tmp_path), 2, "nope: no such folder", "pairs.jsonl")
    (tmp_path / "set").mkdir()
    refused(edit(run_uwm, tiny_hf, tmp_path / "set", tmp_path), 2, "neither pairs.jsonl nor the folders safe/")
    (tmp_path / "set" / "pairs.jsonl").touch()
    refused(edit(run_uwm, tiny_hf, tmp_path / "set", tmp_path), 2, "set: the set is empty")


def test_config_with_an_unknown_key(run_uwm, tiny_hf, tiny_set, tmp_path):
    (tmp_path / "settings.toml").write_text("masss = 0.1")
    result = edit(run_uwm, tiny_hf, tiny_set, tmp_path, "--config", tmp_path / "settings.toml")
    refused(result, 2, "settings.toml: unknown key 'masss'; expected some of", "mass")


def test_output_that_cannot_be_used(run_uwm, made, tiny_hf, tiny_set, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tiny_hf)
    before = hashes(tiny_hf)
    for output, flags, word in (
        (made / "edited", (), "exists; pass --overwrite"),
        (tmp_path / "file", ("--overwrite",), "exists and is no folder"),
        (tiny_hf, ("--overwrite",), "is the input itself"),
        (f"{tiny_hf}/.", ("--overwrite",), "is the input itself"),
        (tmp_path / "link", ("--overwrite",), "is the input itself"),
    ):
        refused(run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", output, *flags), 2, word)
        refused(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", output, *flags), 2, word)
    assert hashes(tiny_hf) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_no_output(run_uwm, made, tiny_hf, tiny_set):
    refused(run_uwm("edit", tiny_hf, "--calib", tiny_set), 2, "-o FOLDER, or pass --dry-run")
    refused(run_uwm("apply", tiny_hf, made / "patch.safetensors"), 2, "-o FOLDER, or pass --dry-run")


def test_score_and_select_do_not_replace_a_file_unasked(run_uwm, made, tiny_hf, tiny_set):
    before = hashes(made / "edited")
    target = made / "edited" / "uwm.json"
    refused(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", target), 2, "pass --overwrite")
    refused(run_uwm("select", made / "scores.safetensors", "-o", target), 2, "pass --overwrite")
    assert hashes(made / "edited") == before


def test_score_and_select_never_replace_their_input(run_uwm, made, tiny_open_clip, tiny_set, tmp_path):
    scores, weights = tmp_path / "scores.safetensors", tmp_path / "model.safetensors"
    shutil.copy(made / "scores.safetensors", scores)
    shutil.copy(tiny_open_clip / "open_clip_model.safetensors", weights)
    before = hashes(tmp_path)
    run_uwm("select", scores, "-o", scores, "--overwrite")
    run_uwm("score", weights, "--arch", ARCH, "--calib", tiny_set, "-o", weights, "--overwrite")
    assert hashes(tmp_path) == before


def test_files_of_another_kind(run_uwm, made, tiny_hf, tmp_path):
    refused(run_uwm("select", made / "patch.safetensors", "-o", tmp_path / "x"), 2, "holds patch, expected scores")
    refused(run_uwm("apply", tiny_hf, made / "scores.safetensors", "-o", tmp_path / "x"), 2, "holds scores, expected p")
    refused(run_uwm("apply", tiny_hf, tiny_hf / "model.safetensors", "-o", tmp_path / "x"), 2, "not a file that uwm")
    refused(run_uwm("select", tmp_path / "nope", "-o", tmp_path / "x"), 2, "nope: no such file")
    assert list(tmp_path.iterdir()) == []


def test_diff_across_layouts_is_of_plain_clips(run_uwm, tiny_hf, tiny_open_clip, tmp_path):
    one_tower = Path(shutil.copytree(tiny_open_clip, tmp_path / "half")) / "open_clip_model.safetensors"
    tensors = load_file(one_tower)
    save_file({**tensors, "visual.extra": tensors["visual.proj"].clone()}, one_tower)
    refused(run_uwm("diff", tiny_hf, tmp_path / "half"), 2, "different key layouts", "it has visual.extra")


@pytest.mark.parametrize("arguments", [["frob"], ["edit"], ["edit", "m"], ["env", "--frob"], ["env", "--seed", "x"]])
def test_usage_mistake_exits_with_2_and_says_where_help_is(arguments, run_uwm):
    code, out, err = run_uwm(*arguments)
    assert (code, out) == (2, "")
    assert re.search(r"Try 'uwm.* --help' for help\.", err)


@pytest.mark.parametrize("arguments", [["edit", "m"], ["edit", "m", "--calib", "s", "--mass", "x"]])
def test_usage_mistake_is_one_line_like_the_others(arguments, run_uwm):
    refused(run_uwm(*arguments), 2)


def test_f76_out_of_memory(run_uwm, tiny_set, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("uwm.calibration.read_calibration", full)
    refused(run_uwm("calib-check", tiny_set), 4, "out of memory; try a smaller --batch-size")


# ---------------------------------------------------------------- a process of its own


def start(*arguments, code="from uwm.cli import main; main()", **kwargs):
    """A real `uwm` process; `code` may put something in its way first."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def test_f78_closed_pipe_is_quiet(tiny_hf):
    read, write = os.pipe()
    process = start("inspect", tiny_hf, stdout=write)
    os.close(write)
    os.close(read)  # as `| head -0` does, before the first line
    _, err = process.communicate(timeout=300)
    assert err == ""
    assert process.returncode in (0, 1, 141)


STUCK = """
import sys, time
from uwm import cli
from uwm.inputs import describing
def stuck(*_):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(120)
describing.model_card = stuck
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_f69_a_signal_in_the_midst_of_writing_leaves_nothing(number, code, tiny_hf, tiny_set, tmp_path):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "safe")
    with start(*arguments, code=STUCK) as process:
        assert process.stderr.readline() == "writing\n"
        assert list(tmp_path.glob(".uwm-*/model.safetensors"))  # it has something to clean up
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_f61_calib_check_names_every_bad_picture_and_fails(run_uwm, tiny_set, tmp_path):
    shutil.copytree(tiny_set, tmp_path / "set")
    for name in ("0003_safe.png", "0007_unsafe.png"):
        (tmp_path / "set" / "images" / name).write_bytes(b"<html>")
    code, out, err = run_uwm("calib-check", tmp_path / "set")
    assert code == 2
    assert "0003_safe.png" in out
    assert "0007_unsafe.png" in out
    assert "2 bad images" in err


def test_the_bare_program_shows_its_help(run_uwm):
    assert done(run_uwm()).startswith("Usage: uwm [OPTIONS] COMMAND")
