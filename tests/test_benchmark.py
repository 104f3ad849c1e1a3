"""The benchmark's own arithmetic, that both sides of a contest compute the same, and what happens without PyTorch."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import machine, numpy_loop, report, sampling
from experiments.benchmark.contests import CONTESTS
from ldmjax import data, oracle

CONFIG = benchmark.Config(
    only=("law", "table", "mlp_loop"), rounds=2, runs=4, steps=2, samples=512, sampling_steps=40,
    spectrum=data.spectrum_variances("power:1.5", 16),
)  # fmt: skip


def outcome(**changes):
    fields = {
        "name": "law", "ours": [1.0, 2.0, 1.0], "theirs": [10.0, 10.0, 40.0], "unit": "law", "options": {"theirs": "it"},
        "agreement": 0.1, "agreement_in": "errors", "bytes": None, "cold_seconds": None,
    }  # fmt: skip
    return benchmark.Outcome(**(fields | changes))


def test_contests_are_held_and_their_sides_agree(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = []
    outcomes, skipped = benchmark.run(CONTESTS, CONFIG, lines.append)
    law, table = outcomes
    assert (law.name, table.name, list(skipped)) == ("law", "table", ["mlp_loop"])
    assert "pip install -e '.[bench]'" in skipped["mlp_loop"]
    assert law.agreement < 5.5  # the largest of 16,016 deviations
    assert table.agreement < 1e-10 and table.cold_seconds > 0
    assert len(law.ours) == len(law.theirs) == 2 and min(law.ours + law.theirs) > 0
    assert sum("round 2/2" in line for line in lines) == 2
    text = report.table(outcomes, CONTESTS, skipped)
    assert "mlp_loop: skipped, needs PyTorch" in text and "first call, with compilation" in text


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)
    order = []
    sides = benchmark.Sides(
        ours=lambda: order.append("A") or 1.0, theirs=lambda: order.append("B") or 3.0, unit="", options={},
        agreement=0.0, agreement_in="",
    )  # fmt: skip
    contest = benchmark.Contest(what="", against="", goal=1.0, sides=lambda config, report: sides)
    held = benchmark.hold("x", contest, CONFIG, lambda line: None)
    assert "".join(order) == "ABABAB"  # the first pair warms up
    np.testing.assert_array_equal(held.ratios, [3.0, 3.0])


def test_ratio_is_the_median_of_pairs_and_goals_have_a_direction():
    def row(name, goal, **changes):
        contest = dataclasses.replace(CONTESTS["law"], goal=goal, **changes)
        return report.table([outcome(name=name)], {name: contest}, {}).splitlines()[1]

    assert "10 [5, 40]" in row("law", 10.0)  # pairs 10, 5, 40
    assert row("law", 10.0).split()[-4] == "yes" or " yes " in row("law", 10.0)
    assert " no " in row("law", 10.1)
    assert " <= 10.1  yes " in row("law", 10.1, goal_is_ceiling=True)
    assert " <= 9.9 " in row("law", 9.9, goal_is_ceiling=True) and " no " in row("law", 9.9, goal_is_ceiling=True)


def test_bound_is_the_larger_of_two_times():
    row = machine.Bound(
        runs=1, hidden=8, seconds=1.0, operations=100.0, bytes=10.0,
        ceilings=machine.Ceilings(operations=1000.0, bytes=50.0),
    )  # fmt: skip
    assert row.bound == (0.2, "memory")
    row = dataclasses.replace(row, ceilings=machine.Ceilings(operations=200.0, bytes=50.0))
    assert row.bound == (0.5, "operations")
    assert "50 %" in report.bound_table([row])


def test_numpy_sampler_has_the_exact_law():
    times = sampling.uniform_grid(30)
    variances = np.array([2.0, 0.5, 0.1])
    exact = oracle.sampler_variances(variances, sampling.SCHEDULE, times, scheme="euler_maruyama", start="standard")
    found = numpy_loop.sampled_variances(variances, sampling.SCHEDULE, times, samples=20_000, seed=0)
    assert np.max(np.abs(found / exact - 1.0)) < 5.0 * np.sqrt(2.0 / 20_000)


def test_both_samplers_have_one_law():
    config = dataclasses.replace(CONFIG, samples=4096)
    ours, scan = (np.asarray(make(config)()) for make in (sampling._our_chains, sampling._scanned_chains))
    assert ours.shape == scan.shape == (8, 40, 16)
    assert np.max(np.abs(ours - scan) / np.sqrt(4.0 / 4096 * ours * scan)) < 5.5


def test_growth_figure_has_a_panel_per_axis():
    growths = [
        machine.Growth(work=work, axis=axis, sizes=np.array([1, 2, 4]), seconds=np.arange(1.0, 7.0).reshape(3, 2))
        for work, axis in (("a", "runs"), ("b", "runs"), ("a", "samples"))
    ]
    figure = report.draw_growth(growths, "a machine")
    assert [axes.get_xlabel() for axes in figure.axes] == ["runs", "samples"]
    assert all(axes.get_xscale() == axes.get_yscale() == "log" for axes in figure.axes)


def test_opponent_is_short():
    source = Path(benchmark.__file__).with_name("opponents.py").read_text()
    assert len(source.splitlines()) < 80


@pytest.mark.parametrize("kind", ["mlp", "linear", "expert"])
def test_losses_are_those_of_the_opponent(kind):
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.training import loss_difference

    assert loss_difference(kind, 0) < 1e-5
