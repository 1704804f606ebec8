"""Both families: the same weights give the same embeddings, scores, selection and edit; wrong inputs are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ARCH
from safetensors.torch import load_file, save_file

import uwm
from uwm.errors import BadInput, ResourceFault
from uwm.statistics.batches import pair_batches

ALL_SLOTS = "q_proj,k_proj,v_proj,out_proj,fc1,fc2"
LAYERS = {"text_layers": ALL_SLOTS, "vision_layers": ALL_SLOTS}
FC1, FC2 = "text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.1.mlp.fc2.weight"


@pytest.fixture(scope="module")
def both(tiny_hf, tiny_open_clip):
    return uwm.load(tiny_hf), uwm.load(tiny_open_clip)


@pytest.fixture(scope="module")
def batches(both, tiny_set):
    """The set preprocessed once, so that both families see the same tensors."""
    return list(pair_batches(both[0], uwm.read_calibration(tiny_set), batch_size=7, towers=("text", "vision")))


def embed(model, batches):
    rows = []
    with torch.no_grad():
        for batch in batches:
            for tower, encode in (("text", model.encode_text), ("vision", lambda x, _: model.encode_image(x))):
                rows += [encode(x, mask) for x, mask in batch.sides(tower) or []]
    return torch.cat(rows)


def test_both_layouts_give_the_same_embeddings(both, batches):
    torch.testing.assert_close(embed(both[0], batches), embed(both[1], batches), rtol=1e-5, atol=1e-5)


def test_both_layouts_give_the_same_scores_selection_and_edit(both, batches):
    """Also for out_proj, whose module nn.MultiheadAttention never calls."""
    first, second = (uwm.score(model, batches, **LAYERS) for model in both)
    assert list(first) == list(second)
    assert len(first) == 6 * (2 + 3)
    for weight in first:
        torch.testing.assert_close(second[weight], first[weight], rtol=1e-5, atol=0, msg=str(weight))
    patches = [uwm.select(scores, mass=0.05) for scores in (first, second)]
    assert patches[0].base == patches[1].base
    for weight in first:
        assert torch.equal(patches[0].flips[weight], patches[1].flips[weight])
    before = embed(both[0], batches)
    with uwm.patched(both[0], patches[0]), uwm.patched(both[1], patches[0]):
        after = [embed(model, batches) for model in both]
    torch.testing.assert_close(after[1], after[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after[0], atol=1e-2)


def test_scores_do_not_depend_on_the_batch_size(both, tiny_set):
    calib = uwm.read_calibration(tiny_set)
    for model in both:
        one, all_at_once = (uwm.score(model, calib, batch_size=n) for n in (1, 64))
        for weight in one:
            torch.testing.assert_close(one[weight], all_at_once[weight], rtol=1e-5, atol=0)


def test_loading_says_nothing_and_sets_up_no_logging(tiny_open_clip):
    code = f"import logging, uwm; uwm.load({str(tiny_open_clip)!r}); print(logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_tokenizers_agree_and_keep_the_end_token(both):
    texts = ["a dog", "a picture of a dog and a knife " * 20]
    (ids, mask), (other, other_mask) = (model.tokenize(texts) for model in both)
    end = ids.max()
    for row in range(2):
        length = mask[row].sum()
        assert torch.equal(ids[row, :length], other[row, :length])
        assert other_mask[row].sum() == length
        assert ids[row, length - 1] == end
    assert mask[1].sum() == 32  # cut to the context


def test_pictures_come_out_alike(both, tiny_set):
    from uwm.images import load_image

    image = load_image(tiny_set / "images" / "0000_safe.png")
    assert [model.preprocess([image]).shape for model in both] == [(1, 3, 64, 64)] * 2
    torch.testing.assert_close(both[0].preprocess([image]), both[1].preprocess([image]), atol=0.03, rtol=0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bare_weights_with_an_architecture(both, batches, tiny_open_clip, tmp_path, suffix):
    state = load_file(tiny_open_clip / "open_clip_model.safetensors")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    model = uwm.load(path, arch=ARCH)
    assert model.quick_gelu
    torch.testing.assert_close(embed(model, batches), embed(both[1], batches))


def test_f31_activation_is_taken_from_the_flag_and_changes_the_result(both, batches, tiny_open_clip):
    path = tiny_open_clip / "open_clip_model.safetensors"
    gelu = uwm.load(path, quick_gelu=False)
    assert not gelu.quick_gelu
    assert gelu.side_configs()["open_clip_config.json"]["model_cfg"]["quick_gelu"] is False
    torch.testing.assert_close(embed(uwm.load(path, quick_gelu=True), batches), embed(both[1], batches))
    assert not torch.allclose(embed(gelu, batches), embed(both[1], batches), atol=1e-4)


def test_bare_hugging_face_weights_take_their_sizes_from_the_tensors(
    tiny_hf, tiny_set, batches, both, tmp_path, run_uwm
):
    """Heads come from the architecture of open_clip's registry that has these sizes, the activation from the flag."""
    bare = shutil.copy(tiny_hf / "model.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(BadInput, match="do not say their activation"):
        uwm.load(bare)
    torch.testing.assert_close(embed(uwm.load(bare, quick_gelu=True), batches), embed(both[0], batches))
    gelu = uwm.load(bare, quick_gelu=False)
    assert not torch.allclose(embed(gelu, batches), embed(both[0], batches), atol=1e-4)
    assert gelu.side_configs()["config.json"]["text_config"]["hidden_act"] == "gelu"
    with pytest.raises(BadInput, match="a vocabulary of their own"):
        gelu.tokenize(["a dog"])
    flags = ("--quick-gelu", "--text-layers", "none", "--split", "calib")
    code, _, err = run_uwm("edit", bare, "--calib", tiny_set, "-o", tmp_path / "out", "--mass", 0.1, "-q", *flags)
    assert code == 2, err  # measuring needs a tokenizer
    patch = uwm.select(uwm.score(uwm.load(bare, quick_gelu=True), batches), mass=0.1)
    assert patch.base == uwm.select(uwm.score(both[0], batches), mass=0.1).base


def test_a_flag_against_the_folder_s_config_is_refused(tiny_hf, tiny_open_clip):
    for folder in (tiny_hf, tiny_open_clip):
        with pytest.raises(BadInput, match="quick_gelu True; drop the flag"):
            uwm.load(folder, quick_gelu=False)


def test_folder_without_tokenizer_or_preprocessor_opens_and_says_what_is_missing(tiny_hf, tmp_path, both, batches):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_hf / name, tmp_path / name)
    model = uwm.load(tmp_path)
    assert set(uwm.score(model, batches)) == set(uwm.score(both[0], batches))
    with pytest.raises(BadInput, match="no tokenizer"):
        model.tokenize(["a dog"])
    with pytest.raises(BadInput, match="no image preprocessor"):
        model.preprocess([])


