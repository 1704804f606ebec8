"""Compares the kernels for CUDA, which Triton's interpreter runs on the CPU, with the forms for the CPU."""

from __future__ import annotations

from itertools import product

import torch

from uwm.editing.entries import columns
from uwm.editing.entries.ratio_kernel import put_ratios
from uwm.statistics import channel_norms
from uwm.statistics.token_kernel import norm_and_std

TOKENS = 1, 5, 70, 257


def slow(x: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and unbiased standard deviation in float64, sample by sample; 0 of no tokens, no spread of one."""
    rows = [sample if mask is None else sample[mask[row] > 0] for row, sample in enumerate(x)]
    std = [tokens.std(0) if len(tokens) > 1 else torch.zeros(x.shape[2]) for tokens in rows]
    return torch.stack([tokens.norm(dim=0) for tokens in rows]), torch.stack(std)


def main() -> None:
    """Raises AssertionError where they differ."""
    torch.manual_seed(0)
    for dtype, tokens, masked in product((torch.float32, torch.bfloat16, torch.float16), TOKENS, (False, True)):
        x = torch.randn(3, tokens, 100) + 2
        x[:, :, 5] += 3000
        x[:, 0, 7] += 500
        x = x.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # samples do not lie one after the other
        mask = (torch.rand(3, tokens) > 0.4).long() * torch.tensor([[1], [0], [1]]) if masked else None
        exact = slow(x.double(), mask)
        norm, std, counted = norm_and_std(x, mask)
        torch.testing.assert_close(norm, exact[0].float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(std, exact[1].float(), rtol=1e-6, atol=0)
        assert counted.tolist() == (mask.sum(1).tolist() if masked else [tokens] * 3)
    assert channel_norms.agrees(norm_and_std, "cpu")
    assert all(columns.agrees(put_ratios, "cpu", dtype) for dtype in (torch.float32, torch.float64))


if __name__ == "__main__":
    main()
