"""Settings from files and variables that are none: said with their place, without a hang and without a traceback."""

from __future__ import annotations

import os

import pytest
from terminal import refused

import uwm
from uwm.cli import uwm as group
from uwm.cli.config_file import unknown_variables, variables
from uwm.errors import BadInput
from uwm.inputs import Inputs
from uwm.knowledge import open_data_sets

TOMLS = {
    "a date": (
        "seed = 2026-01-01",
        "seed: expected a text, a number, true or false, or a list of these, found date",
    ),
    "a list for one value": ("seed = [1, 2]", "seed: expected one value, found the list [1, 2]"),
    "a list of lists": ("eval_split = [['a']]", "eval-split: expected a text, a number"),
    "a table": ("seed = {a = 1}", "seed: expected a text, a number"),
    "an infinite number": ("holdout = inf", "holdout: expected a text, a number"),
    "a huge number": ("seed = 1" + "0" * 400, "seed: expected a text, a number"),
    "a number of thousands of digits": ("seed = 1" + "0" * 9000, "not valid TOML"),
    "lists in lists": ("seed = " + "[" * 9000, "not valid TOML"),
    "a seed past 63 bits": ("seed = 9223372036854775808", "not in the range"),
    "a number for a switch": ("strict = 0.5", "strict: expected true or false, found 0.5"),
    "a number for a path": ("output = 5", "output: expected a text, found 5"),
    "true for a path": ("output = true", "output: expected a text, found True"),
    "a NUL": (r'calib = "\u0000"', "calib: expected a text, a number"),
    "no UTF-8": (b"seed = '\xff'", "not UTF-8 at byte 8"),
}


@pytest.mark.parametrize("name", TOMLS)
def test_a_toml_value_that_is_no_setting_is_refused(tmp_path, run_uwm, name):
    content, words = TOMLS[name]
    path = tmp_path / "f.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, err = run_uwm("edit", "demo", "--calib", "x", "--config", path)
    assert (code, out) == (2, "")
    assert err.startswith("uwm: error: ")
    assert words in err
    assert "Traceback" not in err


@pytest.fixture(params=["a pipe", "a device", "a folder", "a large file"])
def endless(request, tmp_path):
    """What never ends, or is too large to be read."""
    path = tmp_path / "endless"
    if request.param == "a pipe":
        os.mkfifo(path)
    elif request.param == "a device":
        path.symlink_to("/dev/zero")
    elif request.param == "a folder":
        path.mkdir()
    else:
        with path.open("wb") as stream:
            stream.truncate(1 << 40)
    return path


def test_a_config_that_never_ends_is_refused(endless, run_uwm):
    refused(run_uwm("edit", "demo", "--calib", "x", "--config", endless), 2, f"--config {endless}: ")


def test_templates_that_never_end_are_refused(endless):
    with pytest.raises(BadInput, match="no regular file|more than 16 MB"):
        open_data_sets(["cifar10"], data_root=endless.parent, templates=endless)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**400])
def test_a_seed_past_63_bits_is_refused(seed, run_uwm):
    with pytest.raises(BadInput, match="--seed .*: expected a whole number from 0 to 9223372036854775807"):
        Inputs(model="demo", calib="x", seed=seed)
    code, _, err = run_uwm("edit", "demo", "--calib", "x", "--dry-run", "--seed", seed)
    assert code == 2
    assert "--seed" in err


def test_the_largest_seed_is_one(tiny_hf, tiny_set):
    uwm.read_calibration(tiny_set).limit(3, 2**63 - 1)


def test_a_batch_size_of_many_digits_is_refused(run_uwm):
    code, _, err = run_uwm("score", "demo", "--calib", "x", "-o", "s", "--batch-size", "9" * 5000)
    assert code == 2
    assert "neither auto nor a positive number" in err


# ---------------------------------------------------------------- UWM_ variables


def test_a_variable_that_is_no_setting_is_said_with_the_nearest_name(monkeypatch, run_uwm, source):
    monkeypatch.setenv("UWM_MAS", "0.1")
    code, _, err = run_uwm("inspect", source)
    assert code == 0
    assert err == "uwm: warning: UWM_MAS: no flag is set by this variable; did you mean UWM_MASS?\n"


@pytest.mark.parametrize("name", ["UWM_MASS", "UWM_EVAL_SPLIT", "UWM_EMBEDDINGS_DIR", "UWM", "uwm_mas"])
def test_a_variable_that_is_a_setting_of_any_verb_is_not(name):
    assert [*unknown_variables([name], variables(group))] == []


def test_quiet_says_nothing_of_variables(monkeypatch, run_uwm, source):
    monkeypatch.setenv("UWM_MAS", "0.1")
    assert run_uwm("inspect", source, "-q")[2] == ""
