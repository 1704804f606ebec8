"""Runs at the real libraries, offline, and what they have written: settings, figures, verdict, and no path."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import done, refused

from uwm.errors import InvalidResult
from uwm.tracking import find_tracker

SETS = ("--split", "calib", "--eval-split", "test", "--seed", "3")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, into which every library writes."""
    for name in ("TRACKIO_DIR", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    for name in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Scalars by name, with their steps, and texts of the only run in a folder."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = folder.iterdir()
    found = EventAccumulator(str(run))
    found.Reload()
    tags = found.Tags()
    scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in tags["scalars"]}
    texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in tags["tensors"]}
    return scalars, texts


@pytest.fixture
def board():
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def test_an_edit_at_tensorboard(board, place, run_uwm, tiny_hf, tiny_set):
    out = place / "out"
    done(
        run_uwm(
            "edit", tiny_hf, "--calib", tiny_set, *SETS, "-o", out, "--beside", "none", "--track", "tensorboard", "-q"
        )
    )
    scalars, texts = events(place / "runs")
    manifest = json.loads((out / "uwm.json").read_text())
    figure = manifest["results"]["test"]["uwm"]["figures"]["P_vu"][0]
    assert scalars["test/uwm/P_vu"] == [(0, pytest.approx(figure))]
    assert {name.split("/")[1] for name in scalars} == {"before", "uwm", "random"}
    settings = json.loads(texts["settings/text_summary"].strip("`\n"))
    assert (settings["seed"], settings["calib"], settings["model"]) == (3, "tiny-set", "tiny-hf")
    assert str(place) not in str(texts)
    assert str(tiny_set.parent) not in str(texts)
    assert texts["state/text_summary"] == "finished"


def test_every_step_of_a_training_is_at_tensorboard(board, place, run_uwm, tiny_hf, tiny_set):
    done(run_uwm("finetune", tiny_hf, "--method", "safe-clip", "--calib", tiny_set, *SETS, "-o", place / "out",
                 "--epochs", 2, "--train-batch", 8, "--track", "tensorboard", "-q"))  # fmt: skip
    scalars, _ = events(place / "runs")
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4]
    history = json.loads((place / "out" / "uwm.json").read_text())["training"]["history"]
    assert [value for _, value in scalars["train/validation"]] == pytest.approx([e["validation"] for e in history])
    assert {"test/before/GS", "test/after/GS"} <= scalars.keys()


def test_every_trial_of_a_search_is_at_tensorboard(board, place, run_uwm, tiny_hf, tiny_set):
    done(run_uwm("tune", tiny_hf, "--calib", tiny_set, *SETS, "-o", place / "out", "--trials", 5, "--methods",
                 "null-space,redirect", "--track", "tensorboard", "-q"))  # fmt: skip
    scalars, _ = events(place / "runs")
    front = json.loads((place / "out" / "tune.json").read_text())
    found = sorted(step for name, rows in scalars.items() if name.endswith("/loss") for step, _ in rows)
    assert len({*found}) == front["trials"]["done"] - front["trials"]["invalid"] > 1
    assert f"test/point-{front['knee']}/GS" in scalars


def test_every_row_of_a_comparison_is_at_tensorboard(board, place, run_uwm, tiny_hf, tiny_set, made):
    given = f"mine={made / 'edited'}"
    done(run_uwm("compare", tiny_hf, "--calib", tiny_set, *SETS[:4], "-o", place / "out", "--masses", "0.05,0.1",
                 "--methods", f"uwm,random,{given}", "--track", "tensorboard", "-q"))  # fmt: skip
    scalars, texts = events(place / "runs")
    rows = {name.split("/")[1] for name in scalars}
    assert {"none", "mine", "uwm mass 0.05", "uwm mass 0.1"} <= rows
    assert str(made) not in str(texts)
    assert "mine=edited" in texts["settings/text_summary"]


def test_a_second_run_of_one_name_has_a_folder_of_its_own(board, place, run_uwm, tiny_hf, tiny_set):
    for _ in range(2):
        done(run_uwm("edit", tiny_hf, "--calib", tiny_set, *SETS, "--dry-run", "--beside", "none", "--track",
                     "tensorboard", "-q"))  # fmt: skip
    assert sorted(path.name for path in (place / "runs").iterdir()) == ["edit-tiny-hf", "edit-tiny-hf-2"]


def test_a_run_that_failed_is_told_so(board, place, run_uwm, tiny_hf, tiny_set, monkeypatch):
    def failing(*_):
        raise InvalidResult("nothing came of it")

    monkeypatch.setattr("uwm.recipe._carry_out", failing)
    found = run_uwm("edit", tiny_hf, "--calib", tiny_set, "--dry-run", "--track", "tensorboard")
    refused(found, 1, "nothing came of it")
    assert events(place / "runs")[1]["state/text_summary"] == "failed"


def in_a_process(place: Path, tracker: str, *arguments: object) -> str:
    """The edit in a process of its own, since a library may keep threads; its stdout."""
    words = [sys.executable, "-m", "uwm", "edit", *map(str, arguments), "--beside", "none", "--track", tracker, "-q"]
    ended = subprocess.run([*words, "--json", "--dry-run"], cwd=place, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def all_bytes(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file() and path.suffix != ".log")


def test_an_edit_at_trackio(place, tiny_hf, tiny_set, monkeypatch):
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    manifest = json.loads(in_a_process(place, "trackio", tiny_hf, "--calib", tiny_set, *SETS))
    (file,) = (place / "TRACKIO_DIR").glob("*.db")
    with sqlite3.connect(file) as base:
        (rows,) = [[json.loads(row) for (row,) in base.execute("select metrics from metrics")]]
        (settings,) = [json.loads(row) for (row,) in base.execute("select config from configs")]
    assert rows[-1]["test/uwm/P_vu"] == pytest.approx(manifest["results"]["test"]["uwm"]["figures"]["P_vu"][0])
    assert rows[-1]["state"] == "finished"
    assert (settings["seed"], settings["model"]) == (3, "tiny-hf")
    assert str(tiny_set.parent).encode() not in all_bytes(place / "TRACKIO_DIR")


def test_an_edit_at_weights_and_biases(place, tiny_hf, tiny_set, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    in_a_process(place, "wandb", tiny_hf, "--calib", tiny_set, *SETS)
    (run,) = (place / "WANDB_DIR" / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    found = file.read_bytes()
    for word in (b"edit tiny-hf", b"test/uwm/P_vu", b"calib", b"tiny-set"):
        assert word in found
    assert str(tiny_set.parent).encode() not in found
    assert str(place).encode() not in found


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_library_that_is_missing_is_told_before_the_work(name, run_uwm, tmp_path, monkeypatch):
    for module in ("tensorboard", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
        for other in [other for other in sys.modules if other.startswith(f"{module}.")]:
            monkeypatch.setitem(sys.modules, other, None)
    words = (f"--track {name}: cannot be imported (", f"pip install 'uwm[{name}]'")
    refused(run_uwm("edit", tmp_path / "none", "--calib", tmp_path / "none", "--dry-run", "--track", name), 2, *words)


def test_each_tracker_has_the_extra_that_its_error_names():
    from configparser import ConfigParser

    settings = ConfigParser()
    settings.read(Path(__file__).parents[2] / "setup.cfg", "utf-8")
    for name in ("tensorboard", "trackio", "wandb"):
        assert find_tracker(name).name == name
        assert settings["options.extras_require"][name].strip().startswith(f"{name}>=")
