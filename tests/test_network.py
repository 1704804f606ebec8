"""The program in a process of its own, against the Hub of the tests; and that ``--offline`` opens no socket at all."""

from __future__ import annotations

import json

import pytest
from fake_hub import TOKEN, running
from program import Program
from terminal import done, hashes, refused

MODEL_FLAGS = ("--mass", 0.1, "-q")
REGISTER = """
import json, os, sys
import open_clip
from open_clip import pretrained
open_clip.add_model_config(os.environ["ARCH"])
pretrained._PRETRAINED["uwm-fake"] = {"one": {"hf_hub": "acme/open-clip/", "quick_gelu": True}}
from uwm.cli import main
main()
"""  # the registry as a release of open_clip would have it; the tokenizer is on the Hub too


@pytest.fixture(scope="module")
def world(tiny_hf, tiny_open_clip, tmp_path_factory):
    """The Hub, and the program with a home of its own."""
    folder = tmp_path_factory.mktemp("home")
    with running() as hub:
        files = {path.name: path.read_bytes() for path in tiny_hf.iterdir()}
        hub.add("acme/clip", files | {"pytorch_model.bin": b"another format"})
        hub.add("acme/clip", files, branch="v2")
        hub.add("acme/secret", files, private=True)
        hub.add("acme/open-clip", {p.name: p.read_bytes() for p in tiny_open_clip.glob("*.safetensors")})
        hub.add("acme/words", {name: files[name] for name in files if not name.endswith(".safetensors")})
        config = json.loads((tiny_open_clip / "open_clip_config.json").read_text())["model_cfg"]
        del config["quick_gelu"]
        config["text_cfg"]["hf_tokenizer_name"] = "acme/words"
        (folder / "uwm-fake.json").write_text(json.dumps(config))
        yield hub, folder


@pytest.fixture
def hub(world):
    world[0].requests.clear()
    return world[0]


@pytest.fixture
def program(world):
    found = Program(world[1], world[0].url)
    found.sockets()
    return found


@pytest.fixture
def registered(world):
    """The program, where open_clip knows uwm-fake/one."""
    found = Program(world[1], world[0].url, start=("-c", REGISTER))
    found.environment["ARCH"] = str(world[1] / "uwm-fake.json")
    found.sockets()
    return found


def test_edit_online_then_offline(hub, program, tiny_set, tmp_path):
    edit = ("edit", "acme/clip@v2", "--calib", tiny_set, *MODEL_FLAGS)
    done(program(*edit, "-o", tmp_path / "online"))
    assert "pytorch_model.bin" not in hub.downloads()
    assert program.sockets()
    hub.requests.clear()
    done(program(*edit, "-o", tmp_path / "offline", "--offline"))
    done(program("inspect", "hf-hub:acme/clip", "--revision", "v2", HF_HUB_OFFLINE="1"))
    assert (hub.requests, program.sockets()) == ([], [])
    first, second = hashes(tmp_path / "online"), hashes(tmp_path / "offline")
    assert first["model.safetensors"] == second["model.safetensors"]
    about = json.loads((tmp_path / "offline" / "uwm.json").read_text())
    assert about["model"]["name"] == "acme/clip"
    assert about["settings"]["revision"] == hub.repositories["acme/clip"].files("v2")[0]
    assert "base_model: acme/clip" in (tmp_path / "offline" / "README.md").read_text()


def test_token_of_the_environment(hub, program):
    done(program("inspect", "acme/secret", HF_TOKEN=TOKEN))


def test_no_network(program):
    line = refused(
        program("inspect", "acme/other", HF_ENDPOINT="http://127.0.0.1:9"), 4, "acme/other: the Hub could not"
    )
    assert line.endswith("try again; no file or folder of that name is here\n")


def test_push(hub, program, made, tmp_path):
    refused(program("push", made / "edited", "acme/safe", "--offline", HF_TOKEN=TOKEN), 2, "needs the network")
    assert (hub.requests, program.sockets()) == ([], [])
    out = done(program("push", made / "edited", "acme/safe", "--private", HF_TOKEN=TOKEN))
    assert out == f"{hub.url}/acme/safe\n"
    received = hub.repositories["acme/safe"].branches["main"][-1]
    assert received == {".gitattributes": b"", **{p.name: p.read_bytes() for p in (made / "edited").iterdir()}}


def test_open_clip_with_a_tokenizer_on_the_hub(hub, registered, tiny_set, tmp_path):
    own = ("--cache-dir", tmp_path / "cache")
    score = ("score", "open_clip:uwm-fake/one", "--calib", tiny_set, *own, "-o")
    done(registered("inspect", "open_clip:uwm-fake/one", *own))  # fetches the weights, not the tokenizer
    registered.sockets()
    hub.requests.clear()
    lacking = registered(*score, tmp_path / "none.safetensors", "--offline")
    refused(lacking, 2, "the tokenizer 'acme/words' cannot be had")
    assert (hub.requests, registered.sockets()) == ([], [])
    done(registered(*score, tmp_path / "online.safetensors"))
    assert "tokenizer.json" in hub.downloads()
    assert registered.sockets()
    hub.requests.clear()
    done(registered(*score, tmp_path / "offline.safetensors", "--offline"))
    assert (hub.requests, registered.sockets()) == ([], [])
    assert (tmp_path / "online.safetensors").read_bytes() == (tmp_path / "offline.safetensors").read_bytes()


def test_f80_offline_opens_no_socket(hub, program, tiny_hf, tiny_set, tmp_path, made):
    for arguments in (
        ("edit", "demo", "--calib", tiny_set, "-o", tmp_path / "edited", *MODEL_FLAGS),
        ("apply", tiny_hf, made / "patch.safetensors", "-o", tmp_path / "applied"),
    ):
        done(program(*arguments, "--offline"))
        assert program.sockets() == [], arguments[0]
    assert hub.requests == []


def test_a_path_and_the_demo_need_no_network_anyway(hub, program, tiny_hf, tiny_set, tmp_path):
    """Without --offline too: nothing calls home."""
    done(program("eval", tiny_hf, "--pairs", tiny_set, "--split", "test", "--baseline", "demo"))
    assert (hub.requests, program.sockets()) == ([], [])
