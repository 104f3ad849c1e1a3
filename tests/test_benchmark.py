"""The benchmark's own arithmetic, that both sides of a contest compute the same, and what happens without PyTorch."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import contest as held_by
from experiments.benchmark import launches, machine, numpy_loop, report, sampling
from experiments.benchmark.contest import Contest, NotHeldError, Sides
from experiments.launch import Results
from ldmjax import devices, oracle
from ldmjax.job import NO_JOB, Job

CONFIG = benchmark.Config(
    only=("law", "table", "mlp_loop"), rounds=1, runs=4, steps=2, samples=512, sampling_steps=40, data_dim=16
)


def sides(ours=lambda: 1.0, theirs=lambda: 3.0):
    facts = {"unit": "law", "options": "how", "opponent": "it", "agreement": 0.1, "agreement_in": "errors"}
    return Sides(ours=ours, theirs=theirs, **facts)


def contest(prepare):
    return Contest(what="this", against="that", goal=1.0, prepare=prepare)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(held_by, "PAUSE", 0.0)
    monkeypatch.setattr(held_by, "LEAST_SECONDS", 0.0)


def test_contests_are_held_and_their_sides_agree(monkeypatch, at_once):
    monkeypatch.setattr(benchmark, "missing_torch", lambda: "needs PyTorch")
    lines = []
    results = dataclasses.replace(benchmark.compute(CONFIG, None, Job(show=lines.append)), config=CONFIG)
    law, table = results.rows
    assert (law["contest"], table["contest"]) == ("law", "table")
    assert results.metadata["skipped"] == {"mlp_loop": "needs PyTorch"}
    assert law["agreement"] < 5.5  # the largest of 16,016 deviations
    assert table["agreement"] < 1e-10 and table["components"] == 16
    found = results.metadata["measured"]["contests"]["law"]
    assert len(found["ours"]) == len(found["theirs"]) == 1 and min(found["ours"] + found["theirs"]) > 0
    assert sum("round 1/1" in line for line in lines) == 2
    shown = report.report(results)
    assert "mlp_loop: skipped, needs PyTorch" in shown.text and "first call, with compilation" in shown.text
    assert set(shown.files["table.json"]["contests"]) == {"law", "table"}


def test_sides_take_turns(at_once):
    order = []
    prepared = sides(lambda: order.append("A") or 1.0, lambda: order.append("B") or 3.0)
    config = dataclasses.replace(CONFIG, rounds=2)
    held = held_by.hold("x", contest(lambda sizes, job: prepared), config, NO_JOB)
    assert "".join(order) == "ABABAB"  # the first pair warms up
    assert held["ours"] == [1.0, 1.0] and held["theirs"] == [3.0, 3.0]


def results_of(goal, against="that", bounds=(), **changes):
    facts = {f.name: getattr(sides(), f.name) for f in dataclasses.fields(Sides) if f.name not in ("ours", "theirs")}
    measured = {"name": "law", "ours": [1.0, 2.0, 1.0], "theirs": [10.0, 10.0, 40.0], "sides": facts}
    row = {"contest": "law", "what": "this", "against": against, "goal": goal}
    metadata = {"machine": "a machine", "skipped": {"experts": "why"}, "about": {"device": "a device"}}
    metadata |= {"measured": {"contests": {"law": measured}, "bounds": list(bounds), "growth": []}}
    return Results(rows=[row], metadata=metadata | changes, config=CONFIG)


def test_ratio_is_the_median_of_pairs_and_goals_have_a_direction():
    def row(*arguments):
        return report.report(results_of(*arguments)).text.splitlines()[1]

    assert "10 [5, 40]" in row(10.0) and ">= 10  yes " in row(10.0)  # pairs 10, 5, 40
    assert " no " in row(10.1)
    assert " <= 10.1  yes " in row(10.1, held_by.GROWTH)
    assert " <= 9.9   no " in row(9.9, held_by.GROWTH)


def test_table_file_has_what_the_table_shows():
    bound = {"seconds": 4.0, "bound_seconds": 1.0, "operations": 1e9, "bytes": 1e9, "kernels": 2, "set_by": "memory"}
    ceilings = {"products": {"highest": 1e9}, "bytes": 1e9, "launch": 0.0}
    bound |= {"runs": 2, "hidden": 8, "precision": "highest", "ceilings": ceilings}
    shown = report.report(results_of(11.0, bounds=[bound]))
    found = shown.files["table.json"]
    row = found["contests"]["law"]
    assert (row["ratio"], row["least"], row["most"], row["met"]) == (10.0, 5.0, 40.0, False)
    assert (row["ours_seconds"], row["theirs_seconds"]) == (1.0, 10.0)
    assert (found["device"], found["skipped"], found["runs"]) == ("a device", {"experts": "why"}, 4)
    assert found["bounds"][0]["share_of_bound"] == 0.25 and "25%" in shown.text
    old = report.report(results_of(11.0, about=None))
    assert old.text and not old.files, "the table.json of an old workdir stays"


def test_bound_is_the_larger_of_two_times_and_the_launches():
    ceilings = {"products": {"highest": 1000.0, "bfloat16": 1e6}, "bytes": 50.0, "launch": 0.0}
    row = {"runs": 2, "precision": "highest", "operations": 100.0, "bytes": 10.0, "kernels": 4, "ceilings": ceilings}

    def bound(**changes):
        found = machine.with_bound(row | {"ceilings": ceilings | changes.pop("ceilings", {})} | changes)
        return found["bound_seconds"], found["set_by"]

    assert bound() == (0.2, "memory")
    slower = {"products": {"highest": 200.0, "bfloat16": 1e6}}
    assert bound(ceilings=slower) == (0.5, "operations")
    # The launches of a step serve both runs.
    assert bound(precision="bfloat16", ceilings={"launch": 0.2}) == (pytest.approx(0.2 + 4 * 0.2 / 2), "launches")


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
    with pytest.raises(NotHeldError, match="no loop of 7 passes"):
        launches.loop_kernels(PROGRAM, 7)


def test_kernels_of_a_compiled_program():
    """The loop that measures a launch is the one that is counted, here as a CPU's compiler leaves it."""
    rows = devices.place(np.zeros((jax.device_count(), 32), np.float32))
    text = launches.launch_program().lower(0, rows).compile().as_text()
    assert 1 <= launches.loop_kernels(text, launches.LAUNCHES) <= 4
    assert launches.launch_seconds() == 0.0  # a CPU launches nothing


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("one run is too much"), "MemoryError: one run is too much"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"), "JaxRuntimeError: RESOURCE_EXHAUSTED: 9 GB"),
        (jax.errors.JaxRuntimeError("UNIMPLEMENTED: x"), "JaxRuntimeError: UNIMPLEMENTED: x"),
        (NotHeldError("every PyTorch variant failed: eager: E"), "every PyTorch variant failed: eager: E"),
    ],
)
def test_a_contest_that_the_device_refuses_does_not_end_the_others(monkeypatch, at_once, error, reason):
    def fail(sizes, job):
        raise error

    contests = {"law": contest(fail), "table": contest(lambda sizes, job: sides())}
    monkeypatch.setattr(benchmark, "CONTESTS", contests)
    lines = []
    outcomes, skipped = benchmark.hold_all(dataclasses.replace(CONFIG, only=("law", "table")), Job(show=lines.append))
    assert list(outcomes) == ["table"] and skipped == {"law": reason}
    assert lines[0] == f"law: skipped, {reason}"


