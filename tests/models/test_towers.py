"""Image towers of open_clip other than its own ViT: those of timm that have names, and those that have none."""

from __future__ import annotations

import json
import re

import open_clip
import pytest
import torch
from families import OC_CLIP, by_open_clip, make_open_clip, timm_clip
from openai_archives import save_archive
from safetensors.torch import load_file
from telling_pairs import proposed, telling_set

import uwm
from uwm.editing.editors import Pairs, find_editor
from uwm.editing.settings import make
from uwm.errors import BadInput
from uwm.images import load_image
from uwm.models.export import check_export
from uwm.models.student import check_trainable
from uwm.weights import GATE, MATRICES, SLOTS, WeightId

RESNET = OC_CLIP | {
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None, "head_width": 16}
}
NAMELESS = {
    "ModifiedResNet of open_clip": RESNET,
    "ConvNeXt of timm": timm_clip("test_convnext", "", "linear"),
    "FastVit of timm": timm_clip("uwm_mobileclip_s", "avg", ""),
}
EVA02 = timm_clip("uwm_eva02", "token", "linear")
NAMED = {
    "EVA02": (EVA02, MATRICES),
    "MobileCLIP-B": (timm_clip("uwm_mobileclip_b", "token", ""), SLOTS),
    "EVA02-E": (timm_clip("uwm_eva02_post", "token", "linear"), SLOTS),
    "ViTamin": (timm_clip("uwm_vitamin", "avg", "linear"), MATRICES),
    "NaFlexViT": (timm_clip("uwm_naflex", "map", "none") | {"embed_dim": 32}, SLOTS),
}


def inputs_of(model, pairs):
    images = [load_image(p.unsafe_image) for p in pairs.pairs]
    ids, mask = model.tokenize([p.unsafe_text for p in pairs.pairs])
    return {"ids": ids, "mask": mask, "pixels": {"pixel_values": model.preprocess(images)}}


@torch.no_grad()
def embed(model, inputs):
    pixels = inputs["pixels"]["pixel_values"]
    return {"text": model.encode_text(inputs["ids"], inputs["mask"]), "vision": model.encode_image(pixels)}


