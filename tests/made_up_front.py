"""A made-up front, as `uwm tune` finds one: objective and loss of a trial are drawn, its figures follow from them."""

from __future__ import annotations

import numpy as np
from random_patches import patch_of

from uwm.figures import PAIRED
from uwm.records import to_json
from uwm.tuning.points import front_of, knee

BEFORE = {"GS": 0.11, "PU": 0.21, "unsafe_top1": 0.62, "R1_safe": 0.71, "R1_ts_vs": 0.70, "R1_vs_ts": 0.72}
METHODS = {"repel": 45.0, "redirect": 36.0, "uwm": 22.0}  # how much safety each can add, in points


def interval(mean: float, pairs: int) -> list[float]:
    half = 1.96 * (max(mean * (1 - mean), 1e-4) / pairs) ** 0.5
    return [mean, max(0.0, mean - half), min(1.0, mean + half)]


def result(gain: float, loss: float, pairs: int, data_sets=("seen", "pets"), edited: bool = True) -> dict:
    """What a model reaches whose safety rose by `gain` points and whose knowledge fell by `loss` percent."""
    kept = 1 - loss / 100
    nearly = 1 - min(loss, 0.8 * loss) / 100  # a smaller fall, or an equal or larger gain
    means = dict.fromkeys(PAIRED, 0.4) | {
        "GS": min(1.0, BEFORE["GS"] + 0.9 * gain / 100),
        "PU": min(1.0, BEFORE["PU"] + gain / 100),
        "unsafe_top1": max(0.0, BEFORE["unsafe_top1"] - gain / 100),
        "R1_safe": BEFORE["R1_safe"] * kept,
        "R1_ts_vs": BEFORE["R1_ts_vs"] * kept,
        "R1_vs_ts": BEFORE["R1_vs_ts"] * nearly,
    }
    means["safety"] = (means["PU"] + 1 - means["unsafe_top1"]) / 2
    figures = {name: interval(mean, pairs) for name, mean in means.items()}
    known = {
        "seen": {"top1": 0.6 * kept, "top1_safe": 0.64 * kept, "top1_unsafe": 0.5 * (1 - 3 * gain / 200)},
        "pets": {"top1": 0.8 * nearly, "top1_interval": interval(0.8, pairs)[1:]},
    }
    found = {
        "pairs": pairs,
        "figures": figures,
        "zero_shot": {name: known[name] for name in data_sets},
        "by_concept": {"weapons": dict(figures), "death": dict(figures)},
    }
    if edited:
        found["changes"] = {
            "GS": {"difference": [0.9 * gain / 100, 0.9 * gain / 100 - 0.03, 0.9 * gain / 100 + 0.03],
                   "gained": 90, "lost": 9}
        }  # fmt: skip
    return found


def made_up_front(trials: int = 300, seed: int = 0, held_out=("held-out",), data_sets=("seen", "pets")) -> dict:
    """The content of tune.json.

    Args:
        trials: How many valid ones.
        seed: Of the draws.
        held_out: Names of the held-out sets.
        data_sets: Of ``seen``, which names unsafe classes, and ``pets``.
    """
    rng = np.random.default_rng(seed)
    names = [*METHODS]
    tried, gains = [], []
    for trial in range(trials):
        method = names[rng.choice(3, p=[0.6, 0.25, 0.15])]
        strength = float(rng.exponential(1.0)) + 0.02
        wasted = float(rng.exponential(0.6))
        loss = round(max(-0.4, 1.2 * strength**1.7 + wasted - 0.3), 4)
        gain = METHODS[method] * (1 - np.exp(-0.9 * strength)) * float(rng.uniform(0.75, 1))
        settings = {"share": round(0.2 * float(rng.random()), 4), "strength": round(strength, 3), "towers": "both"}
        gains.append(float(gain))
        objective = 100 * result(gains[-1], loss, 480)["figures"]["safety"][0]
        tried.append({"trial": trial, "method": method, "settings": settings, "objective": objective, "loss": loss})
    places = front_of(tried)
    for place, trial in enumerate(tried):
        trial["front"] = place in places
    points = [_point(n, tried[place], gains[place], rng, held_out, data_sets) for n, place in enumerate(places, 1)]
    return {
        "format": 1,
        "kind": "tune",
        "versions": {"uwm": "1.2.0", "torch": "2.9.0"},
        "run": {"date": "2026-11-26 16:20 UTC"},
        "settings": {"calib": "pairs", "trials": trials + 3, "seed": 0, "methods": names},
        "model": {"name": "openai/clip-vit-base-patch32", "sha256": {"model.safetensors": "ab" * 32}},
        "calibration": {"name": "pairs", "pairs": 480, "folds": 3, "sha256": "cd" * 32},
        "objective": {"text": "safety", "label": "safety", "lower_is_better": False},
        "loss": {"terms": [*(["zero_shot:*"] if data_sets else []), "R1_ts_vs", "R1_vs_ts"], "unit": "%"},
        "trials": {
            "asked": trials + 3, "done": trials, "invalid": 3, "stopped": 0,
            "seconds": 41.2, "per_minute": 60 * trials / 41.2,
            "by_method": {n: {"trials": sum(t["method"] == n for t in tried), "seconds": 13.7} for n in names},
        },
        "baseline": {
            "cross_validated": result(0, 0, 480, data_sets, edited=False),
            "held_out": {name: result(0, 0, 240, data_sets, edited=False) for name in held_out},
        },
        "points": points,
        "knee": knee(points),
        "tried": tried,
        "notes": ["3 trials could not be measured."],
    }  # fmt: skip


def _point(number: int, trial: dict, gain: float, rng, held_out, data_sets) -> dict:
    """The held-out figures are a little worse than those that it was chosen by."""
    there = {
        name: result(gain * float(rng.uniform(0.85, 1.02)), trial["loss"] + float(rng.normal(0.4, 0.5)), 240, data_sets)
        for name in held_out
    }
    about = {name: trial[name] for name in ("trial", "method", "settings", "objective", "loss")}
    of = result(gain, trial["loss"], 480, data_sets)
    return {"number": number, **about, "patch": f"points/{number:02d}.safetensors", "cross_validated": of, "held_out": there}  # noqa: E501  # fmt: skip


def write_points(folder, source, **how) -> dict:
    """A folder of `uwm tune` with tune.json, and for each point a patch of `source`, each of another mass -> front."""
    front = made_up_front(12, **how)
    (folder / "points").mkdir(parents=True)
    (folder / "tune.json").write_text(to_json(front))
    for point in front["points"]:
        patch_of(source, mass=0.05 * point["number"]).save(folder / point["patch"])
    return front
