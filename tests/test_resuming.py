"""A run that was stopped is gone on with: the same bytes, and nothing is done twice."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from PIL import Image
from processes.launching import HERE, launch, ours
from safetensors.torch import load_file, save_file
from stopping import Killed, keeping, kill_at

import uwm
from uwm import unfinished
from uwm.editing.editors import find_editors
from uwm.errors import INTERRUPTED, KEPT, BadInput
from uwm.evaluating import EvalRecipe, Reports, run_evaluation
from uwm.fitting import Recipe
from uwm.inputs import surroundings
from uwm.inputs.resuming import GOES_ON, keep_work
from uwm.knowledge import open_data_sets
from uwm.models.hugging_face import HuggingFaceModel
from uwm.processes.ending import STOPPED
from uwm.recipe import run
from uwm.statistics import passes, sources, sums
from uwm.statistics.batches import DoneBatch
from uwm.statistics.embeddings import PairEmbeddings
from uwm.statistics.going_on import kept_rows
from uwm.unfinished import Entry, Unfinished, is_kept

STOPPING = HERE.parent / "stopping.py"
RUN, NAME = "0" * 64, "1" * 64
FULL = OSError(errno.ENOSPC, "No space left on device")


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


def test_an_evaluation_whose_page_cannot_be_written_goes_on(
    tiny_hf, tiny_set, classes, tmp_path, batches, cache, run_uwm
):
    given = ("eval", tiny_hf, "--pairs", tiny_set, "--zero-shot", classes, "--html", tmp_path / "page.html")
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
        code, _, errors = run_uwm(*edit, *flags)
        assert code == 0, errors
        about = json.loads((tmp_path / "out" / "uwm.json").read_text())
        about.pop("run")
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


def test_a_run_of_before_makes_no_promise(store):
    begun = time.monotonic()
    store().put(NAME, Entry({"rows": torch.ones(1)}))
    assert is_kept(begun)
    assert not is_kept(time.monotonic())
    store().remove()
    assert not is_kept(begun)


@pytest.mark.slow
def test_a_run_of_several_processes_that_is_stopped_says_how_to_go_on(tiny_hf, tiny_set, tmp_path, cache):
    edit = ["edit", tiny_hf, "--calib", tiny_set, "--beside", "none", "--batch-size", "3", "-o", tmp_path / "out"]
    path = os.pathsep.join([str(STOPPING.parent), str(HERE.parents[1])])
    with launch(2, STOPPING, 3, *edit, folder=tmp_path, PYTHONPATH=path, STOP="SIGTERM") as process:
        _, errors = process.communicate(timeout=200)
    told = [line for line in ours(errors) if line.startswith("uwm: ")]
    assert told == [STOPPED, KEPT]


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


def another_tokenizer_file(folders, settings):
    (folders["model"] / "merges.bpe").write_text("a b\n")


def a_name_of_a_class(folders, settings):
    (folders["zs"] / "classnames.txt").write_text("cat\nwolf\n")


def the_unsafe_classes(folders, settings):
    (folders["zs"].parent / "unsafe_classes.txt").write_text("dog\n")


def the_preprocessing(folders, settings):
    file = folders["zs"].parent / "preprocess.json"
    file.write_text('{"preprocess_cfg": {"interpolation": "bilinear"}}')
    settings["preprocess"] = str(file)


def the_dtype(folders, settings):
    settings["opened"] = {"dtype": "bfloat16"}


def the_threads(folders, settings):
    torch.set_num_threads(torch.get_num_threads() + 1)


def the_precision(folders, settings):
    torch.set_float32_matmul_precision("medium")


def oneDNN(folders, settings):
    torch.backends.mkldnn.enabled = False


def deterministic(folders, settings):
    torch.use_deterministic_algorithms(True)


def autocast(folders, settings):
    settings["around"] = torch.autocast("cpu", torch.bfloat16)


def a_variable_of_mkl(folders, settings):
    settings["around"] = mock.patch.dict(os.environ, MKL_CBWR="COMPATIBLE")


def the_processor(folders, settings):
    settings["around"] = mock.patch.object(surroundings, "_processor", return_value="another")


def a_library(folders, settings):
    settings["around"] = mock.patch.object(surroundings, "_version", return_value="99")


def our_code(folders, settings):
    settings["around"] = mock.patch.object(surroundings, "_code", return_value="changed")


def what_a_tokenizer_from_elsewhere_makes(folders, settings):
    settings["around"] = mock.patch.object(HuggingFaceModel, "tokenize", return_value=[torch.ones(2, 3)])


def the_architecture(folders, settings):
    settings["around"] = mock.patch.object(torch.nn.Module, "__repr__", return_value="another")


def the_verb(folders, settings):
    settings["verb"] = "eval model"


CHANGES = [one_weight, a_merge_of_the_tokenizer, another_tokenizer_file, the_preprocessing, the_dtype, the_architecture]
CHANGES += [a_caption, an_image, an_image_of_a_class, a_name_of_a_class, the_unsafe_classes]
CHANGES += [a_prompt, what_a_tokenizer_from_elsewhere_makes, the_verb]
CHANGES += [the_threads, the_precision, oneDNN, deterministic, autocast, a_variable_of_mkl, the_processor]
CHANGES += [a_library, our_code]


def run_of(folders, settings, **given):
    """The name of a run."""
    model, pairs = uwm.load(folders["model"], **settings.get("opened", {})), uwm.read_calibration(folders["set"])
    data = open_data_sets([str(folders["zs"])], templates=settings.get("templates")).values()
    rest = {name: value for name, value in settings.items() if name not in ("verb", "around", "opened")}
    with settings.get("around", nullcontext()):
        found = keep_work(settings.get("verb", "edit"), {**rest, **given}, model, [pairs], data)
    return found._run


@pytest.fixture
def torch_as_it_was():
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)
    torch.backends.mkldnn.enabled = True


def test_the_same_run_has_the_same_name_wherever_its_files_lie(copies, tiny_hf, tiny_set, classes):
    first = run_of({"model": tiny_hf, "set": tiny_set, "zs": classes}, {"seed": 0}, workers=2, cache=True)
    os.utime(next(iter(copies["zs"].rglob("*.png"))))
    for file in classes.rglob("*.png"):
        shutil.copystat(file, copies["zs"] / file.relative_to(classes))
    assert run_of(copies, {"seed": 0}, workers=4, cache=True) == first
    assert run_of(copies, {"seed": 1}) != first


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_of_something_else_has_another_name(change, copies, torch_as_it_was):
    (copies["zs"].parent / "prompts.txt").write_text("a photo of a {}.\n")
    settings = {"seed": 0, "templates": str(copies["zs"].parent / "prompts.txt")}
    first = run_of(copies, settings)
    assert run_of(copies, settings) == first
    change(copies, settings)
    assert run_of(copies, settings) != first


def test_a_file_of_a_published_data_set_decides(tiny_hf, tmp_path):
    base = tmp_path / "SUN397"
    (base / "a" / "abbey").mkdir(parents=True)
    (base / "ClassName.txt").write_text("/a/abbey\n")
    image = base / "a" / "abbey" / "sun_1.jpg"
    Image.new("RGB", (32, 32)).save(image)
    model, found = uwm.load(tiny_hf), []
    for size in (32, 48):
        Image.new("RGB", (size, size)).save(image)
        data = open_data_sets(["sun397"], data_root=tmp_path)
        found.append(keep_work("eval", {}, model, [], data.values())._run)
    (base / "link").symlink_to("nowhere")
    assert found[0] != found[1]
    assert keep_work("eval", {}, model, [], data.values())._run == found[1]


def test_the_code_of_another_distributions_editor_decides(tmp_path, monkeypatch):
    package = tmp_path / "their_editor"
    package.mkdir()
    (package / "__init__.py").write_text("class Theirs: pass\n")
    (package / "sums.py").write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("their_editor").Theirs()
    monkeypatch.setattr(surroundings, "find_editors", lambda: {"theirs": theirs})
    found = []
    for factor in (1, 2):
        (package / "sums.py").write_text(f"FACTOR = {factor}\n")
        for settings in ({"method": "theirs"}, {"beside": ("theirs",)}, {"method": None}):
            found.append(surroundings.surroundings(settings, torch.device("cpu")))
    assert found[0] == found[1] != found[2]
    assert found[3] == found[4] != found[0]
    assert found[5] == found[2]


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


def test_kept_work_holds_no_caption_and_no_path(tiny_hf, tiny_set, classes, cache):
    with keeping(kill_at(20)), pytest.raises(Killed):
        run(Recipe(str(tiny_hf), str(tiny_set), zero_shot=(str(classes),), beside=("repel",), batch_size=5))
    written = b"".join(path.read_bytes() for path in kept(cache))
    pairs = uwm.read_calibration(tiny_set).pairs
    told = [text for pair in pairs for text in (pair.safe_text, pair.unsafe_text, pair.safe_image.name)]
    assert b"done" in written  # sums of a pass
    assert b"rows" in written  # and embeddings
    assert not [text for text in told if text.encode() in written]


def test_what_was_kept_is_found_by_the_next_run_alone(store):
    first = store()
    first.put(NAME, Entry({"rows": torch.arange(6.0).reshape(2, 3)}, {"batches": 2}))
    assert first.get(NAME) is None  # it began with nothing
    found = store().get(NAME)
    assert found.tensors["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.about == {"batches": 2}
    assert store().get("2" * 64) is None


def embed_and_stop(store, count, every):
    """The rows that are there; then those up to `count` are made, and kept after every so many batches."""
    rows = kept_rows(SimpleNamespace(unfinished=store(), edited=()), "text", [(f"{n} dogs",) for n in range(6)])
    found = [row.item() for row in rows.found]
    for number in range(len(found), count):
        with mock.patch.object(Unfinished, "is_due", lambda *_, due=(number + 1) % every == 0: due):
            rows.add(torch.tensor([[float(number)]]))
    return found


def test_embeddings_whose_first_part_was_lost_are_no_others(store, cache):
    embed_and_stop(store, 4, every=2)
    oldest = min(kept(cache), key=lambda file: (file.suffix != ".safetensors", file.stat().st_mtime_ns))
    oldest.unlink()
    assert embed_and_stop(store, 3, every=3) == []
    assert embed_and_stop(store, 5, every=2) == [0, 1, 2]
    assert embed_and_stop(store, 0, every=1) == [0, 1, 2, 3]


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


def test_a_cache_that_may_not_be_read_stops_nothing(store, monkeypatch):
    store().put(NAME, Entry({"rows": torch.ones(3)}))
    monkeypatch.setattr(Path, "iterdir", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    assert not store().goes_on
    store().remove()


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
    now[0] += 5  # to gather it from a GPU
    here.put(NAME, Entry({}))
    now[0] += 299
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


def test_a_subclass_does_not_take_over_the_sums_of_its_base():
    """It may sum up more than they name."""

    class Counting(PairEmbeddings):
        def join(self, item):
            super().join(item)
            self.count = getattr(self, "count", 0) + 1

    class Telling(Counting):
        SUMS = (*PairEmbeddings.SUMS, "count")

    assert sums.can_be_told([PairEmbeddings(), Telling()])
    assert not sums.can_be_told([PairEmbeddings(), Counting()])
