"""What a folder runs beside its weights: refused where uwm would compute something else, said where it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, read_json
from ..checkpoint.json_files import stated
from ..checkpoint.opening import PREFIXES, shared_prefix
from ..errors import BadInput
from .hugging_face import SINGLE, WHOLE

QUANTISED = ("quantization_config", "compression_config")  # transformers builds other layers where config has them


def refuse_unlike(checkpoint: Checkpoint) -> None:
    """Refuse shards named by a wrapper, and an encoder whose config makes transformers quantise it. Raises BadInput.

    A tower inside a bigger model, whose config may leave it out, is judged by its stored dtype alone.
    """
    if wrapper := shared_prefix(checkpoint.entries, PREFIXES):
        raise BadInput(
            f"{checkpoint.path}: all names in the shards begin with {wrapper}, a wrapper's, so no library loads them; "
            "save the model inside of it"
        )
    for tower in checkpoint.layout.towers:
        folder = checkpoint.folder_of(tower.name)
        config = _config(folder)
        for name in QUANTISED:
            if name in config and config.get("model_type") in (*WHOLE, *SINGLE):
                raise BadInput(
                    f"{folder}: config.json has a {name}, so transformers computes with quantised weights and uwm "
                    "would not; edit the float checkpoint, and quantise the result"
                )


def beside(checkpoint: Checkpoint) -> Iterator[str]:
    """What the folder holds that was not run, one line each, for `Model.notes`."""
    root = checkpoint.path
    if not root.is_dir():
        return
    for folder in dict.fromkeys(checkpoint.folder_of(tower.name) for tower in checkpoint.layout.towers):
        if _config(folder).get("auto_map"):
            yield f"{folder}: config.json names code of its own (auto_map), which uwm does not run"
    for place in sorted(path.name for path in checkpoint.side_files if path.name.startswith("pytorch_lora_weights")):
        yield f"{root}: {place} is copied as it is; it was not run, and fits the unedited weights"
    modules = read_json(root / "modules.json") if (root / "modules.json").is_file() else []
    others = [str(module.get("type")).rpartition(".")[2] for module in modules[1:] if isinstance(module, dict)]
    if later := [name for name in others if name != "Normalize"]:
        yield f"{root}: modules.json runs {', '.join(later)} after the CLIP; uwm edits and measures the CLIP alone"


def _config(folder: Path | None) -> dict[str, Any]:
    return {} if folder is None else stated(folder / "config.json")
