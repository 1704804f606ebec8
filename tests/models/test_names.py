"""What has a name in every family is what its name says, and the embedding is read where the model says."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, OC_CLIP, OC_SIGLIP, OC_TEXT, OC_VISION, TEXT, make_open_clip
from PIL import Image

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.layouts import ENCODERS, find_weights
from uwm.models.inside import InsideModel
from uwm.weights import SLOTS, TOWER_SLOTS, WeightId

CAPTIONS = ["a dog", "a picture of a cat and a tree", "a cup of car"]
NAMELESS = (  # what no name is for: scales, the attention of pooling heads, other models
    "logit_", "head.attention.", "head.probe", "attn_pool.", "token_type_embeddings", "text_decoder.",
    "language_model.", "multi_modal_projector.", "lm_head.", "relative_attention_bias", "text.proj.0", "text.proj.2",
)  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families") / request.param.replace(" ", "-").replace(",", "")
    FAMILIES[request.param].make(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return uwm.load(folder)


def towers(model):
    return [tower.name for tower in model.layout.towers]


def inputs_of(model, tower):
    """Tokens and mask of captions of uneven length, or pixels and their mask."""
    if tower == "vision":
        noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
        pixels = model.preprocess([Image.fromarray(image) for image in noise])
        return pixels, model.image_mask(pixels)
    return model.tokenize(CAPTIONS)


def embed(model, tower):
    inputs, mask = inputs_of(model, tower)
    return model.encode_image(inputs) if tower == "vision" else model.encode_text(inputs, mask, tower)


@contextlib.contextmanager
def changed(model, **changes):
    """Other values by name while the body runs: a function of the live tensor."""
    named = [name for name in changes if WeightId.parse(name) in model.tensors or not name.endswith(".bias")]
    live = {name: model.parameter(WeightId.parse(name)) for name in named}  # mT5 has no biases
    kept = {name: tensor.clone() for name, tensor in live.items()}
    try:
        for name in named:
            live[name].copy_(changes[name](live[name]))
        yield
    finally:
        for name, tensor in kept.items():
            live[name].copy_(tensor)


def zeroed(*names, where=slice(None)):
    def zero(tensor):
        tensor = tensor.clone()
        tensor[where] = 0
        return tensor

    return dict.fromkeys(names, zero)


def noise(tensor):
    return tensor + torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- names


def test_checkpoint_and_model_name_the_same_tensors(folder, model):
    checkpoint = open_checkpoint(folder)
    assert list(model.tensors) == list(checkpoint.tensors) == sorted(model.tensors)
    for name in checkpoint.tensors:
        assert model.fingerprint(name) == checkpoint.fingerprint(name)
        assert tuple(model.parameter(name).shape) == checkpoint.info(name).shape
        assert torch.equal(model.parameter(name), checkpoint.matrix(name))
        chunks = np.concatenate(list(checkpoint.chunks(name)))
        assert np.array_equal(chunks, checkpoint.matrix_bits(name).array.reshape(-1))
        assert WeightId.parse(str(name)) == name
    assert checkpoint.weights == find_weights(checkpoint.layout, checkpoint.entries)
    assert list(model.weights) == list(checkpoint.weights)


def test_every_tensor_has_a_name_save_a_few(folder):
    checkpoint = open_checkpoint(folder)
    named = {ref.key for ref in checkpoint.tensors.values()}
    assert not [key for key in checkpoint.entries.keys() - named if not any(part in key for part in NAMELESS)]
    assert not [key for key in named if key.startswith(("text_decoder", "language_model"))]
    parts = [(ref.key, ref.part) for ref in checkpoint.tensors.values()]
    assert len(parts) == len(set(parts))


@torch.no_grad()
def test_every_name_moves_its_tower_and_no_other(model):
    before = {tower: embed(model, tower) for tower in towers(model)}
    for name in model.tensors:
        if name.slot == "k_proj.bias":
            continue  # adds the same to all logits of a query
        inside = isinstance(model, InsideModel)  # what is around it reads neither its last block nor what follows
        idle = inside and (name.slot.startswith("norm") if name.block is None else name.block >= model.depth("vision"))
        with changed(model, **{str(name): noise}):
            after = embed(model, name.tower)
            assert (
                torch.equal(after, before[name.tower])
                if idle
                else not torch.allclose(after, before[name.tower], atol=1e-5)
            ), name
            for other in before.keys() - {name.tower}:
                assert torch.equal(embed(model, other), before[other]), name
    assert all(torch.equal(embed(model, tower), before[tower]) for tower in before)


@torch.no_grad()
def test_a_projection_is_out_by_in(model):
    for name in (WeightId(tower, None, "proj") for tower in towers(model)):
        if name not in model.tensors:
            continue
        before, bias = embed(model, name.tower), WeightId(name.tower, None, "proj.bias")
        with changed(model, **zeroed(str(name), where=2)):
            after = embed(model, name.tower)
        row = model.parameter(bias)[2] if bias in model.tensors else torch.zeros(())
        torch.testing.assert_close(after[:, 2], row.expand(len(after)))
        rest = torch.arange(before.shape[1]) != 2
        directions = [torch.nn.functional.normalize(found[:, rest]) for found in (before, after)]  # CoCa normalises
        torch.testing.assert_close(*directions)


@torch.no_grad()
def test_slots_and_biases_of_a_block_belong_together(model):
    """What is multiplied by zeros may be anything."""
    for tower in towers(model):
        block = f"{tower}.{model.depth(tower) - 1}"
        for first, second in ((f"{block}.fc1", f"{block}.fc2"), (f"{block}.v_proj", f"{block}.out_proj")):
            channel = zeroed(first, f"{first}.bias", where=3)
            with changed(model, **channel):
                before = embed(model, tower)
                with changed(model, **{second: lambda w: torch.cat([w[:, :3], noise(w[:, 3:4]), w[:, 4:]], 1)}):
                    torch.testing.assert_close(embed(model, tower), before)
        for first, second in (("q_proj", "k_proj"), ("k_proj", "q_proj")):
            with changed(model, **zeroed(f"{block}.{first}", f"{block}.{first}.bias")):
                before = embed(model, tower)
                with changed(model, **{f"{block}.{second}": noise}):
                    torch.testing.assert_close(embed(model, tower), before)


@torch.no_grad()
def test_norms_stand_before_what_their_names_say(model):
    for tower in towers(model):
        after = model.layout.tower(tower).encoder.family == "hf-bert"  # its norms follow attention and MLP
        reads = {"norm1": "0.fc1" if after else "0.v_proj", "norm2": "1.v_proj" if after else "0.fc1"}
        pairs = {f"{tower}.0.{norm}": f"{tower}.{read}" for norm, read in reads.items()}
        head = {"norm": "proj", "head.norm": "head.fc1", "pre_norm": "0.v_proj"}
        pairs |= {f"{tower}.{norm}": f"{tower}.{read}" for norm, read in head.items()}
        pairs = {a: b for a, b in pairs.items() if {WeightId.parse(a), WeightId.parse(b)} <= model.tensors.keys()}
        if not after:
            pairs.pop(f"{tower}.pre_norm", None)  # norm1 comes between
        for norm, read in pairs.items():
            with changed(model, **zeroed(norm, f"{norm}.bias")):
                before = embed(model, tower)
                with changed(model, **{read: noise}):
                    torch.testing.assert_close(embed(model, tower), before, msg=norm)


def test_every_slot_of_the_table_is_used_somewhere():
    outside = {slot.removesuffix(".bias") for encoder in ENCODERS for slot in encoder.tensors}
    assert outside == set(TOWER_SLOTS)
    assert all({"norm1", "norm1.bias", "norm2", "norm2.bias"} == encoder.norms.keys() for encoder in ENCODERS)


# ---------------------------------------------------------------- where the embedding is read


def gradient_at(model, tower, name):
    """Gradient [n, length, width] of the embedding by the output of a layer."""
    caught = []

    def cut(module, args, output):
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handle = model.owner(name).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            found = embed(model, tower)
            weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
            return torch.autograd.grad((found * weights).sum(), caught[-1])[0]
    finally:
        handle.remove()


def check_pooling(model, tower):
    """The gradient is nonzero at the pooled token alone, or where there is no such, at several tokens."""
    found = model.last_mlp(tower)
    last = max(w.block for w in model.weights if w.tower == tower)
    name = WeightId(tower, last, "fc2") if found is None else found[1]
    if model.depth(tower) <= last:  # never read
        assert found is None
        return
    reached = gradient_at(model, tower, name).abs().sum(-1) > 0  # [n, length]
    _, mask = inputs_of(model, tower)
    pooled = model.pooled(tower, mask, reached.shape[1])
    if pooled is None:
        assert found is None
        assert (reached.sum(1) > 1).all()
        return
    assert pooled.dtype == torch.int64
    assert pooled.shape == ((1,) if mask is None else (len(reached),))
    expected = torch.zeros_like(reached)
    expected[torch.arange(len(reached)), pooled] = True
    assert torch.equal(reached, expected)


def reads_several(model, tower):
    """CoCa's images, and captions whose mean is taken."""
    pooler = getattr(getattr(model.module, "text", None), "pooler", None)
    mean = tower == "text" and type(pooler).__name__ == "MeanPooler"
    return mean or (tower == "vision" and hasattr(model.module, "text_decoder"))


