"""``open_clip:ARCH/TAG``: activation, preprocessing and weights come from open_clip's registry."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ARCH
from open_clip import pretrained
from safetensors.torch import load_file, save_file
from terminal import done, refused

import uwm
from uwm.models.references import hub_name
from uwm.models.registry import registered

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
ONE = {
    "hf_hub": "acme/open-clip/",
    "quick_gelu": True,
    "mean": MEAN,
    "std": STD,
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


@pytest.fixture
def tags(monkeypatch):
    """What open_clip's registry says of ARCH; tests add to it."""
    tags = {"one": ONE}
    monkeypatch.setitem(pretrained._PRETRAINED, ARCH, tags)
    return tags


@pytest.fixture
def weights(hub, tiny_open_clip, tags):
    """The Hub with the weights that the tag ``one`` names, in two formats."""
    files = {"open_clip_model.safetensors": (tiny_open_clip / "open_clip_model.safetensors").read_bytes()}
    hub.add("acme/open-clip", files | {"open_clip_pytorch_model.bin": b"", "model.safetensors": b"", "README.md": b""})
    return hub


def test_the_tag_decides(weights, tiny_open_clip):
    model = uwm.load(f"open_clip:{ARCH}/one")
    assert model.quick_gelu
    assert [type(block.mlp.gelu).__name__ for block in model.module.visual.transformer.resblocks] == ["QuickGELU"] * 3
    config = model.side_configs()["open_clip_config.json"]["preprocess_cfg"]
    assert {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode")} == {
        key: ONE[key] for key in ("mean", "std", "interpolation", "resize_mode")
    }
    assert weights.downloads() == ["open_clip_model.safetensors"]
    stored = load_file(tiny_open_clip / "open_clip_model.safetensors")
    torch.testing.assert_close(model.module.state_dict()["visual.proj"], stored["visual.proj"])


def test_a_tag_without_quick_gelu_follows_the_architecture(tags):
    tags["plain"] = {"hf_hub": "acme/open-clip/"}
    assert registered(f"open_clip:{ARCH}/plain").quick_gelu  # tiny: its config says QuickGELU
    assert not registered("open_clip:ViT-B-32/laion2b_s34b_b79k").quick_gelu
    assert registered("open_clip:ViT-B-32/metaclip_400m").quick_gelu
    assert registered("open_clip:ViT-B-32-quickgelu/laion400m_e32").quick_gelu


@pytest.mark.parametrize(
    ("named", "there", "fetched"),
    [
        ("acme/w/", "open_clip_pytorch_model.bin open_clip_model.safetensors", "open_clip_model.safetensors"),
        ("acme/w/", "open_clip_pytorch_model.bin other.safetensors", "open_clip_pytorch_model.bin"),
        ("acme/w/pytorch_model.bin", "pytorch_model.bin open_clip_model.safetensors", "pytorch_model.bin"),
        ("acme/w/pytorch_model.bin", "pytorch_model.bin pytorch_model.safetensors", "pytorch_model.safetensors"),
        ("acme/w/sub/x.pt", "sub/x.pt x.pt", "sub/x.pt"),
    ],
)
def test_which_file(named, there, fetched, hub, tags, run_uwm):
    tags["one"] = {"hf_hub": named}
    hub.add("acme/w", dict.fromkeys(there.split(), b"no weights"))
    refused(run_uwm("inspect", f"open_clip:{ARCH}/one"), 2, fetched)
    assert hub.downloads() == [fetched]


def test_none_of_its_files(hub, tags, run_uwm):
    hub.add("acme/open-clip", {"README.md": b""})
    words = (
        f"open_clip:{ARCH}/one: acme/open-clip on the Hub, which it names, has neither open_clip_model.safetensors",
    )
    refused(run_uwm("inspect", f"open_clip:{ARCH}/one"), 2, *words)


def test_apply_diff_and_inspect(weights, run_uwm, tiny_set, tmp_path):
    reference = f"open_clip:{ARCH}/one"
    done(run_uwm("score", reference, "--calib", tiny_set, "-o", tmp_path / "scores.safetensors"))
    done(run_uwm("select", tmp_path / "scores.safetensors", "-o", tmp_path / "patch.safetensors"))
    weights.requests.clear()
    arguments = (tmp_path / "patch.safetensors", "-o", tmp_path / "out", "--offline")
    assert "changed" in done(run_uwm("apply", reference, *arguments))
    assert weights.requests == []
    out = json.loads(done(run_uwm("diff", reference, tmp_path / "out" / "open_clip_model.safetensors", "--json")))
    assert {name for name, found in out.items() if found["differ"] != found["negated"]} == set()
    assert len(out) == 5
    assert "layout         open_clip" in done(run_uwm("inspect", reference))


