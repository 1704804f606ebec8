"""The model card beside the weights: Hub metadata, what was done, what it did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..escaping import clean, code, json_text, markdown
from ..evaluation import EvalResult
from ..figures import SAFEGROUND, label
from ..manifest import Manifest
from ..text_tables import markdown_table
from .base_card import BaseCard
from .budget import budget_lines
from .findings import findings, roles
from .tables import LEGEND, RANDOM_LEGEND, edit_words, rows, shared_words
from .training import trained_words
from .verdict import half_lines

if TYPE_CHECKING:
    from huggingface_hub import EvalResult as HubResult

TASK = "zero-shot-image-classification"
TAGS = {"edited": "model-editing", "fine-tuned": "lora"}  # what was done -> its tag
DIGITS = 4
NO_CARD = BaseCard()


def model_card(manifest: Manifest, results: Mapping[str, Mapping[str, EvalResult]], base: BaseCard = NO_CARD) -> str:
    """README.md of an edited checkpoint: Hub metadata, what was done, what it did.

    Args:
        manifest: The content of ``uwm.json``.
        results: Evaluation set -> column -> result.
        base: The card of the model that was edited, whose licence and text are kept below.
    """
    done, about = _opening(manifest)
    parts = [
        f"---\n{_metadata(manifest, results, done, base)}\n---",
        f"# {markdown(manifest['model']['name'])}, {done} by uwm",
        about,
        *(f"**{markdown(line)}**" for line in half_lines(manifest)),
        "## What it did",
        *_judgements(manifest),
        *map(markdown, budget_lines(manifest.get("budget"))),
        *(_measured(set_name, columns, shared_words(manifest, set_name)) for set_name, columns in results.items()),
        *(
            [LEGEND if done == "fine-tuned" else f"{LEGEND} {RANDOM_LEGEND}"]
            if results
            else ["Nothing was measured: the set has no pairs with both captions and images."]
        ),
        "This lowers a risk, it does not remove it: read the intervals, measure on your own data. `report.html`, "
        "beside this card, shows it with charts, by concept and by layer; download it and open it in a browser.",
        "## How",
        "```json\n"
        + json_text(json.dumps(_settings(manifest), indent=2, sort_keys=True, ensure_ascii=False))
        + "\n```",
        *_kept(base),
    ]
    return "\n\n".join(parts) + "\n"


def _kept(base: BaseCard) -> Iterator[str]:
    """The base model's own text as it is: what it was made for, and its limits of use."""
    if base.text:
        yield "## The card of the base model"
        yield "What follows is the base model's own card, unchanged. Its figures are of the unedited weights."
        yield "---"
        yield base.text


def _opening(manifest: Manifest) -> tuple[str, str]:
    """What was done in a word, and in a paragraph."""
    name = code(manifest["model"]["name"])
    if "training" in manifest:
        return "fine-tuned", f"This copy of {name} was fine-tuned to be safer {trained_words(manifest)}"
    return "edited", (
        f"This copy of {name} was edited to be safer by {manifest['edit']['title']}: {edit_words(manifest)}. Every "
        "other value is the original's, bit for bit. Nothing was trained. `uwm revert` with `uwm_patch.safetensors` "
        "gives the original back."
    )


def _settings(manifest: Manifest) -> dict[str, Any]:
    return manifest["settings"] | (manifest["training"]["settings"] if "training" in manifest else {})


def _judgements(manifest: Manifest) -> Iterator[str]:
    for set_name, differences in manifest.get("differences", {}).items():
        judged = findings(manifest["results"][set_name], differences)
        yield f"**On {code(set_name)}: {judged.verdict}** {markdown(' '.join(judged.sentences))}"


def _measured(set_name: str, columns: Mapping[str, EvalResult], shared: str) -> str:
    pairs = next(iter(columns.values())).pairs
    about = f"On {pairs} pairs of {code(set_name)}, none of them used for calibration{shared and f'; {shared}'}"
    return f"{about}:\n\n{markdown_table(rows(columns))}"


# ---------------------------------------------------------------- metadata


def _metadata(manifest: Manifest, results: Mapping[str, Mapping[str, EvalResult]], done: str, base: BaseCard) -> str:
    """The card's YAML as the Hub reads it, with the edited model's figures as a model-index."""
    from huggingface_hub import ModelCardData

    model = manifest["model"]
    name = clean(model["name"])
    figures = [figure for set_name, columns in results.items() for figure in _figures(clean(set_name), columns)]
    return ModelCardData(
        base_model=clean(model["base_model"]) if model["base_model"] else base.base_model,
        library_name=model["library"],
        pipeline_tag=None if model["layout"].endswith(")") else TASK,  # of one tower: inside LLaVA, Stable Diffusion, …
        tags=[*dict.fromkeys(["uwm", TAGS[done], "safety", "clip", *base.tags])],
        **base.metadata,
        metrics=sorted({figure.metric_type for figure in figures}) or None,
        model_name=f"{name}, {done} by uwm" if figures else None,
        eval_results=figures or None,
    ).to_yaml()


def _figures(set_name: str, columns: Mapping[str, EvalResult]) -> Iterator[HubResult]:
    """SafeGround of the judged column, and its zero-shot accuracy by data set, as fractions."""
    from huggingface_hub import EvalResult as HubResult

    result = columns[roles(list(columns))[1]]
    for name in SAFEGROUND:
        if name in result.figures:
            yield HubResult(
                task_type=TASK,
                dataset_type=_identifier(set_name),
                dataset_name=set_name,
                metric_type=f"safeground_{name.lower()}",
                metric_name=f"SafeGround {label(name)}",
                metric_value=round(result.figures[name][0], DIGITS),
            )
    for data_set, figures in result.zero_shot.items():
        yield HubResult(
            task_type=TASK,
            dataset_type=_identifier(clean(data_set)),
            dataset_name=clean(data_set),
            metric_type="accuracy",
            metric_name="zero-shot top-1",
            metric_value=round(figures["top1"], DIGITS),
        )


def _identifier(name: str) -> str:
    """A name in the form of the Hub's data set names."""
    return re.sub(r"[^\w.-]+", "-", name.lower()).strip("-.") or "pairs"
