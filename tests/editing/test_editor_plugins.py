"""Editors are found by entry points; a third party's runs the whole way, and a broken one hinders no other."""

from __future__ import annotations

import importlib
import json
import os
from importlib.metadata import Distribution

import pytest
import torch
from distributions import ROOT, entries, lay, lines, python
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB, done, refused

import uwm
from uwm.editing.changes import AddLowRank
from uwm.editing.editors import PARTS, editor_names, find_editor, find_editors
from uwm.errors import BadInput
from uwm.images import load_image

GROUP = "uwm.editors"
OURS = entries(GROUP)
NAME = "shrink-difference"
LIST = "from uwm.editing.editors import find_editors as f; [print(n, e.title) for n, e in f().items()]"
LIGHT = "import sys, shrink_difference, uwm.cli; print('torch' in sys.modules)"
SIDES = ("safe", "unsafe")


# ---------------------------------------------------------------- the example


@pytest.fixture(scope="module")
def edited(installed, tiny_hf, tiny_set, tmp_path_factory):
    """What `uwm edit` of an installed uwm wrote with the installed example."""
    folder = tmp_path_factory.mktemp("edited")
    flags = ("--method", NAME, "--set", "shrink=0.5", "--calib", tiny_set, "--beside", "none", *ALL_OF_CALIB)
    done(python(folder, installed, "-m", "uwm", "edit", tiny_hf, *flags, "-o", "out"))
    return folder / "out"


def test_it_is_found_once_installed(installed, tmp_path):
    found = lines(python(tmp_path, installed, "-c", LIST))
    assert found == sorted(found)
    assert f"{NAME} shrinking the difference of means" in found
    assert len(found) == len(OURS) + 1


def test_it_loads_no_torch_before_it_works(installed, tmp_path):
    assert lines(python(tmp_path, installed, "-c", LIGHT)) == ["False"]


def test_help_names_it(installed, tmp_path):
    assert NAME in done(python(tmp_path, installed, "-m", "uwm", "edit", "--help"))


def test_every_file_names_it(edited):
    about = json.loads((edited / "uwm.json").read_text("utf-8"))
    assert (about["settings"]["method"], about["settings"]["shrink"]) == (NAME, 0.5)
    assert about["edit"]["title"] == "shrinking the difference of means"
    assert about["edit"]["towers"].keys() == {"text", "vision"}
    assert {name: layer["rank"] for name, layer in about["layers"].items()} == {"text.proj": 1, "vision.proj": 1}
    for name in ("README.md", "report.html"):
        assert "shrinking the difference of means" in (edited / name).read_text("utf-8")
    patch = uwm.Patch.load(edited)
    assert patch.recipe["method"] == NAME
    assert all(isinstance(change, AddLowRank) for change in patch.changes.values())


def mean_step(folder, pairs):
    """Tower -> the distance of the mean unsafe from the mean safe embedding."""
    model, found = uwm.load(folder), {}
    with torch.no_grad():
        texts = [model.encode_text(*model.tokenize([getattr(p, f"{side}_text") for p in pairs])) for side in SIDES]
        images = [[load_image(getattr(p, f"{side}_image")) for p in pairs] for side in SIDES]
        found["vision"] = [model.encode_image(model.preprocess(side)) for side in images]
    found["text"] = texts
    return {tower: (unsafe.mean(0) - safe.mean(0)).norm() for tower, (safe, unsafe) in found.items()}


def test_half_of_the_distance_of_the_means_is_gone(edited, tiny_hf, tiny_set):
    pairs = uwm.read_calibration(tiny_set, split="calib").pairs
    before, after = mean_step(tiny_hf, pairs), mean_step(edited, pairs)
    for tower in ("text", "vision"):
        assert float(after[tower] / before[tower]) == pytest.approx(0.5, rel=1e-3)


def test_it_is_compared(installed, tiny_hf, tiny_set, tmp_path):
    flags = ("--calib", tiny_set, "--eval-split", "test", "--points", "shrink=0.25,1", "--json")
    methods = f"uwm,{NAME},{NAME}:shrink=0.5,{NAME}:control:shrink=0.5"
    found = json.loads(done(python(tmp_path, installed, "-m", "uwm", "compare", tiny_hf, "--methods", methods, *flags)))
    rows = {(row["method"], (row["at"] or {}).get("value")): row for row in found["tables"]["test"]}
    assert [*rows] == [("none", None), ("uwm", None), (NAME, 0.25), (NAME, 1.0)] + [
        (f"{NAME}{settings}", None) for settings in (":shrink=0.5", ":control:shrink=0.5")
    ]
    changed = 2 * 24 * 32  # all entries of both projections
    assert [rows[key]["changed"] for key in rows if key[0].startswith(NAME)] == [changed] * 4
    assert (tmp_path / "uwm-comparison" / "comparison.md").is_file()