def test_an_error_of_our_own_ends_the_benchmark(monkeypatch):
    def fail(sizes, job):
        raise KeyError("of our own")

    monkeypatch.setattr(benchmark, "CONTESTS", {"law": contest(fail)})
    with pytest.raises(KeyError):
        benchmark.hold_all(dataclasses.replace(CONFIG, only=("law",)), NO_JOB)


def test_numpy_sampler_has_the_exact_law():
    times = sampling.uniform_grid(30)
    variances = np.array([2.0, 0.5, 0.1])
    exact = oracle.sampler_variances(variances, sampling.SCHEDULE, times, scheme="euler_maruyama", start="standard")
    found = numpy_loop.sampled_variances(variances, sampling.SCHEDULE, times, samples=20_000, seed=0)
    assert np.max(np.abs(found / exact - 1.0)) < 5.0 * np.sqrt(2.0 / 20_000)


def test_both_samplers_have_one_law():
    config = dataclasses.replace(CONFIG, samples=4096)
    ours, scan = (np.asarray(make(config).run()) for make in (sampling.our_chains, sampling.scanned_chains))
    assert ours.shape == scan.shape == (8, 40, 16)
    assert np.max(np.abs(ours - scan) / np.sqrt(4.0 / 4096 * ours * scan)) < 5.5


