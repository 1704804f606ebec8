"""Drawing prompts into a folder: each from its seed, whatever is drawn beside it; killed, it goes on."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from fake_pipeline import Fake, folder
from PIL import Image
from safetensors.torch import load_file

from uwm.checkpoint import file_sha256, open_checkpoint
from uwm.errors import BadInput
from uwm.readers import drawing
from uwm.readers.drawing import Brush, Painter, check_pipeline, open_pipeline
from uwm.readers.prompts import Prompt
from uwm.shipped_files import DEMO_GENERATOR, DEMO_MODEL

PROMPTS = [Prompt(f"thing {n}", "safe", n, guidance=(7.0, None)[n % 2]) for n in range(5)]


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The fake pipelines that were opened, in order."""
    found = []

    def fake(path, device, dtype):
        found.append(Fake(path))
        return found[-1]

    monkeypatch.setattr(drawing, "open_pipeline", fake)
    return found


def drawn(painter, place, prompts=PROMPTS):
    files, seconds = painter.draw(prompts, place, "images")
    return {prompt.text: file.read_bytes() for prompt, file in files.items()}, seconds


def test_images_do_not_depend_on_batches_and_order(tmp_path, opened):
    source = folder(tmp_path / "pipeline")
    one, _ = drawn(Painter(source, brush=Brush(batch_size=1)), tmp_path / "one")
    two, _ = drawn(Painter(source, brush=Brush(batch_size=4)), tmp_path / "two", PROMPTS[::-1])
    assert one == two
    assert len({*one.values()}) == 5


def test_prompts_that_ask_for_other_settings_are_drawn_apart(tmp_path, opened):
    drawn(Painter(folder(tmp_path / "pipeline"), brush=Brush(steps=3)), tmp_path / "out")
    assert opened[0].calls == [
        (["thing 0", "thing 2", "thing 4"], {"num_inference_steps": 3, "guidance_scale": 7.0}),
        (["thing 1", "thing 3"], {"num_inference_steps": 3}),
    ]


def test_what_the_user_says_goes_before_what_prompts_ask_for():
    own = Prompt("a", "safe", 0, guidance=7.0, width=64, height=32)
    assert Brush().asked(own) == {"guidance_scale": 7.0, "width": 64, "height": 32}
    assert Brush(guidance=0, size=16).asked(own) == {"guidance_scale": 0, "width": 16, "height": 16}


def test_what_was_drawn_is_not_drawn_again(tmp_path, opened, monkeypatch):
    painter = Painter(folder(tmp_path / "pipeline"), brush=Brush(batch_size=1))
    monkeypatch.setattr(drawing, "open_pipeline", lambda path, *_: Fake(path, stop_after=2))
    with pytest.raises(KeyboardInterrupt):
        drawn(painter, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 2
    times = {file: file.stat().st_mtime_ns for file in files}
    monkeypatch.setattr(drawing, "open_pipeline", lambda path, *_: opened.append(Fake(path)) or opened[-1])
    again, seconds = drawn(painter, tmp_path / "out")
    assert sum(len(prompt) for prompt, _ in opened[0].calls) == 3
    assert {file: file.stat().st_mtime_ns for file in files} == times
    assert (again, seconds > 0) == (drawn(painter, tmp_path / "whole")[0], True)
    assert drawn(painter, tmp_path / "out") == (again, None)
    assert len(opened) == 2  # nothing was left to draw the last time


def test_the_folder_s_key_knows_all_that_decides_an_image(tmp_path):
    source, other = folder(tmp_path / "one"), folder(tmp_path / "two", seed=1)
    keys = [
        Painter(source).key(),
        Painter(other).key(),
        Painter(source, open_checkpoint(other)).key(),
        *(Painter(source, brush=Brush(**given)).key() for given in ({"steps": 3}, {"guidance": 1.0}, {"size": 8})),
    ]
    assert len({*keys}) == len(keys)
    assert Painter(source, brush=Brush(batch_size=1)).key() == keys[0]


def test_the_folder_s_key_knows_which_state_dict_was_chosen(tmp_path, tiny_hf):
    source = folder(tmp_path / "pipeline")
    state = load_file(tiny_hf / "model.safetensors")
    torch.save({"state_dict": state, "ema": {name: 2 * value for name, value in state.items()}}, tmp_path / "x.pt")
    own, own_again, ema = (
        Painter(source, open_checkpoint(tmp_path / "x.pt", key)).key() for key in ("state_dict", "state_dict", "ema")
    )
    assert own == own_again != ema


def test_the_folder_s_key_knows_the_device_and_the_dtype_that_auto_means(tmp_path, monkeypatch):
    source = folder(tmp_path / "pipeline")
    monkeypatch.setattr(drawing, "device_of", lambda name: torch.device("cpu" if name == "auto" else name))
    keys = {given: Painter(source, brush=Brush(device=given)).key() for given in ("auto", "cpu", "cuda", "cuda:1")}
    assert keys["auto"] == keys["cpu"] != keys["cuda"] == keys["cuda:1"]
    own, same, other = (Painter(source, brush=Brush(dtype=dtype)).key() for dtype in ("auto", "float32", "bfloat16"))
    assert own == same != other


def test_a_folder_of_two_columns_is_hashed_once(tmp_path, monkeypatch):
    source, other = folder(tmp_path / "one"), open_checkpoint(folder(tmp_path / "two", seed=1))
    painters = {"baseline": Painter(source), "model": Painter(source, other)}
    expected = {column: painter.key() for column, painter in painters.items()}
    read = []
    monkeypatch.setattr(drawing, "file_sha256", lambda path: read.append(path) or file_sha256(path))
    assert drawing.keys(painters) == expected
    assert len(read) == len({*read}) > 0


def test_the_towers_of_another_checkpoint_are_in_place_while_it_draws(tmp_path, opened):
    source, other = folder(tmp_path / "one"), folder(tmp_path / "two", seed=1)
    seen = []
    with Painter(source, open_checkpoint(other))._opened() as pipeline:
        seen += [value.clone() for value in pipeline.text_encoder.parameters()]
    expected = Fake(other).text_encoder.parameters()
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize(("index", "words"), [
    ({"_class_name": "FluxPipeline"}, "a FluxPipeline; --generate draws with StableDiffusionPipeline and"),
    ({"vae": [], "unet": ["os", "system"]}, "model_index.json takes its unet from 'os'; expected diffusers' own"),
])  # fmt: skip
def test_other_pipelines_are_refused(index, words, tmp_path):
    with pytest.raises(BadInput, match=words):
        check_pipeline(folder(tmp_path / "pipeline", **index))
    with pytest.raises(BadInput, match="no model_index.json in it; --generate takes a folder of a diffusers pipeline"):
        check_pipeline(tmp_path)


def test_a_safety_checker_is_no_reason_to_refuse(tmp_path):
    check_pipeline(folder(tmp_path / "pipeline", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]))


