"""What decides the bits of a model's work beside its inputs and settings: libraries, code, processor, torch's settings.

Where one of these differs, sums and embeddings may differ in their last bits, so work of both is never mixed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..editing.editors import find_editors
from ..report import versions

OTHERS = ("pillow", "torchvision", "timm", "tokenizers", "sentencepiece", "scipy", "av")
VARIABLES = ("ATEN_", "CUBLAS", "CUDNN", "DNNL_", "MKL_", "NVIDIA_TF32", "ONEDNN_", "TORCH_ALLOW_TF32", "TORCH_CUDNN")
FLAGS: dict[str, Callable[[], Any]] = {
    "default dtype": torch.get_default_dtype,
    "float32 matmul": torch.get_float32_matmul_precision,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "flash attention": torch.backends.cuda.flash_sdp_enabled,
    "efficient attention": torch.backends.cuda.mem_efficient_sdp_enabled,
    "plain attention": torch.backends.cuda.math_sdp_enabled,
    "oneDNN": lambda: torch.backends.mkldnn.enabled,
    "cuDNN": lambda: [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")],
    "TF32 of convolutions": lambda: torch.backends.cudnn.allow_tf32,
}


def surroundings(settings: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """JSON that tells two runs of equal inputs and settings apart, where something else decides their bits.

    Args:
        settings: Of the job; ``method`` and ``beside`` name editors.
        device: On which the model computes.
    """
    editors = [name for name in (settings.get("method"), *settings.get("beside", ())) if name]
    one = torch.ones(1, 1, device=device)
    return {
        "versions": versions() | {name: _version(name) for name in OTHERS},
        "code": {package: _code(package) for package in ("uwm", *_packages_of(editors))},
        "torch": torch.__config__.show(),  # its build, with MKL, oneDNN, and what the processor is used for
        "flags": {name: str(read()) for name, read in FLAGS.items()},
        "autocast": str((one @ one).dtype),
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "processor": [platform.machine(), _processor(), _device_kind(device)],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages_of(names: Iterable[str]) -> list[str]:
    """The packages of editors, without ours."""
    found = find_editors()
    return sorted({type(found[name]).__module__.partition(".")[0] for name in names if name in found} - {"uwm"})


def _code(package: str) -> str:
    """sha256 over a package's Python files: a version may stay while code is worked on."""
    module, digest = sys.modules[package], hashlib.sha256()
    folder = Path(module.__file__ or "").parent
    files = sorted(folder.rglob("*.py")) if hasattr(module, "__path__") else [Path(module.__file__ or "")]
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _processor() -> str:
    """The name of the CPU, by which MKL and oneDNN choose how they compute."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())


def _device_kind(device: torch.device) -> list[Any]:
    """What kind of GPU; empty for a CPU."""
    if device.type != "cuda":
        return []
    found = torch.cuda.get_device_properties(device)
    return [found.name, found.major, found.minor, torch.version.cuda, torch.backends.cudnn.version()]
