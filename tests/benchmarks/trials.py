"""A trial of a search against measuring the same edits on the whole model, and trials a minute.

    python tests/benchmarks/trials.py [TRIALS]

On the shipped model and set, whose 600 calibration pairs and halves of zero-shot data sets are measured.
`CrossValidation.measure` works at the pooled token, or runs the blocks from the first edited one on; the slow way
patches the model and embeds everything. Both are run in turn; printed are seconds, their ratio, and the greatest
difference of any figure.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import uwm
from uwm.editing.live import changed
from uwm.embedding import embed, items_of, quadruples
from uwm.knowledge import open_data_sets, zero_shot
from uwm.knowledge.halves import halves
from uwm.metrics import Retrieval, safeground_samples, with_means
from uwm.shipped_files import DEMO_MODEL, DEMO_SET
from uwm.tuning.choosing import Ground, SearchRequest
from uwm.tuning.cross_validation import Edits
from uwm.tuning.tune import NO_LOSS

EDITS: dict[str, dict[str, Any]] = {
    "repel": {},
    "redirect": {},
    "null-space": {},
    "uwm": {"vision_layers": "vision.[3-5].fc2", "text_layers": "text.[2-3].out_proj"},
}


def main() -> None:
    """Print a line an edit, and trials a minute of two editors."""
    model, pairs = uwm.load(DEMO_MODEL), uwm.read_calibration(DEMO_SET, split="calib")
    data = open_data_sets([str(DEMO_SET / "zero_shot" / name) for name in ("seen", "unseen")])
    choosing = {name: halves(found, 0)[0] for name, found in data.items()}
    ground = Ground.of(model, pairs, None, 0, data_sets=choosing)
    for name, given in EDITS.items():
        request = SearchRequest("2%", methods=(name,), given=given)
        search = ground.search(request, request.criteria(pairs, choosing, False))
        edits = search.candidates.edits(name, {**given})
        ground.validation.measure(edits, detailed=False)  # what is kept is kept from here on
        fast, quick = timed(lambda edits=edits: ground.validation.measure(edits, detailed=False).figures)
        kept = model.kept
        slow, plain = timed(lambda edits=edits: slowly(ground, edits))
        model.kept = kept
        apart = max(abs(quick[figure][0] - value) for figure, value in plain.items())
        print(f"{name:12} {fast:6.2f} s  whole model {slow:6.2f} s  ratio {slow / fast:6.1f}  difference {apart:.1e}")
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for name in ("repel", "null-space"):
        for words, asked in (("within 2 %", ("2%", True)), ("of the front", (NO_LOSS, False))):
            request = SearchRequest(*asked, methods=(name,))
            search = ground.search(request, request.criteria(pairs, choosing, False))
            search.run(10)
            seconds, found = timed(lambda search=search: search.run(10 + count))
            rate = f"{60 * count / seconds:.0f} a minute, {found.stopped} left early"
            print(f"{count} trials of {name} {words}: {rate}, {torch.get_num_threads()} threads")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    begun = time.perf_counter()
    found = run()
    return time.perf_counter() - begun, found


def slowly(ground: Ground, edits: Edits) -> dict[str, float]:
    """The same figures by patching the model and embedding everything, fold by fold."""
    whole, ground.model.kept = quadruples(ground.folds.together), None
    items, parts, first = items_of(whole), [], 0
    for fold, changes in zip(ground.folds.pairs, edits.folds, strict=True):
        rows = torch.arange(first, first + len(fold))
        first += len(fold)
        with changed(ground.model, changes):
            found = vars(embed(ground.model, whole))
        own = {name: side[rows] for name, side in found.items()}
        parts.append(with_means(safeground_samples(**own) | Retrieval(items, rows, (1,)).samples(found)))
    with changed(ground.model, edits.whole):
        for data in ground.data_sets.values():
            zero_shot(ground.model, data)
    return {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}


if __name__ == "__main__":
    main()
