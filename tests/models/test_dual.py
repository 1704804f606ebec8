"""Models of transformers with two towers that are spelled as CLIP and BERT are, but have classes of their own."""

from __future__ import annotations

import shutil

import pytest
import torch
import transformers
from families import TEXT, VISION, by_transformers, processor, respelt, saved, words_tokenizer

import uwm
from uwm.images import load_image
from uwm.weights import SLOTS


def metaclip_2():
    config = transformers.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=24)
    return transformers.MetaClip2Model(config)


def dual(text):
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    return transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=text)


def bert():
    return dual(transformers.BertModel(transformers.BertConfig(**TEXT)))


def roberta():
    """Its positions begin after the number of its padding token."""
    text = TEXT | {"max_position_embeddings": 32, "pad_token_id": 1}
    return dual(transformers.RobertaModel(transformers.RobertaConfig(**text)))


DUAL = {  # name -> how it is made, its padding token and its class
    "MetaCLIP 2": (metaclip_2, "[PAD]", "MetaClip2Model"),
    "CLIP and BERT": (bert, "[PAD]", "VisionTextDualEncoderModel"),
    "CLIP and RoBERTa": (roberta, "[UNK]", "VisionTextDualEncoderModel"),
}


@pytest.fixture(scope="module", params=DUAL)
def case(request, tmp_path_factory):
    make, pad, kind = DUAL[request.param]
    folder = tmp_path_factory.mktemp("dual") / "in"
    saved(make(), folder)
    words_tokenizer(folder, 24, pad)
    processor(folder)
    return kind, folder


@torch.no_grad()
def test_it_is_embedded_by_its_library_s_rule_and_edited_in_the_file_as_live(case, tmp_path, tiny_set):
    kind, folder = case
    model, pairs = uwm.load(folder), uwm.read_calibration(tiny_set, split="test")
    assert model.editable == ("text", "vision")
    ids, mask = model.tokenize([p.unsafe_text for p in pairs.pairs])
    pixels = model.preprocess([load_image(p.unsafe_image) for p in pairs.pairs])
    inputs = {"ids": ids, "mask": mask, "pixels": {"pixel_values": pixels}}
    slots = ",".join(SLOTS)
    patch = uwm.select(uwm.score(model, pairs, text_layers=slots, vision_layers=slots), mass=0.1)
    assert len(patch.changes) == 2 * 2 * len(SLOTS)
    uwm.apply(folder, patch, output=tmp_path / "out")
    before = by_transformers(kind)(folder, inputs)
    torch.testing.assert_close(model.encode_text(ids, mask), before["text"])
    torch.testing.assert_close(model.encode_image(pixels), before["vision"])
    with uwm.patched(model, patch):
        after = by_transformers(kind)(tmp_path / "out", inputs)
        torch.testing.assert_close(model.encode_text(ids, mask), after["text"])
        torch.testing.assert_close(model.encode_image(pixels), after["vision"])
    uwm.revert(tmp_path / "out", patch, output=tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert all((after[tower] - before[tower]).abs().max() > 0.01 for tower in before)


@torch.no_grad()
def test_a_caption_is_embedded_alike_whatever_it_is_padded_with(case):
    model = uwm.load(case[1])
    captions = ["a dog", "a picture of a cat and a tree and a car"]
    together = model.encode_text(*model.tokenize(captions))
    alone = torch.cat([model.encode_text(*model.tokenize([caption])) for caption in captions])
    assert model.tokenize(captions)[1][0].min() == 0
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_dual_encoder_in_the_spelling_of_transformers_4(tmp_path):
    """Its CLIP has a prefix of its own, and the projection stands beside both."""
    saved(bert(), tmp_path / "new")
    words_tokenizer(tmp_path / "new", 24)
    rename = lambda key: key.replace("vision_model.", "vision_model.vision_model.", 1)  # noqa: E731
    respelt(lambda folder: shutil.copytree(tmp_path / "new", folder), rename)(tmp_path / "old")
    new, old = uwm.load(tmp_path / "new"), uwm.load(tmp_path / "old")
    assert old.checkpoint.tensors.keys() == old.tensors.keys() == new.tensors.keys()
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(old.encode_image(pixels), new.encode_image(pixels))
    assert {name: old.fingerprint(name) for name in old.tensors} == {n: new.fingerprint(n) for n in new.tensors}
