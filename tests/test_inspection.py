"""What `inspect` says of checkpoints, scores and patches, and `env` of the machine."""

from __future__ import annotations

import platform

import pytest
import torch
from safetensors.torch import load_file

import uwm
from uwm import inspection
from uwm.errors import BadInput
from uwm.inspection import environment, inspect


@pytest.fixture(scope="module")
def scores(tiny_hf, tiny_set):
    return uwm.score(uwm.load(tiny_hf), uwm.read_calibration(tiny_set), vision_layers="vision.2.fc2")


@pytest.mark.parametrize(
    ("model", "layout"), [("tiny_hf", "hf-clip"), ("tiny_open_clip", "open_clip")], ids=["transformers", "open_clip"]
)
def test_checkpoint_folder(model, layout, request):
    folder = request.getfixturevalue(model)
    about, table = inspect(str(folder))
    assert (about["kind"], about["layout"], about["edited by uwm"]) == ("checkpoint", layout, False)
    stored = load_file(folder / about["files"][0])
    assert about["tensors"] == len(stored)
    head, *body = table
    assert head == ["weight", "tensor", "tensor's shape", "dtype"]
    assert len(body) == (2 + 3) * 6
    for _, key, shape, dtype in body:
        assert (shape, f"torch.{dtype}") == (str(tuple(stored[key].shape)), str(stored[key].dtype))


def test_checkpoint_file_is_like_its_folder(tiny_hf):
    about, table = inspect(str(tiny_hf / "model.safetensors"))
    assert table == inspect(str(tiny_hf))[1]
    assert about["files"] == ["model.safetensors"]


def test_edited_checkpoint_says_so(tiny_hf, scores, tmp_path):
    uwm.apply(tiny_hf, uwm.select(scores), output=tmp_path / "edited")
    assert inspect(str(tmp_path / "edited"))[0]["edited by uwm"] is True


def test_scores(scores, tmp_path):
    scores.save(tmp_path / "scores.safetensors")
    about, table = inspect(str(tmp_path / "scores.safetensors"))
    assert about == {"kind": "scores", "recipe": scores.recipe}
    assert table == [
        ["weight", "shape", "mean", "max"],
        *([f"{w}", f"{tuple(t.shape)}", f"{t.mean():.4g}", f"{t.max():.4g}"] for w, t in scores.items()),
    ]
    assert [row[0] for row in table[1:]] == ["text.0.out_proj", "text.1.out_proj", "vision.2.fc2"]


def test_patch(scores, tmp_path):
    patch = uwm.select(scores, mass=0.1, alpha=0.5)
    patch.save(tmp_path / "patch.safetensors")
    about, table = inspect(str(tmp_path / "patch.safetensors"))
    assert about["kind"] == "patch"
    assert about["entries"] == sum(int(row[2]) for row in table[1:]) == sum(map(len, patch.flips.values()))
    assert {row[1] for row in table[1:]} == {"multiplied by 0.5"}
    assert about["recipe"]["mass"] == {"text": 0.1, "vision": 0.1}
    assert table[1][0] == "text.0.out_proj"
    assert table[1][3:] == ["(32, 32)", patch.base[uwm.WeightId.parse("text.0.out_proj")][:16], ""]


def test_what_is_none_of_them(tmp_path):
    (tmp_path / "notes.txt").write_text("hello, this is no checkpoint")
    with pytest.raises(BadInput, match=r"notes\.txt: "):
        inspect(str(tmp_path / "notes.txt"))
    with pytest.raises(BadInput, match="no weights in this folder"):
        inspect(str(tmp_path))
    with pytest.raises(BadInput, match="nope: no such file or folder"):
        inspect(str(tmp_path / "nope"))


def test_environment():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["uwm"] == uwm.__version__
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert len(found["cuda devices"]) == torch.cuda.device_count()


def test_environment_without_a_package(monkeypatch):
    monkeypatch.setattr(inspection, "PACKAGES", ("no-such-package-of-uwm",))
    assert environment()["no-such-package-of-uwm"] == "not installed"
