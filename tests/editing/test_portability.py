"""A patch made on one spelling of some weights applies to every other, and to nothing else."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from layouts_by_hand import to_open_clip
from openai_archives import CONFIG, NUMBERS, openai_state, save_archive
from safetensors.torch import load_file, save_file
from terminal import done, refused
from tiny_files import hf_folder, hf_state

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.editing.entries.scores import Scores
from uwm.errors import BadInput

REST = {"language_model.layers.0.mlp.fc2.weight": torch.ones(3, 3)}


def only(tower, state):
    return {key: tensor for key, tensor in state.items() if key.startswith(tower)}


def without(tower, state):
    return {key: tensor for key, tensor in state.items() if not key.startswith(tower)}


def under(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def as_file(state):
    def make(path):
        save_file(state, path)
        return path

    return make


def as_archive(state):
    return lambda path: save_archive(path, to_open_clip(state), NUMBERS)


def as_state_dict(state):
    def make(path):
        numbers = {name: torch.tensor(value) for name, value in NUMBERS.items()}
        torch.save(to_open_clip(state) | numbers, path)
        return path

    return make


def as_pipeline(first, second):
    """Stable Diffusion XL: the weights in question are those of one of its two text encoders."""

    def make(folder):
        for name, state in (("text_encoder", first), ("text_encoder_2", second)):
            (folder / name).mkdir(parents=True)
            save_file(only("text_model.", state), folder / name / "model.safetensors")
            (folder / name / "config.json").write_text('{"model_type": "clip_text_model"}')
        (folder / "model_index.json").write_text("{}")
        return folder

    return make


def spellings(state):
    """Name -> (how to make it, which towers it has)."""
    vision = only("vision_model.", state)
    other, both = hf_state(seed=99, dtype=next(iter(state.values())).dtype), ("text", "vision")
    return {
        "hf": (as_file(state), both),
        "open_clip": (as_file(to_open_clip(state)), both),
        "openai archive": (as_archive(state), both),
        "openai state dict": (as_state_dict(state), both),
        "llava 1.5": (as_file(under("model.vision_tower.vision_tower.", vision) | REST), both[1:]),
        "llava hf": (as_file(under("vision_tower.", vision) | REST), both[1:]),
        "sd": (as_file(under("cond_stage_model.transformer.", only("text_model.", state)) | REST), both[:1]),
        "sd 2 single file": (
            as_file(under("cond_stage_model.model.", without("visual.", to_open_clip(state)))), both[:1],
        ),
        "sdxl, first": (as_pipeline(state, other), both[:1]),
        "sdxl, second": (as_pipeline(other, state), both[:1]),
    }  # fmt: skip


def patch_of(path, towers=("text", "vision"), mass=0.1):
    """A patch of random scores, the same whatever the spelling."""
    checkpoint, scores = open_checkpoint(path), {}
    generator = torch.Generator().manual_seed(5)
    for weight in sorted(checkpoint.weights):
        values = torch.rand(checkpoint.matrix(weight).shape, generator=generator) + 0.1
        if weight.tower in towers:
            scores[weight] = values
    base = {weight: checkpoint.fingerprint(weight) for weight in scores}
    from uwm.checkpoint.reader import cast_sha256

    casts = {weight: cast_sha256(checkpoint.matrix(weight)) for weight in scores}
    return uwm.select(Scores(scores, base, {"method": "uwm", "pairs": {}}, {w: {} for w in scores}, casts), mass=mass)


STATE = hf_state()
EVERY = spellings(STATE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spellings")
    return {name: make(folder / name.replace(" ", "-").replace(",", "")) for name, (make, _) in EVERY.items()}


@pytest.mark.parametrize("source", ["hf", "open_clip", "openai archive"])
@pytest.mark.parametrize("target", EVERY)
def test_f29_a_patch_of_one_spelling_edits_the_same_entries_of_every_other(made, tmp_path, source, target):
    patch, towers = patch_of(made[source]), EVERY[target][1]
    before = open_checkpoint(made[target])
    written = uwm.apply(made[target], patch, output=tmp_path / "out")
    assert written.left_out == tuple(t for t in ("text", "vision") if t not in towers)
    after = open_checkpoint(tmp_path / "out")
    second = "_2" if target == "sdxl, second" else ""
    changed = {w: p for w, p in patch.flips.items() if w.tower in towers}
    named = {uwm.WeightId(w.tower + second, w.block, w.slot): indices for w, indices in changed.items()}
    assert named.keys() == written.patch.flips.keys()
    for weight in after.weights:
        expected = before.matrix(weight).clone().flatten()
        if weight in named:
            expected[named[weight]] *= -1
        assert torch.equal(after.matrix(weight).flatten(), expected), weight
    uwm.revert(tmp_path / "out", uwm.Patch.load(tmp_path / "out"), output=tmp_path / "back")
    back = open_checkpoint(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, back[key]) for key, tensor in before.state_dict().items())


def test_every_tensor_has_one_name_and_one_fingerprint_in_every_key_layout(made):
    known = open_checkpoint(made["hf"])
    for name, path in made.items():
        checkpoint = open_checkpoint(path)
        second = "_2" if name == "sdxl, second" else ""
        for tower in EVERY[name][1]:
            theirs = {w for w in checkpoint.tensors if w.tower == tower + second}
            ours = {uwm.WeightId(tower, w.block, w.slot): w for w in theirs}
            lacks = {str(w) for w in known.tensors if w.tower == tower and w not in ours}
            assert lacks <= {f"{tower}.proj"}, name
            assert lacks == set() or name.startswith(("llava", "sd")), name
            for mine, their in ours.items():
                assert checkpoint.fingerprint(their) == known.fingerprint(mine), (name, mine)
                assert checkpoint.info(their).shape == known.info(mine).shape
                assert torch.equal(checkpoint.matrix(their), known.matrix(mine))


def test_a_patch_of_one_tower_goes_back_from_where_it_came(made, tmp_path):
    """Made inside LLaVA, applied to the whole CLIP; the original patch reverts the CLIP."""
    patch = patch_of(made["llava hf"])
    assert {w.tower for w in patch.flips} == {"vision"}
    uwm.apply(made["open_clip"], patch, output=tmp_path / "out")
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    original = load_file(made["open_clip"])
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert all(torch.equal(original[key], back[key]) for key in original)


@pytest.mark.parametrize("target", EVERY)
def test_other_weights_are_refused_with_the_reason(made, tmp_path, target):
    make, towers = spellings(hf_state(seed=1))[target]
    other = make(tmp_path / "other")
    with pytest.raises(BadInput, match=rf"{towers[0]}(_2)?\.0\.\w+ differs from the weight this patch was made for"):
        uwm.apply(other, patch_of(made["hf"]), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_that_is_nowhere_is_named(made, tmp_path):
    with pytest.raises(BadInput, match="the patch edits text, which this checkpoint does not have"):
        uwm.apply(made["llava hf"], patch_of(made["sd"]), output=tmp_path / "out")


def test_an_encoder_without_its_last_block_is_refused(made, tmp_path):
    """Stable Diffusion 2 leaves the last block of its text encoder out."""
    short = {k: v for k, v in only("text_model.", STATE).items() if "layers.1." not in k}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(BadInput, match=r"the patch edits text\.1\.fc1, which this checkpoint does not have"):
        uwm.apply(tmp_path / "short.safetensors", patch_of(made["hf"]), output=tmp_path / "out")


def test_the_program_says_what_was_left_out(made, tmp_path, run_uwm):
    patch = patch_of(made["hf"])
    patch.save(tmp_path / "p.safetensors")
    count = sum(len(i) for w, i in patch.flips.items() if w.tower == "vision")
    out = done(run_uwm("apply", made["llava hf"], tmp_path / "p.safetensors", "-o", tmp_path / "out"))
    assert out.startswith(f"apply: changed {count} entries in 12 tensors (left out: text, which this checkpoint does")
    dry = json.loads(done(run_uwm("apply", made["sd"], tmp_path / "p.safetensors", "--dry-run", "--json")))
    assert dry["left_out"] == ["vision"]


# ---------------------------------------------------------------- other dtypes


@pytest.mark.parametrize(("made_in", "stored_in"), [
    (torch.float32, torch.float16), (torch.float32, torch.bfloat16), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16),
], ids=str)  # fmt: skip
def test_another_dtype_needs_cast(tmp_path, run_uwm, made_in, stored_in):
    state = {key: tensor.to(made_in) for key, tensor in hf_state().items()}
    source = hf_folder(tmp_path / "source", state)
    target = hf_folder(tmp_path / "target", {key: tensor.to(stored_in) for key, tensor in state.items()})
    patch = patch_of(source)
    patch.save(tmp_path / "p.safetensors")
    name = str(stored_in).removeprefix("torch.")
    result = run_uwm("apply", target, tmp_path / "p.safetensors", "-o", tmp_path / "out")
    refused(result, 2, f"stored as {name} instead of {str(made_in).removeprefix('torch.')}; pass --cast")
    done(run_uwm("apply", target, tmp_path / "p.safetensors", "-o", tmp_path / "out", "--cast"))
    before, after = open_checkpoint(target), open_checkpoint(tmp_path / "out")
    for weight, indices in patch.flips.items():
        expected = before.matrix(weight).clone().flatten()
        expected[indices] *= -1
        assert torch.equal(after.matrix(weight).flatten(), expected)
    done(run_uwm("revert", tmp_path / "out", tmp_path / "out", "-o", tmp_path / "back"))  # its own patch: no flag
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()
    twice = run_uwm("apply", tmp_path / "out", tmp_path / "p.safetensors", "-o", tmp_path / "twice", "--cast")
    refused(twice, 2, "this patch is already applied")


def test_cast_does_not_let_other_weights_through(tmp_path):
    source, target = hf_folder(tmp_path / "a"), hf_folder(tmp_path / "b", seed=3, dtype=torch.float16)
    with pytest.raises(BadInput, match="differs from the weight this patch was made for"):
        uwm.apply(target, patch_of(source), output=tmp_path / "out", cast=True)


# ---------------------------------------------------------------- OpenAI's releases


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    state = openai_state()
    torch.save(state | {k: torch.tensor(v) for k, v in NUMBERS.items()}, folder / "state.pt")
    return save_archive(folder / "ViT-tiny.pt", state), state


def test_an_archive_holds_its_tensors_and_implies_quickgelu(archive):
    path, state = archive
    found = open_checkpoint(path).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)
    model = uwm.load(path)
    assert model.quick_gelu
    reference = open_clip.model.build_model_from_openai_state_dict(dict(state), cast_dtype=torch.float32).float().eval()
    pixels, (ids, mask) = torch.randn(3, 3, 64, 64), model.tokenize(["a dog", "a cat on a mat", "a"])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), reference.encode_image(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.encode_text(ids, mask), reference.encode_text(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("flags", "words"), [
    ({"quick_gelu": False}, "the TorchScript archive and --no-quick-gelu contradict each other on the activation"),
    ({"arch": "ViT-B-32"}, "an OpenAI archive computes in QuickGELU, --arch ViT-B-32 in GELU; drop --arch"),
])  # fmt: skip
def test_a_wrong_activation_for_an_archive_is_refused_not_computed(archive, flags, words):
    with pytest.raises(BadInput, match=words):
        uwm.load(archive[0], **flags)


def test_a_bare_state_dict_says_neither_activation_nor_heads(archive):
    path = archive[0].with_name("state.pt")
    with pytest.raises(BadInput, match="do not say their activation; pass --quick-gelu or --no-quick-gelu"):
        uwm.load(path)
    with pytest.raises(BadInput, match=r"no architecture of open_clip's registry with these sizes .*vision_width 64"):
        uwm.load(path, quick_gelu=True)


@pytest.mark.parametrize("form", ["ViT-tiny.pt", "state.pt"])
def test_an_edited_release_is_an_open_clip_folder(archive, tiny_set, tmp_path, run_uwm, form, register_architecture):
    state, path = archive[1], archive[0].with_name(form)
    if form == "state.pt":
        register_architecture("uwm-openai-tiny", CONFIG)
    flags = ("--quick-gelu",) if form == "state.pt" else ()
    code, _, err = run_uwm("edit", path, "--calib", tiny_set, "-o", tmp_path / "out", "--mass", 0.1, "-q", *flags)
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    module = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()  # strict
    model, patch = uwm.load(archive[0]), uwm.Patch.load(tmp_path / "out")
    pixels, (ids, mask) = torch.randn(3, 3, 64, 64), model.tokenize(["a dog", "a cat on a mat", "a"])
    with torch.no_grad(), uwm.patched(model, patch):
        torch.testing.assert_close(module.encode_image(pixels), model.encode_image(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(module.encode_text(ids), model.encode_text(ids, mask), rtol=1e-4, atol=1e-4)
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert all(torch.equal(back[key], state[key]) for key in state)
