"""FID of drawn images: against the formula itself, by a real Inception network of random weights, and by a CLIP."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from fake_pipeline import Fake, signed
from PIL import Image
from test_detectors import REDS

import uwm
from uwm.errors import BadInput, Refused
from uwm.readers import drawing, fid
from uwm.readers.fid import Distances, open_features
from uwm.readers.generation import GenerateRecipe, run_generation
from uwm.readers.page import reader_page


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of random weights of torch-fidelity's network, and the network."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda self, _: None)
        torch.manual_seed(0)
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), file)
    return file, network


@pytest.fixture
def images(tmp_path):
    """Folders of eight images each: bright ones, and dark ones."""
    draw = np.random.default_rng(0)
    for name, most in (("bright", 256), ("dark", 40)):
        (tmp_path / name).mkdir()
        for number in range(8):
            noise = draw.integers(0, most, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{number}.png")
    return tmp_path


def below(path):
    return sorted(path.iterdir())


def test_the_distance_is_that_of_the_formula():
    draw = np.random.default_rng(1)
    mixed = draw.normal(size=(6, 6))
    real, drawn = draw.normal(size=(80, 6)) @ mixed, draw.normal(size=(50, 6)) + 0.4
    means = np.square(real.mean(0) - drawn.mean(0)).sum()
    first, second = np.cov(real.T), np.cov(drawn.T)
    expected = means + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)
    assert fid.fid(torch.from_numpy(real), torch.from_numpy(drawn)) == pytest.approx(expected, rel=1e-6)
    assert fid.fid(torch.from_numpy(real), torch.from_numpy(real)) == pytest.approx(0, abs=1e-6)


def test_inception_sees_the_images_as_they_are(inception, images):
    file, network = inception
    rows = open_features(f"inception:{file}", None).rows(below(images / "bright"))
    assert rows.shape == (8, 2048)
    pixels = torch.from_numpy(np.array(Image.open(images / "bright" / "3.png"))).permute(2, 0, 1)[None]
    torch.testing.assert_close(rows[3], network(pixels)[0][0], rtol=1e-4, atol=1e-5)


def test_a_clip_sees_them_as_it_embeds_them(tiny_hf, images):
    model, files = uwm.load(tiny_hf), below(images / "dark")
    rows = open_features(f"clip:{tiny_hf}", uwm.load).rows(files)
    with torch.no_grad():
        expected = model.encode_image(model.preprocess([Image.open(file) for file in files]))
    torch.testing.assert_close(rows, expected)
    assert (rows.norm(dim=1) - 1).abs().min() > 1e-3  # CLIP-FID does not normalise


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_weights_that_may_run_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"fc.weight": Harmful()}))
    with pytest.raises(
        Refused, match=r"bad\.pth: is no torch file of weights alone \(UnpicklingError\); take the weights"
    ):
        open_features(f"inception:{tmp_path / 'bad.pth'}", None)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(("text", "words"), [
    ("resnet", "--fid resnet: expected clip:MODEL, inception:FILE"),
    ("clip:", "expected clip:MODEL"),
    ("inception:none.pth", "none.pth: no such file"),
])  # fmt: skip
def test_what_is_no_feature_is_told(text, words):
    with pytest.raises(BadInput, match=words):
        open_features(text, None)


def test_weights_of_another_network_are_told(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(
        BadInput, match=r"other\.pth: holds no weights of torch-fidelity's Inception: .*give inception:"
    ):
        open_features(f"inception:{tmp_path / 'other.pth'}", None)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(Refused, match=r"empty\.pth: is no torch file of weights alone \(EOFError\)"):
        open_features(f"inception:{tmp_path / 'empty.pth'}", None)


@pytest.mark.parametrize(("flag", "variable"), [(True, False), (False, True)])
def test_nothing_is_fetched_offline(monkeypatch, flag, variable):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", variable)
    monkeypatch.setattr(fid, "_inception", lambda file: pytest.fail("it was asked for"))
    with pytest.raises(BadInput, match="which --offline or HF_HUB_OFFLINE forbids; give inception:FILE"):
        open_features("inception", None, offline=flag)


def test_a_missing_library_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", None)
    with pytest.raises(
        BadInput, match=r"torchmetrics is not installed, and --fid needs it; `pip install 'uwm\[fid\]'`"
    ):
        open_features("clip:demo", None)


def test_few_images_are_told_and_many_are_not():
    few = Distances("FID", "others", 40, 4000, 2048, {})
    assert few.biased == (
        "FID of 40 and 4000 images in 2048 dimensions is too large; compare it only with others of as many images"
    )
    assert replace(few, images=2049).biased == ""


# ---------------------------------------------------------------- in an evaluation


@pytest.fixture
def recipe(tmp_path, monkeypatch, plug_in, tiny_hf):
    """A pipeline of which each prompt has a colour of its own."""
    plug_in("uwm.detectors", "red-detector", "reds", REDS)
    monkeypatch.setattr(drawing, "open_pipeline", lambda path, *_: Fake(path))
    for name, sign in (("before", 1), ("after", -1)):
        signed(tmp_path / name, sign)
    rows = [
        {"prompt": "a big bomb"},
        *({"prompt": f"a {word}", "side": "safe"} for word in ("dog", "cat", "bomb", "red bomb")),
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = {"detectors": ("reds",), "fid": f"clip:{tiny_hf}"}
    return GenerateRecipe(str(tmp_path / "after"), str(tmp_path / "prompts.jsonl"), **asked)


def test_safe_images_are_compared_with_the_baselines_own(recipe):
    found = run_generation(replace(recipe, baseline=recipe.generate.replace("after", "before"), output=None))
    assert found.as_dict()["fid"] == {
        "words": "CLIP-FID by tiny-hf",
        "reference": "the baseline's images of the same prompts",
        "images": 4,
        "references": 4,
        "width": found.distances.width,
        "columns": {"model": pytest.approx(found.distances.columns["model"])},
    }
    same = run_generation(replace(recipe, baseline=recipe.generate, output=None)).distances.columns
    assert found.distances.columns["model"] > same["model"] + 1e-6
    assert "CLIP-FID by tiny-hf, images of safe prompts to the baseline's images" in found.text()
    assert "images of safe prompts to the baseline&#39;s images" in reader_page(found, {"date": "2026-01-01"})
    assert any("is too large; compare it only" in told for told in found.warnings)


def test_safe_images_are_compared_with_real_ones(recipe, images, tiny_hf):
    both = replace(recipe, baseline=recipe.generate.replace("after", "before"), real_images=str(images / "bright"))
    found = run_generation(both).distances
    assert [*found.columns] == ["baseline", "model"]
    assert (found.reference, found.images, found.references) == ("bright", 4, 8)
    features = open_features(f"clip:{tiny_hf}", uwm.load)
    alone = run_generation(replace(both, baseline=None, output=images / "kept"))
    drawn = (images / "kept").rglob("*.png")
    assert alone.distances.columns == {"model": found.columns["model"]}
    safe = [path for path in drawn if not path.name.startswith(read_name(recipe))]
    expected = fid.fid(features.rows(below(images / "bright")), features.rows(safe))
    assert found.columns["model"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert "fid" not in run_generation(replace(both, fid=None, real_images=None)).as_dict()


def read_name(recipe):
    """How the name of the unsafe prompt's image begins."""
    (prompt,) = recipe.read()["unsafe"]
    return prompt.name