def test_its_settings_are_checked_and_listed(installed, tiny_hf, tiny_set, tmp_path):
    def edit(*flags):
        calib = ("--calib", tiny_set, "--method", NAME, "-o", "out")
        return python(tmp_path, installed, "-m", "uwm", "edit", tiny_hf, *calib, *flags)

    refused(edit("--set", "shrink=2"), 2, "--set shrink=2.0: expected a number over 0, at most 1")
    refused(edit("--set", "shrink=much"), 2, "--shrink 'much': expected float")
    refused(edit("--set", "grow=2"), 2, f"--grow: the method {NAME} has no such setting; it has shrink")
    refused(edit("--mass", 0.1), 2, f"--mass: the method {NAME} has no such setting; it has shrink")
    refused(edit("--set", "shrink"), 2, "--set 'shrink': expected NAME=VALUE")


def test_its_edit_is_reverted_to_the_byte(installed, edited, tiny_hf, tmp_path):
    done(python(tmp_path, installed, "-m", "uwm", "revert", edited, edited, "-o", "back"))
    assert done(python(tmp_path, installed, "-m", "uwm", "diff", tiny_hf, "back")) == "no tensor differs\n"
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_hf, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].view(torch.int32), after[key].view(torch.int32)) for key in before)
    assert not torch.equal(
        before["text_projection.weight"], load_file(edited / "model.safetensors")["text_projection.weight"]
    )


def test_a_distribution_that_brings_many_editors_is_read_once(monkeypatch):
    """Its METADATA holds the README; parsing it for each entry point was a sixth of the time of `uwm --help`."""
    read, metadata = [], Distribution.metadata
    monkeypatch.setattr(Distribution, "metadata", property(lambda own: read.append(own) or metadata.fget(own)))
    assert len([*find_editors().values()]) > 5
    assert 0 < len(read) == len({id(own) for own in read})


def test_every_entry_of_ours_is_an_editor_of_that_name():
    for name, value in OURS.items():
        module, _, attribute = value.partition(":")
        editor = getattr(importlib.import_module(module), attribute)
        assert editor.name == name
        assert all(isinstance(getattr(editor, part), kind) for part, kind in PARTS.items())


# ---------------------------------------------------------------- broken ones

NO_DATACLASS = """
from uwm.editing.editors import Pairs, Proposal, Statistics
class Settings: ...
class Plain:
    name, title, source = "NAME", "a test", "none"
    Settings = Settings
    def check(self, settings): ...
    def measured(self, settings): ...
    def statistics(self, model, pairs, settings): ...
    def edit(self, model, statistics, settings, seed=0): ...
    def control(self, model, statistics, settings, seed=0): ...
EDITOR = Plain()
"""
SOUND = NO_DATACLASS.replace("class Settings", "from dataclasses import dataclass\n@dataclass\nclass Settings")
BROKEN = {
    "raises": ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero; repair or uninstall"),
    "needs what is not there": ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
    "no Python": ("def (", "cannot be imported: SyntaxError: "),
    "leaves the program": ("import sys; sys.exit(0)", "cannot be imported: SystemExit: 0"),
    "no such object": ("", "cannot be imported: AttributeError: .*EDITOR"),
    "no title": (SOUND.replace("title,", "other,"), "expected an attribute 'title', a str"),
    "settings that are no class": (SOUND.replace("Settings = Settings", "Settings = {}"), "'Settings', a type"),
    "settings of another kind": (NO_DATACLASS, "expected 'Settings', a dataclass of fields that .*setting makes"),
    "no control": (SOUND.replace("def control", "def other"), "expected a method 'control'"),
    "another name": (SOUND.replace("NAME", "another"), "calls itself 'another'; its entry point must have the same"),
}


