"""Changes of every kind, of matrices, biases and projections: reverted to the byte, in every key layout and dtype."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_portability import spellings
from tiny_files import bits, hf_folder, hf_state

import uwm
from uwm.checkpoint import file_sha256, open_checkpoint
from uwm.checkpoint.reader import cast_sha256
from uwm.editing.changes import AddLowRank, Scale, SetEntries
from uwm.editing.patch import PATCH_FILE, Patch
from uwm.errors import BadInput, InvalidResult

FIRST = Path(__file__).parents[1] / "golden" / "format1"
NAMES = ("fc2", "q_proj", "v_proj.bias", "fc1.bias", "proj")
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def ids(towers=("text", "vision")):
    return [uwm.WeightId(t, None if slot == "proj" else 1, slot) for t in towers for slot in NAMES]


def patch_of(path, kind, towers=("text", "vision")):
    """A patch of one kind of change (the rank of a bias is that of a column), made on any key layout."""
    checkpoint, rng = open_checkpoint(path), np.random.default_rng(3)
    changes = {}
    for name in ids(towers):
        shape = checkpoint.info(name).shape
        indices = np.sort(rng.permutation(int(np.prod(shape)))[:3]).astype(np.int64)
        draw = rng.standard_normal(24)
        if kind == "add" and len(shape) == 2:
            changes[name] = AddLowRank.of(draw[: 2 * shape[0]].reshape(-1, 2), draw[-2 * shape[1] :].reshape(-1, 2))
        elif kind == "halve":
            changes[name] = Scale(indices, 0.5)
        else:
            changes[name] = SetEntries.of(indices, draw[:3])
    known = {name: checkpoint.matrix(name) for name in changes}
    return Patch(
        changes,
        shapes={name: tuple(tensor.shape) for name, tensor in known.items()},
        base={name: checkpoint.fingerprint(name) for name in changes},
        casts={name: cast_sha256(tensor) for name, tensor in known.items()},
        recipe={"method": "test"},
    )


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["add", "set", "halve"])
def test_revert_gives_the_file_back_whatever_the_kind(tmp_path, kind, dtype):
    source = hf_folder(tmp_path / "in", dtype=dtype)
    uwm.apply(source, patch_of(source, kind), output=tmp_path / "out")
    keys = {open_checkpoint(source).tensors[name].key for name in ids()}
    assert set(uwm.diff(source, tmp_path / "out")) == keys
    written = Patch.load(tmp_path / "out")
    for again in (written, patch_of(source, kind)):
        with pytest.raises(BadInput, match="already applied" if again is written else "already applied|differs from"):
            uwm.apply(tmp_path / "out", again, output=tmp_path / "twice")
    uwm.revert(tmp_path / "out", written, output=tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


STATE = hf_state()
EVERY = spellings(STATE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {name: make(folder / name.replace(" ", "-").replace(",", "")) for name, (make, _) in EVERY.items()}


@pytest.mark.parametrize("kind", ["add", "set"])
@pytest.mark.parametrize("source", ["hf", "open_clip"])
@pytest.mark.parametrize("target", EVERY)
def test_a_patch_of_any_kind_fits_every_key_layout(made, tmp_path, source, target, kind):
    towers = EVERY[target][1]
    patch = patch_of(made[source], kind)
    if (before := open_checkpoint(made[target])).tensors.keys().isdisjoint({uwm.WeightId(towers[0], None, "proj")}):
        patch = without_projections(patch)
    written = uwm.apply(made[target], patch, output=tmp_path / "out")
    reference = uwm.apply(made["hf"], patch, output=tmp_path / "reference")
    after, expected = open_checkpoint(tmp_path / "out"), open_checkpoint(tmp_path / "reference")
    theirs = {n: n.__class__(n.tower.partition("_")[0], n.block, n.slot) for n in written.patch.changes}
    assert set(theirs.values()) == {name for name in reference.patch.changes if name.tower in towers}
    for name, ours in theirs.items():
        assert torch.equal(bits(after.matrix(name)), bits(expected.matrix(ours))), name
        assert not torch.equal(bits(after.matrix(name)), bits(before.matrix(name))), name
    untouched = before.tensors.keys() - theirs.keys()
    assert all(torch.equal(bits(after.matrix(n)), bits(before.matrix(n))) for n in untouched)
    uwm.revert(tmp_path / "out", Patch.load(tmp_path / "out"), output=tmp_path / "back")
    assert same_bits(open_checkpoint(tmp_path / "back").state_dict(), before.state_dict())


def without_projections(patch):
    kept = {name: change for name, change in patch.changes.items() if name.slot != "proj"}
    fields = {f: {n: getattr(patch, f)[n] for n in kept} for f in ("shapes", "base", "casts")}
    return Patch(kept, recipe=patch.recipe, **fields)


@pytest.mark.parametrize("kind", ["add", "set"])
@pytest.mark.parametrize("library", ["hf", "open_clip"])
def test_a_live_edit_of_any_kind_is_the_file_s(tiny_hf, tiny_open_clip, tmp_path, kind, library):
    folder = tiny_hf if library == "hf" else tiny_open_clip
    model, rng = uwm.load(folder), np.random.default_rng(0)
    names = [
        uwm.WeightId("vision", 2, "fc2"),
        uwm.WeightId("vision", None, "proj"),
        uwm.WeightId("text", 1, "fc1.bias"),
    ]
    changes = {}
    for name in names:
        shape = tuple(model.parameter(name).shape)
        low_rank = kind == "add" and len(shape) == 2
        sides = [rng.standard_normal((size, 1)) for size in shape]
        changes[name] = AddLowRank.of(*sides) if low_rank else SetEntries.of(range(5), rng.standard_normal(5))
    shapes = {name: tuple(model.parameter(name).shape) for name in names}
    patch = Patch(changes, shapes=shapes, base={name: model.fingerprint(name) for name in names})
    uwm.apply(folder, patch, output=tmp_path / "out")
    edited, before = open_checkpoint(tmp_path / "out"), {n: t.clone() for n, t in model.module.state_dict().items()}
    with uwm.patched(model, patch):
        for name in model.tensors:
            assert torch.equal(bits(model.parameter(name)), bits(edited.matrix(name))), name
        with pytest.raises(BadInput, match="already patched"):
            uwm.patched(model, patch).__enter__()
    assert all(torch.equal(bits(tensor), bits(before[name])) for name, tensor in model.module.state_dict().items())


def test_a_patch_made_elsewhere_is_undone_only_by_the_one_that_apply_wrote(tmp_path):
    source = hf_folder(tmp_path / "in")
    patch = patch_of(source, "set")
    uwm.apply(source, patch, output=tmp_path / "out")
    with pytest.raises(BadInput, match=f"undone with the {PATCH_FILE} that `uwm apply` wrote"):
        uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")


def test_a_forged_undo_is_refused(tmp_path):
    """What the patch says was there before must be what its hash says."""
    source = hf_folder(tmp_path / "in")
    uwm.apply(source, patch_of(source, "set"), output=tmp_path / "out")
    file = tmp_path / "out" / PATCH_FILE
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith(":missed:values"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata=header["__metadata__"])
    with pytest.raises(BadInput, match="does not hold this patch"):
        uwm.revert(tmp_path / "out", Patch.load(file), output=tmp_path / "back")


def test_values_that_do_not_fit_the_stored_type_are_refused(tmp_path):
    source = hf_folder(tmp_path / "in", dtype=torch.float16)
    name = uwm.WeightId("vision", 1, "fc1")
    checkpoint = open_checkpoint(source)
    shape = checkpoint.info(name).shape
    change = AddLowRank.of(np.full((shape[0], 1), 1e6), np.ones((shape[1], 1)))
    patch = Patch({name: change}, {name: shape}, {name: checkpoint.fingerprint(name)})
    with pytest.raises(InvalidResult, match=r"vision\.1\.fc1: the edited values do not fit into float16"):
        uwm.apply(source, patch, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cast_holds_for_every_kind(tmp_path):
    source = hf_folder(tmp_path / "source", {key: tensor.float() for key, tensor in hf_state().items()})
    target = hf_folder(tmp_path / "target", {key: tensor.half() for key, tensor in hf_state().items()})
    patch = patch_of(source, "add")
    with pytest.raises(BadInput, match="pass --cast"):
        uwm.apply(target, patch, output=tmp_path / "out")
    uwm.apply(target, patch, output=tmp_path / "out", cast=True)
    uwm.revert(tmp_path / "out", Patch.load(tmp_path / "out"), output=tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- files that uwm 0.1 wrote


@pytest.mark.parametrize("name", ["negated", "halved"])
def test_patches_of_format_1_are_applied_and_reverted(tmp_path, name):
    source = hf_folder(tmp_path / "in")
    patch = Patch.load(FIRST / f"{name}.safetensors")
    hashes = uwm.apply(source, patch, output=tmp_path / "out").hashes
    assert hashes["model.safetensors"] == json.loads((FIRST / "edited_sha256.json").read_text())[name]
    for undo in (patch, Patch.load(tmp_path / "out")):
        uwm.revert(tmp_path / "out", undo, output=tmp_path / "back", overwrite=True)
        assert file_sha256(tmp_path / "back" / "model.safetensors") == file_sha256(source / "model.safetensors")
    with pytest.raises(BadInput, match="already applied"):
        uwm.apply(tmp_path / "out", patch, output=tmp_path / "twice")
    patch.save(tmp_path / "anew.safetensors")
    assert Patch.load(tmp_path / "anew.safetensors").changes.keys() == patch.changes.keys()


def test_a_selected_patch_and_scores_of_format_1_are_read(tmp_path):
    source = hf_folder(tmp_path / "in")
    patch = Patch.load(FIRST / "halved_selected.safetensors")
    assert patch.alpha == 0.5
    uwm.apply(source, patch, output=tmp_path / "out")
    again = uwm.select(uwm.Scores.load(FIRST / "scores.safetensors"), mass=0.2, alpha=0.5)
    assert {name: flips.tolist() for name, flips in again.flips.items()} == {
        name: flips.tolist() for name, flips in patch.flips.items()
    }
