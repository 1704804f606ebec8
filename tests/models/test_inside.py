"""Vision towers inside bigger models, and text encoders of pipelines: what is never read is not edited."""

from __future__ import annotations

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, TEXT, VISION, WIDTH, processor, shaken
from layouts_by_hand import to_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB, refused
from tiny_files import add_tensors, hf_state

import uwm
from uwm.checkpoint import open_checkpoint
from uwm.checkpoint.dtypes import PACKED
from uwm.checkpoint.reach import READERS, unread
from uwm.editing.editors import Pairs, find_editor
from uwm.editing.settings import make
from uwm.errors import BadInput
from uwm.weights import SLOTS

CLIP, SIGLIP, IMAGE = transformers.CLIPVisionConfig, transformers.SiglipVisionConfig, 99
WORDS = WIDTH | {"vocab_size": 100, "num_key_value_heads": 2}
LLAMA, QWEN = transformers.LlamaConfig(**WORDS), transformers.Qwen2Config(**WORDS)
GRID = {"image_grid_pinpoints": [[64, 128], [128, 64]]}
HEADLESS = {"vision_use_head": False}


def bigger(name, vision, text, **options):
    return name, vision, text, {"image_token_index": IMAGE} | options


THREE = VISION | {"num_hidden_layers": 3}
BIGGER = {  # the class of transformers, its vision and text config, its own settings; and the blocks that it reads
    "llava": (bigger("Llava", CLIP(**THREE), LLAMA), 2),
    "llava, an earlier layer": (bigger("Llava", CLIP(**THREE), LLAMA, vision_feature_layer=-3), 1),
    "llava, layers": (bigger("Llava", CLIP(**THREE), LLAMA, vision_feature_layer=[1, -2]), 2),
    "llava, siglip": (
        bigger("Llava", SIGLIP(**VISION), LLAMA, vision_feature_layer=-2, vision_feature_select_strategy="full"), 1
    ),
    "llava_next": (bigger("LlavaNext", CLIP(**VISION), LLAMA, **GRID), 1),
    "llava_onevision": (bigger("LlavaOnevision", SIGLIP(**VISION, **HEADLESS), QWEN, **GRID), 2),
    "vipllava": (bigger("VipLlava", CLIP(**THREE), LLAMA, vision_feature_layer=[-2, 1]), 2),
    "aya_vision": (bigger("AyaVision", SIGLIP(**VISION), transformers.Cohere2Config(**WORDS, eos_token_id=3)), 2),
    "paligemma": (
        bigger(
            "PaliGemma", SIGLIP(**VISION, **HEADLESS), transformers.GemmaConfig(**WORDS, head_dim=16), projection_dim=32
        ), 2,
    ),
    "gemma3": (
        bigger(
            "Gemma3", SIGLIP(**VISION, **HEADLESS), transformers.Gemma3TextConfig(**WORDS, head_dim=16),
            mm_tokens_per_image=4,
        ), 2,
    ),
}  # fmt: skip
PIXELS = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def made(name, folder):
    """A tiny one, saved by transformers."""
    kind, vision, text, options = BIGGER[name][0]
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, **options)
    shaken(getattr(transformers, f"{kind}ForConditionalGeneration")(config)).save_pretrained(folder)
    return folder


def library(name, folder):
    return getattr(transformers, f"{BIGGER[name][0][0]}ForConditionalGeneration").from_pretrained(str(folder)).eval()


@torch.no_grad()
def projected(big):
    """What the bigger model makes of images: the tokens that its language model is given."""
    inputs = {"pixel_values": PIXELS}
    if hasattr(big.config, "image_grid_pinpoints"):  # it looks at an image as a whole and at its two halves
        inputs = {"pixel_values": PIXELS[:, None].expand(-1, 3, -1, -1, -1), "image_sizes": torch.full((4, 2), 64)}
    found = big.model.get_image_features(**inputs)
    found = found if torch.is_tensor(found) or isinstance(found, list | tuple) else found.pooler_output
    return found if torch.is_tensor(found) else torch.cat([*found])


