"""`uwm tune` end to end on a tiny model: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from terminal import bytes_below, done, hashes, refused

import uwm
from uwm.editing.live import patched
from uwm.editing.patch import Patch
from uwm.errors import BadInput, ResourceFault, UwmError
from uwm.outputs import places
from uwm.statistics.batches import embed_inputs
from uwm.tuning import tune as jobs
from uwm.tuning import writing
from uwm.tuning.candidates import Candidates
from uwm.tuning.search import Search
from uwm.tuning.tune import TuneRecipe, tune

FILES = {"tune.json", "tune.md", "tune.csv", "report.html", "front.svg", "front.png", "study.journal", "uwm.json"}
TIMES = ("seconds", "per_minute")


@pytest.fixture(scope="module")
def recipe(tiny_hf, tiny_set):
    return TuneRecipe(
        model=str(tiny_hf),
        calib=str(tiny_set),
        eval_splits=("test",),
        methods=("hidden-units", "null-space"),
        trials=6,
    )


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """A finished search; tests that go on with it take a copy."""
    folder = tmp_path_factory.mktemp("searches") / "front"
    tune(recipe, folder)
    return folder


@pytest.fixture(scope="module")
def common(tiny_hf, tiny_set):
    return "tune", tiny_hf, "--calib", tiny_set, "--eval-split", "test", "-q", "--methods", "hidden-units,null-space"


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "front")
    return tmp_path / "front"


def front_of(folder):
    return json.loads((folder / "tune.json").read_text("utf-8"))


def untimed(folder, without=()):
    """tune.json without times."""
    front = front_of(folder)
    assert front.pop("run").keys() == {"date"}
    for name in (*TIMES, *without):
        del front["trials"][name]
    for found in front["trials"]["by_method"].values():
        del found["seconds"]
    return front


def written_below(folder):
    """Every file but the journal, which a search that is gone on with adds to."""
    return {name: data for name, data in bytes_below(folder).items() if name != "study.journal"}


# ---------------------------------------------------------------- what is written


def test_every_file_is_there_and_every_point_has_its_patch(folder):
    front = front_of(folder)
    assert {path.name for path in folder.iterdir()} == FILES | {"points"}
    assert [point["patch"] for point in front["points"]] == [
        f"points/{path.name}" for path in sorted((folder / "points").iterdir())
    ]
    trials = front["trials"]
    assert (trials["asked"], len(front["tried"]) + trials["invalid"] + trials["stopped"]) == (6, 6)
    assert [*front["baseline"]["held_out"]] == ["test"]
    on_front = [trial["trial"] for trial in front["tried"] if trial["front"]]
    assert on_front == sorted(point["trial"] for point in front["points"])


@pytest.mark.parametrize("point", ["knee", "1", "max-loss=1000%"])
def test_a_point_applied_to_the_file_embeds_as_the_patched_model_and_is_reverted_to_the_byte(
    point, folder, tiny_hf, run_uwm, tmp_path
):
    front = front_of(folder)
    best = max(front["points"], key=lambda one: one["objective"])["number"]
    number = {"knee": front["knee"], "1": 1}.get(point, best)
    file = folder / front["points"][number - 1]["patch"]
    done(run_uwm("apply", tiny_hf, folder, "--point", point, "-o", tmp_path / "out"))
    model = uwm.load(tiny_hf)
    ids, mask = model.tokenize(["a dog and a bomb", "a cat"])
    with torch.no_grad():
        plain = embed_inputs(model, ids, mask)
        with patched(model, Patch.load(file)):
            live = embed_inputs(model, ids, mask)
        assert torch.equal(embed_inputs(uwm.load(tmp_path / "out"), ids, mask), live)
    assert not torch.equal(plain, live)
    done(run_uwm("revert", tmp_path / "out", file, "-o", tmp_path / "back"))
    assert (tmp_path / "back/model.safetensors").read_bytes() == (tiny_hf / "model.safetensors").read_bytes()


def test_a_point_is_measured_on_held_out_pairs_as_uwm_evaluate_does(folder, tiny_hf, tiny_set):
    front = front_of(folder)
    point = front["points"][-1]
    model = uwm.load(tiny_hf)
    with patched(model, Patch.load(folder / point["patch"])):
        expected = uwm.evaluate(model, uwm.read_calibration(tiny_set, split="test"))
    found = point["held_out"]["test"]["figures"]
    assert found.keys() == expected.figures.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected.figures[name])


def test_the_terminal_shows_the_verdict_on_the_knee_and_what_to_do_next(common, copy, run_uwm):
    text = done(run_uwm(*common, "--trials", "6", "-o", copy))
    labels = [line.partition(" ")[0] for line in text.splitlines()]
    assert list(filter(None, labels)) == ["DONE", "KNEE", "VERDICT", "SAFETY", "REMAINS", "COST", "NEXT"]
    words = " ".join(text.split())
    assert words.startswith("DONE 6 trials on ")
    assert f"written to {copy}" in words
    assert "VERDICT Too few pairs for a verdict: 8 of 50. (test, 8 pairs)" in words
    assert words.endswith("--point knee -o OUT")
    assert "\n\ntest (8 pairs)\n" in done(run_uwm(*common, "--trials", "6", "-o", copy, "--all-figures"))
    as_json = json.loads(done(run_uwm(*common, "--trials", "6", "-o", copy, "--json")))
    assert as_json["knee"] == front_of(copy)["knee"]
    assert as_json["output"] == str(copy)


# ---------------------------------------------------------------- going on


def test_started_again_it_adds_nothing_and_writes_the_same(recipe, copy):
    journal = (copy / "study.journal").read_text()
    before, patches = untimed(copy), hashes(copy / "points")
    tune(recipe, copy)
    assert untimed(copy) == before
    assert hashes(copy / "points") == patches
    added = (copy / "study.journal").read_text().removeprefix(journal).splitlines()
    assert {json.loads(line)["op_code"] for line in added} == {0}, "only that the studies were opened"


def test_more_trials_go_on_from_those_that_there_are(recipe, copy, tmp_path):
    first = front_of(copy)["tried"]
    more = replace(recipe, trials=9)
    tune(more, copy)
    found = front_of(copy)["tried"]
    strip = [{k: v for k, v in trial.items() if k != "front"} for trial in found]
    assert strip[: len(first)] == [{k: v for k, v in trial.items() if k != "front"} for trial in first]
    tune(more, tmp_path / "at once")
    assert untimed(tmp_path / "at once") == untimed(copy)
    assert hashes(tmp_path / "at once" / "points") == hashes(copy / "points")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_stopped_in_a_trial_and_started_again_it_ends_as_if_it_had_not_been_stopped(
    stop, recipe, folder, tmp_path, monkeypatch
):
    parts, calls = Candidates.parts, []

    def stopping(self, method, chosen):
        calls.append(method)
        if len(calls) == 4:
            raise stop
        return parts(self, method, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(Candidates, "parts", stopping)
        with pytest.raises(stop):
            tune(recipe, tmp_path / "front")
    assert {path.name for path in (tmp_path / "front").iterdir()} == {"uwm.json", "study.journal"}
    tune(recipe, tmp_path / "front")
    assert untimed(tmp_path / "front") == untimed(folder)
    assert hashes(tmp_path / "front" / "points") == hashes(folder / "points")


def test_stopped_while_points_are_written_the_earlier_front_is_whole(recipe, copy, monkeypatch, tiny_hf, run_uwm):
    before = written_below(copy)

    def stopping(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs._Run, "_write_patch", stopping)
        with pytest.raises(KeyboardInterrupt):
            tune(recipe, copy)
    assert written_below(copy) == before
    done(run_uwm("apply", tiny_hf, copy, "--point", "1", "--dry-run"))


@pytest.mark.parametrize("name", ["points", "tune.md", "tune.json"])
def test_stopped_while_the_new_front_is_put_in_place_no_point_can_be_taken_for_another(
    name, recipe, copy, folder, monkeypatch, tiny_hf, run_uwm
):
    """tune.json is away while points and pages change."""

    def stopping(path, target):
        if target == copy / name:
            raise KeyboardInterrupt
        return move(path, target)

    for call in ("rename", "replace"):
        move = getattr(Path, call)
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, stopping)
            with contextlib.suppress(KeyboardInterrupt):
                tune(recipe, copy)
                continue
        assert not (copy / "tune.json").exists()
        refused(run_uwm("apply", tiny_hf, copy, "--point", "1", "--dry-run"), 2)
    assert not list(copy.glob(".uwm-*"))
    tune(recipe, copy)
    done(run_uwm("apply", tiny_hf, copy, "--point", "1", "--dry-run"))
    assert untimed(copy) == untimed(folder)


def test_a_disk_that_is_full_leaves_the_earlier_front(recipe, copy, monkeypatch):
    before = written_below(copy)

    def full(place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "sync_tree", full)
    with pytest.raises(ResourceFault, match="front: could not write: No space left on device"):
        tune(recipe, copy)
    assert written_below(copy) == before


def test_other_settings_are_refused_and_overwrite_begins_anew(common, copy, run_uwm):
    before = hashes(copy / "points")
    other = (*common, "--seed", "1", "--trials", "3", "-o", copy)
    refused(run_uwm(*other), 2, "holds a search with other settings", "--overwrite to begin anew")
    assert hashes(copy / "points") == before
    done(run_uwm(*other, "--overwrite"))
    assert front_of(copy)["trials"]["asked"] == 3
    trials = front_of(copy)["trials"]
    assert len(front_of(copy)["tried"]) + trials["invalid"] + trials["stopped"] == 3


def test_the_bars_have_names(recipe, tmp_path):
    names = []

    def progress(items, total, name):
        names.append((name.partition(",")[0], total))
        return items

    tune(replace(recipe, trials=2), tmp_path / "front", progress=progress)
    assert {name for name, _ in names} == {"profile", "embed text", "embed vision", "search", "measure"}
    assert ("search", 2) in names


# ---------------------------------------------------------------- refused


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(jobs, "load_model", lambda *_: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--methods", "nope,repel"], ["--methods 'nope'", "repel"]),
        (["--objective", "R1"], ["--objective 'R1'", "R1_safe"]),
        (["--objective", "top1"], ["top1 is measured with --zero-shot DATASET only"]),
        (["--objective", "PU@nothing"], ["no concept 'nothing'"]),
        (["--methods", "repel", "--share", "7"], ["--share 7.0"]),
        (["--methods", "none", "--set", "nope=1"], ["--nope: no method that is tried by default", "with --methods"]),
        (["--trials", "0"], ["0 is not in the range"]),
        (["--limit", "1"], ["1 calibration pair"]),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded_and_leave_no_folder(flags, words, common, out, run_uwm, no_model):
    refused(run_uwm(*common, "-o", out, *flags), 2, *words)
    assert not out.exists()


def test_a_folder_of_something_else_is_refused_and_left_alone(common, out, run_uwm, no_model):
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for flags in ((), ("--overwrite",)):
        found = run_uwm(*common, "-o", out, *flags)
        refused(found, 2, str(out))
    assert (out / "mine.txt").read_text() == "mine"
    (out / "uwm.json").write_text('{"kind": "compare"}')
    refused(run_uwm(*common, "-o", out, "--overwrite"), 2, "holds no search of uwm tune")


def test_an_output_inside_of_a_file_is_refused(common, out, run_uwm, no_model):
    out.write_text("a file")
    refused(run_uwm(*common, "-o", out), 2, "exists and is no folder")


def test_an_output_that_cannot_be_made_is_refused(common, run_uwm, no_model, monkeypatch, out):
    monkeypatch.setattr(places.os, "access", lambda *_: False)  # also where root runs the tests
    refused(run_uwm(*common, "-o", out), 4, "not writable")


def test_without_matplotlib_nothing_begins(common, out, run_uwm, no_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run_uwm(*common, "-o", out), 2, "matplotlib")
    assert not out.exists()


def test_a_search_in_which_no_edit_can_be_made_says_so(recipe, tmp_path, monkeypatch):
    def never(*_):
        raise BadInput("no")

    monkeypatch.setattr(Candidates, "parts", never)
    with pytest.raises(UwmError, match="none of 6 edits could be made"):
        tune(recipe, tmp_path / "front")


# ---------------------------------------------------------------- what destroys the model


def test_what_loses_too_much_is_no_point_of_the_front(recipe, copy, monkeypatch):
    def lossy(count):
        """The first trials lose 80 %."""

        def run(search, *args):
            found = real(search, *args)
            return replace(
                found, tried=tuple(replace(one, loss=80.0 if one.number < count else one.loss) for one in found.tried)
            )

        return run

    real = Search.run
    monkeypatch.setattr(Search, "run", lossy(4))
    front = tune(recipe, copy).front
    assert [one["loss"] for one in front["tried"][:4]] == [80.0] * 4
    assert max(point["loss"] for point in front["points"]) <= 50
    assert {point["trial"] for point in front["points"]} <= {4, 5}
    assert front["notes"] == ["4 trials lose more than 50 % of what the model knows; they are no points of the front"]
    monkeypatch.setattr(Search, "run", lossy(6))
    with pytest.raises(BadInput, match="none of 6 edits could be made and measured without losing more than 50 %"):
        tune(recipe, copy)
