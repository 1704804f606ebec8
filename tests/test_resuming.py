"""A run that was stopped is gone on with: the same bytes, and nothing is done twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from unittest import mock

import pytest
import torch
from processes.launching import HERE, launch, ours
from stopping import Killed, keeping, kept, kill_at

import uwm
from uwm.editing.editors import find_editors
from uwm.errors import INTERRUPTED, KEPT, BadInput
from uwm.evaluating import EvalRecipe, Reports, run_evaluation
from uwm.fitting import Recipe
from uwm.inputs.resuming import GOES_ON
from uwm.processes.ending import STOPPED
from uwm.recipe import run
from uwm.statistics import passes, sources
from uwm.statistics.batches import DoneBatch
from uwm.unfinished import Unfinished

STOPPING = HERE.parent / "stopping.py"


RUN, NAME = "0" * 64, "1" * 64


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def batches():
    """How many batches the model ran, in `batches[0]`."""
    ran = [0]

    def run_pass(model, batch, *rest, real=passes._run):
        ran[0] += not isinstance(batch, DoneBatch)
        return real(model, batch, *rest)

    def embed(*given, real=sources._embed):
        ran[0] += 1
        return real(*given)

    with mock.patch.object(passes, "_run", run_pass), mock.patch.object(sources, "_embed", embed):
        yield ran


def facts(outcome):
    """What decides everything that a run writes."""
    manifest = {key: value for key, value in outcome.manifest.items() if key != "run"}
    return outcome.patch.content(), json.dumps(manifest, default=str)


def goes_on_after_each_kill(work, batches, cache, times=3):
    """Kill some work at its first, middle and last time of keeping, and go on: the same comes of it, none runs twice.

    Returns:
        How often work was kept.
    """
    expected, alone = work(), batches[0]
    with keeping() as names:
        assert work() == expected
    assert batches[0] == 2 * alone
    assert kept(cache) == []
    for at in sorted({1, -(-len(names) // 2), len(names)})[-times:]:
        batches[0] = 0
        with keeping(kill_at(at)), pytest.raises(Killed):
            work()
        assert kept(cache)
        with keeping():
            assert work() == expected
        assert batches[0] <= alone  # less where a run makes the same embeddings twice
        assert kept(cache) == []
    return len(names)


QUICK = {
    "uwm": {},
    "grad-unsafe": {},
    "ablate": {},
    "uwm until stable": {"until_stable": 0.01},
    "repel and others": {"beside": ("redirect",)},
    "repel within a loss": {"max_loss": "90%", "trials": 3},
}


SLOW = {method: {} for method in sorted({*find_editors()} - {"random", *QUICK})}


SLOW |= {f"uwm {variant}": {"settings": {"variant": variant}} for variant in ("ratio-of-means", "difference")}


SLOW |= {"grad-unsafe within a loss": {"max_loss": "99%", "trials": 2}}


EDITS = {**QUICK, **SLOW}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_edit_goes_on(name, tiny_hf, tiny_set, tiny_classes, batches, cache):
    given = {"method": name.partition(" ")[0], "calib": str(tiny_set), "eval_splits": ("test",), **EDITS[name]}
    recipe = Recipe(str(tiny_hf), zero_shot=(str(tiny_classes),), batch_size=5, **given)
    assert goes_on_after_each_kill(lambda: facts(run(recipe)), batches, cache, times=2) > 5


def test_an_edit_with_a_preservation_set_goes_on(tiny_hf, tiny_set, tmp_path, batches, cache):
    (tmp_path / "kept.txt").write_text("".join(f"a picture of {n} dogs\n" for n in range(12)))
    given = {"method": "repel", "split": "calib", "eval_splits": ("test",), "preserve": str(tmp_path / "kept.txt")}
    recipe = Recipe(str(tiny_hf), str(tiny_set), batch_size=5, **given)
    assert goes_on_after_each_kill(lambda: facts(run(recipe)), batches, cache) > 5


def test_an_evaluation_goes_on(tiny_hf, tiny_open_clip, tiny_set, tiny_classes, batches, cache):
    recipe = EvalRecipe(str(tiny_hf), str(tiny_set), str(tiny_open_clip), zero_shot=(str(tiny_classes),), batch_size=5)

    def work():
        shutil.rmtree(cache / "embeddings", ignore_errors=True)  # what is kept of whole sets
        return json.dumps(run_evaluation(recipe).as_dict())

    assert goes_on_after_each_kill(work, batches, cache) > 10


def test_an_evaluation_whose_page_cannot_be_written_goes_on(
    tiny_hf, tiny_set, tiny_classes, tmp_path, batches, cache, run_uwm
):
    given = ("eval", tiny_hf, "--pairs", tiny_set, "--zero-shot", tiny_classes, "--html", tmp_path / "page.html")
    with keeping(), mock.patch.object(Reports, "write", side_effect=FULL):
        code, _, errors = run_uwm(*given)
    assert (code, errors.splitlines()[-1]) == (4, KEPT)
    assert batches[0] > 0
    batches[0] = 0
    shutil.rmtree(cache / "embeddings")
    assert run_uwm(*given)[0] == 0
    assert batches[0] == 0
    assert kept(cache) == []


@pytest.mark.parametrize("method", ["uwm", "grad-safe-clip"])
def test_scores_go_on(method, tiny_hf, tiny_set, tmp_path, batches, cache, run_uwm):
    def work():
        given = ("--calib", tiny_set, "--method", method, "--batch-size", "5", "--overwrite")
        assert run_uwm("score", tiny_hf, *given, "-o", tmp_path / "s.safetensors")[0] == 0
        return (tmp_path / "s.safetensors").read_bytes()

    assert goes_on_after_each_kill(work, batches, cache) > 1


# ---------------------------------------------------------------- as a user meets it


@pytest.fixture
def one_thread(monkeypatch):
    """As in what is launched: another number of threads is another run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_program_goes_on_and_says_so(processes, tiny_hf, tiny_set, tmp_path, cache, one_thread, run_uwm):
    edit = ["edit", tiny_hf, "--calib", tiny_set, "--beside", "none", "--batch-size", "3", "-o", tmp_path / "out"]
    path = os.pathsep.join([str(STOPPING.parent), str(HERE.parents[1])])
    with launch(processes, STOPPING, 3, *edit, folder=tmp_path, PYTHONPATH=path) as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode != 0, errors
    assert not (tmp_path / "out").exists()
    assert kept(cache)
    found = []
    for flags in ((), ("--no-cache", "--overwrite")):
        code, out, errors = run_uwm(*edit, *flags)
        assert code == 0, errors
        about = json.loads((tmp_path / "out" / "uwm.json").read_text())
        went_on = about.pop("run").get("went_on", False)
        assert went_on == (flags == ()) == (" s since it went on, " in " ".join(out.split()))
        found.append((about, (tmp_path / "out" / "uwm_patch.safetensors").read_bytes()))
        assert (GOES_ON in errors) == (flags == ())
    assert found[0] == found[1]
    assert [file for file in kept(cache) if file.suffix == ".safetensors"] == []


