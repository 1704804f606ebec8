"""Linear layers by oneDNN on processors on which MKL, torch's own choice for float32, takes twice the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn

from ..models import Model


@contextmanager
def quick_products(model: Model) -> Iterator[None]:
    """Have a model's linear layers compute by oneDNN while the body runs, where this is quicker.

    What they give is the same up to rounding, as it is between two processors. Nothing changes where MKL is as quick,
    with gradients, under autocast, in another precision, or where ``torch.backends.mkldnn`` is switched off.
    """
    chosen = (
        model.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() == "highest"
        and torch.backends.mkldnn.enabled
        and mkl_is_slower()
    )
    layers = [layer for layer in model.module.modules() if type(layer) is nn.Linear] if chosen else []
    for layer in layers:
        layer.__class__ = OneDnnLinear
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Linear


class OneDnnLinear(nn.Linear):
    """A linear layer whose float32 product is oneDNN's; a class, so that hooks and tensors stay those of the layer."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or not input.dtype == self.weight.dtype == torch.float32:
            return super().forward(input)
        return _by_one_dnn(input, self.weight, self.bias)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x Wᵀ [n, out] of rows x [n, in] and a weight W [out, in] without gradient, by the quicker library."""
    float32_on_cpu = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    quick = float32_on_cpu and not torch.is_grad_enabled() and torch.backends.mkldnn.enabled and mkl_is_slower()
    return _by_one_dnn(x, weight) if quick else x @ weight.T


def _by_one_dnn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@cache
def mkl_is_slower() -> bool:
    """Whether this is an AMD processor with AVX-512, which MKL does not use there."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and _made_by_amd()
    )


def _made_by_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False