def test_half_precision_selects_much_the_same(tiny_hf, batches):
    patches = [uwm.select(uwm.score(uwm.load(tiny_hf, dtype=d), batches), mass=0.1) for d in ("float32", "bfloat16")]
    for weight, flips in patches[0].flips.items():
        kept = torch.isin(patches[1].flips[weight], flips).double().mean()
        assert kept > 0.8, weight


def broken_copy(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("visual_projection.weight"), "misses visual_projection.weight"),
        (lambda s: s.update(surplus=torch.ones(2)), "has unknown surplus"),
        (lambda s: s.update({"visual_projection.weight": torch.ones(2, 2)}), r"is \[2, 2\], the architecture expects"),
        (lambda s: s[FC2].view(-1).__setitem__(3, float("nan")), r"vision.1.fc2 holds 1 NaN.*\(0, 3\)"),
        (lambda s: s.update({FC1: torch.ones(64, 32, dtype=torch.int8)}), "quantised"),
        (lambda s: s.pop("vision_model.embeddings.class_embedding"), "misses vision_model.embeddings.class"),
    ],
)  # fmt: skip
def test_f33_unusable_weights_are_refused(tiny_hf, tmp_path, change, message):
    with pytest.raises(BadInput, match=message):
        uwm.load(broken_copy(tiny_hf, tmp_path, change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": "no/such/model"}, "no such file or folder"),
        ({"dtype": "int8"}, "expected one of auto, float32"),
        ({"device": "toaster"}, "expected auto, cpu, cuda"),
    ],
)
def test_wrong_arguments(tiny_hf, arguments, message):
    with pytest.raises(BadInput, match=message):
        uwm.load(**{"reference": tiny_hf, **arguments})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_a_resource_fault(tiny_hf):
    with pytest.raises(ResourceFault, match="not available"):
        uwm.load(tiny_hf, device="cuda")


def test_bare_weights_that_do_not_say_enough(tiny_hf, tiny_open_clip):
    for folder, name in ((tiny_hf, "model.safetensors"), (tiny_open_clip, "open_clip_model.safetensors")):
        with pytest.raises(BadInput, match="bare weights do not say their activation; pass --quick-gelu"):
            uwm.load(folder / name)
    with pytest.raises(BadInput, match="not known to open_clip"):
        uwm.load(tiny_open_clip / "open_clip_model.safetensors", arch="ViT-none")
    with pytest.raises(BadInput, match="--no-quick-gelu and --arch uwm-tiny contradict each other"):
        uwm.load(tiny_open_clip / "open_clip_model.safetensors", arch=ARCH, quick_gelu=False)


def test_a_config_that_wants_its_own_code_is_refused_without_asking(tiny_hf, tmp_path):
    shutil.copytree(tiny_hf, tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    for kind, words in (("clip", None), ("mystery", "config.json says model_type 'mystery', which uwm does not know")):
        config |= {"model_type": kind, "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
        (tmp_path / "in" / "config.json").write_text(json.dumps(config))
        (tmp_path / "in" / "code.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
        if words is None:
            assert uwm.load(tmp_path / "in").weights  # a type that transformers knows itself
        else:
            with pytest.raises(BadInput, match="has neither vision_config nor|which uwm does not know|cannot be used"):
                uwm.load(tmp_path / "in")
    assert not (tmp_path / "canary").exists()