def test_the_embedding_is_read_from_the_pooled_token_alone(model):
    for tower in towers(model):
        check_pooling(model, tower)
        several = reads_several(model, tower)
        assert (model.last_mlp(tower) is None) == (several or any(w.tower == tower for w in model.unread))
        mask = inputs_of(model, tower)[1]
        if tower != "vision" and not several:  # the mask that the pass has already widened
            wide = model.text_mask(mask, 30)
            assert torch.equal(model.pooled(tower, mask, 30), model.pooled(tower, wide, 30))


def test_an_attention_pooling_head_has_the_last_mlp(model):
    heads = [w.tower for w in model.tensors if w.slot == "head.fc2"]
    for tower in towers(model):
        found = model.last_mlp(tower)
        if tower in heads:
            assert [str(name) for name in found] == [f"{tower}.head.fc1", f"{tower}.head.fc2"]
            assert model.pooled(tower, None, 1).tolist() == [0]
            assert model.pooled(tower, None, 16) is None
        elif found is not None:
            assert found[0].block == found[1].block == max(w.block for w in model.weights if w.tower == tower)


def timm(**options):
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False} | options
    return OC_SIGLIP | {"vision_cfg": vision}


def bert(**options):
    text = {"hf_model_name": "BERT", "hf_model_pretrained": False, "context_length": 24} | options
    return {"embed_dim": 24, "vision_cfg": OC_VISION, "text_cfg": text, "custom_text": True}


