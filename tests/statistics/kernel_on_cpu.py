"""Compares the kernel for CUDA, which Triton's interpreter runs on the CPU, with the form for the CPU."""

from __future__ import annotations

from itertools import product

import torch

from uwm.statistics.channel_norms import token_statistics
from uwm.statistics.token_kernel import norm_and_std


def main() -> None:
    """Raises AssertionError where they differ."""
    torch.manual_seed(0)
    for dtype, tokens, masked in product((torch.float32, torch.bfloat16, torch.float16), (1, 5, 70), (False, True)):
        x = torch.randn(3, tokens, 100) + 2
        x[:, :, 5] += 3000
        x = x.to(dtype).transpose(0, 1).contiguous().transpose(0, 1)  # samples do not lie one after the other
        mask = (torch.rand(3, tokens) > 0.4).long() * torch.tensor([[1], [0], [1]]) if masked else None
        expected = token_statistics(x, mask)
        norm, std, counted = norm_and_std(x, mask)
        torch.testing.assert_close(norm, expected.norm.float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(std, expected.std.float(), rtol=1e-6, atol=0)
        assert counted.tolist() == expected.tokens.tolist()


if __name__ == "__main__":
    main()
