"""`uwm finetune` from the command line: a checkpoint like any other, in the input's layout, and its story."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import open_clip
import pytest
import torch
from openai_archives import openai_state, save_archive
from safetensors.torch import load_file
from terminal import ALL_OF_CALIB
from transformers import CLIPModel

import uwm
from uwm.finetuning import FinetuneRecipe, finetune, state_file
from uwm.models.student import places

QUICK = ("--epochs", 2, "--train-batch", 8, "--rank", 4, "--learning-rate", 0.01, "-q")


@pytest.fixture
def tuned(run_uwm, tiny_set, tmp_path):
    """Runs `uwm finetune`, asserts that it worked, and gives the folder and the manifest."""

    def tune(model, *flags, method="safe-clip", out="out"):
        where = (*ALL_OF_CALIB, "--calib", tiny_set, "-o", tmp_path / out, "--json")
        code, text, err = run_uwm("finetune", model, "--method", method, *where, *QUICK, *flags)
        assert code == 0, err
        return tmp_path / out, json.loads(text)

    return tune


@pytest.mark.parametrize("method", ["safe-clip", "safer-clip", "safer-clip-fixed", "shield-clip"])
def test_every_method_gives_a_folder_that_transformers_loads(method, tuned, tiny_hf):
    out, manifest = tuned(tiny_hf, method=method)
    theirs, report = CLIPModel.from_pretrained(str(out), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    original, written = load_file(tiny_hf / "model.safetensors"), load_file(out / "model.safetensors")
    assert {k: (t.dtype, t.shape) for k, t in written.items()} == {k: (t.dtype, t.shape) for k, t in original.items()}
    differ = {key.rsplit(".", 2)[-2] for key in written if not torch.equal(written[key], original[key])}
    assert differ == {"k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"}
    assert manifest["training"]["backend"] == method
    assert manifest["training"]["settings"]["rank"] == 4
    assert [e["epoch"] for e in manifest["training"]["history"]] == [1, 2]
    model = uwm.load(out)
    ids, mask = model.tokenize(["a dog", "a cat and a knife"])
    with torch.no_grad():
        own = theirs.eval().get_text_features(input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(getattr(own, "pooler_output", own), model.encode_text(ids, mask))


def test_the_same_training_whatever_the_layout(tuned, tiny_hf, tiny_open_clip):
    """open_clip's weights are trained as Hugging Face's are, and come back as open_clip's."""
    (ours, _), (theirs, _) = (
        tuned(model, "--dropout", 0, out=f"out-{n}") for n, model in enumerate((tiny_hf, tiny_open_clip))
    )
    module = open_clip.create_model(f"local-dir:{theirs}").eval()  # strict
    first, second = uwm.load(ours), uwm.load(theirs)
    where = places(second)
    for name, place in places(first).items():
        one, other = (
            place.of(first.checkpoint.read(place.key)),
            where[name].of(second.checkpoint.read(where[name].key)),
        )
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(module.encode_image(pixels), second.encode_image(pixels))


def test_an_openai_release_becomes_an_open_clip_folder(tuned, tmp_path):
    state = openai_state()
    out, _ = tuned(save_archive(tmp_path / "ViT-tiny.pt", state))
    open_clip.create_model(f"local-dir:{out}")  # strict
    written = load_file(out / "open_clip_model.safetensors")
    assert all(tensor.dtype == state[key].dtype for key, tensor in written.items() if key in state)
    changed = {key for key in written if key in state and not torch.equal(written[key], state[key])}
    assert "visual.conv1.weight" in changed
    assert "token_embedding.weight" not in changed
    fused = "visual.transformer.resblocks.0.attn.in_proj_weight"
    same = (written[fused] == state[fused]).all(1)
    assert same[:64].all()  # the rows of q, which no method adapts
    assert not same[64:].all()


def test_the_page_and_the_card_tell_how_it_was_trained(tuned, tiny_hf):
    out, manifest = tuned(tiny_hf, "--stop-on", "recall")
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert "tiny-hf, fine-tuned by uwm" in page
    assert "Loss while training" in page
    assert 'class="curve"' in page
    assert "the best by the sum of six R@1 on the validation pairs" in page
    assert "fine-tuned to be safer by Safe-CLIP" in card
    assert "Nothing was trained" not in card
    assert "- lora" in card
    assert set(manifest["results"]["test"]) == {"before", "after"}


def test_a_dry_run_writes_nothing(run_uwm, tiny_hf, tiny_set, tmp_path):
    where = (*ALL_OF_CALIB, "--calib", tiny_set, "-o", tmp_path / "out", "--dry-run")
    code, text, err = run_uwm("finetune", tiny_hf, "--method", "safe-clip", *where, *QUICK)
    assert code == 0, err
    assert "nothing written" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("flags", "words"), [
    (("--method", "x"), "--method 'x': expected one of safe-clip, safer-clip, safer-clip-fixed, shield-clip"),
    (("--method", "safe-clip", "--validation", 0), "--validation 0.0: expected a share between 0 and 1"),
    (("--method", "safe-clip", "--dtype", "float16"), "--dtype 'float16': fine-tuning computes in float32 or bfloat16"),
    (("--method", "safe-clip", "--targets", "knee"), "--targets 'knee': no layer has this name"),
    (("--method", "safe-clip", "--limit", 2), "2 pairs with captions and images; fine-tuning needs at least 3"),
])  # fmt: skip
def test_mistakes_are_one_line_with_exit_code_2(flags, words, run_uwm, tiny_hf, tiny_set, tmp_path):
    where = (*ALL_OF_CALIB, "--calib", tiny_set, "-o", tmp_path / "out")
    code, _, err = run_uwm("finetune", tiny_hf, *where, *flags)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_killed_for_real_and_started_again(tiny_hf, tiny_set, tmp_path):
    """SIGKILL after the first epoch's state is on disk: the second start ends with the bytes of a run left in peace."""
    recipe = FinetuneRecipe(
        str(tiny_hf), str(tiny_set), split="calib", eval_splits=("test",), method="safe-clip", epochs=40, train_batch=4
    )
    whole = finetune(recipe, tmp_path / "whole")
    assert not state_file(tmp_path / "whole").exists()
    state = state_file(tmp_path / "killed")
    code = (
        "from pathlib import Path; from uwm.finetuning import FinetuneRecipe, finetune\n"
        f"finetune(FinetuneRecipe({recipe.model!r}, {recipe.calib!r}, split='calib', eval_splits=('test',), "
        f"method='safe-clip', epochs=40, train_batch=4), Path({str(tmp_path / 'killed')!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"HF_HUB_OFFLINE": "1"})
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (tmp_path / "killed").exists()
    again = finetune(recipe, tmp_path / "killed")
    assert again.trained.resumed_from >= 1
    assert not state.exists()
    assert again.manifest["output_sha256"] == whole.manifest["output_sha256"]
    assert again.manifest["training"]["history"] == whole.manifest["training"]["history"]
