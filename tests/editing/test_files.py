"""From file to file: a patch applied once, to its own base only, and undone to the last bit; what differs."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from layouts_by_hand import to_open_clip
from random_patches import EVERY_SLOT, FC2, patch_of, scale
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_folder, hf_state

import uwm
from uwm.checkpoint import file_sha256, open_checkpoint
from uwm.editing.patch import PATCH_FILE, Patch
from uwm.errors import BadInput, ResourceFault
from uwm.weights import SLOTS

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def state_of(folder):
    return open_checkpoint(folder).state_dict()


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, -0.3, 3.0])
def test_revert_after_apply_gives_the_file_back(tmp_path, out, dtype, alpha):
    source = hf_folder(tmp_path / "in", dtype=dtype)
    uwm.apply(source, patch_of(source, EVERY_SLOT, alpha=alpha), output=out)
    hashes = uwm.revert(out, Patch.load(out), output=tmp_path / "back").hashes
    assert file_sha256(out / "model.safetensors") != file_sha256(source / "model.safetensors")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert hashes == {"model.safetensors": file_sha256(source / "model.safetensors")}
    assert sorted(os.listdir(tmp_path / "back")) == sorted([*os.listdir(source), "uwm.json"])


def test_zeros_of_either_sign_survive_the_round_trip(tmp_path, out):
    state = hf_state()
    state["vision_model.encoder.layers.1.mlp.fc2.weight"].flatten()[:8] = torch.tensor([0.0, -0.0] * 4)
    source = hf_folder(tmp_path / "in", state)
    for alpha in (-1.0, 0.0):
        patch = replace(patch_of(source), changes={FC2: scale(range(8), alpha)})
        uwm.apply(source, patch, output=out, overwrite=True)
        uwm.revert(out, Patch.load(out), output=tmp_path / "back", overwrite=True)
        assert same_bits(state_of(tmp_path / "back"), state)


def test_apply_changes_the_chosen_entries_and_no_others(source, out):
    patch = patch_of(source)
    uwm.apply(source, patch, output=out)
    before, after = state_of(source), state_of(out)
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    expected = before[name].clone().flatten()
    expected[patch.flips[FC2]] *= -1
    assert same_bits(after, before | {name: expected.reshape(before[name].shape)})
    assert 0 < len(patch.flips[FC2]) < expected.numel()


def test_the_output_holds_weights_side_files_and_the_patch(source, out):
    hashes = uwm.apply(source, patch_of(source), output=out).hashes
    assert sorted(os.listdir(out)) == ["config.json", "model.safetensors", "tokenizer", "uwm.json", PATCH_FILE]
    assert hashes == {"model.safetensors": file_sha256(out / "model.safetensors")}


def test_two_runs_write_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        uwm.apply(source, patch_of(source, EVERY_SLOT, alpha=0.5), output=tmp_path / name)
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_patch_is_not_applied_twice(source, out, tmp_path):
    patch = patch_of(source)
    uwm.apply(source, patch, output=out)
    with pytest.raises(BadInput, match=r"already applied \(vision\.1\.fc2\); `uwm revert` undoes it"):
        uwm.apply(out, patch, output=tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_patch_of_another_alpha_is_not_applied_twice_either(source, out, tmp_path, alpha):
    uwm.apply(source, patch_of(source, alpha=alpha), output=out)
    with pytest.raises(BadInput, match="already applied|differs from the weight"):
        uwm.apply(out, Patch.load(out), output=tmp_path / "twice")


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_what_is_not_patched_is_not_reverted(source, out, tmp_path, alpha):
    uwm.apply(source, patch_of(source, alpha=alpha), output=out)
    with pytest.raises(BadInput, match=r"vision\.1\.fc2 does not hold this patch"):
        uwm.revert(source, Patch.load(out), output=tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_alpha_is_reverted_only_with_the_patch_that_apply_wrote(source, out, tmp_path):
    patch = patch_of(source, alpha=0.5)
    uwm.apply(source, patch, output=out)
    with pytest.raises(BadInput, match=f"undone with the {PATCH_FILE} that `uwm apply` wrote"):
        uwm.revert(out, patch, output=tmp_path / "back")


def test_another_base_is_refused(source, out, tmp_path):
    other = hf_folder(tmp_path / "other", seed=1)
    with pytest.raises(BadInput, match=r"vision\.1\.fc2 differs from the weight this patch was made for"):
        uwm.apply(other, patch_of(source), output=out)
    assert not out.exists()


def test_a_base_that_differs_elsewhere_is_fine(source, out, tmp_path):
    state = hf_state() | {"logit_scale": torch.tensor(2.0)}
    uwm.apply(hf_folder(tmp_path / "other", state), patch_of(source), output=out)
    assert state_of(out)["logit_scale"].item() == 2


def test_another_shape_or_fewer_blocks_are_refused(source, out, tmp_path):
    patch = patch_of(source)
    with pytest.raises(BadInput, match=r"vision\.1\.fc2 is \[4, 8\], the patch was made for \[4, 6\]"):
        uwm.apply(hf_folder(tmp_path / "wide", inner=8), patch, output=out)
    with pytest.raises(BadInput, match=r"the patch edits vision\.1\.fc2, which this checkpoint does not have"):
        uwm.apply(hf_folder(tmp_path / "short", blocks=1), patch, output=out)


def test_the_input_is_never_the_output(source):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for reference in (source, source / "model.safetensors"):
        with pytest.raises(BadInput, match="is the input itself"):
            uwm.apply(reference, patch_of(source), output=source, overwrite=True)
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_an_output_that_exists_stays_unless_told(source, out):
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(BadInput, match="pass --overwrite"):
        uwm.apply(source, patch_of(source), output=out)
    with pytest.raises(BadInput, match="was not written by uwm"):
        uwm.apply(source, patch_of(source), output=out, overwrite=True)
    assert os.listdir(out) == ["mine"]
    (out / "uwm.json").touch()
    uwm.apply(source, patch_of(source), output=out, overwrite=True)
    assert not (out / "mine").exists()


def test_a_full_disk_leaves_no_output(source, out, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    patch = patch_of(source)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceFault, match="No space left on device"):
        uwm.apply(source, patch, output=out)
    assert os.listdir(out.parent) == ["in"]


# ---------------------------------------------------------------- across layouts


def test_a_patch_edits_the_same_weights_in_another_spelling(source, tmp_path):
    (tmp_path / "clip").mkdir()
    save_file(to_open_clip(load_file(source / "model.safetensors")), tmp_path / "clip" / "open_clip_model.safetensors")
    patch = patch_of(source, EVERY_SLOT)
    assert {weight.slot for weight in patch.flips} == set(SLOTS)
    uwm.apply(source, patch, output=tmp_path / "a")
    uwm.apply(tmp_path / "clip", patch, output=tmp_path / "b")
    assert same_bits(to_open_clip(state_of(tmp_path / "a")), state_of(tmp_path / "b"))
    assert not same_bits(state_of(tmp_path / "clip"), state_of(tmp_path / "b"))
    with pytest.raises(BadInput, match="already applied"):
        uwm.apply(tmp_path / "b", patch, output=tmp_path / "c")
    uwm.revert(tmp_path / "b", patch, output=tmp_path / "back")
    name = "open_clip_model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "clip" / name).read_bytes()


def test_a_pickle_and_a_bare_file_are_edited_like_the_folder(source, tmp_path):
    patch = patch_of(source)
    torch.save(load_file(source / "model.safetensors"), tmp_path / "bare.pt")
    uwm.apply(source, patch, output=tmp_path / "a")
    for number, reference in enumerate((tmp_path / "bare.pt", source / "model.safetensors")):
        uwm.apply(reference, patch, output=tmp_path / f"{number}")
        assert same_bits(state_of(tmp_path / f"{number}"), state_of(tmp_path / "a"))
        uwm.revert(tmp_path / f"{number}", patch, output=tmp_path / f"{number}-back")
        assert same_bits(state_of(tmp_path / f"{number}-back"), state_of(source))


# ---------------------------------------------------------------- difference


def test_diff_counts_what_differs(source, out):
    patch = patch_of(source)
    uwm.apply(source, patch, output=out)
    flipped = {"differ": len(patch.flips[FC2]), "negated": len(patch.flips[FC2]), "of": 24}
    assert uwm.diff(source, out) == {"vision_model.encoder.layers.1.mlp.fc2.weight": flipped}
    assert uwm.diff(source, source) == {}


def test_diff_sees_every_bit_and_tells_negation_from_change(tmp_path):
    state = hf_state()
    for name, values in {"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0, -1.0, 2.5, 3.0]}.items():
        hf_folder(tmp_path / name, state | {"logit_scale": torch.tensor(values)})
    assert uwm.diff(tmp_path / "a", tmp_path / "b") == {"logit_scale": {"differ": 2, "negated": 1, "of": 4}}
    hf_folder(tmp_path / "zero", state | {"logit_scale": torch.tensor([-0.0, 1.0, 2.0, 3.0])})
    assert uwm.diff(tmp_path / "a", tmp_path / "zero")["logit_scale"]["differ"] == 1


def test_diff_of_strangers_is_bad_input(source, tmp_path):
    hf_folder(tmp_path / "more", blocks=3)
    with pytest.raises(BadInput, match="hold different tensors, such as text_model"):
        uwm.diff(source, tmp_path / "more")
    hf_folder(tmp_path / "wide", inner=8)
    with pytest.raises(BadInput, match=r"is \[6\] in .* and \[8\] in"):
        uwm.diff(source, tmp_path / "wide")


@pytest.mark.parametrize("pickled", [False, True])
def test_diff_piece_by_piece_counts_as_the_whole(tmp_path, monkeypatch, pickled):
    monkeypatch.setattr("uwm.checkpoint.reader.CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    before = hf_state()
    signs = {name: (torch.rand(tensor.shape, generator=generator) - 0.3).sign() for name, tensor in before.items()}
    after = {name: tensor * signs[name].to(tensor.dtype) for name, tensor in before.items()}
    first = hf_folder(tmp_path / "a", before)
    if pickled:
        torch.save(after, tmp_path / "b.pt")
    else:
        save_file(after, tmp_path / "b.safetensors")
    found = uwm.diff(first, tmp_path / ("b.pt" if pickled else "b.safetensors"))
    odd = {name: (bits(before[name]) != bits(after[name])).sum().item() for name in before}
    assert {name: count["differ"] for name, count in found.items()} == {name: n for name, n in odd.items() if n}
    assert all(count["negated"] == count["differ"] for count in found.values())
    assert {name: count["of"] for name, count in found.items()} == {name: before[name].numel() for name in found}


def test_diff_of_two_types_compares_values(tmp_path):
    state = {name: tensor.half().float() for name, tensor in hf_state().items()}
    hf_folder(tmp_path / "a", state)
    hf_folder(tmp_path / "b", {name: tensor.half() for name, tensor in state.items()})
    assert uwm.diff(tmp_path / "a", tmp_path / "b") == {}
    hf_folder(
        tmp_path / "c",
        {name: -tensor.half() if name == "logit_scale" else tensor.half() for name, tensor in state.items()},
    )
    assert uwm.diff(tmp_path / "a", tmp_path / "c") == {"logit_scale": {"differ": 1, "negated": 1, "of": 1}}
