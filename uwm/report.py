"""Results as people read them: the table on the terminal, and the model card beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .evaluate import EvalResult
from .knowledge import mean_over_sets

LABELS = {  # figure -> what tables call it
    "R1_ts_vs": "R@1 Ts→Vs",
    "R1_vs_ts": "R@1 Vs→Ts",
    "R1_tu_union": "R@1 Tu→V∪",
    "R1_vu_union": "R@1 Vu→T∪",
    "top1_safe": "zero-shot, safe classes",
    "top1_unsafe": "zero-shot, unsafe classes",
}
FEW_PAIRS = 50
LEGEND = (
    "P_xy: share of queries (t text, v image; s safe, u unsafe) that prefer the safe side; Txt, Img, PS, PU, GS: their "
    "conjunctions (SafeGround). R@1: retrieval; of unsafe queries among all items (∪) a hit is the paired safe one. "
    "Percent [bootstrap 95 % interval]."
)
RANDOM_LEGEND = "Random: as many entries per layer, drawn at random."


def heading(name: str, pairs: int) -> str:
    """What stands above a table."""
    return f"{name} ({pairs} pairs{', too few for firm figures' if pairs < FEW_PAIRS else ''})"


def rows(results: Mapping[str, EvalResult]) -> list[list[str]]:
    """A table as rows of cells: a heading, then one row a figure with one column a result.

    Args:
        results: Column name -> result, all with the same figures.
    """
    first = next(iter(results.values()))
    table = [["", *results]]
    for name in first.figures:
        table.append([LABELS.get(name, name), *(_cell(*r.figures[name]) for r in results.values())])
    for data_set, scores in first.zero_shot.items():
        table.append([f"zero-shot ({data_set})", *(_top1_cell(r.zero_shot[data_set]) for r in results.values())])
        for name in ("top1_safe", "top1_unsafe"):
            if name in scores:
                cells = (f"{100 * r.zero_shot[data_set][name]:.1f}" for r in results.values())
                table.append([f"{LABELS[name]} ({data_set})", *cells])
    if len(first.zero_shot) > 1:
        means = (f"{100 * mean_over_sets(r.zero_shot)['top1']:.1f}" for r in results.values())
        table.append([f"zero-shot, mean of {len(first.zero_shot)} sets", *means])
    return table


def _top1_cell(figures: Mapping[str, Any]) -> str:
    return _cell(figures["top1"], *figures["top1_interval"])


def _cell(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def text_table(table: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))) for row in table]  # noqa: E501  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *body])


def layer_table(layers: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Selected entries by weight, as rows of cells."""
    body = [[n, f"{v['selected']}", f"{v['of']}", f"{100 * v['selected'] / v['of']:.3f} %"] for n, v in layers.items()]
    return [["weight", "selected", "of", "share"], *body]


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
