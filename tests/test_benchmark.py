"""The benchmark's own arithmetic, that both sides of a contest compute the same, and what happens without PyTorch."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import launches, machine, numpy_loop, report, sampling
from experiments.benchmark.contests import CONTESTS
from ldmjax import data, devices, oracle

CONFIG = benchmark.Config(
    only=("law", "table", "mlp_loop"), rounds=1, runs=4, steps=2, samples=512, sampling_steps=40,
    precision="float32", spectrum=data.spectrum_variances("power:1.5", 16),
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


def test_bound_is_the_larger_of_two_times_and_the_launches():
    ceilings = machine.Ceilings(products={"highest": 1000.0, "bfloat16": 1e6}, bytes=50.0, launch=0.0)
    row = machine.Bound(
        runs=2, hidden=8, precision="highest", seconds=1.0, operations=100.0, bytes=10.0, kernels=4, ceilings=ceilings
    )
    assert row.bound == (0.2, "memory")
    slower = dataclasses.replace(ceilings, products={"highest": 200.0, "bfloat16": 1e6})
    row = dataclasses.replace(row, ceilings=slower)
    assert row.bound == (0.5, "operations")
    assert "50 %" in report.bound_table([row])
    row = dataclasses.replace(row, precision="bfloat16", ceilings=dataclasses.replace(slower, launch=0.2))
    assert row.bound == (pytest.approx(0.2 + 4 * 0.2 / 2), "launches")  # the launches of a step serve both runs


PROGRAM = """HloModule jit_f
%inner (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%p), index=1
  ROOT %fusion.1 = (s32[], f32[4]{0}) fusion(%x), kind=kLoop, calls=%fused
}
%graph (a: f32[4]) -> f32[4] {
  %dot.2 = f32[4]{0:T(128)} dot(%a, %a)
  ROOT %copy.3 = f32[4]{0} copy(%dot.2)
}
%step (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = f32[4]{0} bitcast(%p.1)
  %call = f32[4]{0} call(%b), to_apply=%graph
  %start = (f32[4]{0}, f32[4]{0}) copy-start(%call)
  %done = f32[4]{0} copy-done(%start)
  %while.5 = (s32[], f32[4]{0}) while(%done), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %tuple = (s32[], f32[4]{0}) tuple(%while.5)
}
ENTRY %main (z: f32[4]) -> f32[4] {
  %while.6 = (s32[], f32[4]{0}) while(%z), condition=%c, body=%step, backend_config={"known_trip_count":{"n":"100"}}
  ROOT %last = f32[4]{0} add(%z, %z)
}
"""


def test_kernels_of_a_loop():
    """Two of the called graph, one copy, three passes of one kernel; types and layouts are not operations."""
    assert launches.loop_kernels(PROGRAM, 100) == 2 + 1 + 3
    assert launches.loop_kernels(PROGRAM, 3) == 1
    with pytest.raises(benchmark.NotHeldError, match="no loop of 7 passes"):
        launches.loop_kernels(PROGRAM, 7)


def test_kernels_of_a_compiled_program():
    """The loop that measures a launch is the one that is counted, here as a CPU's compiler leaves it."""
    rows = devices.place(np.zeros((jax.device_count(), 32), np.float32))
    text = launches.launch_program().lower(0, rows).compile().as_text()
    assert 1 <= launches.loop_kernels(text, launches.LAUNCHES) <= 4
    assert launches.launch_seconds() == 0.0  # a CPU launches nothing


def _contest(sides):
    return benchmark.Contest(what="", against="", goal=1.0, sides=sides)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("one run is too much"), "MemoryError: one run is too much"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), "JaxRuntimeError: RESOURCE_EXHAUSTED: 9 GB"),
        (jax.errors.JaxRuntimeError("UNIMPLEMENTED: x"), "JaxRuntimeError: UNIMPLEMENTED: x"),
        (benchmark.NotHeldError("every PyTorch variant failed: eager: E"), "every PyTorch variant failed: eager: E"),
    ],
)
def test_a_contest_that_the_device_refuses_does_not_end_the_others(monkeypatch, error, reason):
    monkeypatch.setattr(benchmark, "PAUSE", 0.0)

    def fail(config, report):
        raise error

    fine = lambda: 1.0, lambda: 3.0, SIDES
    contests = {"bad": _contest(fail), "good": _contest(lambda config, report: fine)}
    config, lines = dataclasses.replace(CONFIG, only=("bad", "good")), []
    outcomes, skipped = benchmark.run(contests, config, lines.append)
    assert [o.name for o in outcomes] == ["good"] and skipped == {"bad": reason}
    assert lines[0] == f"bad: skipped, {reason}"


def test_an_error_of_our_own_ends_the_benchmark():
    def fail(config, report):
        raise KeyError("of our own")

    with pytest.raises(KeyError):
        benchmark.run({"bad": _contest(fail)}, dataclasses.replace(CONFIG, only=("bad",)), lambda line: None)


def test_table_file_has_what_the_table_shows():
    held = benchmark.Outcome(name="law", ours=[1.0, 2.0, 1.0], theirs=[10.0, 10.0, 40.0], sides=SIDES)
    found = report.results([held], CONTESTS, {"experts": "why"}, [], device="a device")
    row = found["contests"]["law"]
    assert (row["ratio"], row["least"], row["most"], row["met"]) == (10.0, 5.0, 40.0, False)
    assert (row["ours_seconds"], row["theirs_seconds"]) == (1.0, 10.0)
    assert (found["device"], found["skipped"]) == ("a device", {"experts": "why"})


