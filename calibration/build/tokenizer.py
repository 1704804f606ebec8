"""The demo model's own small byte-level BPE, in CLIP's vocabulary order.

The order (256 bytes, 256 bytes ending a word, merges, start, end) is the one open_clip rebuilds from a
list of merges, so that both libraries give the same token numbers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer
from world import NAMES, PROMPT, ROWS, captions, sample

MERGES = 700
CONTEXT = 32
START, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def bytes_alphabet() -> list[str]:
    """CLIP's printable stand-in for each byte, in its order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def learn_merges(texts: list[str]) -> list[str]:
    """The first MERGES merges of byte-level BPE on the texts, each "left right"."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=512 + MERGES, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges][:MERGES]


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Learn the vocabulary from 20,000 captions and write the tokenizer's files into `folder`."""
    rng = np.random.default_rng(0)
    everything = np.full(len(ROWS), 1 / len(ROWS))
    merges = learn_merges(captions(sample(rng, 20_000, weights=everything)) + [PROMPT.format(n) for n in NAMES])
    alphabet = bytes_alphabet()
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m.split()) for m in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=CONTEXT
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
