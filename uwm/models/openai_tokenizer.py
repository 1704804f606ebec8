"""OpenAI's tokenizer as the files that transformers reads."""

from __future__ import annotations

import gzip
from pathlib import Path

from ..records import to_json
from .sizes import OPENAI_VOCABULARY


def write_openai_tokenizer(folder: Path, context_length: int) -> None:
    """OpenAI's byte-pair vocabulary, as open_clip carries it, in the files that Hugging Face reads."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    vocabulary = SimpleTokenizer().encoder
    start, end = "<|startoftext|>", "<|endoftext|>"
    renamed = {{"<start_of_text>": start, "<end_of_text>": end}.get(w, w): n for w, n in vocabulary.items()}
    with gzip.open(default_bpe()) as stream:
        merges = stream.read().decode("utf-8").split("\n")[1 : OPENAI_VOCABULARY - 2 * 256 - 1]
    (folder / "vocab.json").write_text(to_json(renamed) + "\n", "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, **names}
    (folder / "tokenizer_config.json").write_text(to_json(about) + "\n", "utf-8")
