"""The flags --variant and --rule, from the program to the files that it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from terminal import ALL_OF_CALIB, done, refused

import uwm
from uwm.editing.entries.editor import RULES, VARIANTS
from uwm.editing.entries.selection import SELECTORS


@pytest.fixture(scope="module")
def model(tiny_hf):
    return uwm.load(tiny_hf)


@pytest.mark.parametrize("variant", VARIANTS)
def test_score(run_uwm, model, tiny_hf, tiny_set, tmp_path, variant):
    target = tmp_path / "scores.safetensors"
    flags = ("--calib", tiny_set, "-o", target, "--vision-layers", "none", "--variant", variant, "--json")
    printed = json.loads(done(run_uwm("score", tiny_hf, *flags)))
    calib = uwm.read_calibration(tiny_set, split="calib")
    expected, found = uwm.score(model, calib, vision_layers="none", variant=variant), uwm.Scores.load(target)
    assert all(torch.equal(found[weight], expected[weight]) for weight in expected)
    assert printed.get("variant", "ratio") == found.variant == variant


@pytest.mark.parametrize("rule", RULES)
def test_select(run_uwm, made, tmp_path, rule):
    scores, target = made / "scores.safetensors", tmp_path / "patch.safetensors"
    done(run_uwm("select", scores, "-o", target, "--rule", rule, "--mass", 0.1))
    patch = uwm.Patch.load(target)
    for weight, values in uwm.Scores.load(scores).items():
        assert torch.equal(patch.flips[weight], SELECTORS[rule](values, 0.1))
    assert patch.recipe["rule"] == {"text": rule, "vision": rule}


def test_edit_gives_what_the_steps_give_and_says_how(run_uwm, tiny_hf, tiny_set, tmp_path):
    scores, patch, edited = (tmp_path / name for name in ("scores.safetensors", "patch.safetensors", "edited"))
    done(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", scores, "--variant", "unsafe-only"))
    done(run_uwm("select", scores, "-o", patch, "--rule", "top-fraction"))
    flags = ("--variant", "unsafe-only", "--rule", "top-fraction", *ALL_OF_CALIB)
    done(run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", edited, *flags))
    replace(uwm.Patch.load(edited), edited={}).save(tmp_path / "unfitted")  # before it was fitted to the checkpoint
    assert (tmp_path / "unfitted").read_bytes() == patch.read_bytes()
    settings = json.loads((edited / "uwm.json").read_text())["settings"]
    assert settings["variant"] == "unsafe-only"
    assert settings["rule"] == {"text": "top-fraction", "vision": "top-fraction"}


def test_edit_says_what_the_defaults_are(made, run_uwm, tiny_hf, tiny_set):
    settings = json.loads((made / "edited" / "uwm.json").read_text())["settings"]
    assert (settings["variant"], settings["rule"]) == ("ratio", {"text": "top-mass", "vision": "top-mass"})
    flags = ("--method", "grad-unsafe", "--dry-run", "--json", *ALL_OF_CALIB)
    settings = json.loads(done(run_uwm("edit", tiny_hf, "--calib", tiny_set, *flags)))["settings"]
    assert (settings["variant"], settings["rule"]) == (None, {"text": "top-fraction", "vision": "top-mass"})


def test_demo_takes_a_rule(run_uwm, tmp_path):
    flags = ("--dry-run", "--json", "--rule", "top-fraction", "--beside", "none")
    settings = json.loads(done(run_uwm("demo", *flags)))["settings"]
    assert settings["rule"] == {"text": "top-fraction", "vision": "top-fraction"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--variant", "mean"), ("--variant 'mean'", "ratio, ratio-of-means, difference, unsafe-only")),
        (("--method", "grad-unsafe", "--variant", "ratio"), ("grad-unsafe has no variants", "use --method uwm")),
        (("--rule", "top"), ("--rule 'top'", "top-mass, top-fraction")),
    ],
)
def test_mistakes_are_told_before_anything_is_read(run_uwm, tmp_path, flags, words):
    refused(run_uwm("edit", tmp_path / "none", "--calib", tmp_path, "-o", tmp_path / "out", *flags), 2, *words)


def test_select_and_score_refuse_them_too(run_uwm, made, tiny_hf, tiny_set, tmp_path):
    out = tmp_path / "out.safetensors"
    refused(run_uwm("select", made / "scores.safetensors", "-o", out, "--rule", "top"), 2, "--rule 'top'")
    refused(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", out, "--variant", "mean"), 2, "--variant 'mean'")
    assert not out.exists()


def test_from_a_file_and_the_environment(run_uwm, made, tiny_hf, tiny_set, tmp_path, monkeypatch):
    (tmp_path / "settings.toml").write_text('variant = "difference"\n')
    flags = (
        "--calib",
        tiny_set,
        "--vision-layers",
        "none",
        "-o",
        tmp_path / "s",
        "--config",
        tmp_path / "settings.toml",
    )
    done(run_uwm("score", tiny_hf, *flags))
    assert uwm.Scores.load(tmp_path / "s").variant == "difference"
    monkeypatch.setenv("UWM_RULE", "top-fraction")
    done(run_uwm("select", made / "scores.safetensors", "-o", tmp_path / "p"))
    assert uwm.Patch.load(tmp_path / "p").recipe["rule"]["text"] == "top-fraction"