@pytest.mark.parametrize(("tower", "config", "pools", "mlp"), [
    ("vision", timm(timm_pool="token", timm_proj="linear"), "first", True),
    ("vision", timm(timm_pool="token", timm_proj=""), "first", True),
    ("vision", timm(timm_pool="token", timm_proj="mlp"), "first", False),
    ("vision", timm(timm_pool="avg", timm_proj="linear"), "all", False),
    ("vision", OC_CLIP | {"vision_cfg": OC_VISION | {"pool_type": "avg"}}, "all", False),
    ("text", OC_CLIP | {"text_cfg": OC_TEXT | {"pool_type": "last"}}, "last", True),
    ("text", OC_CLIP | {"text_cfg": OC_TEXT | {"pool_type": "first"}, "custom_text": True}, "first", True),
    ("text", OC_CLIP | {"text_cfg": OC_TEXT | {"pool_type": "eos", "eos_id": 3}, "custom_text": True}, "end", True),
    ("text", bert(hf_pooler_type="cls_last_hidden_state_pooler", hf_proj_type="linear"), "first", True),
    ("text", bert(hf_pooler_type="cls_last_hidden_state_pooler", hf_proj_type="mlp"), "first", False),
    ("text", bert(hf_pooler_type="cls_pooler", hf_proj_type="linear"), "first", False),
    ("text", bert(hf_pooler_type="mean_pooler", hf_proj_type="linear"), "all", False),
])  # fmt: skip
def test_every_way_of_pooling_that_open_clip_has(tmp_path, tower, config, pools, mlp):
    if "hf_model_name" in config["text_cfg"]:
        transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path / "bert")
        config = config | {"text_cfg": config["text_cfg"] | {"hf_model_name": str(tmp_path / "bert")}}
    make_open_clip(config)(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    assert model.pools(tower) == pools
    assert (model.last_mlp(tower) is not None) == mlp
    assert set(SLOTS) <= {w.slot for w in model.weights if w.tower == tower}
    if mlp or pools == "all":
        check_pooling(model, tower)
    name = WeightId(tower, None, "proj")
    mapped = config.get("vision_cfg", {}).get("timm_proj") == "mlp" or config["text_cfg"].get("hf_proj_type") == "mlp"
    assert (name in model.tensors) != mapped
    if name in model.tensors:
        assert model.parameter(name).shape[0] == config["embed_dim"]
