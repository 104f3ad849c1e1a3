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
    only=("law", "table", "mlp_loop"), rounds=1, runs=4, steps=2, samples=512, sampling_steps=40,
    spectrum=data.spectrum_variances("power:1.5", 16),
)  # fmt: skip


SIDES = benchmark.Sides(unit="law", options="how", opponent="it", agreement=0.1, agreement_in="errors")


def test_contests_are_held_and_their_sides_agree(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)
    monkeypatch.setattr(benchmark, "LEAST_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "torch", None)
    lines = []
    outcomes, skipped = benchmark.run(CONTESTS, CONFIG, lines.append)
    law, table = outcomes
    assert (law.name, table.name, list(skipped)) == ("law", "table", ["mlp_loop"])
    assert "pip install -e '.[bench]'" in skipped["mlp_loop"]
    assert law.sides.agreement < 5.5  # the largest of 16,016 deviations
    assert table.sides.agreement < 1e-10
    assert len(law.ours) == len(law.theirs) == 1 and min(law.ours + law.theirs) > 0
    assert sum("round 1/1" in line for line in lines) == 2
    text = report.table(outcomes, CONTESTS, skipped)
    assert "mlp_loop: skipped, needs PyTorch" in text and "first call, with compilation" in text


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)
    order = []
    sides = lambda: order.append("A") or 1.0, lambda: order.append("B") or 3.0, SIDES
    contest = benchmark.Contest(what="", against="", goal=1.0, sides=lambda config, report: sides)
    held = benchmark.hold("x", contest, dataclasses.replace(CONFIG, rounds=2), lambda line: None)
    assert "".join(order) == "ABABAB"  # the first pair warms up
    np.testing.assert_array_equal(held.ratios, [3.0, 3.0])


def test_ratio_is_the_median_of_pairs_and_goals_have_a_direction():
    held = benchmark.Outcome(name="law", ours=[1.0, 2.0, 1.0], theirs=[10.0, 10.0, 40.0], sides=SIDES)

    def row(goal, **changes):
        contest = dataclasses.replace(CONTESTS["law"], goal=goal, **changes)
        return report.table([held], {"law": contest}, {}).splitlines()[1]

    assert "10 [5, 40]  >= 10  yes " in row(10.0)  # pairs 10, 5, 40
    assert " no " in row(10.1)
    assert " <= 10.1  yes " in row(10.1, goal_is_ceiling=True)
    assert " <= 9.9   no " in row(9.9, goal_is_ceiling=True)


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


@pytest.mark.slow
def test_memory_of_the_scan_is_at_least_that_of_its_states():
    """In a process of its own, whatever this one holds; ours needs less than a tenth."""
    config = dataclasses.replace(CONFIG, samples=4096, sampling_steps=200)
    ours, scan = (benchmark.in_fresh_process(sampling._peak_bytes, side, config) for side in ("ours", "scan"))
    states = 4.0 * 8 * 200 * 4096 * 16
    assert scan > states and ours < scan - 0.5 * states


@pytest.mark.parametrize("kind", ["mlp", "linear", "expert"])
def test_losses_are_those_of_the_opponent(kind):
    """At random parameters and, but for experts, with half of the latent padded."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.training import loss_difference

    assert loss_difference(kind) < 1e-5


def test_a_short_call_is_timed_many_times(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += 0.03

    assert benchmark.timed(work) == pytest.approx(0.03)
    assert now[0] == pytest.approx(0.12)  # the first number of calls that fills LEAST_SECONDS
