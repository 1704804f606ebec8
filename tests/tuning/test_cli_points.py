"""`uwm apply MODEL FOLDER --point …` and `uwm inspect FOLDER`, as the terminal shows them."""

from __future__ import annotations

import json

import pytest
from made_up_front import made_up_front, write_points
from terminal import done, refused

FRONT = made_up_front(12, data_sets=("pets",))


@pytest.fixture
def front(source, tmp_path):
    """A folder of `uwm tune` whose points are real patches of `source`, each of another mass."""
    assert write_points(tmp_path / "tuned", source, data_sets=("pets",)) == FRONT
    return tmp_path / "tuned"


def test_a_point_is_applied_as_its_patch_is(run_uwm, source, front, tmp_path):
    number = FRONT["knee"]
    told = done(run_uwm("apply", source, front, "--point", number, "-o", tmp_path / "a")).splitlines()
    assert told[0].startswith(f"point {number} (the knee): {FRONT['points'][number - 1]['method']} share=")
    assert "; cross-validation: safety " in told[0]
    assert "; held-out: safety " in told[0]
    assert told[1].startswith("apply: changed ")
    by_name = done(run_uwm("apply", source, front, "--point", "knee", "-o", tmp_path / "b"))
    assert by_name.splitlines()[0] == told[0]
    done(run_uwm("apply", source, front / "points" / f"{number:02d}.safetensors", "-o", tmp_path / "c"))
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert len(set(weights.values())) == 1
    done(run_uwm("apply", source, front, "--point", 1, "-o", tmp_path / "d"))
    assert (tmp_path / "d" / "model.safetensors").read_bytes() != weights["a"]


def test_the_json_says_which_point(run_uwm, source, front):
    found = json.loads(done(run_uwm("apply", source, front, "--point", "max-loss=90%", "--dry-run", "--json")))
    last = FRONT["points"][-1]
    assert found["entries"] > 0
    assert found["point"]["number"] == last["number"]
    assert found["point"]["settings"] == last["settings"]
    assert found["point"]["held_out"]["held-out"]["GS"][0] == 100 * last["held_out"]["held-out"]["figures"]["GS"][0]


def test_a_front_without_a_point_lists_the_points(run_uwm, source, front, tmp_path):
    line = refused(run_uwm("apply", source, front, "-o", tmp_path / "x"), 2, "--point knee", "1 (safety ")
    assert line.count("loss ") == len(FRONT["points"])
    assert not (tmp_path / "x").exists()


def test_a_point_without_a_front_is_refused(run_uwm, source, front, tmp_path):
    patch = front / "points" / "01.safetensors"
    for what in (patch, source):
        told = run_uwm("apply", source, what, "--point", "knee", "-o", tmp_path / "x")
        refused(told, 2, f"--point knee: {what} is no folder that uwm tune wrote", "leave --point out")


def test_a_point_that_is_none_is_refused(run_uwm, source, front, tmp_path):
    refused(run_uwm("apply", source, front, "--point", "99", "-o", tmp_path / "x"), 2, "no such point; there are 1 (")
    lost = refused(run_uwm("apply", source, front, "--point", "max-loss=GS>=+99pt", "--dry-run"), 2, "no point keeps")
    assert "there are 1 (safety" in lost
    (front / "points" / "01.safetensors").unlink()
    refused(run_uwm("apply", source, front, "--point", "1", "--dry-run"), 2, "it is the patch of point 1")


def test_a_patch_outside_of_the_folder_is_refused(run_uwm, source, front):
    content = json.loads((front / "tune.json").read_text())
    content["points"][0]["patch"] = "../secret.safetensors"
    (front / "tune.json").write_text(json.dumps(content))
    for arguments in (("apply", source, front, "--point", "knee", "--dry-run"), ("inspect", front)):
        refused(run_uwm(*arguments), 3, "the patch of point 1 lies outside of the folder")


def test_inspect_shows_the_front(run_uwm, front):
    text = done(run_uwm("inspect", front))
    assert text.startswith("held-out (240 pairs)\n")
    assert f"\n{FRONT['knee']}* " in text
    assert json.loads(done(run_uwm("inspect", front, "--json"))) == FRONT