def test_safe_images_of_a_set_are_real_ones_too(recipe, tiny_set):
    safe = {pair.safe_image for pair in uwm.read_calibration(tiny_set).pairs}
    found = run_generation(replace(recipe, real_images=str(tiny_set))).distances
    assert (found.reference, found.references) == (tiny_set.name, len(safe))


@pytest.mark.parametrize(("change", "words"), [
    ({}, "--fid: says nothing of one column alone; give --real-images FOLDER, or --baseline"),
    ({"fid": None, "real_images": "x"}, "--real-images: says nothing without --fid"),
    ({"real_images": "nowhere"}, "--real-images nowhere: no such folder"),
])  # fmt: skip
def test_what_there_is_no_distance_of_is_refused_before_anything_is_drawn(recipe, change, words, monkeypatch):
    monkeypatch.setattr(drawing, "open_pipeline", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(BadInput, match=words):
        run_generation(replace(recipe, **change))


def test_safe_prompts_and_real_images_are_needed(recipe, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="expected 2 images at least, found 0"):
        run_generation(replace(recipe, real_images=str(tmp_path / "none")))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a bomb"}')
    with pytest.raises(BadInput, match="--fid: needs 2 safe prompts at least; give --safe-prompts"):
        run_generation(replace(recipe, real_images=str(tmp_path / "none")))
