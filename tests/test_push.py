"""`uwm push`: what the Hub receives is the folder, file for file; everything wrong is said before anything is sent."""

from __future__ import annotations

import json
import shutil

import pytest
from fake_hub import TOKEN
from terminal import done, refused

import uwm
from uwm.models.references import resolve
from uwm.push import push


@pytest.fixture
def folder(made, tmp_path):
    """What `uwm edit` wrote."""
    return shutil.copytree(made / "edited", tmp_path / "edited")


@pytest.fixture
def allowed(monkeypatch, hub):
    """The Hub, with the right token in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def received(hub, name, branch="main"):
    """What a branch holds, but for what the Hub itself made."""
    files = dict(hub.repositories[name].branches[branch][-1])
    del files[".gitattributes"]
    return files


def test_the_hub_receives_the_folder(allowed, folder, run_uwm):
    (folder / "sub").mkdir()
    (folder / "sub" / "note[1].txt").write_text("a name that looks like a pattern")
    out = done(run_uwm("push", folder, "acme/safe"))
    assert out == f"{allowed.url}/acme/safe\n"
    assert received(allowed, "acme/safe") == content(folder)
    repository = allowed.repositories["acme/safe"]
    assert repository.messages == [f"Upload a model edited by uwm {uwm.__version__}"]
    assert not repository.private
    assert ("PUT", "/lfs/" + json.loads((folder / "uwm.json").read_text())["output_sha256"]["model.safetensors"]) in allowed.requests  # noqa: E501  # fmt: skip


def test_what_was_pushed_loads_and_reverts(allowed, folder, run_uwm, tiny_hf, tmp_path):
    done(run_uwm("push", folder, "acme/safe", "--private"))
    fetched = resolve("acme/safe")
    assert (fetched / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    patch = fetched / "uwm_patch.safetensors"
    done(run_uwm("revert", "acme/safe", patch, "-o", tmp_path / "back"))
    assert done(run_uwm("diff", tmp_path / "back", tiny_hf)) == "no tensor differs\n"


def test_private_branch_and_message(allowed, folder, run_uwm):
    arguments = ("acme/safe", "--private", "--branch", "tau-0.02", "--message", "the first try", "--json")
    about = json.loads(done(run_uwm("push", folder, *arguments)))
    repository = allowed.repositories["acme/safe"]
    assert about["url"] == f"{allowed.url}/acme/safe/tree/tau-0.02"
    assert about["commit"] == repository.files("tau-0.02")[0]
    assert about["files"] == {name: len(data) for name, data in content(folder).items()}
    assert repository.private
    assert repository.messages == ["the first try"]
    assert received(allowed, "acme/safe", "tau-0.02") == content(folder)
    assert received(allowed, "acme/safe") == {}


def test_again_replaces_and_keeps_what_is_only_there(allowed, folder, made, run_uwm):
    allowed.add("acme/safe", {".gitattributes": b"", "notes.txt": b"of its owner", "config.json": b"old"})
    code, _, err = run_uwm("push", made / "applied", "acme/safe")
    assert (code, err) == (
        0,
        f"uwm: warning: {made / 'applied'} has no model card (README.md); `uwm edit` writes one\n",
    )
    done(run_uwm("push", folder, "hf-hub:acme/safe", "--revision", "main"))
    assert received(allowed, "acme/safe") == {"notes.txt": b"of its owner", **content(folder)}
    assert len(allowed.repositories["acme/safe"].messages) == 2


def test_dry_run(hub, folder, run_uwm):
    (folder / ".hidden").write_text("stays here")
    out = done(run_uwm("push", folder, "acme/safe", "--dry-run", "--offline"))
    *files, last = out.splitlines()
    assert [line.split()[1] for line in files] == sorted(content(folder).keys() - {".hidden"})
    assert last == f"would be uploaded to {hub.url}/acme/safe"
    assert hub.requests == []


# ---------------------------------------------------------------- refused before anything is sent


def test_a_folder_that_uwm_did_not_write(allowed, tiny_hf, tmp_path, run_uwm):
    refused(run_uwm("push", tiny_hf, "acme/safe"), 2, "tiny-hf: uwm did not write this folder (no uwm.json)")
    refused(run_uwm("push", tmp_path / "nope", "acme/safe"), 2, "nope: uwm did not write this folder")
    assert allowed.requests == []


@pytest.mark.parametrize("manifest", ["{", "[]", "{}", '{"output_sha256": {}}'])
def test_a_manifest_that_promises_nothing(manifest, allowed, folder, run_uwm):
    (folder / "uwm.json").write_text(manifest)
    refused(run_uwm("push", folder, "acme/safe"), 2, "uwm.json: ")
    assert allowed.requests == []


def test_weights_that_changed(allowed, folder, run_uwm):
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused(run_uwm("push", folder, "acme/safe"), 1, "model.safetensors: not what uwm wrote (its sha256 is not the one")
    weights.unlink()
    refused(run_uwm("push", folder, "acme/safe"), 1, "model.safetensors, which uwm.json promises, is missing")
    assert allowed.requests == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ("tags: [a\n", "while parsing"),
        ("tags: 5\n", "tags: 5"),
        ("tags: [1]\n", "tags: [1]"),
        ("base_model: /home/me/clip\n", "base_model: '/home/me/clip'"),
        ("base_model: a/b/c\n", "base_model: 'a/b/c'"),
        ("pipeline_tag: [x]\n", "pipeline_tag: ['x']"),
        ("- a list\n", "metadata"),
        ("model-index:\n- name: x\n  results: 5\n", "model"),
    ],
)
def test_a_card_that_the_hub_would_refuse(metadata, words, allowed, folder, run_uwm):
    (folder / "README.md").write_text(f"---\n{metadata}---\n# Card\n")
    refused(run_uwm("push", folder, "acme/safe"), 2, "README.md: the Hub would refuse its metadata", words)
    assert allowed.requests == []


def test_a_link_in_the_folder(allowed, folder, run_uwm):
    (folder / "more.txt").symlink_to("/etc/hostname")
    refused(run_uwm("push", folder, "acme/safe"), 2, "more.txt: a link or no regular file")
    assert allowed.requests == []


@pytest.mark.parametrize("name", ["safe", "a/b/c", "acme/", "/safe", "../safe"])
def test_a_wrong_name(name, allowed, folder, run_uwm):
    refused(run_uwm("push", folder, name), 2, f"{name}: expected ORG/NAME")
    assert allowed.requests == []


def test_offline(allowed, folder, run_uwm, monkeypatch):
    refused(run_uwm("push", folder, "acme/safe", "--offline"), 2, "acme/safe: `uwm push` needs the network")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(run_uwm("push", folder, "acme/safe"), 2, "which --offline or HF_HUB_OFFLINE forbids")
    assert allowed.requests == []


def test_no_token(hub, folder, run_uwm):
    refused(run_uwm("push", folder, "acme/safe"), 2, "acme/safe: no token for the Hub; log in with `hf auth login` or")
    assert hub.requests == []


# ---------------------------------------------------------------- refused by the Hub


def test_a_wrong_token(hub, folder, run_uwm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(run_uwm("push", folder, "acme/safe"), 2, "acme/safe: the Hub does not accept the token")


def test_no_right_to_write(allowed, folder, run_uwm):
    refused(run_uwm("push", folder, "other/safe"), 2, "other/safe: the Hub refused with 403 (You don't have the rights")
    assert not allowed.repositories


def test_private_is_not_uploaded_to_a_public_repository(allowed, folder, run_uwm):
    allowed.add("acme/safe", {".gitattributes": b""})
    refused(run_uwm("push", folder, "acme/safe", "--private"), 2, "acme/safe: exists and is public, which --private")
    assert received(allowed, "acme/safe") == {}


def test_the_hub_is_down(allowed, folder, run_uwm, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    allowed.refuse = 503, "down for maintenance"
    refused(run_uwm("push", folder, "acme/safe"), 4, "acme/safe: the Hub answered 503; try again later")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(run_uwm("push", folder, "acme/safe"), 4, "acme/safe: the Hub could not be reached")


def test_a_card_that_only_the_hub_refuses(allowed, folder, run_uwm):
    allowed.complaints = ['"license" must be one of apache-2.0, mit']
    words = ("acme/safe: Invalid metadata in README.md. - ", "must be one of apache-2.0")
    refused(run_uwm("push", folder, "acme/safe"), 2, *words)
    assert received(allowed, "acme/safe") == {}


def test_what_the_hub_remarks_on_the_card(allowed, folder, run_uwm):
    allowed.remarks = ["empty or missing yaml metadata"]
    code, out, err = run_uwm("push", folder, "acme/safe")
    assert (code, out) == (0, f"{allowed.url}/acme/safe\n")
    assert err.startswith("uwm: warning: Warnings while validating metadata in README.md: - empty or missing")
    assert push(folder, "acme/safe").warnings[0] in err


def test_a_pull_request_leaves_the_main_branch(allowed, folder, run_uwm):
    allowed.add("acme/safe", {".gitattributes": b""})
    out = done(run_uwm("push", folder, "acme/safe", "--create-pr"))
    assert out == f"{allowed.url}/acme/safe/discussions/1\n"
    assert received(allowed, "acme/safe") == {}
    assert received(allowed, "acme/safe", "refs/pr/1") == content(folder)


def test_only_what_fits_the_patterns_is_uploaded(allowed, folder, run_uwm):
    patterns = ("--include", "*.json", "--include", "*.safetensors", "--exclude", "uwm_patch*")
    done(run_uwm("push", folder, "acme/safe", *patterns))
    found = received(allowed, "acme/safe").keys()
    assert {"uwm.json", "config.json", "model.safetensors"} <= found
    assert not {"uwm_patch.safetensors", "README.md", "report.html"} & found


def test_patterns_that_leave_nothing_are_refused(folder, run_uwm):
    refused(run_uwm("push", folder, "acme/safe", "--include", "x", "--dry-run"), 2, "leave no file to upload")
