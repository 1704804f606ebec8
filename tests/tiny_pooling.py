"""Stand-ins for a model: which token is pooled."""

from __future__ import annotations

import torch


class LastToken:
    """Pools the last token that the mask counts, as CLIP's text tower does."""

    def pooled(self, tower, mask, length):
        assert mask.shape[1] == length
        return (mask * torch.arange(length)).argmax(1)


class FirstToken:
    """Pools the class token."""

    def pooled(self, tower, mask, length):
        return torch.zeros(len(mask), dtype=torch.long)


class AllTokens:
    """Pools with attention over all tokens."""

    def pooled(self, tower, mask, length):
        return None