def stop_by(fault):
    """Raise it when work was kept for the second time, as a signal or a lack of memory or disk would."""

    def stop(puts):
        if puts == 2:
            raise fault

    return stop


STOPS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, [INTERRUPTED, KEPT]),
    "SIGTERM": (SystemExit(143), 143, [KEPT]),
    "no memory": (MemoryError(), 4, ["uwm: error: out of memory; try a smaller --batch-size, or --device cpu", KEPT]),
    "a full disk": (FULL, 4, ["uwm: error: the system: No space left on device", KEPT]),
    "a bad input": (BadInput("x: bad; mend it"), 2, ["uwm: error: x: bad; mend it"]),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_run_that_is_stopped_says_how_to_go_on(name, tiny_hf, tiny_set, tmp_path, cache, run_uwm):
    fault, code, told = STOPS[name]
    score = ("score", tiny_hf, "--calib", tiny_set, "--batch-size", "5", "-o", tmp_path / "s.safetensors")
    with keeping(stop_by(fault)):
        found, _, errors = run_uwm(*score)
    assert (found, errors.splitlines()[-len(told) :]) == (code, told)
    assert kept(cache)
    with mock.patch.object(Unfinished, "get", side_effect=fault):  # before this run keeps anything
        assert run_uwm(*score)[2].splitlines()[-len(told) :] == told


