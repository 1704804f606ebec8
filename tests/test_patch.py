"""The edit: applied once, to its own base only, and undone to the last bit, on files and on live models."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import ARCH
from layouts_by_hand import to_open_clip
from random_patches import EVERY_SLOT, FC2, patch_of, scores_of
from safetensors.torch import load_file, save_file
from tiny_files import bits, hf_folder, hf_state

import uwm
from uwm import records
from uwm.checkpoint import file_sha256, open_checkpoint
from uwm.errors import BadInput, InvalidResult, ResourceFault
from uwm.patch import PATCH_FILE, Patch
from uwm.weights import SLOTS, WeightId

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def state_of(folder):
    return open_checkpoint(folder).state_dict()


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


@pytest.fixture
def source(tmp_path):
    return hf_folder(tmp_path / "in")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# ---------------------------------------------------------------- select


def test_select_takes_the_top_mass_of_each_weight(source):
    scores = scores_of(source, EVERY_SLOT)
    patch = uwm.select(scores, text_mass=0.1, vision_mass=0.4)
    assert list(patch.flips) == sorted(EVERY_SLOT)
    for weight, indices in patch.flips.items():
        expected = uwm.selection.top_mass(scores[weight], {"text": 0.1, "vision": 0.4}[weight.tower])
        assert torch.equal(indices, expected)
        assert patch.shapes[weight] == tuple(scores[weight].shape)
    assert patch.counts() == {weight: len(indices) for weight, indices in patch.flips.items()}
    assert patch.base == scores.base


def test_a_mass_of_one_tower_overrides_that_tower_alone(source):
    scores = scores_of(source, EVERY_SLOT)
    both, text = uwm.select(scores, mass=0.3), uwm.select(scores, mass=0.3, text_mass=0.05)
    for weight in EVERY_SLOT:
        assert torch.equal(both.flips[weight], text.flips[weight]) == (weight.tower == "vision")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), -float("inf"), 1e30, -1e5])
def test_an_alpha_out_of_range_is_bad_input(source, alpha):
    with pytest.raises(BadInput, match="--alpha"):
        patch_of(source, alpha=alpha)


def test_alpha_one_is_refused_for_it_changes_nothing(source):
    with pytest.raises(InvalidResult, match="changes nothing"):
        patch_of(source, alpha=1)


@pytest.mark.parametrize("mass", [0, 1, -0.1, float("nan")])
def test_a_mass_out_of_range_is_bad_input(source, mass):
    with pytest.raises(BadInput, match="between 0 and 1"):
        patch_of(source, mass=mass)


def test_an_unknown_rule_is_bad_input(source):
    with pytest.raises(BadInput, match="expected one of top-mass, top-fraction"):
        patch_of(source, rule="top")


def test_unusable_scores_name_their_weight(source):
    scores = scores_of(source, [FC2])
    scores.tensors[FC2][1, 2] = float("nan")
    with pytest.raises(InvalidResult, match=r"vision\.1\.fc2: the scores hold NaN"):
        uwm.select(scores)


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
        patch = replace(patch_of(source, alpha=alpha), flips={FC2: torch.arange(8)})
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


# ---------------------------------------------------------------- the patch's own file


@pytest.mark.parametrize("alpha", [-1.0, 0.5])
def test_a_patch_reads_back_as_it_was(source, out, alpha):
    patch = patch_of(source, EVERY_SLOT, alpha=alpha)
    uwm.apply(source, patch, output=out)
    patch.save(out / "alone")
    for found in (Patch.load(out / "alone"), Patch.load(out), Patch.load(out / PATCH_FILE)):
        assert list(found.flips) == list(patch.flips)
        assert all(torch.equal(found.flips[weight], patch.flips[weight]) for weight in patch.flips)
        assert (found.shapes, found.base, found.alpha, found.recipe) == (
            patch.shapes, patch.base, patch.alpha, patch.recipe,
        )  # fmt: skip
    stored = Patch.load(out).originals
    assert list(stored) == ([] if alpha == -1 else list(patch.flips))
    checkpoint = open_checkpoint(source)
    for weight, values in stored.items():
        assert torch.equal(bits(values), bits(checkpoint.matrix(weight).flatten()[patch.flips[weight]]))


def test_the_same_patch_gives_the_same_bytes(source, tmp_path):
    patch = patch_of(source, EVERY_SLOT)
    patch.save(tmp_path / "a")
    replace(patch, flips=dict(reversed(patch.flips.items()))).save(tmp_path / "b")
    Patch.load(tmp_path / "a").save(tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_scores_are_no_patch(source, tmp_path):
    scores_of(source, [FC2]).save(tmp_path / "scores")
    with pytest.raises(BadInput, match="holds scores, expected patch"):
        Patch.load(tmp_path / "scores")


def test_a_folder_without_a_patch_says_so(source):
    with pytest.raises(BadInput, match=f"{PATCH_FILE}: no such file"):
        Patch.load(source)


def rewritten(patch, path, change):
    """The patch as a file whose tensors and description went through `change`."""
    patch.save(path)
    tensors, about = records.read(path, "patch")
    change(tensors, about)
    save_file(tensors, path, metadata={records.KEY: json.dumps(about)})
    return path


def test_an_unknown_format_version_is_refused(source, tmp_path):
    path = rewritten(patch_of(source), tmp_path / "p", lambda tensors, about: about.update(format=2))
    with pytest.raises(BadInput, match="format 2, this uwm reads 1; update uwm"):
        Patch.load(path)


SPOILERS = {
    "no weights": lambda tensors, about: about.pop("weights"),
    "no alpha": lambda tensors, about: about.pop("alpha"),
    "a tensor is missing": lambda tensors, about: tensors.pop(str(FC2)),
    "beyond the end": lambda tensors, about: tensors.update({str(FC2): torch.tensor([0, 24])}),
    "negative": lambda tensors, about: tensors.update({str(FC2): torch.tensor([-1, 0])}),
    "twice": lambda tensors, about: tensors.update({str(FC2): torch.tensor([3, 3])}),
    "floats": lambda tensors, about: tensors.update({str(FC2): torch.tensor([1.0, 2.0])}),
    "a table": lambda tensors, about: tensors.update({str(FC2): torch.tensor([[1, 2]])}),
    "alpha is a word": lambda tensors, about: about.update(alpha="-1"),
    "no such weight": lambda tensors, about: about["weights"].update({"x": about["weights"][str(FC2)]}),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_spoilt_patch_is_bad_input(source, tmp_path, name):
    with pytest.raises(BadInput):
        Patch.load(rewritten(patch_of(source), tmp_path / "p", SPOILERS[name]))


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


# ---------------------------------------------------------------- live models


def live_bits(model):
    return {name: bits(tensor.detach().clone()) for name, tensor in model.module.state_dict().items()}


def unchanged(model, before):
    after = live_bits(model)
    return all(torch.equal(after[name], before[name]) for name in before) and model.edited == set()


@pytest.fixture(scope="module", params=["hf", "open_clip"])
def live(request, tiny_hf, tiny_open_clip):
    return uwm.load(tiny_hf) if request.param == "hf" else uwm.load(tiny_open_clip)


@pytest.fixture(scope="module")
def tiny_patch(tiny_hf):
    return patch_of(tiny_hf, EVERY_SLOT, mass=0.05)


def test_a_live_edit_is_the_file_s_edit(live, tiny_patch, tmp_path):
    uwm.apply(live.checkpoint.path, tiny_patch, output=tmp_path / "out")
    edited = open_checkpoint(tmp_path / "out")
    before = live_bits(live)
    with uwm.patched(live, tiny_patch) as inside:
        assert inside is live
        assert live.edited == set(tiny_patch.flips)
        for weight in live.weights:
            assert torch.equal(bits(live.parameter(weight)), bits(edited.matrix(weight)))
    assert unchanged(live, before)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_every_bit_comes_back_when_the_body_raises(live, tiny_patch, error, alpha):
    before = live_bits(live)
    with pytest.raises(error), uwm.patched(live, replace(tiny_patch, alpha=alpha)):  # noqa: PT012
        assert not unchanged(live, before)
        raise error
    assert unchanged(live, before)


def test_the_same_weight_is_not_patched_twice_at_once(live, tiny_patch):
    before = live_bits(live)
    with uwm.patched(live, tiny_patch):
        inside = live_bits(live)
        with pytest.raises(BadInput, match="is already patched; leave the earlier `patched` block first"):
            uwm.patched(live, tiny_patch).__enter__()
        assert live.edited == set(tiny_patch.flips)
        assert all(torch.equal(tensor, inside[name]) for name, tensor in live_bits(live).items())
    assert unchanged(live, before)


def test_patches_of_different_weights_nest(live, tiny_hf):
    inner, outer = patch_of(tiny_hf, [FC2]), patch_of(tiny_hf, [WeightId("vision", 1, "q_proj")])
    before = live_bits(live)
    with uwm.patched(live, outer):
        once = live_bits(live)
        with uwm.patched(live, inner):
            assert live.edited == {*outer.flips, *inner.flips}
        assert all(torch.equal(tensor, once[name]) for name, tensor in live_bits(live).items())
    assert unchanged(live, before)


def test_another_model_s_patch_is_refused_live(live, source, tiny_patch):
    before = live_bits(live)
    wrong = replace(tiny_patch, base=dict.fromkeys(tiny_patch.base, "0" * 64))
    missing = WeightId("vision", 9, "fc2")
    for patch, says in (
        (wrong, "differs from the weight"),
        (patch_of(source), r"was made for vision\.1\.fc2 of \[4, 6\], this model has \[32, 64\]"),
        (
            replace(tiny_patch, flips={missing: torch.tensor([0])}),
            r"edits vision\.9\.fc2, which this model does not have",
        ),
    ):
        with pytest.raises(BadInput, match=says):
            uwm.patched(live, patch).__enter__()
    assert unchanged(live, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_computing_in_another_type_comes_back_too(tiny_open_clip, tiny_patch, dtype):
    model = uwm.load(tiny_open_clip / "open_clip_model.safetensors", arch=ARCH, dtype=dtype)
    before = live_bits(model)
    with uwm.patched(model, tiny_patch):
        for weight, indices in tiny_patch.flips.items():
            flat, stored = model.parameter(weight).flatten(), model.stored(weight).to(model.parameter(weight).dtype)
            assert torch.equal(flat[indices], -stored.flatten()[indices])
    assert unchanged(model, before)
