"""Tiny random real models in both layouts, and tiny sets, made once a session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # what is shown of progress has tests of its own
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes with two threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from distributions import installed, plug_in  # noqa: F401
from fake_hub import running
from layouts_by_hand import to_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from terminal import ALL_OF_CALIB
from tiny_files import hf_folder

from uwm import cli

GOLDEN = Path(__file__).parent / "golden"
SHIPPED = Path(__file__).parents[1] / "calibration"
ARCH = "uwm-tiny"  # registered with open_clip below
WORDS = ("dog", "cat", "tree", "car", "cup", "knife", "bomb", "skull")


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Inputs and what the authors' program computed from them."""
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory) -> Path:
    """A Hugging Face CLIP folder with random weights, and the demo model's tokenizer and preprocessor."""
    return write_tiny_hf(tmp_path_factory.mktemp("models") / "tiny-hf")


def write_tiny_hf(folder: Path) -> Path:
    """The folder of `tiny_hf`."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    shutil.copytree(SHIPPED / "demo-clip", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED / "demo-clip"))
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    text = {
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"num_hidden_layers": 3, "image_size": 64, "patch_size": 16}
    config = CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=24)
    torch.manual_seed(7)
    model = CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_open_clip(tiny_hf, tmp_path_factory) -> Path:
    """The same weights as `tiny_hf`, as an open_clip folder; its architecture is registered as ARCH, with a tag."""
    import open_clip

    folder = tmp_path_factory.mktemp("models") / "tiny-open-clip"
    folder.mkdir()
    save_file(to_open_clip(load_file(tiny_hf / "model.safetensors")), folder / "open_clip_model.safetensors")
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16, "mlp_ratio": 2},
        "text_cfg": {
            "context_length": 32, "vocab_size": 1214, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2,
            "hf_tokenizer_name": "local", "tokenizer_kwargs": {"clean": "whitespace"},
        },
    }  # fmt: skip
    text = config["text_cfg"] | {"hf_tokenizer_name": str(tiny_hf)}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (tiny_hf / name).exists():
            shutil.copy(tiny_hf / name, folder / name)
    registered = tmp_path_factory.mktemp("configs") / f"{ARCH}.json"
    registered.write_text(json.dumps(config | {"text_cfg": text}))
    open_clip.add_model_config(registered)
    open_clip.pretrained._PRETRAINED[ARCH] = {"tiny": {}}  # weights that are prepared for as OpenAI's are
    return folder


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory) -> Path:
    """A native calibration set of 24 pairs: random pictures, captions of uneven length, splits calib and test."""
    return write_tiny_set(tmp_path_factory.mktemp("sets") / "tiny-set")


def write_tiny_set(folder: Path, pairs: int = 24, calib: int = 16) -> Path:
    """The folder of `tiny_set`, or a smaller one: the first `calib` pairs are of the split calib."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    lines = []
    for i in range(pairs):
        row = {"id": f"{i:04d}", "concept": ("weapons", "death")[i % 2], "split": "calib" if i < calib else "test"}
        for side in ("safe", "unsafe"):
            words = rng.choice(WORDS, size=rng.integers(1, 6))
            row[f"{side}_text"] = f"a picture of {' and '.join(words)} number {i}"
            row[f"{side}_image"] = f"images/{i:04d}_{side}.png"
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / row[f"{side}_image"])
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or fills the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def source(tmp_path):
    """A folder of Hugging Face weights of a few kilobytes, for everything that needs no model library."""
    return hf_folder(tmp_path / "in")


@pytest.fixture
def out(tmp_path):
    """Where a test may write."""
    return tmp_path / "out"


@pytest.fixture(scope="session")
def tiny_classes(tmp_path_factory) -> Path:
    """A zero-shot folder of 7 images in two classes."""
    folder = tmp_path_factory.mktemp("classes") / "zs"
    for number in range(7):
        place = folder / ("dog", "cat")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (30 * number, 0, 90)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def run_uwm(monkeypatch, capsys):
    """Run the program in this process as the terminal does: arguments -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of our own, which huggingface_hub in this process takes for the real one, with an empty cache."""
    from huggingface_hub import close_session, constants

    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its servers are not faked
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub
        close_session()


@pytest.fixture(scope="session")
def made(tiny_hf, tiny_set, tmp_path_factory):
    """An edited folder, and scores, patch and applied folder from the single steps with the same settings."""
    folder = tmp_path_factory.mktemp("made")
    for arguments in (
        ("edit", tiny_hf, "--calib", tiny_set, "-o", folder / "edited", *ALL_OF_CALIB),
        ("score", tiny_hf, "--calib", tiny_set, "-o", folder / "scores.safetensors"),
        ("select", folder / "scores.safetensors", "-o", folder / "patch.safetensors"),
        ("apply", tiny_hf, folder / "patch.safetensors", "-o", folder / "applied"),
    ):
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        assert not stop.value.code
    return folder


@pytest.fixture
def register_architecture(tmp_path):
    """Put an architecture into open_clip's registry for one test: `register_architecture(name, config)`."""
    import open_clip

    registered = []

    def register(name: str, config: dict) -> None:
        registered.append(tmp_path / f"{name}.json")
        registered[-1].write_text(json.dumps(config))
        open_clip.add_model_config(registered[-1])

    yield register
    for path in registered:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
        open_clip.factory._MODEL_CONFIGS.pop(path.stem)
