"""A setting of an editor is declared once: that makes flag, TOML key, variable, compare's spelling and uwm.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from types import SimpleNamespace

import click
import numpy as np
import pytest
from terminal import refused

from uwm.cli import main_job
from uwm.cli.group import uwm as program
from uwm.comparison.methods import Edit, known, parse_methods
from uwm.editing.editors import find_editors
from uwm.editing.settings import declared, flag, make, setting, spelt
from uwm.errors import BadInput, InvalidResult
from uwm.recipe import Recipe, run

EDITORS = dict(find_editors(only="uwm"))
WITHOUT_VARIANTS = {name for name, e in EDITORS.items() if "variants" in dir(e) and not e.variants}
NUMBERS = {float: 0.25, int: 2}
EACH = [
    pytest.param(editor, f, id=f"{name} {f.name}")
    for name, editor in EDITORS.items()
    for f in fields(editor.Settings)
    if not (f.name == "variant" and name in WITHOUT_VARIANTS)
]


def sample(declared):
    """A value of a setting that is not its default."""
    kind, choices = declared.metadata["kind"], declared.metadata["choices"]
    return choices[-1] if choices else "q_proj" if kind is str else NUMBERS[kind]


def samples(editor):
    return {
        f.name: sample(f)
        for f in fields(editor.Settings)
        if not (f.name == "variant" and editor.name in WITHOUT_VARIANTS)
    }


# ---------------------------------------------------------------- one declaration


@dataclass(frozen=True)
class Settings:
    share: float = setting(0.5, float, "A share.")
    rank_of: int | None = setting(None, int, "A rank.")
    layers: str = setting("fc2", str, "Layers.")
    side: str = setting("left", str, "A side.", ("left", "right"))
    loud: bool = setting(False, bool, "Loud.")


EDITOR = SimpleNamespace(name="plain", Settings=Settings, check=lambda settings: None)


def test_what_is_not_given_is_the_default():
    assert make(EDITOR, {}) == make(EDITOR, {"share": None, "rank-of": None}) == Settings()


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"share": "0.25"}, Settings(share=0.25)),
        ({"share": 1}, Settings(share=1.0)),
        ({"share": np.float32(0.25)}, Settings(share=0.25)),
        ({"rank-of": "3"}, Settings(rank_of=3)),
        ({"rank_of": np.int64(3)}, Settings(rank_of=3)),
        ({"layers": ["fc1", "fc2"]}, Settings(layers="fc1,fc2")),
        ({"side": "right"}, Settings(side="right")),
        ({"loud": "true"}, Settings(loud=True)),
        ({"loud": "false"}, Settings(loud=False)),
        ({"loud": True}, Settings(loud=True)),
    ],
    ids=str,
)
def test_values_are_read_as_their_kind(given, made):
    found = make(EDITOR, given)
    assert found == made
    assert [type(value) for value in vars(found).values()] == [type(value) for value in vars(made).values()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": "much"}, "--share 'much': expected float"),
        ({"share": "nan"}, "--share 'nan': expected a finite number"),
        ({"share": float("inf")}, "--share inf: expected a finite number"),
        ({"share": 10**400}, "--share 10*: expected float"),
        ({"share": True}, "--share True: expected float"),
        ({"share": [0.5]}, "--share .*: expected float"),
        ({"rank-of": "1.5"}, "--rank-of '1.5': expected int"),
        ({"rank-of": 1.5}, "--rank-of 1.5: expected int"),
        ({"layers": 3}, "--layers 3: expected str"),
        ({"side": "both"}, "--side 'both': expected one of left, right"),
        ({"side": 1}, "--side 1: expected one of left, right"),
        ({"side": ["left"]}, "--side .*: expected one of left, right"),
        ({"loud": "yes"}, "--loud 'yes': expected true or false"),
        ({"loud": 1}, "--loud 1: expected true or false"),
        ({"rank": 3}, "--rank: the method plain has no such setting; it has share, rank-of, layers, side, loud$"),
    ],
    ids=str,
)
def test_wrong_types_words_and_names_are_refused(given, message):
    with pytest.raises(BadInput, match=f"^{message}"):
        make(EDITOR, given)


def test_the_editor_checks_what_was_made():
    def check(settings):
        raise InvalidResult(f"{settings.share} changes nothing")

    with pytest.raises(InvalidResult, match="0.25 changes nothing"):
        make(SimpleNamespace(name="plain", Settings=Settings, check=check), {"share": "0.25"})


def test_spelt():
    assert spelt(["rank-of = 3", "layers=a=b"], []) == {"rank_of": "3", "layers": "a=b"}
    assert spelt(["right", "share=1"], [Settings]) == {"side": "right", "share": "1"}
    for text in ("both", "=3", " = 3"):
        with pytest.raises(BadInput, match=rf"^{text!r}: expected NAME=VALUE, or one of left, right$"):
            spelt([text], [Settings])
    with pytest.raises(BadInput, match="^'right': expected NAME=VALUE$"):
        spelt(["right"], [])


def test_declared():
    @dataclass
    class Plain:
        share: float = 0.5

    @dataclass
    class OtherKind:
        share: complex = setting(0j, complex, "A share.")

    assert declared(Settings)
    assert not any(declared(kind) for kind in (Plain, OtherKind, dict))
    assert all(declared(editor.Settings) for editor in EDITORS.values())


# ---------------------------------------------------------------- ours, wherever they are written


def options(verb):
    """Long flag -> how often it is declared."""
    found = {}
    for option in (p for p in program.commands[verb].params if isinstance(p, click.Option)):
        for name in option.opts:
            found[name] = found.get(name, 0) + 1
    return found


@pytest.fixture
def edit(monkeypatch, run_uwm):
    """Run `uwm edit` up to its recipe -> the recipe."""
    made = []
    monkeypatch.setattr(main_job, "_run", lambda verb, recipe, *rest: made.append(recipe))

    def run(*arguments, method="uwm"):
        code, out, err = run_uwm("edit", "m", "--calib", "c", "--dry-run", "--method", method, *arguments)
        assert (code, out, err) == (0, "", "")
        return made.pop()

    return run


@pytest.mark.parametrize("verb", ["edit", "demo"])
def test_each_is_one_flag(verb):
    there = options(verb)
    names = {f.name for editor in EDITORS.values() for f in fields(editor.Settings)}
    assert {there.get(f"--{flag(name)}") for name in names} == {1}
    assert not names & {f.name for f in fields(Recipe)}


def test_help_shows_each_flag_once(run_uwm):
    _, out, _ = run_uwm("edit", "--help")
    names = {f.name for editor in EDITORS.values() for f in fields(editor.Settings)}
    for name in names:
        assert len(re.findall(rf"^  --{flag(name)} ", out, re.M)) == 1


def test_editors_that_share_a_name_mean_the_same():
    kinds = {}
    for editor in EDITORS.values():
        for f in fields(editor.Settings):
            about = f.metadata["kind"], f.metadata["choices"], f.metadata["help"]
            assert kinds.setdefault(f.name, about) == about


@pytest.mark.parametrize(("editor", "declared"), EACH)
def test_a_flag_a_variable_a_key_and_a_set_give_the_same(editor, declared, edit, monkeypatch, tmp_path):
    value, name = sample(declared), flag(declared.name)
    expected = make(editor, {declared.name: value})
    assert getattr(expected, declared.name) == value
    (tmp_path / "settings.toml").write_text(f"{name} = {json.dumps(value)}\n")
    recipes = [
        edit(f"--{name}", value, method=editor.name),
        edit("--set", f"{name}={value}", method=editor.name),
        edit("--config", tmp_path / "settings.toml", method=editor.name),
    ]
    monkeypatch.setenv(f"UWM_{name.upper().replace('-', '_')}", str(value))
    recipes.append(edit(method=editor.name))
    for recipe in recipes:
        assert recipe.settings.keys() == {declared.name}
        assert make(editor, recipe.settings) == expected


@pytest.mark.parametrize(("editor", "declared"), EACH)
def test_compare_spells_it_so(editor, declared):
    value = sample(declared)
    texts = [f"{editor.name}:{flag(declared.name)}={value}"]
    texts += [f"{editor.name}:control:{value}"] if declared.metadata["choices"] else []
    for text in texts:
        (edited,) = parse_methods([text], {})[1].stages
        assert edited == Edit(editor.name, ((declared.name, value),), control=":control" in text)
        assert edited.made() == make(editor, {declared.name: value})


def test_the_line_of_all_that_compare_knows_lists_each_once():
    listed = dict(re.findall(r"[:;] ([\w-]+) \(([^)]*)\)", known({}).partition("fine-tuning")[0]))
    assert listed.keys() == EDITORS.keys()
    for name, editor in EDITORS.items():
        expected = [w for f in fields(editor.Settings) for w in f.metadata["choices"]]
        expected += [f"{flag(f.name)}=" for f in fields(editor.Settings) if not f.metadata["choices"]]
        assert listed[name].split(", ") == expected


@pytest.mark.parametrize("editor", EDITORS.values(), ids=EDITORS)
def test_uwm_json_has_each(editor, tiny_hf, tiny_set):
    given = samples(editor) | ({"share": 0.9} if editor.name == "repel" else {})  # of noise
    recipe = Recipe(str(tiny_hf), str(tiny_set), eval_splits=("test",), method=editor.name, settings=given)
    written = run(recipe).manifest["settings"]
    assert "settings" not in written
    made = make(editor, given)
    for f in fields(editor.Settings):
        if f.name not in ("mass", "rule"):  # as they decided each tower
            assert written[f.name] == getattr(made, f.name)
    if "mass" in given:
        assert written["mass"] == dict.fromkeys(("text", "vision"), 0.25)
        assert written["rule"] == dict.fromkeys(("text", "vision"), "top-fraction")


def test_a_list_of_layers_in_a_file(edit, tmp_path):
    (tmp_path / "settings.toml").write_text('text-layers = ["fc1", "fc2"]\nvision_layers = "none"\n')
    found = edit("--config", tmp_path / "settings.toml")
    assert found.settings == {"text_layers": "fc1,fc2", "vision_layers": "none"}


# ---------------------------------------------------------------- mistakes at the terminal


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--strength", 2), "--strength: the method uwm has no such setting; it has variant, text-layers, "),
        (("--method", "repel", "--mass", 0.1), "--mass: the method repel has no such setting; it has share, strength"),
        (("--set", "towers=text"), "--towers: the method uwm has no such setting; it has "),
        (("--set", "mass"), "--set 'mass': expected NAME=VALUE"),
        (("--set", "mass=much"), "--mass 'much': expected float"),
        (("--method", "redirect", "--set", "rank=1.5"), "--rank '1.5': expected int"),
        (("--method", "repel", "--units", "many"), "--units 'many': expected one of one, concept"),
        (("--method", "ablate", "--towers", "audio"), "--towers 'audio': expected one of both, text, vision"),
        (("--mass", 2), "--mass 2.0: expected a number between 0 and 1"),
        (("--method", "nope"), "--method 'nope': expected one of uwm, ablate, "),
    ],
    ids=str,
)
def test_one_line_says_what_is_wrong_and_what_there_is(run_uwm, tmp_path, arguments, words):
    refused(run_uwm("edit", tmp_path / "none", "--calib", tmp_path, "-o", tmp_path / "out", *arguments), 2, words)


@pytest.mark.parametrize("where", ["flag", "variable", "file"])
def test_numbers_that_are_none(run_uwm, tmp_path, monkeypatch, where):
    arguments = ("edit", tmp_path / "none", "--calib", tmp_path, "--dry-run")
    if where == "flag":
        arguments += ("--mass", "much")
    elif where == "variable":
        monkeypatch.setenv("UWM_MASS", "much")
    else:
        (tmp_path / "settings.toml").write_text('mass = "much"\n')
        arguments += ("--config", tmp_path / "settings.toml")
    refused(run_uwm(*arguments), 2, "'much' is not a valid float")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("uwm:strength=1", "'uwm:strength=1': --strength: the method uwm has no such setting; it has variant"),
        ("repel:difference", "'repel:difference': 'difference': expected NAME=VALUE, or one of one, concept"),
        ("repel:share=much", "'repel:share=much': --share 'much': expected float"),
        ("redirect:rank=1.5", "--rank '1.5': expected int"),
        ("ablate:towers=audio", "--towers 'audio': expected one of both, text, vision"),
    ],
)
def test_mistakes_in_a_comparison(text, words):
    with pytest.raises(BadInput) as caught:
        parse_methods([text], {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_may_not_hide_one_of_the_recipe(plug_in, tmp_path, run_uwm):
    plug_in(
        "uwm.editors",
        "seeded-editor",
        "zz-seeded",
        "from dataclasses import make_dataclass\n"
        "from uwm.editing.entries.editor import EntryEditor\n"
        "from uwm.editing.settings import setting\n"
        "class Seeded(EntryEditor):\n"
        "    Settings = make_dataclass('S', [('seed', int, setting(0, int, 'A seed.'))], frozen=True)\n"
        "EDITOR = Seeded('zz-seeded', 'a test', 'none', 0.1, 0.0)\n",
    )
    arguments = ("edit", tmp_path / "none", "--calib", tmp_path, "--dry-run", "--method", "zz-seeded")
    refused(run_uwm(*arguments), 2, "--method zz-seeded: its setting 'seed' has the name of one of uwm's own")