def test_growth_figure_has_a_panel_per_axis():
    growths = [
        {"work": work, "axis": axis, "sizes": [1, 2, 4], "seconds": np.arange(1.0, 7.0).reshape(3, 2).tolist()}
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
    ours, scan = (make(config).bytes for make in (sampling.our_chains, sampling.scanned_chains))
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
    from experiments.benchmark.sweeping import unet_here

    unet = dataclasses.replace(unet_here(name, CONFIG), batch=4)
    assert unets.loss_difference(unet, "float32") < 1e-5
    network, values = unets.random_network(unet, "float32")
    start = np.random.default_rng(3).standard_normal((4, unet.dim)).astype(np.float32)
    ours = unets.our_chain(network, start, 5)()
    inputs = unets.torch_chain_inputs(unet, values, start, 5)
    ends = [opponents.sample(unets.torch_step(precision), *inputs).numpy() for precision in ("float32", "bfloat16")]
    np.testing.assert_allclose(ours, ends[0], rtol=1e-5, atol=1e-5)
    assert 1e-4 < np.linalg.norm(ours - ends[1]) / np.linalg.norm(ours) < 0.02


def test_training_steps_of_the_unet_opponent_learn():
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark import opponents
    from experiments.benchmark.sweeping import points
    from experiments.benchmark.training import tensors

    torch.manual_seed(0)
    p = opponents.new_unet((8, 8, 1), (4, 8))
    before, inputs = {k: v.clone() for k, v in p.items()}, tensors(points(0, 64), np.ones(64), 0.3)
    losses = []

    def loss(*given):
        found = opponents.mlp_loss(*given, net=opponents.unet)
        losses.append(found.item())
        return found

    options = {"batch": 32, "rate": 0.01, "cap": np.inf, "logsnr": None, "warm_up": 0}
    assert opponents.train("unet", loss, p, *inputs, steps=40, **options) > 0
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

    options = {"what": "a", "unit": "step", "job": Job(show=lines.append)}
    timer, name = fastest(function, seconds, 100, **options, thread_counts=(1,))
    assert name == "eager, cpu, 1 thread" and timer() == 100.0 and asked == [25, 25, 100]
    assert "  PyTorch a, compiled, cpu, 1 thread: failed, RuntimeError: no compiler" in lines
    with pytest.raises(NotHeldError, match="every PyTorch variant failed: eager, cpu, 1 thread: ZeroDivisionError"):
        fastest(function, lambda used, steps: 1 / 0, 100, **options, thread_counts=(1,))


def test_sources_of_vmapped_runs_are_made_once_and_masked():
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[bench]'")
    from experiments.benchmark.sweeping import points
    from experiments.benchmark.training import torch_batches

    (((data, mask, std), _),) = torch_batches("mlp", 6)
    assert data.shape == (6, 1024, 16)
    np.testing.assert_array_equal(data[5, :, :4], points(1)[:, :4])  # run 5: seed 1, d = 4
    assert float(data[5, :, 4:].abs().max()) == 0.0 and mask[5].sum() == 4
    assert float(std[5]) == pytest.approx(float(np.sqrt(np.mean(points(1)[:, :4] ** 2))), rel=1e-5)


def test_a_short_call_is_timed_many_times(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(held_by.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += 0.03

    assert held_by.timed(work) == pytest.approx(0.03)
    assert now[0] == pytest.approx(0.12)  # the first number of calls that fills LEAST_SECONDS
