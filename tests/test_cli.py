"""Every verb as the terminal runs it: what it prints and writes, its exit code, one clear line for each mistake."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ARCH
from PIL import Image

import uwm
from uwm import cli

ALL_OF_CALIB = ("--eval-split", "test")  # so that nothing of the calibration split is held out


def done(result):
    """stdout of a run that went well and had nothing to say on stderr."""
    code, out, err = result
    assert (code, err) == (0, "")
    return out


def refused(result, code, *words):
    """The one line of a run that failed as it should."""
    assert result[0] == code
    assert result[1] == ""
    line = result[2]
    assert line.startswith("uwm: error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    return line


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tiny_hf, tiny_set, tmp_path_factory):
    """An edited folder, and scores, patch and applied folder from the single steps with the same settings."""
    folder = tmp_path_factory.mktemp("made")
    for arguments in (
        ("edit", tiny_hf, "--calib", tiny_set, "-o", folder / "edited", *ALL_OF_CALIB),
        ("score", tiny_hf, "--calib", tiny_set, "-o", folder / "scores.safetensors"),
        ("select", folder / "scores.safetensors", "-o", folder / "patch.safetensors"),
        ("apply", tiny_hf, folder / "patch.safetensors", "-o", folder / "applied"),
    ):
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        assert not stop.value.code
    return folder


@pytest.fixture
def zero_shot(tmp_path):
    """Two classes of two pictures, in the form that --zero-shot takes."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(("cat", "cat", "dog", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    (tmp_path / "pets" / "classnames.txt").write_text("cat\ndog\n")
    return tmp_path / "pets"


# ---------------------------------------------------------------- the verbs


def test_edit(run_uwm, tiny_hf, tiny_set, tmp_path):
    out = done(run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "safe", *ALL_OF_CALIB))
    head = r"tiny-hf: scored on tiny-set pairs \(16 for text, 16 for vision\); negated (\d+) of 8192 entries in 5 matr"
    assert int(re.match(head, out)[1]) == json.loads((tmp_path / "safe" / "uwm.json").read_text())["selected"]
    assert "\ntest (8 pairs)\n" in out
    assert re.search(r"^ +before +after +random$", out, re.M)
    assert re.search(r"^GS( +\d+\.\d \[\d+\.\d, \d+\.\d\]){3}$", out, re.M)
    assert f"written to {tmp_path / 'safe'}" in out


def test_edit_as_json(run_uwm, tiny_hf, tiny_set, tmp_path):
    arguments = ("--calib", tiny_set, "-o", tmp_path / "safe", *ALL_OF_CALIB)
    found = json.loads(done(run_uwm("edit", tiny_hf, *arguments, "--json")))
    written = json.loads((tmp_path / "safe" / "uwm.json").read_text())
    assert found.pop("output") == str(tmp_path / "safe")
    assert found.pop("run")["seconds"].keys() == written.pop("run")["seconds"].keys() | {"write"}
    assert found == written


def test_edit_with_another_alpha_and_zero_shot(run_uwm, tiny_hf, tiny_set, zero_shot):
    arguments = ("--alpha", 0.5, "--dry-run", "--zero-shot", zero_shot, *ALL_OF_CALIB)
    out = done(run_uwm("edit", tiny_hf, "--calib", tiny_set, *arguments))
    assert re.match(r"tiny-hf: \d+ of 8192 entries × 0\.5\n", out)
    assert re.search(r"^zero-shot \(pets\)( +\d+\.\d){3}$", out, re.M)
    assert "nothing written" in out


def test_edit_of_bare_weights(run_uwm, tiny_open_clip, tiny_set, tmp_path, made):
    weights = tiny_open_clip / "open_clip_model.safetensors"
    arguments = ("--calib", tiny_set, "-o", tmp_path / "safe", "--arch", ARCH, *ALL_OF_CALIB)
    done(run_uwm("edit", weights, *arguments))
    assert uwm.Patch.load(tmp_path / "safe").counts() == uwm.Patch.load(made / "edited").counts()


def test_the_steps_give_the_same_bytes_as_edit(made):
    edited, applied = hashes(made / "edited"), hashes(made / "applied")
    assert applied.pop("uwm.json")
    only_edit = {"README.md", "uwm.json"}
    assert applied == {name: digest for name, digest in edited.items() if name not in only_edit}
    assert (made / "patch.safetensors").read_bytes() == (made / "edited" / "uwm_patch.safetensors").read_bytes()


