"""References to the Hub: one format is fetched, the cache serves offline, every refusal is one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_hub import TOKEN
from terminal import done, refused

import uwm
from uwm.errors import ResourceFault
from uwm.models.hub import fault, wanted
from uwm.models.references import commit_of, hub_name, name_of, resolve

SIDE = ["config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def clip(hub, tiny_hf):
    """The Hub with acme/clip, in every format that repositories have."""
    files = {path.name: path.read_bytes() for path in tiny_hf.iterdir()}
    for name in (
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        "README.md",
        ".gitignore",
    ):
        files[name] = b"another format, or nothing that a model needs"
    hub.add("acme/clip", files)
    return hub


def offline(hub):
    """Nothing was asked since the last call."""
    asked, hub.requests[:] = list(hub.requests), []
    return not asked


# ---------------------------------------------------------------- which files


@pytest.mark.parametrize(
    ("there", "needed"),
    [
        ("model.safetensors pytorch_model.bin tf_model.h5", "model.safetensors"),
        ("pytorch_model.bin tf_model.h5 flax_model.msgpack model.onnx", "pytorch_model.bin"),
        ("open_clip_model.safetensors open_clip_pytorch_model.bin", "open_clip_model.safetensors"),
        ("model.safetensors open_clip_model.safetensors pytorch_model.bin", "model.safetensors"),
        ("model.safetensors pytorch_model.bin.index.json pytorch_model-00001-of-00001.bin", "model.safetensors"),
        ("model.safetensors model.fp16.safetensors", "model.safetensors"),
        ("model.fp16.safetensors pytorch_model.bin", "model.fp16.safetensors"),
        ("model-1-of-2.safetensors model-2-of-2.safetensors model.safetensors.index.json model.safetensors",
         "model-1-of-2.safetensors model-2-of-2.safetensors model.safetensors.index.json"),
        ("model-1-of-2.safetensors model-2-of-2.safetensors model.safetensors.index.json "
         "model.fp16-1-of-2.safetensors model-2-of-2.fp16.safetensors model.safetensors.index.fp16.json",
         "model-1-of-2.safetensors model-2-of-2.safetensors model.safetensors.index.json"),
        ("model.fp16-1-of-2.safetensors model-2-of-2.fp16.safetensors model.safetensors.index.fp16.json unet/a.bin "
         "text_encoder/model-1-of-1.fp16.safetensors text_encoder/model.safetensors.index.fp16.json unet/a.fp16.bin",
         "model-2-of-2.fp16.safetensors model.fp16-1-of-2.safetensors model.safetensors.index.fp16.json "
         "text_encoder/model-1-of-1.fp16.safetensors text_encoder/model.safetensors.index.fp16.json unet/a.bin"),
        ("model.safetensors model.fp16-1-of-1.safetensors model.safetensors.index.fp16.json", "model.safetensors"),
        ("a.safetensors b.safetensors model.safetensors.index.json",
         "a.safetensors b.safetensors model.safetensors.index.json"),
        ("pytorch_model-1-of-1.bin pytorch_model.bin.index.json",
         "pytorch_model-1-of-1.bin pytorch_model.bin.index.json"),
        ("model.safetensors uwm_patch.safetensors uwm.json report.html README.md",
         "README.md model.safetensors report.html uwm.json uwm_patch.safetensors"),
        ("adapter.safetensors optimizer.pt training_args.bin", ""),
        ("config.json vocab.json LICENSE README.md .gitattributes a/.gitkeep",
         "LICENSE README.md config.json vocab.json"),
        ("onnx/model.onnx onnx/config.json openvino/openvino_model.bin model.safetensors", "model.safetensors"),
        ("modules.json 0_CLIPModel/model.safetensors 0_CLIPModel/pytorch_model.bin 0_CLIPModel/config.json",
         "0_CLIPModel/config.json 0_CLIPModel/model.safetensors modules.json"),
        ("model_index.json v1-5.safetensors text_encoder/model.safetensors text_encoder/pytorch_model.bin "
         "unet/diffusion.safetensors unet/diffusion.fp16.safetensors unet/diffusion.bin vae/vae.bin vae/vae.fp16.bin",
         "model_index.json text_encoder/model.safetensors unet/diffusion.safetensors vae/vae.bin"),
    ],
)  # fmt: skip
def test_weights_in_one_format(there, needed):
    assert wanted(there.split()) == needed.split()
    assert wanted(list(reversed(there.split()))) == needed.split()


def test_only_what_is_needed_is_fetched(clip, run_uwm, tiny_hf):
    out = json.loads(done(run_uwm("inspect", "acme/clip", "--json")))
    assert out["files"] == ["model.safetensors"]
    assert clip.downloads() == sorted({p.name for p in tiny_hf.iterdir()} | {"README.md"})
    clip.requests.clear()
    assert json.loads(done(run_uwm("inspect", "acme/clip", "--json"))) == out
    assert clip.downloads() == []  # only asked whether it is still the same


# ---------------------------------------------------------------- what a reference names


def test_revisions(clip, tiny_hf, run_uwm):
    other = {p.name: p.read_bytes() for p in tiny_hf.iterdir()} | {"note.txt": b"v2"}
    clip.add("acme/clip", other, branch="v2")
    by_name, by_flag = resolve("acme/clip@v2"), resolve("hf-hub:acme/clip", revision="v2")
    assert by_name == by_flag
    assert (by_name / "note.txt").read_text() == "v2"
    assert not (resolve("acme/clip") / "note.txt").exists()
    assert resolve("acme/clip@v2", revision="main") == by_name  # the reference's own goes first
    commit = commit_of(by_name / "config.json")
    assert resolve(f"acme/clip@{commit}") == by_name
    refused(run_uwm("inspect", "acme/clip@v9"), 2, "acme/clip@v9: the repository has no such revision")
    refused(run_uwm("inspect", "acme/clip", "--revision", "v9"), 2, "no such revision")


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme" / "here").mkdir(parents=True)
    assert hub_name("acme/clip") == hub_name("hf-hub:acme/clip@v2") == "acme/clip"
    assert hub_name("hf-hub:acme/here") == "acme/here"
    for path in ("acme/here", "demo", "./clip", "../clip", "/a/b", "a/b/c", "model.pt"):
        assert hub_name(path) is None, path
    assert name_of("open_clip:ViT-B-32/openai", tmp_path) == "open_clip:ViT-B-32/openai"
    assert name_of("acme/here", tmp_path / "acme" / "here") == "here"
    assert commit_of(tmp_path) is None


def test_a_path_goes_before_the_hub(clip, tiny_hf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_hf, tmp_path / "acme" / "clip")
    assert str(resolve("acme/clip")) == "acme/clip"
    assert offline(clip)
    assert resolve("hf-hub:acme/clip").is_absolute()
    assert not offline(clip)


@pytest.mark.parametrize("reference", ["hf-hub:clip", "hf-hub:a/b/c", "hf-hub:acme/clip@", "hf-hub:../x", "hf-hub:"])
def test_a_reference_that_cannot_be(reference, hub, run_uwm):
    refused(run_uwm("inspect", reference), 2, f"{reference}: expected hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION")
    assert offline(hub)


def test_no_weights_in_the_repository(hub, run_uwm):
    hub.add("acme/words", {"config.json": b"{}", "rust_model.ot": b""})
    refused(run_uwm("inspect", "acme/words"), 2, "no weights in this folder; expected one of model.safetensors")


# ---------------------------------------------------------------- the cache


def test_offline_from_the_cache(clip, run_uwm, tmp_path, monkeypatch):
    online = done(run_uwm("inspect", "acme/clip"))
    clip.requests.clear()
    assert done(run_uwm("inspect", "acme/clip", "--offline")) == online
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert done(run_uwm("inspect", "acme/clip")) == online
    nowhere = ("no such file or folder, and not in the Hub's cache (offline)",)
    refused(run_uwm("inspect", "acme/other", "--offline"), 2, "acme/other: ", *nowhere)
    refused(run_uwm("inspect", "acme/clip@v2", "--offline"), 2, "acme/clip@v2: ", *nowhere)
    refused(run_uwm("inspect", "acme/clip", "--offline", "--cache-dir", tmp_path / "empty"), 2, *nowhere)
    assert offline(clip)


def test_a_cache_of_its_own(clip, tmp_path, run_uwm):
    cache = tmp_path / "own"
    done(run_uwm("inspect", "acme/clip", "--cache-dir", cache))
    assert [path.name for path in cache.glob("models--*")] == ["models--acme--clip"]
    assert not (tmp_path / "hub-cache").exists()
    clip.requests.clear()
    done(run_uwm("inspect", "acme/clip", "--cache-dir", cache, "--offline"))
    assert offline(clip)


def test_the_cache_serves_when_the_hub_does_not(clip, run_uwm):
    online = done(run_uwm("inspect", "acme/clip"))
    clip.refuse = 503, "down for maintenance"
    assert done(run_uwm("inspect", "acme/clip")) == online
    refused(run_uwm("inspect", "acme/other"), 4, "acme/other: the Hub answered 503; try again later")


def test_a_cache_with_a_file_missing(clip, run_uwm):
    folder = resolve("acme/clip")
    (folder / "vocab.json").unlink()
    missing = "only a part of it is there, without vocab.json"
    refused(run_uwm("inspect", "acme/clip", "--offline"), 2, "acme/clip: ", missing)
    clip.refuse = 500, "broken"
    refused(run_uwm("inspect", "acme/clip"), 4, "acme/clip: the Hub answered 500", missing)
    clip.refuse = None
    done(run_uwm("inspect", "acme/clip"))
    assert (folder / "vocab.json").is_file()


def test_what_other_programs_cached_is_enough_offline(clip, run_uwm):
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors"):
        hf_hub_download("acme/clip", name)
    clip.requests.clear()
    done(run_uwm("inspect", "acme/clip", "--offline"))
    assert offline(clip)


# ---------------------------------------------------------------- who may read


def test_private_repository(hub, tiny_hf, run_uwm, monkeypatch):
    hub.add("acme/secret", tiny_hf, private=True)
    line = refused(run_uwm("inspect", "acme/secret"), 2, "no such repository on the Hub; if it is private, log in with")
    assert "HF_TOKEN" in line
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(run_uwm("inspect", "acme/secret"), 2, "acme/secret: the Hub does not accept the token (Invalid credentials")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done(run_uwm("inspect", "acme/secret"))


def test_gated_repository(hub, tiny_hf, run_uwm, monkeypatch):
    hub.add("acme/gated", tiny_hf, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused(run_uwm("inspect", "acme/gated"), 2, "acme/gated: gated; ask for access on its page on the Hub")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(403, 2, "the Hub refused with 403 (blocked)"), (500, 4, "the Hub answered 500; try again later")],
)
def test_refusals(status, code, words, clip, run_uwm):
    clip.refuse = status, "blocked"
    refused(run_uwm("inspect", "acme/clip"), code, f"acme/clip: {words}")


# ---------------------------------------------------------------- the network


def test_no_network(hub, run_uwm, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    words = "the Hub could not be reached, or broke off (ConnectError); try again"
    refused(run_uwm("inspect", "acme/clip"), 4, f"acme/clip: {words}; no file or folder of that name is here")
    done = run_uwm("inspect", "hf-hub:acme/clip")
    refused(done, 4, f"hf-hub:acme/clip: {words}")
    assert "no file or folder" not in done[2]


def test_a_file_that_is_not_there_is_not_looked_up_on_the_hub(hub, run_uwm):
    refused(run_uwm("inspect", "models/clip.pt"), 2, "models/clip.pt: no such file or folder")
    assert hub.requests == []


def test_a_network_that_does_not_answer(clip, run_uwm, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    clip.delay = 1
    refused(run_uwm("inspect", "acme/clip"), 4, "acme/clip: the Hub could not be reached, or broke off (ReadTimeout)")


def test_a_download_that_breaks_off_and_goes_on(clip, run_uwm, monkeypatch, tiny_hf):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    clip.cut_after = 0
    refused(run_uwm("inspect", "acme/clip"), 4, "acme/clip: the Hub could not be reached, or broke off")
    refused(run_uwm("inspect", "acme/clip", "--offline"), 2, "only a part of it is there, without model.safetensors")
    clip.cut_after = 100_000  # every connection brings so many bytes
    clip.requests.clear()
    done(run_uwm("inspect", "acme/clip"))
    assert clip.downloads().count("model.safetensors") > 1
    assert (resolve("acme/clip") / "model.safetensors").read_bytes() == (tiny_hf / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "x: the cache: No space left on device"),
        (PermissionError(13, "Permission denied", "/cache/refs"), "x: /cache/refs: Permission denied"),
        (ConnectionResetError(104, "Connection reset by peer"), "x: the Hub could not be reached, or broke off"),
    ],
)
def test_faults_of_the_machine(error, words):
    found = fault(error, "x")
    assert isinstance(found, ResourceFault)
    assert str(found).startswith(words)


def test_the_library_says_the_same(clip):
    with pytest.raises(uwm.errors.BadInput, match="not in the Hub's cache"):
        uwm.load("acme/clip", offline=True)
    assert offline(clip)
    assert uwm.load("acme/clip").tokenize(["a dog"])[0].shape[0] == 1
    offline(clip)
    model = uwm.load("acme/clip", offline=True)
    model.tokenize(["a dog"])
    assert offline(clip)
