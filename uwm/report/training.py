"""The part of the page that shows how a fine-tuned model was trained."""

from __future__ import annotations

from collections.abc import Sequence

from ..manifest import Manifest
from .charts import curves
from .pages import Drawing, Part, Table

VALIDATED = {"loss": "loss on the validation pairs", "recall": "sum of six R@1 on the validation pairs"}


def trained(document: Manifest) -> Part | None:
    """What was trained with which loss, its curve and the validation's by epoch; None where nothing was trained."""
    if "training" not in document:
        return None
    training = document["training"]
    settings, history = training["settings"], training["history"]
    about = (
        f"LoRA of rank {settings['rank']} on {', '.join(settings['targets'])}: {training['parameters']} trained "
        f"values, merged into the weights. Loss and settings: {training['source']}. {len(history)} of at most "
        f"{settings['epochs']} epochs of {history[-1]['pairs']} pairs; kept is epoch {training['best_epoch']}, the "
        f"best by the {VALIDATED[settings['stop_on']]} ({training['validation_pairs']} pairs)."
    )
    validation = [entry["validation"] for entry in history]
    charts = [_curve("Loss while training", [entry["loss"] for entry in history], training["best_epoch"])]
    charts.append(_curve(VALIDATED[settings["stop_on"]].capitalize(), validation, training["best_epoch"]))
    names = sorted(history[0]["terms"])
    rows = [
        (e["epoch"], e["pairs"], *(f"{v:.4f}" for v in (e["loss"], e["validation"], *(e["terms"][n] for n in names))))
        for e in history
    ]
    head = ("epoch", "pairs", "loss", "validation", *names)
    table = Table("Training by epoch", head, rows, "numbers")
    return Part("training", "How it was trained", {"about": about, "charts": charts, "table": table})


def _curve(title: str, values: Sequence[float], best: int) -> Drawing:
    first, last, kept = (f"{values[number]:.4f}" for number in (0, -1, best - 1))
    words = f"From {first} in the first epoch to {last} in the last; {kept} in the kept one."
    return Drawing(curves(title, words, values, best), title)


def trained_words(manifest: Manifest) -> str:
    """What the model card says of the training, in one paragraph of Markdown."""
    training = manifest["training"]
    return (
        f"by {training['source']}, with LoRA of rank {training['settings']['rank']} ({training['parameters']} trained "
        f"values, {len(training['history'])} epochs, number {training['best_epoch']} the best by validation), merged "
        "into the weights. Tensors that were not adapted are the original's, bit for bit."
    )
