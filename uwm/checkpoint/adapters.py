"""Adapters (LoRA and its kin) beside or among weights: what runs is both together, so they are refused until merged."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .json_files import stated

ADAPTER_CONFIG = "adapter_config.json"  # peft's, which transformers looks for in every folder that it loads
KEY = re.compile(r"(^|[._])(lora|lokr|hada|ia3|b?oft|vera)_|\.base_layer\.")  # in the names of an adapter's tensors


def refuse_adapter_beside(folder: Path) -> None:
    """Refuse a folder that transformers would load with an adapter on top of its weights. Raises BadInput."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    whole = stated(folder / "config.json")
    named = whole.get("architectures") if isinstance(whole.get("architectures"), list) else None
    kind = named[0] if named and re.fullmatch(r"[A-Za-z]\w*", str(named[0])) else "AutoModel"
    said = stated(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    base, adapter, first = _pastable(said, "BASE"), _pastable(str(folder), "ADAPTER"), ""
    if whole:  # of a folder with both, transformers loads both, and would save the adapter alone
        base, adapter = "plain", "adapter"
        first = f"cp -rL {shlex.quote(str(folder))} plain && mkdir adapter && mv plain/adapter_* adapter && "
    script = (
        f"from transformers import {kind}; from peft import PeftModel; "
        f"PeftModel.from_pretrained({kind}.from_pretrained({base!r}), {adapter!r})"
        ".merge_and_unload().save_pretrained('merged')"
    )
    raise BadInput(
        f"{folder}: holds an adapter ({ADAPTER_CONFIG}), which runs on top of the weights, while uwm edits weights "
        "alone; merge it first, then copy tokenizer and preprocessor to what this writes:",
        command=f'{first}python -c "{script}"',
    )


def _pastable(name: Any, instead: str) -> str:
    """A name without signs that mean something to a shell, to which the user may give it."""
    return str(name) if re.fullmatch(r"[\w./@:-]+", str(name or "")) else instead


def refuse_adapter_tensors(keys: Iterable[str], where: Path) -> None:
    """Refuse weights among which an adapter's tensors are, or an adapter alone. Raises BadInput."""
    keys = [*keys]
    if found := sorted(key for key in keys if KEY.search(key)):
        raise BadInput(
            f"{where}: {len(found)} of its {len(keys)} tensors are an adapter's that is not merged (such as "
            f"{found[0]!r}); load the model with its adapter, merge it (peft: merge_and_unload) and save that"
        )
