"""Compares the kernels for CUDA with float64 and with the forms for the CPU: `compare_kernels.py DEVICE`.

On the CPU Triton's interpreter runs them, if TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import sys
from itertools import product

import torch

from uwm.editing.entries import columns
from uwm.editing.entries.ratio_kernel import put_factors, put_ratios
from uwm.statistics import channel_norms
from uwm.statistics.token_kernel import norm_and_std

TOKENS = 1, 5, 70, 257


def slow(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and unbiased standard deviation in float64, sample by sample; 0 of no tokens, no spread of one."""
    rows = [sample if mask is None else sample[mask[row] > 0] for row, sample in enumerate(x)]
    std = [tokens.std(0) if len(tokens) > 1 else torch.zeros(x.shape[2]) for tokens in rows]
    return torch.stack([tokens.norm(dim=0) for tokens in rows]), torch.stack(std)


def main(device: str) -> None:
    """Raises AssertionError where they differ."""
    torch.manual_seed(0)
    for dtype, tokens, masked in product((torch.float32, torch.bfloat16, torch.float16), TOKENS, (False, True)):
        x = torch.randn(3, tokens, 100) + 2
        x[:, :, 5] += 3000
        x[:, 0, 7] += 500
        x = x.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # samples do not lie one after the other
        mask = (torch.rand(3, tokens) > 0.4).long() * torch.tensor([[1], [0], [1]]) if masked else None
        exact = slow(x.double(), mask)
        there = x.to(device)  # keeps the strides
        norm, std, counted = (part.cpu() for part in norm_and_std(there, None if mask is None else mask.to(device)))
        torch.testing.assert_close(norm, exact[0].float(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(std, exact[1].float(), rtol=1e-6, atol=1e-9)
        assert counted.tolist() == (mask.sum(1).tolist() if masked else [tokens] * 3)
    assert channel_norms.agrees(norm_and_std, device)
    assert all(columns.agree((put_ratios, put_factors), device, dtype) for dtype in (torch.float32, torch.float64))


if __name__ == "__main__":
    main(sys.argv[1])