def same(found, expected):
    for tower in expected:
        torch.testing.assert_close(found[tower], expected[tower], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", params=NAMELESS)
def nameless(request, tmp_path_factory):
    """A CLIP with an image tower without names: what it is, and its folder."""
    folder = tmp_path_factory.mktemp("nameless") / "in"
    make_open_clip(NAMELESS[request.param])(folder)
    return request.param, folder


def test_a_tower_without_names_is_embedded_as_open_clip_embeds_it_and_the_reason_told(nameless, tiny_set):
    kind, folder = nameless
    model = uwm.load(folder)
    assert (model.modalities, model.editable) == (("text", "vision"), ("text",))
    assert [note.partition(":")[0] for note in model.notes] == [f"vision tower ({kind})"]
    inputs = inputs_of(model, uwm.read_calibration(tiny_set, split="test"))
    with torch.no_grad():
        same(embed(model, inputs), by_open_clip(folder, inputs))


def test_a_tower_that_cannot_be_edited_is_measured(tiny_set, tmp_path, run_uwm):
    folder = tmp_path / "in"
    make_open_clip(RESNET)(folder)
    model, pairs = uwm.load(folder), uwm.read_calibration(tiny_set, split="test")
    flags = ("--calib", tiny_set, "--split", "calib", "--eval-split", "test", "--mass", 0.1)
    code, _, err = run_uwm("edit", folder, "-o", tmp_path / "out", *flags)
    assert code == 0, err
    assert "vision tower (ModifiedResNet of open_clip): uwm has no names for its weights, so it is not edited" in err
    assert "nothing was measured" not in err
    told = json.loads((tmp_path / "out" / "uwm.json").read_text())
    assert {layer.partition(".")[0] for layer in told["layers"]} == {"text"}
    assert [*told["results"]["test"]] == ["before", "uwm", "random"]
    assert told["model"]["layout"] == "open_clip (text) + ModifiedResNet of open_clip"
    assert "pipeline_tag: zero-shot-image-classification" in (tmp_path / "out" / "README.md").read_text()
    inputs = inputs_of(model, pairs)
    with torch.no_grad(), uwm.patched(model, uwm.Patch.load(tmp_path / "out")):
        same(by_open_clip(tmp_path / "out", inputs), embed(model, inputs))
    before, after = (load_file(f / "open_clip_model.safetensors") for f in (folder, tmp_path / "out"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert not [key for key in changed if key.startswith("visual.")]


@pytest.mark.parametrize(
    ("method", "settings"), [("uwm", {"vision_layers": "fc1"}), ("repel", {}), ("ablate", {"towers": "vision"})]
)
def test_asking_for_a_tower_without_names_is_refused_by_its_kind(nameless, method, settings):
    kind, folder = nameless
    editor = find_editor(method)
    with pytest.raises(BadInput, match=re.escape(f"uwm cannot edit the model's vision tower ({kind})")):
        editor.statistics(uwm.load(folder), Pairs(), make(editor, settings))


@pytest.mark.parametrize(("method", "settings"), [("uwm", {"vision_layers": "none"}), ("ablate", {})])
def test_what_asks_nothing_of_a_tower_without_names_edits_the_other(nameless, method, settings):
    editor = find_editor(method)
    assert editor.statistics(uwm.load(nameless[1]), Pairs(), make(editor, settings)).towers == ("text",)


def test_a_tower_without_names_is_neither_exported_nor_trained(nameless):
    model = uwm.load(nameless[1])
    with pytest.raises(BadInput, match="is for a plain CLIP with both towers"):
        check_export(model, "hf")
    with pytest.raises(BadInput, match="is for a plain CLIP with both towers"):
        check_trainable(model)


@pytest.mark.parametrize("scripted", [True, False])
def test_bare_weights_of_a_resnet_ask_for_their_architecture(tmp_path, register_architecture, scripted):
    make_open_clip(RESNET)(tmp_path / "in")
    state, path = load_file(tmp_path / "in" / "open_clip_model.safetensors"), tmp_path / "weights.pt"
    save_archive(path, state) if scripted else torch.save(state, path)
    with pytest.raises(BadInput, match="without a vision tower that uwm has names for.*pass --arch with open_clip's"):
        uwm.load(path, quick_gelu=True)
    register_architecture("uwm-resnet", RESNET | {"quick_gelu": True})
    model, pixels = uwm.load(path, arch="uwm-resnet"), torch.randn(2, 3, 64, 64)
    other = open_clip.create_model("uwm-resnet", load_weights=False).eval()
    other.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), other.encode_image(pixels))


@pytest.mark.parametrize(("config", "slots"), NAMED.values(), ids=NAMED)
def test_every_matrix_of_a_vit_of_timm_has_a_name_and_is_edited_in_the_file_as_live(config, slots, tmp_path, tiny_set):
    make_open_clip(config)(tmp_path / "in")
    model, pairs = uwm.load(tmp_path / "in"), uwm.read_calibration(tiny_set, split="test")
    assert not model.notes
    named = {w for w in model.weights if w.tower == "vision"}
    assert named == {WeightId("vision", block, slot) for block in range(2) for slot in slots}
    linear = {f"{name}.weight" for name, m in model.module.visual.named_modules() if isinstance(m, torch.nn.Linear)}
    in_blocks = {f"visual.{key}" for key in linear if ".blocks." in key}
    assert {model.weights[w].key for w in named} == in_blocks
    scores = uwm.score(model, pairs, text_layers="none", vision_layers=",".join(slots))
    patch = uwm.select(scores, mass=0.1)
    inputs = inputs_of(model, pairs)
    plain = embed(model, inputs)
    with torch.no_grad():
        same(plain, by_open_clip(tmp_path / "in", inputs))
        uwm.apply(tmp_path / "in", patch, output=tmp_path / "out")
        with uwm.patched(model, patch):
            edited = embed(model, inputs)
            same(edited, by_open_clip(tmp_path / "out", inputs))
    assert not torch.allclose(plain["vision"], edited["vision"], atol=1e-2)
    assert torch.equal(plain["text"], edited["text"])


@torch.no_grad()
def test_the_gate_of_an_eva02_is_what_its_name_says(tmp_path):
    """fc2(act(gate x) * fc1 x): where either is zero, the other says nothing, but for EVA's LayerNorm in between."""
    make_open_clip(EVA02)(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    mlp = model.module.visual.trunk.blocks[0].mlp
    assert model.trainable(WeightId("vision", 0, GATE)) is mlp.fc1_g.weight
    assert model.trainable(WeightId("vision", 0, "fc1")) is mlp.fc1_x.weight
    x = torch.randn(3, 32)
    hidden = mlp.act(mlp.fc1_g(x)) * mlp.fc1_x(x)
    torch.testing.assert_close(mlp(x), mlp.fc2(mlp.norm(hidden)))


def test_repel_puts_no_gate_into_a_gated_mlp(tmp_path):
    make_open_clip(EVA02)(tmp_path / "in")
    proposal = proposed(uwm.load(tmp_path / "in"), telling_set(tmp_path / "telling"))
    assert any("vision tower has no plain MLP at the pooled token to hold a gate" in line for line in proposal.warnings)
    assert {str(name) for name in proposal.changes if name.tower == "vision"} == {"vision.proj"}
