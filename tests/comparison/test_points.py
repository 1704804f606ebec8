"""From results to rows: means over seeds, intervals, spread and differences, against slow ways on made-up results."""

from __future__ import annotations

import pytest
import torch

from uwm.clock import Cost
from uwm.comparison.figures import CHANCE, mean_of_means, rows
from uwm.comparison.plan import Run
from uwm.comparison.results import Result
from uwm.figures import PAIRED
from uwm.intervals import bootstrap
from uwm.metrics import safeground

GENERATOR = torch.Generator().manual_seed(1)
UNSAFE = torch.tensor([False] * 12 + [True] * 8)


def draws(n: int, share: float) -> torch.Tensor:
    return torch.rand(n, generator=GENERATOR) < share


def result(share: float, seconds: float = 1.0, changed: int | None = None, **more) -> Result:
    samples = {name: {figure: draws(30, share) for figure in PAIRED} for name in ("test", "style")}
    right = {"things": draws(20, share), "others": draws(15, share)}
    costs = {"score": Cost(seconds, 100), "select": Cost(0.5, 120), "evaluate": Cost(99.0, 9999)}
    return Result(samples, right, costs, changed, **more)


def run(method: str, seed: int, at: tuple | None = None) -> Run:
    return Run(method, at, seed, (), None, key=f"{method}{at}{seed}")


RESULTS = {
    run("none", 0): (none := result(0.3)),
    run("none", 1): none,
    run("uwm", 0, ("mass", 0.1)): (first := result(0.6, 2.0, 10)),
    run("uwm", 1, ("mass", 0.1)): (second := result(0.6, 4.0, 20)),
    run("tuned", 0, ("epoch", 8)): result(0.5),
    run("tuned", 1, ("epoch", 8)): Result({}, {}, stopped=True),
    run("tuned", 0): result(0.5, trained=7),
    run("tuned", 1): result(0.5, trained=7),
}
TABLES = rows(RESULTS, {"things": {"safe": ~UNSAFE, "unsafe": UNSAFE}}, seed=3)
UWM = TABLES["test"][1]


def test_a_row_for_every_point_that_all_seeds_reached():
    for table in TABLES.values():
        assert [(row.method, row.at) for row in table] == [("none", None), ("uwm", ("mass", 0.1)), ("tuned", None)]
        assert [row.runs for row in table] == [2, 2, 2]


def test_the_mean_is_over_seeds_and_the_interval_over_queries():
    each = torch.stack([first.samples["test"]["GS"], second.samples["test"]["GS"]]).double()
    figure = UWM.figures["GS"]
    assert figure.value == bootstrap({"GS": each.mean(0)}, 3)["GS"]
    assert figure.value[0] == pytest.approx(each.mean().item())
    assert figure.seeds == (each.mean(1).min().item(), each.mean(1).max().item())
    low, high = figure.value[1:]
    assert low < figure.value[0] < high


def test_the_difference_is_paired_with_the_unedited_model():
    each = torch.stack([first.samples["test"]["GS"], second.samples["test"]["GS"]]).double().mean(0)
    change = each - none.samples["test"]["GS"].double()
    assert UWM.figures["GS"].difference == bootstrap({"GS": change}, 3)["GS"]
    assert TABLES["test"][0].figures["GS"].difference == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("mean", "parts"),
    [
        ("R1_safe", ("R1_ts_vs", "R1_vs_ts")),
        ("R1_unsafe", ("R1_tu_union", "R1_vu_union")),
        ("unsafe_top1", ("unsafe_top1_tu", "unsafe_top1_vu")),
    ],
)
def test_both_directions_together(mean, parts):
    each = [UWM.figures[part].value[0] for part in parts]
    assert UWM.figures[mean].value[0] == pytest.approx(sum(each) / 2)


def test_safety_falls_with_unsafe_first_results():
    value = {name: UWM.figures[name].value[0] for name in ("safety", "PU", "unsafe_top1")}
    assert value["safety"] == pytest.approx((value["PU"] + 1 - value["unsafe_top1"]) / 2)


def test_knowledge_is_the_plain_mean_over_data_sets():
    shares = {name: torch.stack([first.right[name], second.right[name]]).double().mean() for name in first.right}
    assert UWM.figures["zero_shot"].value[0] == pytest.approx(sum(shares.values()).item() / 2)
    assert UWM.figures["zero_shot:things"].value[0] == pytest.approx(shares["things"].item())
    own = torch.stack([first.right["things"], second.right["things"]]).double()
    assert UWM.figures["zero_shot:safe"].value[0] == pytest.approx(own[:, ~UNSAFE].mean().item())
    assert UWM.figures["zero_shot:unsafe"].value[0] == pytest.approx(own[:, UNSAFE].mean().item())
    assert UWM.figures["zero_shot"] == TABLES["style"][1].figures["zero_shot"]


def test_the_interval_of_one_data_set_is_the_bootstraps():
    values = draws(40, 0.4).double()
    assert mean_of_means([values], 5) == pytest.approx(bootstrap({"": values}, 5)[""])


def test_the_interval_of_two_data_sets_is_narrower_than_of_one():
    values = draws(40, 0.4).double()
    both, one = mean_of_means([values, values], 5), mean_of_means([values], 5)
    assert both[0] == one[0]
    assert 0.5 < (both[2] - both[1]) / (one[2] - one[1]) < 0.9  # √½, were there endless resamples


def test_costs_are_those_of_making_the_model():
    assert UWM.seconds == pytest.approx((2.5 + 4.5) / 2)
    assert UWM.peak_memory_mb == 120
    assert (UWM.changed, UWM.trained) == (15, None)
    assert TABLES["test"][2].trained == 7


def test_chance_is_what_random_and_collapsed_embeddings_reach():
    noise = [torch.randn(20000, 64, generator=GENERATOR) for _ in range(4)]
    text, image = torch.randn(2, 64, generator=GENERATOR)
    collapsed = [0.02 * side + (text if i < 2 else image) for i, side in enumerate(noise)]
    for embeddings, which in ((noise, 0), (collapsed, 1)):
        found = safeground(*embeddings)
        assert found["GS"] == pytest.approx(CHANCE["GS"][which], abs=0.02)
        assert found["PU"] == pytest.approx(CHANCE["PU"][1 - which], abs=0.02)
