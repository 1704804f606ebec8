"""Where flags come from (line, environment, TOML), which spelling wins, and when a progress bar is shown."""

from __future__ import annotations

import json

import click
import pytest

from uwm.cli.flags import COMMON, MODEL, SELECT, Verb, say, split_flags
from uwm.errors import BadInput


@pytest.fixture
def call(monkeypatch):
    """Run a verb with the shared flags -> the settings it was called with."""
    for name in ("MASS", "SEED", "BATCH_SIZE", "QUIET"):
        monkeypatch.delenv(f"UWM_{name}", raising=False)

    @click.command(cls=Verb)
    @click.option("-o", "--output")
    @click.option("--pick", multiple=True)
    @SELECT
    @MODEL
    @COMMON
    def verb(**flags):
        return flags

    return lambda *arguments: verb.main([str(a) for a in arguments], standalone_mode=False)


def toml(tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text, "utf-8")
    return path


def test_defaults(call):
    flags = call()
    assert (flags["mass"], flags["alpha"], flags["text_mass"], flags["seed"]) == (None, None, None, 0)
    assert (flags["device"], flags["dtype"], flags["quick_gelu"], flags["pick"]) == ("auto", "auto", None, ())


@pytest.mark.parametrize("spelling", ["--text-mass", "--text_mass"])
def test_underscores_are_hyphens_in_flags(spelling, call):
    assert call(spelling, "0.1")["text_mass"] == 0.1


@pytest.mark.parametrize("arguments", [["-o", "a_b"], ["-oa_b"], ["--output=a_b"]])
def test_underscores_stay_in_values(arguments, call):
    assert call(*arguments)["output"] == "a_b"


def test_environment(call, monkeypatch):
    monkeypatch.setenv("UWM_MASS", "0.3")
    monkeypatch.setenv("UWM_QUIET", "1")
    assert call()["mass"] == 0.3
    assert call()["quiet"] is True


def test_line_before_environment_before_file_before_default(call, monkeypatch, tmp_path):
    file = toml(tmp_path, "mass = 0.1")
    assert call("--config", file)["mass"] == 0.1
    monkeypatch.setenv("UWM_MASS", "0.2")
    assert call("--config", file)["mass"] == 0.2
    assert call("--config", file, "--mass", "0.3")["mass"] == 0.3


def test_config_may_come_last_and_from_the_environment(call, monkeypatch, tmp_path):
    file = toml(tmp_path, "mass = 0.1")
    assert call("--alpha", 0, "--config", file)["mass"] == 0.1
    monkeypatch.setenv("UWM_CONFIG", str(file))
    assert call()["mass"] == 0.1


def test_config_takes_both_spellings_lists_and_switches(call, tmp_path):
    file = toml(tmp_path, 'text-mass = 0.1\nvision_mass = 0.2\npick = ["a", "b c"]\nquiet = true\nquick-gelu = false\n')
    flags = call("--config", file)
    assert (flags["text_mass"], flags["vision_mass"], flags["pick"]) == (0.1, 0.2, ("a", "b c"))
    assert (flags["quiet"], flags["quick_gelu"]) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("masss = 0.1", "unknown key 'masss'; expected some of .*mass"),
        ("config = 'other.toml'", "unknown key 'config'"),
        ("[edit]\nmass = 0.1", "unknown key 'edit'"),
        ("mass = ", "not valid TOML .*end of document"),
    ],
)
def test_config_with_a_mistake(text, message, call, tmp_path):
    with pytest.raises(BadInput, match=rf"--config .*settings\.toml: {message}"):
        call("--config", toml(tmp_path, text))


def test_config_that_cannot_be_read(call, tmp_path):
    with pytest.raises(BadInput, match=r"--config .*nope\.toml: no such file"):
        call("--config", tmp_path / "nope.toml")
    with pytest.raises(BadInput, match=r"--config .*: no regular file"):
        call("--config", tmp_path)
    (tmp_path / "latin1.toml").write_bytes(b"arch = '\xe9'")
    with pytest.raises(BadInput, match=r"latin1\.toml: not UTF-8 at byte 8"):
        call("--config", tmp_path / "latin1.toml")


def test_config_value_of_a_wrong_type(call, tmp_path):
    with pytest.raises(click.BadParameter, match="'much' is not a valid float"):
        call("--config", toml(tmp_path, "mass = 'much'"))


def test_json_from_config_and_environment(call, monkeypatch, tmp_path):
    monkeypatch.setenv("UWM_JSON", "1")
    assert call()["as_json"] is True
    assert call("--config", toml(tmp_path, "json = true"))["as_json"] is True


@pytest.mark.parametrize(("value", "expected"), [("auto", 64), ("1", 1), ("200", 200)])
def test_batch_size(value, expected, call):
    assert call("--batch-size", value)["batch_size"] == expected


def test_batch_size_from_config(call, tmp_path):
    assert call("--config", toml(tmp_path, "batch-size = 3"))["batch_size"] == 3


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", ""])
def test_batch_size_that_is_none(value, call):
    with pytest.raises(click.BadParameter, match="neither auto nor a positive number"):
        call("--batch-size", value)


@pytest.mark.parametrize(("flag", "value"), [("--workers", 0), ("--seed", -1), ("--limit", 0), ("--mass", "0,02")])
def test_numbers_out_of_range(flag, value, call):
    with pytest.raises(click.BadParameter):
        call(flag, value)


# ---------------------------------------------------------------- how things are shown


def test_split_flags_takes_apart_settings_and_show(call):
    settings, show = split_flags(call("--json", "-q", "--mass", "0.1"))
    assert show == {"as_json": True, "quiet": True, "verbose": False, "no_progress": False, "debug": False}
    assert settings["mass"] == 0.1
    assert not settings.keys() & show.keys()


def test_say(capsys):
    say({"as_json": False}, {"a": 1}, "text")
    assert capsys.readouterr().out == "text\n"
    say({"as_json": True}, {"a": "é→"}, "text")
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": "é→"}
    assert "é→" in out