def test_numpy_sampler_has_the_exact_law():
    times = sampling.uniform_grid(30)
    variances = np.array([2.0, 0.5, 0.1])
    exact = oracle.sampler_variances(variances, sampling.SCHEDULE, times, scheme="euler_maruyama", start="standard")
    found = numpy_loop.sampled_variances(variances, sampling.SCHEDULE, times, samples=20_000, seed=0)
    assert np.max(np.abs(found / exact - 1.0)) < 5.0 * np.sqrt(2.0 / 20_000)


def test_both_samplers_have_one_law():
    config = dataclasses.replace(CONFIG, samples=4096)
    ours, scan = (np.asarray(make(config).run()) for make in (sampling._our_chains, sampling._scanned_chains))
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
    assert len(source.splitlines()) < 160


def test_memory_of_the_scan_is_at_least_that_of_its_states():
    """Ours needs less than a tenth."""
    config = dataclasses.replace(CONFIG, samples=4096, sampling_steps=200)
    ours, scan = (make(config).bytes for make in (sampling._our_chains, sampling._scanned_chains))
    assert scan > 4.0 * 8 * 200 * 4096 * 16
    assert 4.0 * 8 * 4096 * 16 / 8 < ours < 0.1 * scan


@pytest.mark.parametrize("kind", ["mlp", "linear", "expert"])
def test_losses_are_those_of_the_opponent(kind):
    """At random parameters and, but for experts, with half of the latent padded."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.training import loss_difference

    assert loss_difference(kind) < 1e-5


@pytest.mark.parametrize("name", ["digits", pytest.param("cifar", marks=pytest.mark.slow)])
def test_unets_are_those_of_the_opponent(name):
    """Losses and DDIM's end states, at random parameters; in bfloat16 only PyTorch rounds here, by about 2^-8."""
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark import opponents, unets

    config = dataclasses.replace(CONFIG, samples=4, sampling_steps=5)
    size = dataclasses.replace(unets.size_here(name, config), batch=4)
    assert unets.loss_difference(size, "float32") < 1e-5
    network, values = unets.random_network(size, "float32")
    start = np.random.default_rng(3).standard_normal((4, np.prod(size.map_shape))).astype(np.float32)
    ours = unets._our_chain(size, network, start)()
    z, coefficients = unets._tensors(start, unets._coefficients(5))
    p = unets._torch_parameters(size, values)
    ends = [
        opponents.sample(partial(opponents.ddim_step, std=unets.DATA_STD, net=net), p, z, coefficients).numpy()
        for net in (opponents.unet, partial(opponents.unet, half=True))
    ]
    np.testing.assert_allclose(ours, ends[0], rtol=1e-5, atol=1e-5)
    assert 1e-4 < np.linalg.norm(ours - ends[1]) / np.linalg.norm(ours) < 0.02


def test_training_steps_of_the_unet_opponent_learn():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark import opponents, unets
    from experiments.benchmark.training import points

    torch.manual_seed(0)
    p = opponents.new_unet((8, 8, 1), (4, 8))
    before, tensors = {k: v.clone() for k, v in p.items()}, unets._tensors(points(0, 64), np.ones(64), 0.3)
    losses = []

    def loss(*given):
        found = opponents.mlp_loss(*given, net=opponents.unet)
        losses.append(found.item())
        return found

    options = {"batch": 32, "rate": 0.01, "cap": np.inf, "logsnr": None, "warm_up": 0}
    assert opponents.train("unet", loss, p, *tensors, steps=40, **options) > 0
    assert all((p[name] != before[name]).any() for name in p)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_variant_that_fails_is_reported_and_the_others_compete():
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.variants import fastest

    asked, lines = [], []

    def seconds(used, steps):
        asked.append(steps)
        if used is not function:  # compiled
            raise RuntimeError("no compiler\nat all")
        return float(steps)

    def function(x):
        return x

    options = {"what": "a", "unit": "step", "report": lines.append}
    timer, name = fastest(function, seconds, 100, **options, thread_counts=(1,))
    assert name == "eager, cpu, 1 thread" and timer() == 100.0 and asked == [25, 25, 100]
    assert "  PyTorch a, compiled, cpu, 1 thread: failed, RuntimeError: no compiler" in lines
    with pytest.raises(
        benchmark.NotHeldError, match="every PyTorch variant failed: eager, cpu, 1 thread: ZeroDivisionError"
    ):
        fastest(function, lambda used, steps: 1 / 0, 100, **options, thread_counts=(1,))


def test_sources_of_vmapped_runs_are_made_once_and_masked():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.training import _torch_batches, points

    (((data, mask, std), _),) = _torch_batches("mlp", 6, torch, "cpu")
    assert data.shape == (6, 1024, 16)
    np.testing.assert_array_equal(data[5, :, :4], points(1)[:, :4])  # run 5: seed 1, d = 4
    assert float(data[5, :, 4:].abs().max()) == 0.0 and mask[5].sum() == 4
    assert float(std[5]) == pytest.approx(float(np.sqrt(np.mean(points(1)[:, :4] ** 2))), rel=1e-5)


def test_a_short_call_is_timed_many_times(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += 0.03

    assert benchmark.timed(work) == pytest.approx(0.03)
    assert now[0] == pytest.approx(0.12)  # the first number of calls that fills LEAST_SECONDS