@torch.no_grad()
def read(big):
    """The tower's tokens as the bigger model's config says that it reads them, their mean over an image."""
    found = big.model.vision_tower(PIXELS, output_hidden_states=True)
    layers = getattr(big.config, "vision_feature_layer", None)
    layers = [layers] if isinstance(layers, int) else layers
    states = [found.last_hidden_state] if layers is None else [found.hidden_states[layer] for layer in layers]
    drops = type(big).__name__.startswith("VipLlava") or getattr(big.config, "vision_feature_select_strategy", "") == "default"  # noqa: E501  # fmt: skip
    return torch.cat([(state[:, 1:] if drops else state).mean(1) for state in states], 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("bigger")
    return cache(lambda name: made(name, root / name.replace(" ", "-").replace(",", "")))


def test_every_reader_of_the_table_is_tried_and_has_the_library_s_defaults():
    assert {name.partition(",")[0] for name in BIGGER} == READERS.keys()
    for kind, reader in READERS.items():
        config = transformers.AutoConfig.for_model(kind).to_dict()
        stated = {key: value for key, value in config.items() if key.startswith("vision_feature_")}
        assert reader.read_layers(stated) == reader.read_layers({})
        assert reader.skipped(stated) == reader.skipped({})


@pytest.mark.parametrize("name", [name for name in BIGGER if name not in ("llava", "llava, an earlier layer")])
def test_a_tower_inside_is_edited_in_the_file_as_live_and_read_as_the_library_reads_it(name, folders, tmp_path):
    folder = folders(name)
    model = uwm.load(folder)
    batch = uwm.PairBatch(PIXELS[:2], PIXELS[2:])
    scores = uwm.score(model, [batch], text_layers="none", vision_layers=",".join(SLOTS))
    assert {(w.block, w.slot) for w in scores} == {(b, slot) for b in range(BIGGER[name][1]) for slot in SLOTS}
    patch = uwm.select(scores, mass=0.1)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(PIXELS), read(library(name, folder)), rtol=1e-5, atol=1e-5)
        plain = projected(library(name, folder))
        uwm.apply(folder, patch, output=tmp_path / "out")
        edited = library(name, tmp_path / "out")
        with uwm.patched(model, patch):
            torch.testing.assert_close(model.encode_image(PIXELS), read(edited), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(projected(edited), plain, atol=1e-2)
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", BIGGER)
@torch.no_grad()
def test_what_is_left_out_changes_nothing_and_the_last_block_edited_does(name, folders):
    folder = folders(name)
    model, big = uwm.load(folder), library(name, folder)
    before, depth = projected(big), model.depth("vision")
    assert depth == BIGGER[name][1]
    layers = big.model.vision_tower.encoder.layers
    assert {w.block for w in model.unread} == {*range(depth, len(layers))}
    assert bool(model.notes) == bool(model.unread)
    for block in range(len(layers) - 1, depth - 2, -1):
        layers[block].mlp.fc2.weight.neg_()
        assert torch.equal(projected(big), before) == (block >= depth), block


# ---------------------------------------------------------------- asked for by name


@pytest.fixture(scope="module")
def llava(folders):
    processor(folders("llava"))
    return folders("llava")


def logits(folder):
    ids = torch.tensor([[1, *[IMAGE] * 16, 5, 7]] * len(PIXELS))
    with torch.no_grad():
        return library("llava", folder)(input_ids=ids, pixel_values=PIXELS, attention_mask=torch.ones_like(ids)).logits


def test_llava_s_answers_stay_to_the_bit_when_a_block_is_edited_that_it_never_reads(llava, tiny_set, tmp_path, run_uwm):
    flags = ("--calib", tiny_set, *ALL_OF_CALIB, "--mass", 0.3)
    why = "the model around it (llava) reads layer -2 of its vision tower"
    code, _, err = run_uwm("edit", llava, *flags, "-o", tmp_path / "default")
    assert code == 0, err
    assert f"vision.2: {why}, so nothing of this is ever read" in err
    assert {str(w) for w in uwm.Patch.load(tmp_path / "default").changes} == {"vision.0.fc2", "vision.1.fc2"}
    assert not torch.allclose(logits(tmp_path / "default"), logits(llava), atol=1e-3)
    code, _, err = run_uwm("edit", llava, *flags, "-o", tmp_path / "named", "--vision-layers", "vision.2.fc2")
    assert code == 0, err
    assert f"vision.2.fc2: {why}; this block is never read, its edit does nothing" in err
    assert {str(w) for w in uwm.Patch.load(tmp_path / "named").changes} == {"vision.2.fc2"}
    assert torch.equal(logits(tmp_path / "named"), logits(llava))
    with pytest.raises(
        BadInput, match=r"'vision.\[2-2\].fc2' matches only weights that are never read: the model around"
    ):
        uwm.load(llava).match("vision.[2-2].fc2", "vision")


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3"])
def test_f11_a_language_model_of_less_than_a_byte_a_value_is_copied_beside_an_edited_tower(
    llava, tiny_set, tmp_path, run_uwm, dtype
):
    """It is not run, so its values are never read."""
    folder = shutil.copytree(llava, tmp_path / "quantised")
    path, plain = folder / "model.safetensors", open_checkpoint(llava)
    names = [n for n, shape in plain.shapes().items() if "language_model" in n and len(shape) == 2]
    packed = {n: (dtype, [*plain.shapes()[n]], plain.bits(n).array.tobytes()) for n in names}
    packed = {n: (d, shape, raw[: PACKED[d].nbytes(shape)]) for n, (d, shape, raw) in packed.items()}
    add_tensors(path, packed, without=names)
    assert run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s")[0] == 0
    code, _, err = run_uwm("edit", folder, "--calib", tiny_set, *ALL_OF_CALIB, "--mass", 0.3, "-o", tmp_path / "out")
    assert code == 0, err
    edited = open_checkpoint(tmp_path / "out")
    assert all(edited.bits(n).array.tobytes() == packed[n][2] for n in names)
    assert {str(w) for w in uwm.Patch.load(tmp_path / "out").changes} == {"vision.0.fc2", "vision.1.fc2"}


def test_a_tower_of_less_than_a_byte_a_value_is_not_run(llava, tiny_set, tmp_path, run_uwm):
    folder = shutil.copytree(llava, tmp_path / "quantised")
    key = next(n for n in open_checkpoint(llava).shapes() if "vision" in n and n.endswith("1.mlp.fc1.weight"))
    shape = [*open_checkpoint(llava).shapes()[key]]
    add_tensors(folder / "model.safetensors", {key: ("F4", shape, bytes(PACKED["F4"].nbytes(shape)))}, without=[key])
    words = (f"{key} is float4_e2m1fn_x2, quantised; edit the float checkpoint first",)
    refused(run_uwm("score", folder, "--calib", tiny_set, "-o", tmp_path / "s"), 2, *words)


def test_a_patch_of_the_clip_itself_says_which_of_its_edits_llava_never_reads(llava, tmp_path, run_uwm):
    """The same weights as a CLIP's vision tower, whose last block is read."""
    big = library("llava", llava)
    big.model.vision_tower.save_pretrained(tmp_path / "clip")
    alone = uwm.load(tmp_path / "clip")
    assert not alone.unread
    scores = uwm.score(alone, [uwm.PairBatch(PIXELS[:2], PIXELS[2:])], vision_layers="fc2")
    assert len(scores) == 3
    uwm.select(scores, mass=0.1).save(tmp_path / "patch.safetensors")
    for way in (("-o", tmp_path / "out"), ("--dry-run",)):
        code, _, err = run_uwm("apply", llava, tmp_path / "patch.safetensors", *way)
        assert code == 0, err
        assert [line for line in err.splitlines() if "its edit does nothing" in line] == [
            "uwm: warning: vision.2.fc2: the model around it (llava) reads layer -2 of its vision tower; this block is "
            "never read, its edit does nothing"
        ]


def test_globs_and_slots_leave_out_what_is_never_read(llava):
    model = uwm.load(llava)
    for pattern in ("fc2", "vision.*.fc2", "vision.[0-2].fc2"):
        assert [w.block for w in model.match(pattern, "vision")] == [0, 1]
    assert [w.block for w in model.match("fc2, vision.2.fc2", "vision")] == [0, 1, 2]


def test_closed_forms_stay_within_what_is_read(llava, tiny_set):
    model, calib = uwm.load(llava), uwm.read_calibration(tiny_set)
    for name in ("ablate", "redirect"):
        editor = find_editor(name)
        settings = make(editor, {"tokens": "all"} if name == "redirect" else {})
        statistics = editor.statistics(model, Pairs(("vision",)), settings)
        uwm.editing.making.gather(model, statistics, calib)
        changed = editor.edit(model, statistics, settings).changes
        assert max(w.block for w in changed) == 1
    hidden = find_editor("hidden-units")
    with pytest.raises(BadInput, match=r"the last MLP is never read: the model around it \(llava\) reads layer -2"):
        hidden.statistics(model, Pairs(("vision",)), make(hidden, {}))


# ---------------------------------------------------------------- images in tiles


@pytest.mark.parametrize(("name", "kind"), [("llava_next", "LlavaNext"), ("llava_onevision", "LlavaOnevision")])
def test_of_an_image_in_tiles_the_tower_is_shown_the_whole(name, kind, tmp_path, tiny_set, run_uwm):
    folder = made(name, tmp_path / "in")
    side = {"height": 64, "width": 64}
    options = GRID | {"size": side if kind == "LlavaOnevision" else {"shortest_edge": 64}, "crop_size": side}
    getattr(transformers, f"{kind}ImageProcessor")(**options).save_pretrained(folder)
    images = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40 + 60 * n, 90, 3), np.uint8)) for n in (0, 1)
    ]
    model = uwm.load(folder)
    found, tiles = model.preprocess(images), model.processor()(images, return_tensors="pt")["pixel_values"]
    assert tiles[0].shape[0] > 1
    assert torch.equal(found, torch.stack([each[0] for each in tiles]))
    code, _, err = run_uwm("edit", folder, "--calib", tiny_set, "-o", tmp_path / "out", *ALL_OF_CALIB, "-q")
    assert code == 0, err


