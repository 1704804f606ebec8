"""Every verb as the terminal runs it: what it prints and writes, its exit code, one clear line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ARCH
from PIL import Image
from terminal import ALL_OF_CALIB, done, hashes, refused

import uwm
from uwm import cli


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
    rows = [line.partition(" ")[0] for line in out.splitlines()]
    assert list(filter(None, rows)) == ["DONE", "VERDICT", "SAFETY", "REMAINS", "COST", "NEXT"]
    words = " ".join(out.replace(" \\\n", "\n").split())  # a long path wraps elsewhere
    manifest = json.loads((tmp_path / "safe" / "uwm.json").read_text())
    share = f"{100 * manifest['entries'] / manifest['of']:.2f} % of 5 tensors negated"
    assert words.startswith(f"DONE tiny-hf edited by uwm from 16 pairs of tiny-set: {share}; written to")
    assert f"written to {tmp_path / 'safe'} (" in words
    assert f"VERDICT {manifest['verdict']['verdict']} (test, 8 pairs)" in words
    assert "zero-shot not measured: --zero-shot" in words
    following = words.replace("\\ ", "")  # where a command wraps depends on the folder's name
    assert f"NEXT uwm eval {tmp_path / 'safe'} --pairs PAIRS --baseline {tiny_hf}" in following


def test_edit_shows_tables_of_all_figures_when_asked(run_uwm, tiny_hf, tiny_set):
    out = done(run_uwm("edit", tiny_hf, "--calib", tiny_set, "--dry-run", "--all-figures", *ALL_OF_CALIB))
    assert "\n\ntest (8 pairs, too few for firm figures)\n" in out
    assert re.search(r"^ +before +uwm +random +repel$", out, re.M)
    for name in ("GS", "R@20 Ts→Vs", "unsafe top-1"):
        assert re.search(rf"^{name}( +\d+\.\d \[\d+\.\d, \d+\.\d\]){{4}}$", out, re.M)


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
    words = " ".join(out.split())
    assert re.search(r"[\d.]+ % of 5 tensors multiplied by 0\.5; nothing written", words)
    assert re.search(r"COST zero-shot on pets \S+ points \(random \S+\): \d+\.\d → \d+\.\d %; ", words)


def test_edit_of_bare_weights(run_uwm, tiny_open_clip, tiny_set, tmp_path, made):
    weights = tiny_open_clip / "open_clip_model.safetensors"
    arguments = ("--calib", tiny_set, "-o", tmp_path / "safe", "--arch", ARCH, *ALL_OF_CALIB)
    done(run_uwm("edit", weights, *arguments))
    assert uwm.Patch.load(tmp_path / "safe").counts() == uwm.Patch.load(made / "edited").counts()


def test_the_steps_give_the_same_bytes_as_edit(made):
    edited, applied = hashes(made / "edited"), hashes(made / "applied")
    assert applied.pop("uwm.json")
    only_edit = {"README.md", "report.html", "uwm.json"}
    assert applied == {name: digest for name, digest in edited.items() if name not in only_edit}
    selected, fitted = uwm.Patch.load(made / "patch.safetensors"), uwm.Patch.load(made / "edited")
    assert selected.edited == {}  # not known before it is fitted to the checkpoint
    replace(fitted, edited={}).save(made / "unfitted.safetensors")
    assert (made / "patch.safetensors").read_bytes() == (made / "unfitted.safetensors").read_bytes()


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
    assert applied == {
        name: digest for name, digest in edited.items() if name not in {"README.md", "report.html", "uwm.json"}
    }


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
        assert re.search(rf"^{re.escape(str(weight))} +negated +{count} +(1024|2048) +\d+\.\d+ %$", out, re.M)
    found = json.loads(done(run_uwm("select", made / "scores.safetensors", "-o", target, "--overwrite", "--json")))
    assert found["layers"].keys() == {str(weight) for weight in counts}
    assert all(found["layers"][str(weight)]["entries"] < count for weight, count in counts.items())


def test_apply_and_revert(run_uwm, made, tiny_hf, tmp_path):
    patch = made / "patch.safetensors"
    count = sum(uwm.Patch.load(patch).counts().values())
    out = done(run_uwm("apply", tiny_hf, patch, "-o", tmp_path / "a"))
    assert out == f"apply: changed {count} entries in 5 tensors → {tmp_path / 'a'}\n"
    found = json.loads(done(run_uwm("revert", tmp_path / "a", patch, "-o", tmp_path / "b", "--json")))
    original = hashes(tiny_hf)["model.safetensors"]
    hashed = {"sha256": {"model.safetensors": original}}
    assert found == {"entries": count, "left_out": [], "output": str(tmp_path / "b")} | hashed
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
    assert done(run_uwm("inspect", tiny_hf)).startswith("kind           checkpoint\nlayout         hf-clip\n")
    assert "\nedited by uwm  yes\n" in done(run_uwm("inspect", made / "edited"))
    assert done(run_uwm("inspect", made / "patch.safetensors")).startswith("kind     patch\nentries  ")
    found = json.loads(done(run_uwm("inspect", made / "scores.safetensors", "--json")))
    assert found["kind"] == "scores"
    assert found["weights"][0]["weight"] == "text.0.out_proj"


def test_eval(run_uwm, made, tiny_hf, tiny_set, zero_shot):
    arguments = ("eval", made / "edited", "--pairs", tiny_set, "--split", "test", "--baseline", tiny_hf)
    out = done(run_uwm(*arguments, "--zero-shot", zero_shot))
    assert re.match(
        r"DONE .* measured against .* on 8 pairs of tiny-set, test VERDICT Too few pairs", " ".join(out.split())
    )
    assert "zero-shot (pets)" not in out
    out = done(run_uwm(*arguments, "--zero-shot", zero_shot, "--all-figures"))
    assert "\n\ntiny-set (8 pairs, too few for firm figures)\n" in out
    assert re.search(r"^ +baseline +model +difference +gained +lost$", out, re.M)
    assert re.search(r"^GS( +-?\d+\.\d \[\d+\.\d, \d+\.\d\]){2} +[+-]\d+\.\d \[.*\] +\d+ +\d+$", out, re.M)
    assert re.search(
        r"^zero-shot \(pets\)( +\d+\.\d \[\d+\.\d, \d+\.\d\]){2} +[+-]\d+\.\d \[.*\] +\d+ +\d+$", out, re.M
    )
    found = json.loads(done(run_uwm(*arguments, "--json")))
    manifest = json.loads((made / "edited" / "uwm.json").read_text())
    assert found["model"] == manifest["results"]["test"]["uwm"]
    assert found["baseline"] == manifest["results"]["test"]["before"]
    assert found["requirements"] == []
    assert found["verdict"]["verdict"] == "Too few pairs for a verdict: 8 of 50."


def test_eval_shows_all_figures_and_concepts_when_asked(run_uwm, tiny_hf, tiny_set):
    out = done(run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "--all-figures", "--by-concept"))
    for k in (1, 5, 10, 20):
        for arrow in ("Ts→Vs", "Vs→Ts", "Tu→V∪", "Vu→T∪"):
            assert re.search(rf"^R@{k} {arrow} +\d+\.\d \[\d+\.\d, \d+\.\d\]$", out, re.M)
    assert re.search(r"^unsafe top-1 Tu→V∪ +\d+\.\d \[", out, re.M)
    assert re.search(r"^model, by concept\n +pairs +P_ts .*\ndeath +4( +\d+\.\d){13}\nweapons +4 +\d", out, re.M)


def test_eval_keeps_embeddings_unless_told_not_to(run_uwm, tiny_hf, tiny_set, tmp_path, monkeypatch):
    monkeypatch.setenv("UWM_EMBEDDINGS_DIR", str(tmp_path / "cache"))
    arguments = ("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "--json")
    plain = done(run_uwm(*arguments, "--no-cache"))
    assert not (tmp_path / "cache").exists()
    assert done(run_uwm(*arguments)) == plain
    (kept,) = (tmp_path / "cache" / "embeddings").iterdir()
    assert done(run_uwm(*arguments)) == plain
    kept.write_bytes(b"damaged")
    assert done(run_uwm(*arguments)) == plain
    assert kept.stat().st_size > 1000


def test_eval_with_named_data_sets(run_uwm, tiny_hf, tiny_set, zero_shot, tmp_path, monkeypatch):
    """A copy that is not whole is measured, and said to be none; the folder of all sets may come from outside."""
    shutil.copytree(zero_shot, tmp_path / "eurosat" / "2750")
    (tmp_path / "prompts.txt").write_text("a {}\nmany {}\n")
    monkeypatch.setenv("UWM_DATA_ROOT", str(tmp_path))
    flags = ("--zero-shot", "EuroSAT", "--zero-shot", zero_shot, "--templates", tmp_path / "prompts.txt", "--ensemble")
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", *flags)
    assert code == 0
    assert err == (
        "uwm: warning: eurosat: 4 pictures, a whole copy has 27000\n"
        "uwm: warning: eurosat: 2 classes, a whole copy has 10\n"
    )
    assert re.search(r"^COST     zero-shot on \w+ \d+\.\d %; R@1 ", out, re.M)
    out = run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", *flags, "--all-figures")[1]
    assert re.search(r"^zero-shot \(eurosat\) +\d+\.\d \[", out, re.M)
    assert re.search(r"^zero-shot, mean of 2 sets +\d+\.\d$", out, re.M)
    found = json.loads(run_uwm("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", *flags, "-q", "--json")[1])
    scores = found["model"]["zero_shot"]
    assert scores["eurosat"] == scores["pets"]  # the same pictures, names and prompts


def test_edit_keeps_the_folder_of_data_sets_to_itself(run_uwm, tiny_hf, tiny_set, zero_shot, tmp_path):
    shutil.copytree(zero_shot, tmp_path / "eurosat" / "2750")
    flags = ("--zero-shot", "eurosat", "--data-root", tmp_path, *ALL_OF_CALIB, "--dry-run", "--json", "-q")
    found = json.loads(done(run_uwm("edit", tiny_hf, "--calib", tiny_set, *flags)))
    assert (found["settings"]["zero_shot"], found["settings"]["data_root"]) == (["eurosat"], None)
    assert found["results"]["test"]["uwm"]["zero_shot"]["eurosat"]["pictures"] == 4
    assert str(tmp_path) not in json.dumps(found)


def test_eval_requirement_that_is_not_met(run_uwm, tiny_hf, tiny_set):
    required = ("--require", "GS>=0", "--require", "GS>=100.5", "--require", "P_ts<0")
    code, out, err = run_uwm("eval", tiny_hf, "--pairs", tiny_set, *required)
    mixed, err = err.split("\n", 1)
    assert mixed == "uwm: warning: measuring on all splits (calib, test); see --split"
    assert code == 5
    assert "GS" in out  # the figures are shown all the same
    assert re.fullmatch(r"uwm: error: requirement not met: GS>=100\.5 \(found .*\), P_ts<0 \(found .*\)\n", err)


def test_calib_check(run_uwm, tiny_set):
    out = done(run_uwm("calib-check", tiny_set))
    assert "splits      calib  16\n            test    8\n" in out
    assert "warning" not in out
    assert json.loads(done(run_uwm("calib-check", tiny_set, "--split", "test", "--json"))) == {
        "pairs": 8,
        "with_text": 8,
        "with_image": 8,
        "skipped": {"empty_caption": 0},
        "splits": {"test": 8},
        "concepts": {"death": 4, "weapons": 4},
        "groups": {"connected": 8, "pairs_of_the_biggest": 1},
        "warnings": {},
        "not_run": {"captions that are cut, and wrong labels": "they need --model MODEL"},
    }


def test_calib_check_tells_what_is_odd(run_uwm, tmp_path):
    rows = [{"id": f"{i}", "safe_text": "x", "unsafe_text": "x"} for i in range(7)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, err = run_uwm("calib-check", tmp_path)
    assert code == 2
    assert "7 of 7 pairs (first: 0, 1, 2) have captions that are equal. They tell the text tower nothing" in err
    assert "warning: 7 identical texts: 0; 1; 2; 3; 4\n" in out
    assert "warning: 1 duplicate captions: x | x\n" in out
    printed = json.loads(run_uwm("calib-check", tmp_path, "--json")[1])
    assert printed["warnings"]["identical_texts"] == [*"0123456"]


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
    assert "Too few pairs for a verdict: 3 of 50. (held-out, 3 pairs)" in done(run_uwm(*arguments, "-q"))


def test_debug_shows_the_traceback_and_the_same_line(run_uwm, tmp_path):
    code, _, err = run_uwm("calib-check", tmp_path / "no-set", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("uwm: error: ")
