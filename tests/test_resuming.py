"""A run that was stopped is gone on with: the same bytes, and nothing is done twice."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from processes.launching import HERE, launch
from safetensors.torch import load_file, save_file
from stopping import Killed, keeping, kill_at

import uwm
from uwm import unfinished
from uwm.editing.editors import find_editors
from uwm.evaluating import EvalRecipe, run_evaluation
from uwm.fitting import Recipe
from uwm.inputs.resuming import GOES_ON, keep_work
from uwm.knowledge import open_data_sets
from uwm.recipe import run
from uwm.statistics import passes, sources
from uwm.statistics.batches import DoneBatch
from uwm.unfinished import Entry, Unfinished

STOPPING = HERE.parent / "stopping.py"
RUN, NAME = "0" * 64, "1" * 64


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A zero-shot folder of 7 images."""
    folder = tmp_path_factory.mktemp("classes") / "zs"
    for number in range(7):
        place = folder / ("dog", "cat")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 0, 90)).save(place / f"{number}.png")
    return folder


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


def kept(cache):
    return [path for path in (cache / "unfinished").rglob("*") if path.is_file()]


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
def test_an_edit_goes_on(name, tiny_hf, tiny_set, classes, batches, cache):
    given = {"method": name.partition(" ")[0], "calib": str(tiny_set), "eval_splits": ("test",), **EDITS[name]}
    recipe = Recipe(str(tiny_hf), zero_shot=(str(classes),), batch_size=5, **given)
    assert goes_on_after_each_kill(lambda: facts(run(recipe)), batches, cache, times=2) > 5


def test_an_edit_with_a_preservation_set_goes_on(tiny_hf, tiny_set, tmp_path, batches, cache):
    (tmp_path / "kept.txt").write_text("".join(f"a picture of {n} dogs\n" for n in range(12)))
    given = {"method": "repel", "split": "calib", "eval_splits": ("test",), "preserve": str(tmp_path / "kept.txt")}
    recipe = Recipe(str(tiny_hf), str(tiny_set), batch_size=5, **given)
    assert goes_on_after_each_kill(lambda: facts(run(recipe)), batches, cache) > 5


def test_an_evaluation_goes_on(tiny_hf, tiny_open_clip, tiny_set, classes, batches, cache):
    recipe = EvalRecipe(str(tiny_hf), str(tiny_set), str(tiny_open_clip), zero_shot=(str(classes),), batch_size=5)

    def work():
        shutil.rmtree(cache / "embeddings", ignore_errors=True)  # what is kept of whole sets
        return json.dumps(run_evaluation(recipe).as_dict())

    assert goes_on_after_each_kill(work, batches, cache) > 10


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
        code, _, errors = run_uwm(*edit, *flags)
        assert code == 0, errors
        about = json.loads((tmp_path / "out" / "uwm.json").read_text())
        about.pop("run")
        found.append((about, (tmp_path / "out" / "uwm_patch.safetensors").read_bytes()))
        assert (GOES_ON in errors) == (flags == ())
    assert found[0] == found[1]
    assert [file for file in kept(cache) if file.suffix == ".safetensors"] == []


# ---------------------------------------------------------------- which runs are the same


@pytest.fixture
def copies(tiny_hf, tiny_set, classes, tmp_path):
    """Model, set and classes that may be changed."""
    named = {"model": tiny_hf, "set": tiny_set, "zs": classes}
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in named.items()}


def one_weight(folders, settings):
    file = folders["model"] / "model.safetensors"
    held = load_file(file)
    held["text_projection.weight"][0, 0] += 1
    save_file(held, file, metadata={"format": "pt"})


def a_merge_of_the_tokenizer(folders, settings):
    file = folders["model"] / "tokenizer.json"
    file.write_text(file.read_text() + " ")


def a_caption(folders, settings):
    file = folders["set"] / "pairs.jsonl"
    file.write_text(file.read_text().replace("number 3", "number 33"))


def an_image(folders, settings):
    file = sorted((folders["set"] / "images").iterdir())[0]
    Image.new("RGB", (64, 64)).save(file)


def an_image_of_a_class(folders, settings):
    file = sorted(folders["zs"].rglob("*.png"))[0]
    os.utime(file, (1, 1))


def a_prompt(folders, settings):
    file = folders["zs"].parent / "prompts.txt"
    file.write_text((file.read_text() if file.exists() else "a photo of a {}.\n") + "\n")


def the_threads(folders, settings):
    torch.set_num_threads(torch.get_num_threads() + 1)


def the_verb(folders, settings):
    settings["verb"] = "eval model"


CHANGES = [one_weight, a_merge_of_the_tokenizer, a_caption, an_image, an_image_of_a_class, a_prompt, the_threads]
CHANGES += [the_verb]


def run_of(folders, settings, **given):
    """The name of a run."""
    model, pairs = uwm.load(folders["model"]), uwm.read_calibration(folders["set"])
    data = open_data_sets([str(folders["zs"])], templates=settings.get("templates")).values()
    rest = {name: value for name, value in settings.items() if name != "verb"}
    found = keep_work(settings.get("verb", "edit"), {**rest, **given}, model, [pairs], data)
    return found._run