def test_edit_writes_what_the_tag_said(weights, run_uwm, tiny_set, tmp_path):
    done(run_uwm("edit", f"open_clip:{ARCH}/one", "--calib", tiny_set, "-o", tmp_path / "out", "-q"))
    about = json.loads((tmp_path / "out" / "uwm.json").read_text())
    assert about["model"]["name"] == about["settings"]["model"] == f"open_clip:{ARCH}/one"
    assert about["settings"]["revision"] == weights.repositories["acme/open-clip"].files("main")[0]
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"]
    assert config["preprocess_cfg"]["mean"] == list(MEAN)
    assert str(tmp_path) not in (tmp_path / "out" / "uwm.json").read_text()


# ---------------------------------------------------------------- mistakes


def test_unknown_names(tags, run_uwm):
    line = refused(run_uwm("inspect", "open_clip:ViT-B-33/openai"), 2, "no architecture 'ViT-B-33'; there is ViT-B-32")
    assert "ViT-B-16" in line
    refused(run_uwm("inspect", "open_clip:zzz"), 2, "no architecture 'zzz'; there is ", "RN50", ARCH)
    refused(run_uwm("inspect", "open_clip:"), 2, "no architecture ''")
    refused(run_uwm("inspect", "open_clip:hf-hub:acme/clip"), 2, "no architecture 'hf-hub:acme'")
    refused(run_uwm("inspect", f"open_clip:{ARCH}/two"), 2, f"as in open_clip:{ARCH}/TAG; there is one")
    tags["two"] = ONE
    refused(run_uwm("inspect", f"open_clip:{ARCH}"), 2, f"as in open_clip:{ARCH}/TAG; there is one, two")
    tags.clear()
    refused(run_uwm("inspect", f"open_clip:{ARCH}"), 2, "there is none")


def test_the_only_tag_need_not_be_named(weights, run_uwm):
    assert "open_clip_model.safetensors" in done(run_uwm("inspect", f"open_clip:{ARCH}"))


@pytest.mark.parametrize("flags", [("--arch", "ViT-B-32"), ("--no-quick-gelu",)])
def test_flags_against_the_tag(flags, weights, run_uwm, tiny_set):
    result = run_uwm("eval", f"open_clip:{ARCH}/one", "--pairs", tiny_set, "--split", "test", *flags)
    refused(result, 2, f"open_clip:{ARCH}/one: decides the architecture and its activation; drop --arch")


def test_offline(weights, run_uwm, tags, tmp_path):
    reference = f"open_clip:{ARCH}/one"
    refused(run_uwm("inspect", reference, "--offline"), 2, f"{reference}: no such file or folder, and not in the Hub's")
    tags["url"] = {"url": "https://example.invalid/weights.pt"}
    place = tmp_path / "empty"
    result = run_uwm("inspect", f"open_clip:{ARCH}/url", "--offline", "--cache-dir", place)
    refused(result, 2, f"open_clip:{ARCH}/url: not in the cache ({place / 'weights.pt'})")
    assert weights.requests == []
    done(run_uwm("inspect", reference))
    weights.requests.clear()
    done(run_uwm("inspect", reference, "--offline"))
    assert weights.requests == []


def test_a_link_that_is_not_of_the_hub(hub, tags, run_uwm, tmp_path, tiny_open_clip):
    hub.add("acme/plain", {"weights.safetensors": (tiny_open_clip / "open_clip_model.safetensors").read_bytes()})
    tags["url"] = {"url": f"{hub.url}/acme/plain/resolve/main/weights.safetensors"}
    arguments = ("inspect", f"open_clip:{ARCH}/url", "--cache-dir", tmp_path / "own")
    online = run_uwm(*arguments)
    assert (online[0], hub.downloads()) == (0, ["weights.safetensors"])
    assert done(run_uwm(*arguments, "--offline")) == online[1]
    tags["url"] = {"url": f"{hub.url}/acme/nope/resolve/main/other.safetensors"}
    refused(run_uwm(*arguments), 4, f"open_clip:{ARCH}/url: could not be fetched (HTTP Error 401")


def test_a_file_of_this_machine(tags, run_uwm, tmp_path, tiny_open_clip):
    save_file(load_file(tiny_open_clip / "open_clip_model.safetensors"), tmp_path / "mine.safetensors")
    tags["mine"] = {"file": str(tmp_path / "mine.safetensors")}
    assert "layout         open_clip" in done(run_uwm("inspect", f"open_clip:{ARCH}/mine"))


def test_where_the_hub_has_what_the_registry_names():
    assert hub_name("open_clip:ViT-B-32/laion2b_s34b_b79k") == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
