"""Which runs are the same, so that one goes on with what the other kept."""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import uwm
from uwm.inputs import surroundings
from uwm.inputs.resuming import keep_work
from uwm.knowledge import open_data_sets
from uwm.models.hugging_face import HuggingFaceModel


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """A cache of the test's own."""
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copies(tiny_hf, tiny_set, tiny_classes, tmp_path):
    """Model, set and classes that may be changed."""
    named = {"model": tiny_hf, "set": tiny_set, "zs": tiny_classes}
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


def test_the_same_run_has_the_same_name_wherever_its_files_lie(copies, tiny_hf, tiny_set, tiny_classes):
    first = run_of({"model": tiny_hf, "set": tiny_set, "zs": tiny_classes}, {"seed": 0}, workers=2, cache=True)
    os.utime(next(iter(copies["zs"].rglob("*.png"))))
    for file in tiny_classes.rglob("*.png"):
        shutil.copystat(file, copies["zs"] / file.relative_to(tiny_classes))
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