def test_the_same_run_has_the_same_name_wherever_its_files_lie(copies, tiny_hf, tiny_set, classes):
    first = run_of({"model": tiny_hf, "set": tiny_set, "zs": classes}, {"seed": 0}, workers=2, cache=True)
    os.utime(next(iter(copies["zs"].rglob("*.png"))))
    for file in classes.rglob("*.png"):
        shutil.copystat(file, copies["zs"] / file.relative_to(classes))
    assert run_of(copies, {"seed": 0}, workers=4, cache=True) == first
    assert run_of(copies, {"seed": 1}) != first


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_of_something_else_has_another_name(change, copies):
    threads = torch.get_num_threads()
    (copies["zs"].parent / "prompts.txt").write_text("a photo of a {}.\n")
    settings = {"seed": 0, "templates": str(copies["zs"].parent / "prompts.txt")}
    first = run_of(copies, settings)
    try:
        change(copies, settings)
        assert run_of(copies, settings) != first
    finally:
        torch.set_num_threads(threads)


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


# ---------------------------------------------------------------- what is kept


@pytest.fixture
def store(cache):
    def again():
        return Unfinished(cache / "unfinished", RUN, every=0.0)

    return again


def test_what_was_kept_is_found_by_the_next_run_alone(store):
    first = store()
    first.put(NAME, Entry({"rows": torch.arange(6.0).reshape(2, 3)}, {"batches": 2}))
    assert first.get(NAME) is None  # it began with nothing
    found = store().get(NAME)
    assert found.tensors["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.about == {"batches": 2}
    assert store().get("2" * 64) is None


def test_small_work_waits_for_the_next_that_is_kept(store, cache):
    first = store()
    first.later(NAME, Entry({"rows": torch.ones(1)}))
    assert kept(cache) == []
    first.put("2" * 64, Entry({"rows": torch.zeros(1)}))
    assert store().get(NAME).tensors["rows"].tolist() == [1]


def forge(file):
    held = load_file(file)
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        about = json.loads(stream.read(size))["__metadata__"]
    save_file({name: tensor + 1 for name, tensor in held.items()}, file, metadata=about)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def another_name(file):
    file.rename(file.with_name("3" * 64 + ".safetensors"))


def another_secret(file):
    secret = file.parents[2] / "unfinished.key"
    secret.write_bytes(bytes(32))


@pytest.mark.parametrize("spoil", [forge, cut, another_name, another_secret], ids=lambda spoil: spoil.__name__)
def test_what_another_wrote_is_not_believed(spoil, store, cache):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    (file,) = [path for path in kept(cache) if path.suffix == ".safetensors"]
    spoil(file)
    assert store().get(NAME) is None
    assert store().get("3" * 64) is None


def test_a_disk_that_is_full_stops_nothing(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished.Signer, "write", full)
    store().put(NAME, Entry({"rows": torch.ones(3)}))


def test_old_and_large_work_goes_and_nothing_else(store, cache, monkeypatch):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    foreign = cache / "unfinished" / "notes.txt"
    foreign.write_text("mine")
    (file,) = [path for path in kept(cache) if path.suffix == ".safetensors"]
    os.utime(file, (1, 1))
    Unfinished(cache / "unfinished", "4" * 64, every=0.0).put(NAME, Entry({"rows": torch.ones(3)}))
    assert not file.parent.exists()
    monkeypatch.setattr(unfinished, "MAX_BYTES", 2600)
    for name, values in (("5", 301), ("6", 300), ("7", 900)):  # the last one alone is over half of it
        Unfinished(cache / "unfinished", name * 64, every=0.0).put(NAME, Entry({"rows": torch.ones(values)}))
        for path in kept(cache):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert [run.name for run in (cache / "unfinished").iterdir() if run.is_dir()] == ["6" * 64]
    assert foreign.read_text() == "mine"


def test_a_folder_of_another_that_is_linked_is_left_alone(store, cache, tmp_path):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    shutil.move(cache / "unfinished" / RUN, tmp_path / "elsewhere")
    (cache / "unfinished" / RUN).symlink_to(tmp_path / "elsewhere")
    assert not store().goes_on
    store().remove()
    assert len([*(tmp_path / "elsewhere").iterdir()]) == 1


def test_a_forked_process_keeps_nothing(store):
    here = store()
    assert here.is_due()
    child = os.fork()
    if not child:
        os._exit(here.is_due())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_writing_takes_a_small_share_of_the_time(store, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Unfinished, "_write", lambda *_: now.__setitem__(0, now[0] + 10))
    here = store()
    here.put(NAME, Entry({}))
    now[0] += 199
    assert not here.is_due()
    now[0] += 2
    assert here.is_due()


def test_the_work_of_a_plug_in_that_names_no_sums_is_made_anew(tiny_hf, tiny_set, monkeypatch, batches, cache):
    from uwm.editing.entries.uwm import UwmScorer

    monkeypatch.setattr(UwmScorer, "SUMS", ())
    recipe = Recipe(str(tiny_hf), str(tiny_set), batch_size=5)
    goes_on = facts(run(recipe))
    with keeping(kill_at(1)), pytest.raises(Killed):  # the embeddings of the first column
        run(recipe)
    with keeping():
        assert facts(run(recipe)) == goes_on
