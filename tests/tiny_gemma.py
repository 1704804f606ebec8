"""A tokenizer of single letters, of the class that fixed-size SigLIP 2 folders name."""

from __future__ import annotations

import transformers

NAMES = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ▁.!"]


def gemma(kind=transformers.GemmaTokenizer, **options):
    ends = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True, "model_max_length": 24}
    return kind(vocab={name: number for number, name in enumerate(NAMES)}, merges=[], **ends | options)