def test_a_sound_editor_is_found(plug_in):
    plug_in(GROUP, "sound-editor", "zz-sound", SOUND.replace("NAME", "zz-sound"))
    assert find_editors()["zz-sound"].title == "a test"
    assert editor_names()[0] == "uwm"
    assert editor_names()[-1] == "zz-sound"


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_editor_is_named(text, message, plug_in, request):
    distribution = f"broken-editor-{[*BROKEN].index(request.node.callspec.id)}"
    plug_in(GROUP, distribution, "zz-broken", text.replace("NAME", "zz-broken"))
    with pytest.raises(BadInput, match=rf"editor 'zz-broken' of {distribution} \(.*:EDITOR\).*{message}") as caught:
        find_editor("zz-broken")
    assert "\n" not in str(caught.value)


def test_two_of_one_name_name_both(plug_in):
    for distribution in ("twin-editor-b", "twin-editor-a"):
        plug_in(GROUP, distribution, "zz-twin", SOUND.replace("NAME", "zz-twin"))
    with pytest.raises(BadInput, match="two editors are called 'zz-twin', of twin-editor-a and twin-editor-b; unin"):
        find_editor("zz-twin")


def test_a_name_of_ours_is_not_taken_and_who_tries_is_named(plug_in, caplog):
    plug_in(GROUP, "zz-impostor", "uwm", SOUND.replace("NAME", "uwm"))
    assert find_editor("uwm").source.startswith("D'Incà")
    assert "zz-impostor: its editor 'uwm' is left out, for the name is uwm's" in caplog.text
    assert find_editors(only="uwm")["uwm"].source.startswith("D'Incà")


def test_an_unknown_one_lists_all_and_imports_none(plug_in):
    plug_in(GROUP, "broken-editor", "zz-broken", "1 / 0")
    with pytest.raises(BadInput, match="--method 'nope': expected one of uwm, ablate, .*, zz-broken$"):
        find_editor("nope")


# ---------------------------------------------------------------- which hinder no other


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A folder with a broken editor, two of one name, and one that writes down that it was imported."""
    folder = tmp_path_factory.mktemp("crowd")
    lay(folder, GROUP, "broken-editor", "zz-broken", "1 / 0")
    for distribution in ("twin-editor-a", "twin-editor-b"):
        lay(folder, GROUP, distribution, "zz-twin", SOUND.replace("NAME", "zz-twin"))
    told = f"open({str(folder / 'imported')!r}, 'w').close()\n"
    lay(folder, GROUP, "telling-editor", "zz-telling", told + SOUND.replace("NAME", "zz-telling"))
    return folder


@pytest.fixture
def beside(crowd, tmp_path):
    """Run the program with these distributions on the path; none of them may be imported."""

    def run(*arguments):
        result = python(tmp_path, f"{crowd}{os.pathsep}{ROOT}", "-m", "uwm", *arguments)
        assert not (crowd / "imported").exists()
        return result

    return run


@pytest.mark.parametrize("verb", ["edit", "demo", "score", "select", "compare"])
def test_help(beside, verb):
    out = done(beside(verb, "--help"))
    assert "zz-broken" in out or verb in ("select", "compare")


def test_edit_with_ours(beside, tiny_hf, tiny_set, tmp_path):
    done(beside("edit", tiny_hf, "--calib", tiny_set, "-o", "out", "--beside", "none", *ALL_OF_CALIB))
    assert (tmp_path / "out" / "uwm.json").is_file()
    refused(beside("edit", tiny_hf, "--calib", tiny_set, "-o", "x", "--method", "zz-broken"), 2, "of broken-editor")
    refused(beside("edit", tiny_hf, "--calib", tiny_set, "-o", "x", "--method", "zz-twin"), 2, "twin-editor-a and twi")
    refused(beside("edit", tiny_hf, "--calib", tiny_set, "-o", "x", "--strength", 2), 2, "the method uwm has no such")


def test_compare_with_ours(beside, tiny_hf, tiny_set, tmp_path):
    flags = ("--calib", tiny_set, "--eval-split", "test")
    done(beside("compare", tiny_hf, "--methods", "uwm", *flags))
    assert (tmp_path / "uwm-comparison" / "comparison.json").is_file()
    line = refused(beside("compare", tiny_hf, "--methods", "nope,uwm:nope", *flags), 2, "'nope'", "'uwm:nope'")
    assert "zz-broken, zz-telling, zz-twin" in line.replace("; ", ", ")
    refused(beside("compare", tiny_hf, "--methods", "zz-broken", *flags), 2, "editor 'zz-broken' of broken-editor")
