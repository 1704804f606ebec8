"""CONTRIBUTING.md is walked: a scorer, a closed form and a family of checkpoints are one file or one row each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from random_patches import EVERY_SLOT, patch_of
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB, done, refused
from tiny_files import bits, hf_state

import uwm
from uwm import layouts
from uwm.checkpoint import open_checkpoint
from uwm.errors import BadInput
from uwm.layouts import Encoder, find_tensors, find_weights, recognise
from uwm.weights import SLOTS, WeightId

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith(("| to add", "| our own"))]


# ---------------------------------------------------------------- what it names is there


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:30])
def test_every_file_that_the_table_names_is_there(row):
    names = re.findall(r"`([\w./]+(?:\.(?:py|cfg|md|html|css)|/))`", row)
    assert names
    for name in names:
        assert (ROOT / name).exists(), f"{name} of {row}"


@pytest.mark.parametrize(("constant", "file"), re.findall(r"`([A-Z_]{3,})` of `([\w./]+)`", TEXT))
def test_every_table_of_the_code_that_it_names_is_there(constant, file):
    assert re.search(rf"^{constant}\b.*=", (ROOT / file).read_text("utf-8"), re.M)


def test_its_picture_shows_every_part_of_the_house():
    picture = TEXT.split("```")[3]
    parts = {path.stem for path in (ROOT / "uwm").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    small = {"__init__", "__main__", "version", "lazy", "clock", "escaping", "text_tables", "shipped_files"}
    assert {part for part in parts - small if not re.search(rf"\b{part}\b", picture)} == set()


# ---------------------------------------------------------------- a way to score weights

SCORER = '''
"""Weights by |W_ij| times the norm of their input on the unsafe side (as Wanda prunes, arXiv 2306.11695, Eq. 1)."""
from uwm.editing.entries.editor import EntryEditor

class UnsafeNorm:
    def __init__(self, weight_id, weight):
        self._weight, self._squares, self.guards = weight.cpu().double().abs(), 0, {}
    def update(self, safe, unsafe):
        self._squares = self._squares + unsafe.norm.cpu().square().sum(0)
    def scores(self):
        return (self._weight * self._squares.sqrt()).float()

EDITOR = EntryEditor("unsafe-norm", "unsafe norms", "a test", mass=0.05, alpha=0.0, scorer=lambda: UnsafeNorm)
'''


@pytest.fixture
def scorer(plug_in):
    plug_in("uwm.editors", "uwm-unsafe-norm", "unsafe-norm", SCORER)
    return ("--method", "unsafe-norm")


def test_a_scorer_is_one_file(scorer, run_uwm, tiny_hf, tiny_set, tmp_path):
    """It runs whole and in steps, to the same bytes, and picks what its score says."""
    out, scores, patch = (tmp_path / name for name in ("out", "scores.safetensors", "patch.safetensors"))
    flags = ("--calib", tiny_set, *scorer)
    done(run_uwm("edit", tiny_hf, *flags, "-o", out, "--beside", "uwm", *ALL_OF_CALIB))
    done(run_uwm("score", tiny_hf, *flags, "-o", scores))
    done(run_uwm("select", scores, "-o", patch))
    done(run_uwm("apply", tiny_hf, patch, "-o", tmp_path / "applied"))
    for name in ("uwm_patch.safetensors", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "applied" / name).read_bytes()
    settings = json.loads((out / "uwm.json").read_text("utf-8"))["settings"]
    assert (settings["method"], settings["alpha"]) == ("unsafe-norm", 0.0)
    assert settings["mass"] == {"text": 0.05, "vision": 0.05}
    loaded = uwm.Scores.load(scores)
    chosen = uwm.Patch.load(patch).changes
    assert chosen.keys() == loaded.keys() != set()
    for weight, values in loaded.items():
        kept = torch.ones(values.numel(), dtype=torch.bool)
        kept[chosen[weight].indices] = False
        assert values.flatten()[~kept].min() >= values.flatten()[kept].max()


def test_it_has_the_flags_of_every_entry_editor_and_can_be_compared(scorer, run_uwm, tiny_hf, tiny_set, tmp_path):
    flags = ("--calib", tiny_set, "--eval-split", "test", "--json")
    methods = "unsafe-norm:alpha=-1,unsafe-norm:control,unsafe-norm:top-fraction"
    found = json.loads(done(run_uwm("compare", tiny_hf, "--methods", methods, *flags, "-o", tmp_path / "out")))
    assert [row["method"] for row in found["tables"]["test"]] == ["none", *methods.split(",")]
    refused(
        run_uwm("edit", tiny_hf, "--calib", tiny_set, *scorer, "--variant", "ratio", "-o", tmp_path / "x"),
        2,
        "--variant 'ratio': the method unsafe-norm has no variants",
    )


# ---------------------------------------------------------------- a closed form


def test_a_closed_form_is_one_file_and_one_entry_point():
    """editing/test_editor_plugins.py installs it and runs it the whole way."""
    folder = ROOT / "examples" / "third_party_editor"
    (module,) = folder.glob("*.py")
    assert {path.name for path in folder.iterdir() if path.is_file()} == {module.name, "pyproject.toml"}
    assert len(module.read_text("utf-8").splitlines()) <= 80
    assert "uwm.editors" in (folder / "pyproject.toml").read_text("utf-8")


# ---------------------------------------------------------------- a family of checkpoints

NORMS = {"norm1.bias": "before.shift", "norm1": "before.scale", "norm2": "after.scale", "norm2.bias": "after.shift"}
FUSED = {slot: ("mix.qkv_weight", part, 3) for part, slot in enumerate(("q_proj", "k_proj", "v_proj"))}
MADE_UP = Encoder(
    "made-up", "vision", "stages.{block}.", FUSED | {
        "out_proj": ("mix.out.weight", 0, 1), "fc1": ("grow.weight", 0, 1), "fc2": ("shrink.weight", 0, 1),
    },
    NORMS, {"class_embedding": "start", "norm": "end.scale", "norm.bias": "end.shift", "proj": "../to_joint"},
    ("start", "stages.0.mix.qkv_weight"), "transformers", "first", transposed=("../to_joint",),
)  # fmt: skip


def made_up(state):
    """The vision tower of a Hugging Face CLIP in the key layout of the new row, written out by hand."""
    old, new = "vision_model.", "eyes.tower."
    found = {new + "start": state[old + "embeddings.class_embedding"]}
    found |= {new + f"end.{a}": state[old + f"post_layernorm.{b}"] for a, b in (("scale", "weight"), ("shift", "bias"))}
    found["eyes.to_joint"] = state["visual_projection.weight"].T.contiguous()
    for block in range(2):
        inside, there = f"{new}stages.{block}.", f"{old}encoder.layers.{block}."
        for kind in ("weight", "bias"):
            parts = [state[f"{there}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{inside}mix.qkv_{kind}"] = torch.cat(parts)
            for name, theirs in (("mix.out", "self_attn.out_proj"), ("grow", "mlp.fc1"), ("shrink", "mlp.fc2")):
                found[f"{inside}{name}.{kind}"] = state[f"{there}{theirs}.{kind}"]
            for name, theirs in (("before", "layer_norm1"), ("after", "layer_norm2")):
                found[f"{inside}{name}.{'scale' if kind == 'weight' else 'shift'}"] = state[f"{there}{theirs}.{kind}"]
    return found


@pytest.fixture
def row(monkeypatch):
    """The table with the new row."""
    monkeypatch.setattr(layouts, "ENCODERS", (*layouts.ENCODERS, MADE_UP))


STATE = hf_state()
VISION = {key: tensor for key, tensor in STATE.items() if key.startswith(("vision_model.", "visual_projection."))}


def test_without_the_row_it_is_no_checkpoint():
    with pytest.raises(BadInput, match="not a CLIP-like checkpoint"):
        recognise(made_up(STATE), "x")


def test_a_family_is_one_row(row):
    state = made_up(STATE)
    layout = recognise(state, "x")
    assert (layout.name, layout.library) == ("made-up (vision)", "transformers")
    assert [*find_weights(layout, state)] == [WeightId("vision", b, slot) for b in range(2) for slot in sorted(SLOTS)]
    tensors, theirs = find_tensors(layout, state), find_tensors(recognise(VISION, "x"), VISION)
    outside = {"class_embedding", "norm", "norm.bias", "proj"}
    assert {w for w in theirs if w.block is not None or w.slot in outside} == tensors.keys()
    for weight, ref in tensors.items():
        assert torch.equal(ref.of(state[ref.key]), theirs[weight].of(VISION[theirs[weight].key]))


def test_a_patch_made_elsewhere_is_applied_to_it_and_reverted(row, tmp_path):
    here, there = tmp_path / "made-up.safetensors", tmp_path / "clip.safetensors"
    save_file(made_up(STATE), here)
    save_file(VISION, there)
    first, second = open_checkpoint(here), open_checkpoint(there)
    assert {w: first.fingerprint(w) for w in first.tensors} == {w: second.fingerprint(w) for w in first.tensors}
    vision = [weight for weight in EVERY_SLOT if weight.tower == "vision"]
    for number, source in enumerate((here, there)):
        out, back = tmp_path / f"out{number}", tmp_path / f"back{number}"
        patch = patch_of(source, vision)
        written = uwm.apply(here, patch, output=out)
        assert written.left_out == ()
        differ = uwm.diff(here, out)
        assert differ.keys() == {f"eyes.tower.stages.1.{key}.weight" for key in ("mix.out", "grow", "shrink")} | {
            "eyes.tower.stages.1.mix.qkv_weight"
        }
        uwm.revert(out, uwm.Patch.load(out), output=back)
        before, after = load_file(here), load_file(back / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(bits(before[key]), bits(after[key])) for key in before)
