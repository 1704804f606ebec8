"""The patch: made from scores, kept in its own file, and in effect on a live model while a block runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import ARCH
from random_patches import EVERY_SLOT, FC2, patch_of, scale, scores_of
from safetensors.torch import save_file
from tiny_files import bits

import uwm
from uwm import records
from uwm.checkpoint import open_checkpoint
from uwm.editing.entries.selection import top_mass
from uwm.editing.patch import PATCH_FILE, Patch
from uwm.errors import BadInput, InvalidResult
from uwm.weights import WeightId

# ---------------------------------------------------------------- select


def test_select_takes_the_top_mass_of_each_weight(source):
    scores = scores_of(source, EVERY_SLOT)
    patch = uwm.select(scores, text_mass=0.1, vision_mass=0.4)
    assert list(patch.flips) == sorted(EVERY_SLOT)
    for weight, indices in patch.flips.items():
        expected = top_mass(scores[weight], {"text": 0.1, "vision": 0.4}[weight.tower])
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
    with pytest.raises(BadInput, match="between 0 and 1|a finite number"):
        patch_of(source, mass=mass)


def test_an_unknown_rule_is_bad_input(source):
    with pytest.raises(BadInput, match="expected one of top-mass, top-fraction"):
        patch_of(source, rule="top")


def test_unusable_scores_name_their_weight(source):
    scores = scores_of(source, [FC2])
    scores.tensors[FC2][1, 2] = float("nan")
    with pytest.raises(InvalidResult, match=r"vision\.1\.fc2: the scores hold NaN"):
        uwm.select(scores)


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
    fitted, checkpoint = Patch.load(out), open_checkpoint(source)
    assert list(fitted.missed) == ([] if alpha == -1 else list(patch.flips))
    assert fitted.edited == {weight: open_checkpoint(out).fingerprint(weight) for weight in patch.flips}
    for weight, missed in fitted.missed.items():
        assert torch.equal(bits(missed.values.torch()), bits(checkpoint.matrix(weight).flatten()[patch.flips[weight]]))


def test_the_same_patch_gives_the_same_bytes(source, tmp_path):
    patch = patch_of(source, EVERY_SLOT)
    patch.save(tmp_path / "a")
    replace(patch, changes=dict(reversed(patch.changes.items()))).save(tmp_path / "b")
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
    path = rewritten(patch_of(source), tmp_path / "p", lambda tensors, about: about.update(format=3))
    with pytest.raises(BadInput, match="format 3, this uwm reads 1 and 2; update uwm"):
        Patch.load(path)


INDICES = f"{FC2}:indices"
SPOILERS = {
    "no weights": lambda tensors, about: about.pop("weights"),
    "no kind": lambda tensors, about: about["weights"][str(FC2)].pop("kind"),
    "an unknown kind": lambda tensors, about: about["weights"][str(FC2)].update(kind="rotate"),
    "no factor": lambda tensors, about: about["weights"][str(FC2)]["settings"].clear(),
    "a tensor is missing": lambda tensors, about: tensors.pop(INDICES),
    "beyond the end": lambda tensors, about: tensors.update({INDICES: torch.tensor([0, 24])}),
    "negative": lambda tensors, about: tensors.update({INDICES: torch.tensor([-1, 0])}),
    "twice": lambda tensors, about: tensors.update({INDICES: torch.tensor([3, 3])}),
    "floats": lambda tensors, about: tensors.update({INDICES: torch.tensor([1.0, 2.0])}),
    "a table": lambda tensors, about: tensors.update({INDICES: torch.tensor([[1, 2]])}),
    "alpha is a word": lambda tensors, about: about["weights"][str(FC2)]["settings"].update(factor="-1"),
    "alpha is no number": lambda tensors, about: about["weights"][str(FC2)]["settings"].update(factor=float("nan")),
    "no such weight": lambda tensors, about: about["weights"].update({"x": about["weights"][str(FC2)]}),
    "no shape": lambda tensors, about: about["weights"][str(FC2)].update(shape=[]),
    "a recipe that is a list": lambda tensors, about: about.update(recipe=[]),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_a_spoilt_patch_is_bad_input(source, tmp_path, name):
    with pytest.raises(BadInput):
        Patch.load(rewritten(patch_of(source), tmp_path / "p", SPOILERS[name]))


# ---------------------------------------------------------------- live models


def with_factor(patch, alpha):
    return replace(patch, changes={name: replace(c, factor=alpha) for name, c in patch.changes.items()})


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
    with pytest.raises(error), uwm.patched(live, with_factor(tiny_patch, alpha)):  # noqa: PT012
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
            replace(tiny_patch, changes={missing: scale([0])}, shapes={missing: (32, 64)}),
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
