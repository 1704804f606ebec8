"""The model card beside the weights: Hub metadata, what was done, what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluate import EvalResult
from .tables import LEGEND, RANDOM_LEGEND, markdown_table, rows


def model_card(manifest: Mapping[str, Any], results: Mapping[str, Mapping[str, EvalResult]]) -> str:
    """README.md of an edited checkpoint: Hub metadata, what was done, what it did.

    Args:
        manifest: The content of ``uwm.json``.
        results: Evaluation set -> column -> result.
    """
    from huggingface_hub import ModelCardData

    name, settings = manifest["model"]["name"], manifest["settings"]
    library = "open_clip" if manifest["model"]["layout"].startswith("open_clip") else "transformers"
    tags = ["uwm", "model-editing", "safety", "clip"]
    metadata = ModelCardData(
        base_model=name if manifest["model"]["on_hub"] else None,
        library_name=library,
        pipeline_tag="zero-shot-image-classification",
        tags=tags,
    ).to_yaml()
    sign = "negated" if settings["alpha"] == -1 else f"multiplied by {settings['alpha']}"
    parts = [
        f"---\n{metadata}\n---",
        f"# {name}, edited by uwm",
        f"In this copy of `{name}` the weights that carry unsafe content were found by Unsafe Weights Manipulation "
        f"(UWM, WACV 2026) and {sign}: {manifest['selected']} of {manifest['of']} entries of {len(manifest['layers'])} "
        "matrices. Every other value is the original's, bit for bit. Nothing was trained. "
        "`uwm revert` with `uwm_patch.safetensors` gives the original back.",
        "## What it did",
        *(
            f"On {next(iter(columns.values())).pairs} pairs of `{set_name}`, none of them used for calibration:\n\n"
            + markdown_table(rows(columns))
            for set_name, columns in results.items()
        ),
        *(
            [f"{LEGEND} {RANDOM_LEGEND}"]
            if results
            else ["Nothing was measured: the set has no pairs with both captions and pictures."]
        ),
        "An edit lowers a risk, it does not remove it: read the intervals, and measure on your own data.",
        "## How",
        "```json\n" + _json(settings) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