def test_a_run_that_is_stopped_before_it_keeps_anything_promises_nothing(tiny_hf, tiny_set, tmp_path, cache, run_uwm):
    score = ("score", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "s.safetensors")
    for there in (False, True):
        with mock.patch.object(Unfinished, "is_due", side_effect=KeyboardInterrupt):
            assert run_uwm(*score)[2].splitlines()[-1] == INTERRUPTED
        if not there:
            with keeping(kill_at(1)), pytest.raises(Killed):
                uwm.cli.main([*map(str, score)])
            for path in kept(cache):  # as a kill leaves what was being written
                path.rename(path.with_name(f".uwm-{'0' * 16}-{path.name}"))


@pytest.mark.slow
def test_a_run_of_several_processes_that_is_stopped_says_how_to_go_on(tiny_hf, tiny_set, tmp_path, cache):
    edit = ["edit", tiny_hf, "--calib", tiny_set, "--beside", "none", "--batch-size", "3", "-o", tmp_path / "out"]
    path = os.pathsep.join([str(STOPPING.parent), str(HERE.parents[1])])
    with launch(2, STOPPING, 3, *edit, folder=tmp_path, PYTHONPATH=path, STOP="SIGTERM") as process:
        _, errors = process.communicate(timeout=200)
    told = [line for line in ours(errors) if line.startswith("uwm: ")]
    assert told == [STOPPED, KEPT]


def test_another_run_does_not_take_what_is_kept(tiny_hf, tiny_set, batches, cache):
    recipe = Recipe(str(tiny_hf), str(tiny_set), batch_size=5)
    expected, alone = facts(run(replace(recipe, cache=False))), batches[0]
    with keeping(kill_at(3)), pytest.raises(Killed):
        run(replace(recipe, seed=1))
    batches[0] = 0
    assert facts(run(recipe)) == expected
    assert batches[0] == alone


def test_scores_of_another_method_or_variant_do_not_go_on(tiny_hf, tiny_set, tmp_path, cache, run_uwm):
    def work(*how):
        given = ("--calib", tiny_set, "--batch-size", "5", "--overwrite", "-o", tmp_path / "s.safetensors", *how)
        assert run_uwm("score", tiny_hf, *given)[0] == 0
        return (tmp_path / "s.safetensors").read_bytes()

    for one, other in (
        ("--method=grad-unsafe", "--method=grad-safe-clip"),
        ("--variant=difference", "--variant=ratio"),
    ):
        expected = work(other)
        with keeping(kill_at(2)), pytest.raises(Killed):
            work(one)
        assert kept(cache)
        assert work(other) == expected


def test_kept_work_holds_no_caption_and_no_path(tiny_hf, tiny_set, tiny_classes, cache):
    with keeping(kill_at(20)), pytest.raises(Killed):
        run(Recipe(str(tiny_hf), str(tiny_set), zero_shot=(str(tiny_classes),), beside=("repel",), batch_size=5))
    written = b"".join(path.read_bytes() for path in kept(cache))
    pairs = uwm.read_calibration(tiny_set).pairs
    told = [text for pair in pairs for text in (pair.safe_text, pair.unsafe_text, pair.safe_image.name)]
    assert b"done" in written  # sums of a pass
    assert b"rows" in written  # and embeddings
    assert not [text for text in told if text.encode() in written]


def test_the_work_of_a_plug_in_that_names_no_sums_is_made_anew(tiny_hf, tiny_set, monkeypatch, batches, cache):
    from uwm.editing.entries.uwm import UwmScorer

    monkeypatch.setattr(UwmScorer, "SUMS", ())
    recipe = Recipe(str(tiny_hf), str(tiny_set), batch_size=5)
    goes_on = facts(run(recipe))
    with keeping(kill_at(1)), pytest.raises(Killed):  # the embeddings of the first column
        run(recipe)
    with keeping():
        assert facts(run(recipe)) == goes_on