def test_the_steps_give_the_same_bytes_as_edit_with_other_settings(run_uwm, tiny_hf, tiny_set, tmp_path):
    score = ("--text-layers", "q_proj,fc1", "--vision-layers", "vision.[1-2].out_proj", "--limit", 9, "--seed", 4)
    select = ("--mass", 0.05, "--vision-mass", 0.1, "--alpha", 0.25)
    scores, patch = tmp_path / "scores.safetensors", tmp_path / "patch.safetensors"
    run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "edited", *score, *select, *ALL_OF_CALIB, "-q")
    done(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", scores, *score))
    done(run_uwm("select", scores, "-o", patch, *select))
    done(run_uwm("apply", tiny_hf, patch, "-o", tmp_path / "applied"))
    edited, applied = hashes(tmp_path / "edited"), hashes(tmp_path / "applied")
    assert len(uwm.Patch.load(patch).flips) == 2 * 2 + 2
    assert applied.pop("uwm.json")
    assert applied == {name: digest for name, digest in edited.items() if name not in {"README.md", "uwm.json"}}


def test_two_edits_give_the_same_bytes(run_uwm, tiny_hf, tiny_set, tmp_path):
    for name in ("a", "b"):
        assert run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", tmp_path / name, "-q")[0] == 0
    manifests = [json.loads((tmp_path / name / "uwm.json").read_text()) for name in ("a", "b")]
    assert all(manifest.pop("run") for manifest in manifests)
    assert manifests[0] == manifests[1]
    first, second = ({k: v for k, v in hashes(tmp_path / n).items() if k != "uwm.json"} for n in ("a", "b"))
    assert first == second


def test_score(run_uwm, tiny_hf, tiny_set, tmp_path):
    target = tmp_path / "scores.safetensors"
    arguments = ("score", tiny_hf, "--calib", tiny_set, "-o", target, "--vision-layers", "none")
    assert done(run_uwm(*arguments)) == f"2 weights → {target}\n"
    found = json.loads(done(run_uwm(*arguments, "--json", "--overwrite")))
    assert (found["output"], found["weights"], found["method"]) == (str(target), 2, "uwm")
    assert found["pairs"] == {"text": 16}


def test_select(run_uwm, made, tmp_path):
    target = tmp_path / "patch.safetensors"
    out = done(run_uwm("select", made / "scores.safetensors", "--mass", 0.1, "-o", target))
    counts = uwm.Patch.load(target).counts()
    for weight, count in counts.items():
        assert re.search(rf"^{re.escape(str(weight))} +{count} +(1024|2048) +\d+\.\d+ %$", out, re.M)
    found = json.loads(done(run_uwm("select", made / "scores.safetensors", "-o", target, "--overwrite", "--json")))
    assert found["layers"].keys() == {str(weight) for weight in counts}
    assert all(found["layers"][str(weight)]["selected"] < count for weight, count in counts.items())


def test_apply_and_revert(run_uwm, made, tiny_hf, tmp_path):
    patch = made / "patch.safetensors"
    count = sum(uwm.Patch.load(patch).counts().values())
    out = done(run_uwm("apply", tiny_hf, patch, "-o", tmp_path / "a"))
    assert out == f"apply: changed {count} entries in 5 matrices → {tmp_path / 'a'}\n"
    found = json.loads(done(run_uwm("revert", tmp_path / "a", patch, "-o", tmp_path / "b", "--json")))
    original = hashes(tiny_hf)["model.safetensors"]
    assert found == {"entries": count, "output": str(tmp_path / "b"), "sha256": {"model.safetensors": original}}
    assert hashes(tmp_path / "b")["model.safetensors"] == original
    assert hashes(tmp_path / "a")["model.safetensors"] != original


def test_revert_takes_the_patch_from_the_folder(run_uwm, made, tiny_hf, tmp_path):
    done(run_uwm("revert", made / "edited", made / "edited", "-o", tmp_path / "b"))
    assert hashes(tmp_path / "b")["model.safetensors"] == hashes(tiny_hf)["model.safetensors"]


def test_a_patch_is_never_applied_or_reverted_twice(run_uwm, made, tiny_hf, tmp_path):
    patch = made / "patch.safetensors"
    refused(run_uwm("apply", made / "applied", patch, "-o", tmp_path / "x"), 2, "already applied", "uwm revert")
    refused(run_uwm("revert", tiny_hf, patch, "-o", tmp_path / "x"), 2, "does not hold this patch")
    refused(run_uwm("apply", made / "applied", patch, "--dry-run"), 2, "already applied")
    assert list(tmp_path.iterdir()) == []


def test_diff(run_uwm, made, tiny_hf):
    out = done(run_uwm("diff", tiny_hf, made / "edited"))
    found = json.loads(done(run_uwm("diff", tiny_hf, made / "edited", "--json")))
    patch = uwm.Patch.load(made / "edited")
    assert [v["differ"] for v in found.values()] == [v["negated"] for v in found.values()] == [*patch.counts().values()]
    assert all(re.search(rf"^{re.escape(name)} +{v['differ']} ", out, re.M) for name, v in found.items())
    assert done(run_uwm("diff", made / "applied", made / "edited")) == "no tensor differs\n"


def test_inspect(run_uwm, made, tiny_hf):
    assert done(run_uwm("inspect", tiny_hf)).startswith("kind: checkpoint\nlayout: hf-clip\n")
    assert "\nedited by uwm: True\n" in done(run_uwm("inspect", made / "edited"))
    assert done(run_uwm("inspect", made / "patch.safetensors")).startswith("kind: patch\nalpha: -1.0\nentries: ")
    found = json.loads(done(run_uwm("inspect", made / "scores.safetensors", "--json")))
    assert found["kind"] == "scores"
    assert found["weights"][0]["weight"] == "text.0.out_proj"


def test_eval(run_uwm, made, tiny_hf, tiny_set, zero_shot):
    arguments = ("eval", made / "edited", "--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf)
    out = done(run_uwm(*arguments, "--zero-shot", zero_shot))
    assert out.startswith("8 pairs\n")
    assert re.search(r"^ +baseline +model$", out, re.M)
    assert re.search(r"^zero-shot \(pets\)( +\d+\.\d){2}$", out, re.M)
    found = json.loads(done(run_uwm(*arguments, "--json")))
    manifest = json.loads((made / "edited" / "uwm.json").read_text())
    assert found["model"] == manifest["results"]["test"]["after"]
    assert found["baseline"] == manifest["results"]["test"]["before"]
    assert found["requirements"] == []


def test_eval_requirements_that_are_met(run_uwm, tiny_hf, tiny_set, zero_shot):
    required = ("GS>=0", "GS <= 100", "top1>=0", "top1:pets<=100", "P_ts>=-1%", "P_ts<=0.1%")
    flags = [word for text in required for word in ("--require", text)]
    arguments = ("eval", tiny_hf, "--pairs", tiny_set, "--baseline", tiny_hf, "--zero-shot", zero_shot)
    found = json.loads(done(run_uwm(*arguments, *flags, "--json")))
    assert [verdict["met"] for verdict in found["requirements"]] == [True] * len(required)
    assert found["requirements"][4] == {"requirement": "P_ts>=-1%", "found": 0.0, "met": True}


def test_eval_requirement_that_is_not_met(run_uwm, tiny_hf, tiny_set):
    required = ("--require", "GS>=0", "--require", "GS>=100.5", "--require", "P_ts<=-1")
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", tiny_set, *required)
    assert code == 5
    assert "GS" in out  # the figures are shown all the same
    assert re.fullmatch(r"uwm: error: requirement not met: GS>=100\.5 \(found .*\), P_ts<=-1 \(found .*\)\n", err)


@pytest.mark.parametrize("text", ["GS", "GS>4", "GS>=x", ">=4", "GS>=4.5.1", "GS=>4", "GS>=nan", ""])
def test_eval_requirement_that_is_malformed(text, run_uwm, tmp_path):
    result = run_uwm("eval", tmp_path / "no-model", "--pairs", tmp_path / "no-set", "--require", text)
    refused(result, 2, f"--require {text!r}: expected FIGURE>=NUMBER", "such as GS>=4.5")


def test_eval_requirement_without_its_baseline_or_figure(run_uwm, tiny_hf, tiny_set):
    arguments = ("eval", tiny_hf, "--pairs", tiny_set, "--require")
    refused(run_uwm(*arguments, "GS>=-2%"), 2, "needs --baseline MODEL")
    refused(run_uwm(*arguments, "gs>=1"), 2, "no figure 'gs'; there are P_ts", "GS")
    refused(run_uwm(*arguments, "top1>=1"), 2, "no figure 'top1'")


def test_eval_requirement_relative_to_zero(run_uwm, tiny_hf, tiny_set):
    arguments = ("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf, "--json")
    found = json.loads(done(run_uwm(*arguments)))
    assert found["baseline"]["figures"]["R1_tu_union"][0] == 0
    assert run_uwm(*arguments, "--require", "R1_tu_union>=-2%")[0] in (0, 2, 5)


def test_calib_check(run_uwm, tiny_set):
    out = done(run_uwm("calib-check", tiny_set))
    assert "splits: {'calib': 16, 'test': 8}" in out
    assert "warning" not in out
    assert json.loads(done(run_uwm("calib-check", tiny_set, "--split", "test", "--json"))) == {
        "pairs": 8,
        "with_text": 8,
        "with_image": 8,
        "skipped": {"empty_caption": 0},
        "splits": {"test": 8},
        "concepts": {"death": 4, "weapons": 4},
        "warnings": {},
    }


def test_calib_check_tells_what_is_odd(run_uwm, tmp_path):
    rows = [{"id": f"{i}", "safe_text": "x", "unsafe_text": "x"} for i in range(7)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = done(run_uwm("calib-check", tmp_path))
    assert "warning: 7 identical texts: 0; 1; 2; 3; 4\n" in out
    assert "warning: 1 duplicate captions: x | x\n" in out
    assert json.loads(done(run_uwm("calib-check", tmp_path, "--json")))["warnings"]["identical_texts"] == [*"0123456"]


def test_env(run_uwm):
    assert re.search(r"^torch: \d", done(run_uwm("env")), re.M)
    assert json.loads(done(run_uwm("env", "--json")))["uwm"] == uwm.__version__


def test_version_and_help(run_uwm):
    assert uwm.__version__ in done(run_uwm("--version"))
    assert all(f"\n  {verb} " in done(run_uwm("--help")) for verb in cli.uwm.commands)
    for verb in cli.uwm.commands:
        assert done(run_uwm(verb, "-h")).startswith(f"Usage: uwm {verb} ")


# ---------------------------------------------------------------- flags on the real verbs


def test_dry_runs_write_nothing(run_uwm, made, tiny_hf, tiny_set, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = hashes(made / "applied")
    assert "nothing written" in done(run_uwm("edit", tiny_hf, "--calib", tiny_set, "--dry-run", *ALL_OF_CALIB))
    out = done(run_uwm("edit", tiny_hf, "--calib", tiny_set, "--dry-run", "-o", "x", "--json", *ALL_OF_CALIB))
    assert json.loads(out)["output"] is None
    assert done(run_uwm("apply", tiny_hf, made / "edited", "--dry-run", "-o", "x")).startswith("apply: would change ")
    assert done(run_uwm("revert", made / "applied", made / "edited", "--dry-run")).startswith("revert: would change ")
    assert list(tmp_path.iterdir()) == []
    assert hashes(made / "applied") == before


def test_overwrite_replaces_the_whole_folder(run_uwm, made, tiny_hf, tmp_path):
    shutil.copytree(made / "edited", tmp_path / "x")
    (tmp_path / "x" / "stale").touch()
    done(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", tmp_path / "x", "--overwrite"))
    assert hashes(tmp_path / "x") == hashes(made / "applied")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def settings_of(result):
    return json.loads(done(result))["settings"]


def test_underscores_config_and_environment(run_uwm, tiny_hf, tiny_set, tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    file.write_text(f"calib = {json.dumps(str(tiny_set))}\nmass = 0.1\ntext-layers = 'fc1'\ndry_run = true\n")
    arguments = ("edit", tiny_hf, "--config", file, "--json", *ALL_OF_CALIB)
    found = settings_of(run_uwm(*arguments))
    assert (found["mass"], found["text_layers"]) == ({"text": 0.1, "vision": 0.1}, "fc1")
    monkeypatch.setenv("UWM_MASS", "0.2")
    assert settings_of(run_uwm(*arguments))["mass"] == {"text": 0.2, "vision": 0.2}
    found = settings_of(run_uwm(*arguments, "--text_layers", "q_proj", "--text_mass", "0.3"))
    assert (found["mass"], found["text_layers"]) == ({"text": 0.3, "vision": 0.2}, "q_proj")


@pytest.mark.parametrize(("verb", "flag"), [("edit", "eval"), ("edit", "eval_split"), ("eval", "require")])
def test_every_flag_may_stand_in_a_config(verb, flag, run_uwm, tmp_path):
    (tmp_path / "settings.toml").write_text(f'{flag} = "x"')
    code, _, err = run_uwm(verb, tmp_path / "m", "--config", tmp_path / "settings.toml")
    assert code == 2
    assert "unknown key" not in err


def test_quiet_drops_warnings_and_a_plain_run_has_them(run_uwm, tiny_hf, tiny_set):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "--dry-run")
    code, _, err = run_uwm(*arguments)
    assert code == 0
    assert err == "uwm: warning: only 13 calibration pairs; scores from fewer than 16 are mostly noise\n"
    assert "held-out (3 pairs)" in done(run_uwm(*arguments, "-q"))


def test_debug_shows_the_traceback_and_the_same_line(run_uwm, tmp_path):
    code, _, err = run_uwm("calib-check", tmp_path / "no-set", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("uwm: error: ")


# ---------------------------------------------------------------- mistakes


def edit(run_uwm, tiny_hf, calib, tmp_path, *more):
    """An edit that must not write -> its result."""
    result = run_uwm("edit", tiny_hf, "--calib", calib, "-o", tmp_path / "deep" / "out", *more)
    assert not (tmp_path / "deep").exists()
    assert not [*tmp_path.rglob(".uwm-*"), *Path(calib).parent.glob(".uwm-*")]
    return result


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--mass", "0"], 2, ["mass 0.0: expected a number between 0 and 1"]),
        (["--mass", "1"], 2, ["mass 1.0: expected a number between 0 and 1"]),
        (["--mass", "-1"], 2, ["mass -1.0: expected a number between 0 and 1"]),
        (["--mass", "nan"], 2, ["mass nan: expected a number between 0 and 1"]),
        (["--text-mass", "2"], 2, ["mass 2.0"]),
        (["--alpha", "1"], 1, ["--alpha 1 changes nothing"]),
        (["--alpha", "inf"], 2, ["--alpha inf: expected a finite number"]),
        (["--alpha", "1e30"], 2, ["--alpha 1e+30: expected a finite number"]),
        (["--method", "best"], 2, ["--method 'best': expected one of uwm"]),
        (["--device", "cuda:99"], 4, ["--device cuda:99: not available on this machine; try --device cpu"]),
        (["--device", "gpu"], 2, ["--device 'gpu': expected auto, cpu, cuda"]),
        (["--dtype", "int8"], 2, ["--dtype 'int8': expected one of auto, float32"]),
        (["--holdout", "1"], 2, ["--holdout 1.0: expected a share between 0 and 1"]),
        (["--split", "x"], 2, ["no pair has split 'x'; the set has calib, test"]),
        (["--eval-split", "calib"], 2, ["'calib' holds pairs that calibration uses"]),
        (["--text-layers", "fc9"], 2, ["--text-layers 'fc9' matches no weight", "blocks 0–1 with q_proj"]),
        (["--vision-layers", "vision.9.fc2"], 2, ["'vision.9.fc2' matches no weight", "blocks 0–2"]),
        (["--text-layers", "none", "--vision-layers", "none"], 2, ["no weight is chosen"]),
        (["--no-quick-gelu"], 2, ["config.json says quick_gelu True; drop the flag"]),
        (["--zero-shot", "nope"], 2, ["nope/classnames.txt: no such file"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_setting(flags, code, words, run_uwm, tiny_hf, tiny_set, tmp_path):
    refused(edit(run_uwm, tiny_hf, tiny_set, tmp_path, *flags), code, *words)


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_cuda_that_is_not_there(run_uwm, tiny_hf, tiny_set, tmp_path):
    refused(edit(run_uwm, tiny_hf, tiny_set, tmp_path, "--device", "cuda"), 4, "--device cuda: not available")


def test_wrong_model(run_uwm, tiny_hf, tiny_open_clip, tiny_set, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no header")
    for model, flags, word in (
        (tmp_path / "nope", (), "nope: no such file or folder"),
        (tmp_path / "empty", (), "no weights in this folder; expected one of model.safetensors"),
        (tmp_path / "text.safetensors", (), "text.safetensors: "),
        (tiny_hf / "model.safetensors", (), "pass the folder"),
        (tiny_open_clip / "open_clip_model.safetensors", (), "pass --arch with an open_clip name"),
        (tiny_open_clip / "open_clip_model.safetensors", ("--arch", "ViT-9"), "--arch 'ViT-9' is not known"),
    ):
        refused(edit(run_uwm, model, tiny_set, tmp_path, *flags), 2, word)


@pytest.fixture
def broken_set(tiny_set, tmp_path):
    """Change line 3 of a copy of the set."""

    def change(old, new):
        shutil.copytree(tiny_set, tmp_path / "set", dirs_exist_ok=True)
        lines = (tmp_path / "set" / "pairs.jsonl").read_text().splitlines()
        assert old in lines[2]
        lines[2] = lines[2].replace(old, new, 1)
        (tmp_path / "set" / "pairs.jsonl").write_text("\n".join(lines))
        return tmp_path / "set"

    return change


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ('"concept"', '"konzept"', 2, ["pairs.jsonl:3: unknown key 'konzept'; expected id, concept, safe_text"]),
        ('{"id": ', '{"id" ', 2, ["pairs.jsonl:3:7: not valid JSON"]),
        ("0002_safe.png", "none.png", 2, ["pairs.jsonl:3: picture 'images/none.png' does not exist"]),
        ("images/0002_safe.png", "../out.png", 3, ["pairs.jsonl:3: picture '../out.png' lies outside"]),
        ("images/0002_safe.png", "/etc/hostname", 3, ["pairs.jsonl:3: picture '/etc/hostname' lies outside"]),
        ("images/0002_safe.png", "https://x.org/a.png", 3, ["pairs.jsonl:3: 'https://x.org/a.png' is a URL"]),
        ('"0002"', '"0001"', 2, ["pairs.jsonl:3: id '0001' was already used in line 2"]),
    ],
    ids=["key", "JSON", "missing", "outside", "absolute", "URL", "id"],
)
def test_wrong_line(old, new, code, words, run_uwm, tiny_hf, broken_set, tmp_path):
    calib = broken_set(old, new)
    refused(edit(run_uwm, tiny_hf, calib, tmp_path), code, *words)
    refused(run_uwm("calib-check", calib), code, *words)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_corrupt_picture(content, run_uwm, tiny_hf, broken_set, tmp_path):
    calib = broken_set("", "")
    (calib / "images" / "0002_unsafe.png").write_bytes(content)
    refused(edit(run_uwm, tiny_hf, calib, tmp_path, *ALL_OF_CALIB), 2, "0002_unsafe.png: not a picture")


def test_no_set_and_empty_set(run_uwm, tiny_hf, tmp_path):
    refused(edit(run_uwm, tiny_hf, tmp_path / "nope", tmp_path), 2, "nope: no such folder", "pairs.jsonl")
    (tmp_path / "set").mkdir()
    refused(edit(run_uwm, tiny_hf, tmp_path / "set", tmp_path), 2, "neither pairs.jsonl nor the folders safe/")
    (tmp_path / "set" / "pairs.jsonl").touch()
    refused(edit(run_uwm, tiny_hf, tmp_path / "set", tmp_path), 2, "set: the set is empty")


def test_config_with_an_unknown_key(run_uwm, tiny_hf, tiny_set, tmp_path):
    (tmp_path / "settings.toml").write_text("masss = 0.1")
    result = edit(run_uwm, tiny_hf, tiny_set, tmp_path, "--config", tmp_path / "settings.toml")
    refused(result, 2, "settings.toml: unknown key 'masss'; expected some of", "mass")


def test_output_that_cannot_be_used(run_uwm, made, tiny_hf, tiny_set, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tiny_hf)
    before = hashes(tiny_hf)
    for output, flags, word in (
        (made / "edited", (), "exists; pass --overwrite"),
        (tmp_path / "file", ("--overwrite",), "exists and is no folder"),
        (tiny_hf, ("--overwrite",), "is the input itself"),
        (f"{tiny_hf}/.", ("--overwrite",), "is the input itself"),
        (tmp_path / "link", ("--overwrite",), "is the input itself"),
    ):
        refused(run_uwm("edit", tiny_hf, "--calib", tiny_set, "-o", output, *flags), 2, word)
        refused(run_uwm("apply", tiny_hf, made / "patch.safetensors", "-o", output, *flags), 2, word)
    assert hashes(tiny_hf) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_no_output(run_uwm, made, tiny_hf, tiny_set):
    refused(run_uwm("edit", tiny_hf, "--calib", tiny_set), 2, "-o FOLDER, or pass --dry-run")
    refused(run_uwm("apply", tiny_hf, made / "patch.safetensors"), 2, "-o FOLDER, or pass --dry-run")


def test_score_and_select_do_not_replace_a_file_unasked(run_uwm, made, tiny_hf, tiny_set):
    before = hashes(made / "edited")
    target = made / "edited" / "uwm.json"
    refused(run_uwm("score", tiny_hf, "--calib", tiny_set, "-o", target), 2, "pass --overwrite")
    refused(run_uwm("select", made / "scores.safetensors", "-o", target), 2, "pass --overwrite")
    assert hashes(made / "edited") == before


def test_score_and_select_never_replace_their_input(run_uwm, made, tiny_open_clip, tiny_set, tmp_path):
    scores, weights = tmp_path / "scores.safetensors", tmp_path / "model.safetensors"
    shutil.copy(made / "scores.safetensors", scores)
    shutil.copy(tiny_open_clip / "open_clip_model.safetensors", weights)
    before = hashes(tmp_path)
    run_uwm("select", scores, "-o", scores, "--overwrite")
    run_uwm("score", weights, "--arch", ARCH, "--calib", tiny_set, "-o", weights, "--overwrite")
    assert hashes(tmp_path) == before


def test_files_of_another_kind(run_uwm, made, tiny_hf, tmp_path):
    refused(run_uwm("select", made / "patch.safetensors", "-o", tmp_path / "x"), 2, "holds patch, expected scores")
    refused(run_uwm("apply", tiny_hf, made / "scores.safetensors", "-o", tmp_path / "x"), 2, "holds scores, expected p")
    refused(run_uwm("apply", tiny_hf, tiny_hf / "model.safetensors", "-o", tmp_path / "x"), 2, "not a file that uwm")
    refused(run_uwm("select", tmp_path / "nope", "-o", tmp_path / "x"), 2, "nope: no such file")
    assert list(tmp_path.iterdir()) == []


def test_diff_of_different_families(run_uwm, tiny_hf, tiny_open_clip):
    refused(run_uwm("diff", tiny_hf, tiny_open_clip), 2, "hold different tensors, such as")


@pytest.mark.parametrize("arguments", [["frob"], ["edit"], ["edit", "m"], ["env", "--frob"], ["env", "--seed", "x"]])
def test_usage_mistake_exits_with_2_and_says_where_help_is(arguments, run_uwm):
    code, out, err = run_uwm(*arguments)
    assert (code, out) == (2, "")
    assert re.search(r"Try 'uwm.* --help' for help\.", err)


@pytest.mark.parametrize("arguments", [["edit", "m"], ["edit", "m", "--calib", "s", "--mass", "x"]])
def test_usage_mistake_is_one_line_like_the_others(arguments, run_uwm):
    refused(run_uwm(*arguments), 2)


def test_out_of_memory(run_uwm, tiny_set, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("uwm.calibration.read_calibration", full)
    refused(run_uwm("calib-check", tiny_set), 4, "out of memory; try a smaller --batch-size")


# ---------------------------------------------------------------- a process of its own


def start(*arguments, code="from uwm.cli import main; main()", **kwargs):
    """A real `uwm` process; `code` may put something in its way first."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def test_closed_pipe_is_quiet(tiny_hf):
    read, write = os.pipe()
    process = start("inspect", tiny_hf, stdout=write)
    os.close(write)
    os.close(read)  # as `| head -0` does, before the first line
    _, err = process.communicate(timeout=300)
    assert err == ""
    assert process.returncode in (0, 1, 141)


STUCK = """
import sys, time
from uwm import cli, recipe
def stuck(*_):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(120)
recipe.model_card = stuck
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_midst_of_writing_leaves_nothing(number, code, tiny_hf, tiny_set, tmp_path):
    arguments = ("edit", tiny_hf, "--calib", tiny_set, "-o", tmp_path / "safe")
    with start(*arguments, code=STUCK) as process:
        assert process.stderr.readline() == "writing\n"
        assert list(tmp_path.glob(".uwm-*/model.safetensors"))  # it has something to clean up
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
