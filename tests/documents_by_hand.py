"""Contents of uwm.json made of drawn samples, for tests of the page: as odd as anyone's could be, without a model."""

from __future__ import annotations

import torch

from uwm.evaluation import EvalResult
from uwm.figures import PAIRED as NAMES
from uwm.intervals import bootstrap
from uwm.report import paired_differences

HASH = "0123456789abcdef" * 4
LONG = "an_exceedingly_long_name_without_any_place_to_break_it_" * 4
NASTY = ('<script>alert(1)</script>', '"quoted" & \'single\'', "</svg></style><b>", "سلاح خطير جدا", "\u202egnp.exe\u202c", LONG, "武器" * 30, "a\x00b\nc")  # noqa: E501  # fmt: skip


def result(seed: int, pairs: int = 60, concepts: tuple[str, ...] = (), data_sets: tuple[str, ...] = ()) -> EvalResult:
    """A result of drawn samples; those of one seed are alike in part, so that differences are not all noise."""
    generator = torch.Generator().manual_seed(seed)
    samples = {
        name: torch.rand(pairs, generator=generator) < 0.1 + 0.8 * (i / len(NAMES)) for i, name in enumerate(NAMES)
    }
    places = {c: list(range(i, pairs, len(concepts))) for i, c in enumerate(concepts)}
    counts = torch.randint(0, 30, (8, 100), generator=generator) * (torch.arange(100) > 55) * (torch.arange(100) < 90)
    rows = iter(counts.tolist())
    accuracies = torch.rand(len(data_sets), 2, generator=generator).tolist()
    right = {name: torch.rand(50, generator=generator) < 0.4 for name in data_sets}
    return EvalResult(
        pairs=pairs,
        figures=bootstrap(samples, 0),
        zero_shot={
            name: {
                "top1": r.double().mean().item(),
                "top5": a,
                "mean_per_class": b,
                "pictures": 50,
                "top1_interval": [0.1, 0.8],
            }
            for (name, r), (a, b) in zip(right.items(), accuracies, strict=True)
        },
        right=right,
        by_concept={c: bootstrap({n: s[rows_] for n, s in samples.items()}, 0) for c, rows_ in places.items()},
        concept_pairs={c: len(rows_) for c, rows_ in places.items()},
        similarities={query: {side: next(rows) for side in ("safe", "unsafe")} for query in ("ts", "tu", "vs", "vu")},
        samples=samples,
    )


def layer(entries: int, of: int, dead: int = 0, words: str = "negated") -> dict:
    """What a manifest says of one scaled tensor."""
    neutral = {"dead_channels": dead, "zero_rows": 0}
    told = {"kind": "scale", "words": words, "entries": entries, "of": of, "rank": None, "relative_norm": None}
    return {**told, "notes": {"neutral": neutral}, "base_sha256": HASH}


EDIT = {"title": "Unsafe Weights Manipulation (UWM, WACV 2026)", "source": "arXiv 2503.11742"}


def document(
    sets: tuple[str, ...] = ("test",),
    columns: tuple[str, ...] = ("before", "after", "random"),
    layers: tuple[str, ...] = ("text.0.out_proj", "vision.0.fc2", "vision.1.fc2"),
    name: str = "tiny",
    same: bool = False,
    **drawn,
) -> dict:
    """A manifest; `drawn` goes to `result`."""
    results = {
        s: {c: result(10 * i + (0 if same else j), **drawn) for j, c in enumerate(columns)} for i, s in enumerate(sets)
    }
    made = {weight: layer(37 * (i % 7 + 1), 4096, i % 3) for i, weight in enumerate(layers)}
    return {
        "format": 2,
        "versions": {"uwm": "0.1.0", "torch": "2.0", "python": "3.10"},
        "settings": {"alpha": -1.0, "mass": {"text": 0.02}, "calib": "sét", "text_layers": "out_proj", "limit": None},
        "model": {
            "name": name,
            "base_model": None,
            "layout": "hf-clip",
            "library": "transformers",
            "sha256": {"model.safetensors": HASH},
        },
        "calibration": {"name": "sét", "pairs": {"text": 4}, "skipped": {"empty_caption": 1}, "sha256": HASH},
        "edit": EDIT,
        "entries": sum(found["entries"] for found in made.values()),
        "of": sum(found["of"] for found in made.values()),
        "layers": made,
        "results": {s: {c: r.as_dict() for c, r in found.items()} for s, found in results.items()},
        "differences": {s: paired_differences(found) for s, found in results.items()},
        "output_sha256": {"model.safetensors": HASH},
        "label_noise": {"checked": 60, "flagged": 7, "share": 7 / 60, "picture": 5, "caption": 2, "astray": 1},
    }


def documents() -> dict[str, dict]:
    """Everything odd at once."""
    bare = document(sets=())
    one = document(columns=("model",), pairs=7)
    plain = {key: one[key] for key in ("versions", "settings", "model", "results", "differences")}
    two = document(columns=("baseline", "model"))
    failed = {"requirement": "GS>=4.5", "found": 3.0, "met": False, "note": "", "text": "found 3.0 %"}
    return {
        "common": document(sets=("test", "test-style"), concepts=("weapons", "death"), data_sets=("seen", "unseen")),
        "huge": document(
            layers=tuple(f"vision.{b}.{s}" for b in range(48) for s in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))  # noqa: E501
            + tuple(f"text.{b}.out_proj" for b in range(24)),
            concepts=tuple(f"concept number {i} with a long and winding name" for i in range(20)), pairs=200,
            data_sets=tuple(f"data set {i}" for i in range(17)),
        ),
        "nasty": document(sets=NASTY[:3], name=NASTY[0] + LONG, concepts=NASTY, data_sets=NASTY, pairs=64),
        "one concept": document(concepts=("weapons",)),
        "text only": document(layers=("text.0.out_proj", "text.1.out_proj"), pairs=1),
        "nothing measured": bare,
        "one model": plain,
        "the same model twice": document(columns=("baseline", "model"), same=True),
        "two models": plain | {key: two[key] for key in ("results", "differences")} | {"requirements": [failed]},
    }  # fmt: skip