def test_without_diffusers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadInput, match=r"diffusers is not installed, .*; `pip install 'uwm\[generate\]'`"):
        open_pipeline(DEMO_GENERATOR, "cpu", "auto")


# ---------------------------------------------------------------- with diffusers itself


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers", reason="pip install 'uwm[generate]'")


def test_the_demo_generator_draws_in_float32_alike_in_every_batch(diffusers, tmp_path):
    prompts = [Prompt(f"a picture of a {name}", "safe", n) for n, name in enumerate(("cat", "bomb", "pig"))]
    pixels = []
    for size in (1, 3):
        painter = Painter(DEMO_GENERATOR, brush=Brush(steps=3, batch_size=size))
        files, _ = painter.draw(prompts, tmp_path / str(size), "images")
        pixels.append(np.stack([np.asarray(Image.open(file), int) for file in files.values()]))
    assert abs(pixels[0] - pixels[1]).max() <= 1
    assert abs(pixels[0][0] - pixels[0][1]).max() > 50


def test_the_demo_model_s_tower_in_place_draws_the_same(diffusers, tmp_path):
    prompts = [Prompt("a picture of a cat", "safe", 0)]
    brush = Brush(steps=2)
    own, _ = Painter(DEMO_GENERATOR, None, brush).draw(prompts, tmp_path / "own", "x")
    placed, _ = Painter(DEMO_GENERATOR, open_checkpoint(DEMO_MODEL), brush).draw(prompts, tmp_path / "placed", "x")
    assert own[prompts[0]].read_bytes() == placed[prompts[0]].read_bytes()


def test_stable_diffusion_xl_reads_both_towers(diffusers, tmp_path):
    from tiny_pipelines import make_xl

    source, other = make_xl(tmp_path / "one", seed=0), make_xl(tmp_path / "two", seed=1)
    prompts, brush = [Prompt("a dog", "safe", 0, width=16, height=16)], Brush(steps=2)
    images = {
        name: Painter(source, towers, brush).draw(prompts, tmp_path / name, "x")[0][prompts[0]].read_bytes()
        for name, towers in (("own", None), ("same", open_checkpoint(source)), ("other", open_checkpoint(other)))
    }
    assert images["own"] == images["same"] != images["other"]


def test_a_pipeline_that_is_not_whole_is_refused(diffusers, tmp_path):
    with pytest.raises(BadInput, match="one: the pipeline cannot be used"):
        open_pipeline(folder(tmp_path / "one"), "cpu", "auto")