# ---------------------------------------------------------------- LLaVA's own releases


def original(tmp_path, source, **config):
    FAMILIES[source].make(tmp_path / "source")
    state = load_file(tmp_path / "source" / "model.safetensors")
    tower = {f"model.vision_tower.vision_tower.{k}": v for k, v in state.items() if k.startswith("vision_model.")}
    (tmp_path / "in").mkdir()
    torch.save(tower, tmp_path / "in" / "pytorch_model.bin")
    config |= {"model_type": "llava_llama", "mm_vision_tower": str(tmp_path / "source")}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    return tmp_path / "in"


@pytest.mark.parametrize(("config", "blocks", "skipped"), [
    ({"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}, 1, 1),
    ({"mm_vision_select_layer": -1, "mm_vision_select_feature": "cls_patch"}, 2, 0),
    ({}, 2, 1),
])  # fmt: skip
def test_llava_s_own_config_says_what_is_read(tmp_path, config, blocks, skipped):
    model = uwm.load(original(tmp_path, "clip", **config))
    assert model.depth("vision") == blocks
    clip = transformers.CLIPModel.from_pretrained(tmp_path / "source").eval()
    with torch.no_grad():
        found = clip.vision_model(PIXELS, output_hidden_states=True)
        state = found.hidden_states[config.get("mm_vision_select_layer", -1)]
        torch.testing.assert_close(model.encode_image(PIXELS), state[:, skipped:].mean(1))


def test_llava_s_own_release_with_a_siglip_is_refused_by_name(tmp_path):
    with pytest.raises(
        BadInput, match="its vision tower came from .*, of model type 'siglip'; of LLaVA's own releases"
    ):
        uwm.load(original(tmp_path, "siglip"))


@pytest.mark.parametrize("layer", ["last", [], 1.5, [None]])
def test_a_layer_that_is_no_number_is_refused(tmp_path, layer):
    with pytest.raises(BadInput, match="config.json: mm_vision_select_layer .*: expected the number of a layer"):
        uwm.load(original(tmp_path, "clip", mm_vision_select_layer=layer))


def test_a_layer_that_the_tower_has_not_is_refused(tmp_path):
    with pytest.raises(
        BadInput, match=r"reads layer -9 of its vision tower, but there is no layer -9, for it has 2 blocks"
    ):
        uwm.load(original(tmp_path, "clip", mm_vision_select_layer=-9))


# ---------------------------------------------------------------- pipelines


@torch.no_grad()
def test_the_last_block_of_stable_diffusion_xl_s_first_encoder_is_left_out(tmp_path, tiny_set, run_uwm):
    FAMILIES["stable diffusion xl"].make(tmp_path / "in")
    flags = ("--calib", tiny_set, *ALL_OF_CALIB, "-o", tmp_path / "out", "--mass", 0.3, "--text-layers", "fc2")
    code, _, err = run_uwm("edit", tmp_path / "in", *flags)
    assert code == 0, err
    assert "text.1: StableDiffusionXLPipeline reads layer -2 of text_encoder, so nothing of this is ever read" in err
    changed = {str(w) for w in uwm.Patch.load(tmp_path / "out").changes}
    assert changed == {"text.0.fc2", "text_2.0.fc2", "text_2.1.fc2"}
    ids = torch.tensor([[2, 5, 6, 3]])
    first, second = (
        getattr(transformers, kind).from_pretrained(tmp_path / "in" / name)
        for kind, name in (("CLIPTextModel", "text_encoder"), ("CLIPTextModelWithProjection", "text_encoder_2"))
    )
    for encoder, pooled in ((first, False), (second, True)):  # what the pipeline reads of each
        body = getattr(encoder, "text_model", encoder)
        found = encoder(ids, output_hidden_states=True)
        body.encoder.layers[1].mlp.fc2.weight.neg_()
        after = encoder(ids, output_hidden_states=True)
        assert torch.equal(after.hidden_states[-2], found.hidden_states[-2])
        assert pooled == (hasattr(found, "text_embeds") and not torch.allclose(after.text_embeds, found.text_embeds))
    model = uwm.load(tmp_path / "in")
    assert model.last_mlp("text") is None
    hidden = find_editor("hidden-units")  # it edits the last MLP
    assert hidden.statistics(model, Pairs(("text",)), make(hidden, {})).towers == ("text_2",)


def test_other_pipelines_read_every_block(tmp_path):
    FAMILIES["stable diffusion"].make(tmp_path / "in")
    model = uwm.load(tmp_path / "in")
    assert (model.depth("text"), model.unread, model.notes) == (2, {}, [])


def test_stability_s_single_files_say_by_their_keys_what_is_never_read(tmp_path):
    first, second = hf_state(), to_open_clip(hf_state())
    text = {key: tensor for key, tensor in second.items() if not key.startswith("visual.")}
    clip = {key: tensor for key, tensor in first.items() if key.startswith("text_model.")}

    def idle(**parts):
        state = {prefix.replace("__", ".") + key: t for prefix, part in parts.items() for key, t in part.items()}
        save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / "one.safetensors")
        return {(w.tower, w.block) for w in unread(open_checkpoint(tmp_path / "one.safetensors"))}

    xl = {"conditioner__embedders__0__transformer__": clip, "conditioner__embedders__1__model__": text}
    assert idle(**xl) == {("text", 1)}
    assert idle(conditioner__embedders__0__model__=text) == set()  # XL's refiner reads the pooled output too
    assert idle(cond_stage_model__model__=text) == {("text", 1)}
    assert idle(cond_stage_model__transformer__=clip) == set()  # Stable Diffusion 1


# ---------------------------------------------------------------- what is not supported


@cache
def unsupported():
    """Models of transformers that hold towers as CLIP spells them, or nearly so."""
    both = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
    vit = transformers.ViTModel(transformers.ViTConfig(**VISION))
    bert = transformers.BertModel(transformers.BertConfig(**TEXT))
    return {
        "clipseg": transformers.CLIPSegModel(transformers.CLIPSegConfig(**both)),
        "owlvit": transformers.OwlViTModel(transformers.OwlViTConfig(**both)),
        "altclip": transformers.AltCLIPModel(transformers.AltCLIPConfig(**both)),
        "blip": transformers.BlipModel(transformers.BlipConfig(**both)),
        "aimv2": transformers.Aimv2Model(transformers.Aimv2Config(**both)),
        "mlcd_vision_model": transformers.MLCDVisionModel(transformers.MLCDVisionConfig(**VISION)),
        "video_llava": transformers.VideoLlavaForConditionalGeneration(
            transformers.VideoLlavaConfig(vision_config=CLIP(**VISION), text_config=LLAMA)
        ),
        "vision-text-dual-encoder": transformers.VisionTextDualEncoderModel(vision_model=vit, text_model=bert),
    }


@pytest.mark.parametrize(
    "kind",
    ["clipseg", "owlvit", "altclip", "blip", "aimv2", "mlcd_vision_model", "video_llava", "vision-text-dual-encoder"],
)
def test_what_is_not_supported_is_refused_by_its_model_type(kind, tmp_path):
    unsupported()[kind].save_pretrained(tmp_path / "in")
    with pytest.raises(BadInput, match=f"model_type '{kind}'(, which uwm does not know|.*: not a CLIP-like)"):
        uwm.load(tmp_path / "in")
