"""The contest: crossings, targets and speed-ups with known answers, selection, tables and records, the whole experiment."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import disentangled
from experiments.disentangled import Config, contest, report, training
from experiments.disentangled.contest import Run, Setting
from experiments.disentangled.training import Trainer
from experiments.launch import read_results, write_results
from ldmjax import data, oracle, records, tasks
from ldmjax.job import NO_JOB, Job
from ldmjax.schedules import make_ladder

METRIC = "flow_error"
KIND = ("karras", 8, 1, 2, "noise")
STEPS = np.array([1, 2, 4, 8, 16, 32])
TINY = Config(
    tasks=("gaussian",),
    ladders=("karras", "linear_beta"),
    levels=8,
    many_levels=40,
    experts=(1, 2, 8),
    samples_per_state=(2, 4),
    sample_budget=1024,
    checkpoints=6,
    learning_rates=(0.1, 0.2),
    seeds=(0, 1, 2),
    samples=64,
)
GAUSSIAN = tasks.gaussian_task(dim=3)


def make_run(kind=KIND, *, ddim, dpmpp_2m=None, ddim_all=None, rate=0.1, seed=0, batch=16, seconds=0.5, steps=STEPS):
    """A run whose errors are ``ddim`` and ``dpmpp_2m`` at every checkpoint; every metric is the same."""
    names = ("flow_error", "trajectory_error", "sliced_w2_squared", "rel_fd")
    curves = {"ddim": ddim, "dpmpp_2m": ddim if dpmpp_2m is None else dpmpp_2m}
    if ddim_all is not None:
        curves["ddim_all"] = [ddim_all]
    return Run(
        setting=Setting(*kind, rate, seed),
        steps=steps,
        sample_gradients=steps * batch,
        seconds=steps * seconds,
        errors={s: {name: np.asarray(curve, np.float64) for name in names} for s, curve in curves.items()},
        parameters=100 * kind[2],
        training_bytes=1600 * kind[2],
        diverged=False,
    )


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("cost", [2.0 ** np.arange(6), np.array([3.0, 10.0, 11.0, 500.0])])
def test_crossing_of_a_power_law_is_exact(power, cost):
    """Error 7 c^-p reaches 7 x^-p at cost x, wherever the checkpoints are."""
    for x in np.geomspace(cost[0] * 1.001, cost[-1], 13):
        assert contest.first_crossing(cost, 7.0 * cost**-power, 7.0 * x**-power) == pytest.approx(x, rel=1e-9)


def test_crossing_on_a_checkpoint_is_its_cost():
    for k in range(1, 4):
        assert contest.first_crossing(
            np.array([1.0, 2.0, 8.0, 9.0]), np.array([5.0, 4.0, 2.0, 1.0]), [4, 2, 1][k - 1]
        ) == (pytest.approx([2.0, 8.0, 9.0][k - 1]))


def test_first_of_several_crossings_counts():
    cost, error = 2.0 ** np.arange(6), np.array([8.0, 4.0, 1.0, 6.0, 0.5, 0.25])
    assert contest.first_crossing(cost, error, 2.0) == pytest.approx(np.sqrt(8.0))


def test_crossings_that_are_not_between_checkpoints():
    cost = np.array([1.0, 2.0, 4.0])
    assert np.isnan(contest.first_crossing(cost, np.array([4.0, 3.0, 2.0]), 1.0))  # never
    assert np.isnan(contest.first_crossing(cost, np.array([1.0, 0.5, 0.2]), 1.0))  # at the first checkpoint already
    assert np.isnan(contest.first_crossing(cost, np.array([0.9, 3.0, 0.2]), 1.0))
    assert np.isnan(contest.first_crossing(cost, np.full(3, np.nan), 1.0))
    # Nothing to interpolate from or to.
    assert contest.first_crossing(cost, np.array([9.0, np.inf, 0.5]), 1.0) == 4.0
    assert contest.first_crossing(cost, np.array([np.nan, 0.5, 0.1]), 1.0) == 2.0
    assert contest.first_crossing(cost, np.array([2.0, 0.0, 0.0]), 1.0) == 2.0


def test_target_is_the_final_error_of_the_best_chain():
    curve = 4.0 * STEPS**-0.5
    run = make_run(ddim=curve, dpmpp_2m=2.0 * curve)
    target = contest.final_target(run, METRIC)
    assert target.chain == "ddim" and target.error == pytest.approx(4.0 / np.sqrt(32))
    assert target.cost == pytest.approx({"sequential_steps": 32, "sample_gradients": 512, "wall_clock": 16.0})
    assert contest.final_target(run, METRIC, chains=("dpmpp_2m",)).error == pytest.approx(8.0 / np.sqrt(32))
    with_all = make_run(ddim=curve, ddim_all=0.01)
    target = contest.final_target(with_all, METRIC)
    assert target.chain == "ddim_all" and target.error == 0.01
    assert target.cost == pytest.approx({"sequential_steps": 32, "sample_gradients": 512, "wall_clock": 16.0})
    assert contest.final_target(with_all, METRIC, chains=("ddim",)).chain == "ddim"
    assert contest.final_target(make_run(ddim=curve, ddim_all=9.0), METRIC).chain == "ddim"


@pytest.mark.parametrize(("share", "steps"), [(0.25, 8), (0.5, 16), (1.0, 32)])
def test_target_after_a_share_of_training(share, steps):
    """The chain measured at the end only does not compete earlier."""
    run = make_run(ddim=9.0 * STEPS**-0.5, dpmpp_2m=4.0 * STEPS**-0.5, ddim_all=0.01)
    target = contest.final_target(run, METRIC, share=share)
    assert target.chain == ("ddim_all" if share == 1.0 else "dpmpp_2m")
    assert target.error == pytest.approx(0.01 if share == 1.0 else 4.0 * steps**-0.5)
    assert target.cost == pytest.approx(
        {"sequential_steps": steps, "sample_gradients": 16 * steps, "wall_clock": 0.5 * steps}
    )


def test_target_costs_what_its_first_crossing_cost():
    """A reference that passed its own final error on the way and came back is charged for the first time only."""
    run = make_run(ddim=[16.0, 4.0, 1.0, 0.5, 2.0, 2.0])
    target = contest.final_target(run, METRIC)
    assert target.error == 2.0
    assert target.cost == pytest.approx(
        {"sequential_steps": np.sqrt(8), "sample_gradients": 16 * np.sqrt(8), "wall_clock": np.sqrt(8) / 2}
    )


@pytest.mark.parametrize(
    "curve",
    [8.0 * STEPS**-0.7, [8.0, 4.0, 3.0, 2.5, 2.5, 2.5], [16.0, 4.0, 1.0, 0.5, 2.0, 2.0], [1.0, 2.0, 3, 4, 5, 6]],
)
def test_reference_is_not_faster_than_itself(curve):
    run = make_run(ddim=curve)
    found = contest.speed_up(run, "ddim", METRIC, contest.final_target(run, METRIC))
    if found.reached == "yes":
        assert found.ratio == pytest.approx(dict.fromkeys(contest.UNITS, 1.0))
    else:  # reached at once: faster than a bound, which must not be more than 1
        assert max(found.bound.values()) <= 1.0 + 1e-9


def test_speed_up_in_three_units():
    """Reference 4 n^-1/2 to 32 steps; candidate 2 n^-1/2 gets there in 8 steps, of twice the samples and half the time."""
    reference = make_run(ddim=4.0 * STEPS**-0.5)
    target = contest.final_target(reference, METRIC)
    fast = make_run(ddim=2.0 * STEPS**-0.5, dpmpp_2m=3.0 * STEPS**-0.5, batch=32, seconds=0.25)
    found = contest.speed_up(fast, "ddim", METRIC, target)
    assert found.reached == "yes"
    assert found.ratio == pytest.approx({"sequential_steps": 4.0, "sample_gradients": 2.0, "wall_clock": 8.0})
    found = contest.speed_up(fast, "dpmpp_2m", METRIC, target)  # 18 steps
    assert found.ratio == pytest.approx(
        {"sequential_steps": 32 / 18, "sample_gradients": 16 / 18, "wall_clock": 64 / 18}
    )


def test_speed_up_is_a_bound_where_there_is_no_crossing():
    target = contest.final_target(make_run(ddim=4.0 * STEPS**-0.5), METRIC)
    never = contest.speed_up(make_run(ddim=9.0 * STEPS**-0.5, batch=64), "ddim", METRIC, target)
    assert never.reached == "never" and np.all(np.isnan(list(never.ratio.values())))
    assert never.bound == pytest.approx({"sequential_steps": 1.0, "sample_gradients": 0.25, "wall_clock": 1.0})
    once = contest.speed_up(make_run(ddim=0.1 * STEPS**-0.5, batch=64), "ddim", METRIC, target)
    assert once.reached == "at once" and np.all(np.isnan(list(once.ratio.values())))
    assert once.bound == pytest.approx({"sequential_steps": 32.0, "sample_gradients": 8.0, "wall_clock": 32.0})
    broken = contest.speed_up(make_run(ddim=np.full(6, np.nan)), "ddim", METRIC, target)
    assert broken.reached == "never"


def planted(changes=()):
    """One run of every kind on the selection seed: 4 n^-1/2 but for ``changes``, {kind: (curve, samples per step)}."""
    found = {}
    for program in TINY.programs("karras"):
        for p in contest.PARAMETERISATIONS:
            kind = (*program, p)
            curve, batch = dict(changes).get(kind, (4.0 * STEPS**-0.5, 16))
            found[kind] = make_run(kind, ddim=curve, dpmpp_2m=2.0 * curve, batch=batch)
    return found


BASELINE = ("linear_beta", 40, 1, 2, "noise")
WINNER = ("karras", 8, 2, 4, "v")


def choose(chosen):
    return contest.choose_setting(chosen, TINY.baseline, METRIC, levels=8)


def test_chosen_setting_is_the_planted_one():
    assert TINY.baseline == BASELINE
    strong = (1.0 * STEPS**-0.5, 16)
    # As good, but of many levels: not among those that T-space chooses from.
    chosen = planted({WINNER: strong, (*BASELINE[:4], "v"): (0.5 * STEPS**-0.5, 16)})
    assert choose(chosen) == (WINNER, "ddim")
    chosen[WINNER] = make_run(WINNER, ddim=4.0 * STEPS**-0.5, dpmpp_2m=1.0 * STEPS**-0.5)
    assert choose(chosen) == (WINNER, "dpmpp_2m")
    for order in (1, -1):
        shuffled = dict(list(chosen.items())[::order])
        assert choose(shuffled) == (WINNER, "dpmpp_2m")


def test_choice_needs_speed_in_steps_and_in_samples():
    """Many times fewer steps of many times the samples lose to a setting that saves some of both."""
    steps_only = ("karras", 8, 8, 4, "v")
    assert set(contest.GOAL) == {"sequential_steps", "sample_gradients"}
    # 30 times fewer steps at 0.6 of the samples; 5 and 3.3 times.
    chosen = planted({steps_only: (4.0 * (30 * STEPS) ** -0.5, 16 * 50), WINNER: (4.0 * (5 * STEPS) ** -0.5, 24)})
    assert choose(chosen) == (WINNER, "ddim")


def test_setting_that_never_gets_there_loses_to_all_that_do():
    late = {kind: (40.0 * STEPS**-0.5, 16) for kind in planted() if kind[1] == 8}
    near = ("karras", 8, 8, 2, "noise")
    assert choose(planted(late | {near: (4.1 * STEPS**-0.5, 16)})) == (near, "ddim")
    slow = ("karras", 8, 2, 2, "noise")
    changes = late | {near: (4.1 * STEPS**-0.5, 16), slow: (4.0 * STEPS**-0.5, 16 * 1000)}
    assert choose(planted(changes)) == (slow, "ddim")


def test_setting_without_a_number_is_never_chosen():
    for broken in (("linear_beta", 8, 1, 2, "noise"), ("karras", 8, 1, 2, "noise"), ("karras", 8, 8, 4, "v")):
        changes = {WINNER: (1.0 * STEPS**-0.5, 16), broken: (np.full(6, np.nan), 16)}
        assert choose(planted(changes)) == (WINNER, "ddim")


def test_programs_are_the_joint_models_and_the_grid_without_repetition():
    found = TINY.programs("karras")
    assert found[:2] == [("linear_beta", 40, 1, 2), ("linear_beta", 8, 1, 2)]
    assert found[2:] == [("karras", 8, k, m) for m in (2, 4) for k in (1, 2, 8)]
    same = TINY.programs("linear_beta")
    assert same[:2] == found[:2] and len(same) == len(set(same)) == 7


@pytest.mark.parametrize("name", ["karras", "linear_beta", "spectral"])
@pytest.mark.parametrize("levels", [8, 40, 41])
def test_sampled_levels_are_levels_that_were_trained(name, levels):
    """Level k of the chain is level numbers[k] of the trained ladder, the noisiest among them; 0 is clean data."""
    chain = Trainer(GAUSSIAN, TINY).chain(name, levels)
    assert chain.trained.t_max == levels and chain.sampled.t_max == 8 and chain.numbers.shape == (9,)
    np.testing.assert_array_equal(chain.trained.alpha(chain.numbers), chain.sampled.alpha(np.arange(9)))
    np.testing.assert_array_equal(chain.trained.sigma(chain.numbers), chain.sampled.sigma(np.arange(9)))
    assert chain.numbers[0] == 0 and chain.numbers[-1] == levels
    expected = make_ladder(name, levels, np.diag(GAUSSIAN.covariance))
    if name != "spectral":
        np.testing.assert_allclose(chain.trained.sigma_levels, expected.sigma_levels)


def test_ladder_is_the_one_whose_exact_chain_is_closest():
    config = dataclasses.replace(TINY, ladders=("scaled_linear", "karras", "spectral", "cosine"))
    trainer = Trainer(GAUSSIAN, config)
    name, scores = training.choose_ladder(trainer)
    lam = np.linalg.eigvalsh(GAUSSIAN.training.T @ GAUSSIAN.training / len(GAUSSIAN.training))
    expected = {}
    for ladder_name in config.ladders:
        ladder = make_ladder(ladder_name, 8, lam)
        for sampler in contest.SAMPLERS:
            law = oracle.chain_variances(lam, ladder.alpha_levels, ladder.sigma_levels, sampler=sampler)[-1]
            error = np.sqrt(np.sum((np.sqrt(law) - np.sqrt(lam)) ** 2) / np.sum(lam))
            assert scores[ladder_name][sampler] == pytest.approx(error, rel=1e-6)
            expected[ladder_name] = min(expected.get(ladder_name, np.inf), error)
    assert name == min(expected, key=expected.get) and list(scores) == list(config.ladders)


def test_ladder_is_chosen_by_its_better_sampler():
    """Karras is better for DDIM, but 2M on uniform logsnr is best of all four."""
    trainer = Trainer(GAUSSIAN, dataclasses.replace(TINY, ladders=("karras", "uniform_logsnr")))
    name, scores = training.choose_ladder(trainer)
    assert scores["karras"]["ddim"] < scores["uniform_logsnr"]["ddim"] and name == "uniform_logsnr"


class Planned(Trainer):
    """Trains nothing. Rate 0.2 beats 0.1, 0.3 beats both by DDIM only, 0.4 has no number, 0.5 froze at a good one.

    v is better than noise by a fifth; K = 8 with v by another factor of 4.
    """

    calls = []

    def train(self, settings):
        Planned.calls.append(settings)
        return [self.run(s) for s in settings]

    def run(self, s):
        scale = {0.1: 2.0, 0.2: 1.0, 0.3: 0.9, 0.4: np.nan, 0.5: 0.1}[s.learning_rate] * (1.0 + 0.01 * s.seed)
        scale *= 0.8 if s.parameterisation == "v" else 1.0
        scale /= 4.0 if (s.experts, s.parameterisation) == (8, "v") else 1.0
        ddim = scale * STEPS**-0.5
        dpmpp_2m = (9.0 if s.learning_rate == 0.3 else 2.0) * ddim
        ddim_all = np.sum(ddim) if s.levels == 40 else None
        options = {"rate": s.learning_rate, "seed": s.seed, "ddim_all": ddim_all}
        run = make_run(s.kind, ddim=ddim, dpmpp_2m=dpmpp_2m, **options)
        return dataclasses.replace(run, diverged=s.learning_rate in (0.4, 0.5))


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(disentangled, "Trainer", Planned)
    Planned.calls = []
    return Planned


KARRAS = dataclasses.replace(TINY, ladders=("karras",))


def test_rates_and_setting_are_chosen_on_the_selection_seed_and_reported_on_others(planned):
    lines = []
    runs = disentangled.run_task(GAUSSIAN, KARRAS, Job(show=lines.append))
    count = len(KARRAS.programs("karras"))
    assert len(planned.calls) == 2 * count and "karras" in lines[0]
    for settings in planned.calls[:count]:
        assert {(s.seed, s.learning_rate, s.parameterisation) for s in settings} == {
            (100, rate, p) for rate in (0.1, 0.2) for p in ("noise", "v")
        }
    for settings in planned.calls[count:]:
        assert {(s.seed, s.learning_rate) for s in settings} == {(seed, 0.2) for seed in (0, 1, 2)}
    selection, reported = runs[: 4 * count], runs[4 * count :]
    assert {run.setting.seed for run in selection} == {100} and len(reported) == 6 * count
    for i in range(0, len(reported), 3):
        own = [run.setting for run in reported[i : i + 3]]
        assert [s.seed for s in own] == [0, 1, 2] and len({s.kind for s in own}) == 1


def test_an_interrupted_contest_trains_only_what_is_missing(monkeypatch, tmp_path):
    calls = []

    def train(self, settings, job):
        calls.append(settings)
        assert (job.directory is None) == (self.job.directory is None)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return [Planned.run(self, s) for s in settings]

    monkeypatch.setattr(Trainer, "_train", train)
    with pytest.raises(KeyboardInterrupt):
        disentangled.run_task(GAUSSIAN, KARRAS, Job(tmp_path))
    resumed = disentangled.run_task(GAUSSIAN, KARRAS, Job(tmp_path))
    # Six sets of the grid and two of the joint models, chosen and reported: each once, the eighth twice.
    assert len(calls) == 2 * 8 + 1 and calls[7] == calls[8]
    plain = disentangled.run_task(GAUSSIAN, KARRAS)
    assert json.dumps(records.plain(disentangled.make_rows(GAUSSIAN, resumed, KARRAS))) == json.dumps(
        records.plain(disentangled.make_rows(GAUSSIAN, plain, KARRAS))
    )


@pytest.mark.parametrize(
    ("rates", "best"), [((0.1, 0.4), 0.1), ((0.4, 0.1), 0.1), ((0.2, 0.3), 0.3), ((0.5, 0.1), 0.1)]
)
def test_rate_is_the_best_by_the_better_sampler_and_never_one_that_diverges(planned, rates, best):
    runs = disentangled.run_task(GAUSSIAN, dataclasses.replace(TINY, learning_rates=rates))
    assert {run.setting.learning_rate for run in runs if run.setting.seed != 100} == {best}


@pytest.mark.parametrize(("levels", "count", "samples"), [(8, 1, 2), (8, 8, 2), (8, 3, 4), (40, 1, 4)])
def test_trainer_trains_what_the_setting_says(monkeypatch, levels, count, samples):
    """Batch, steps and checkpoints handed to `experts.train_experts`, and what of its result becomes whose run."""
    asked = {}

    def train(specs, data, config, *, experts_per_batch, job):
        asked.update(specs=specs, data=data, config=config, experts_per_batch=experts_per_batch)
        marks = np.array(config.checkpoints)
        failed_at = np.full((len(specs), config.experts), -1)
        failed_at[1, -1] = 7
        params = np.broadcast_to(np.arange(len(marks))[:, None, None], (len(marks), len(specs), 1))
        return FakeTrained(marks, params, 3.0 * marks, 123, 456, failed_at)

    monkeypatch.setattr(training.experts, "train_experts", train)
    trainer = Trainer(GAUSSIAN, dataclasses.replace(TINY, experts_per_batch=5))
    settings = [
        Setting(
            ladder="karras",
            levels=levels,
            experts=count,
            samples_per_state=samples,
            parameterisation=p,
            learning_rate=0.1,
            seed=seed,
        )
        for p, seed in [("v", 2), ("noise", 0), ("v", 1)]
    ]
    runs = trainer.train(settings)
    config, steps = asked["config"], TINY.steps(samples)
    assert config.ladder.t_max == levels and config.experts == count and config.steps == steps
    assert config.batch_size == int(np.ceil(samples * 8 / count)) and asked["experts_per_batch"] == 5
    assert (config.hidden, config.blocks, config.states) == (TINY.hidden, TINY.blocks, None)
    assert config.checkpoints == tuple(steps // 2**i for i in range(5, -1, -1)) and asked["data"] is GAUSSIAN.training
    assert [(spec.seed, spec.parameterisation, spec.learning_rate) for spec in asked["specs"]] == [
        (2, "v", 0.1),
        (0, "noise", 0.1),
        (1, "v", 0.1),
    ]
    for m, (setting, run) in enumerate(zip(settings, runs, strict=True)):
        assert run.setting == setting and run.steps.tolist() == list(config.checkpoints)
        np.testing.assert_array_equal(run.sample_gradients, run.steps * config.batch_size * count)
        np.testing.assert_allclose(run.seconds, run.steps)  # a third of the program's, which trained three models
        assert (run.parameters, run.training_bytes, run.diverged) == (123, 456, m == 1)
        # The fake errors name their run: 100 model + checkpoint, from this run's own start.
        for sampler, offset in [("ddim", 0.0), ("dpmpp_2m", 0.5)]:
            np.testing.assert_allclose(run.errors[sampler]["flow_error"], 100 * m + np.arange(6) + offset)
        starts = np.mean(trainer.starts(setting.seed))
        np.testing.assert_allclose(run.errors["ddim"]["trajectory_error"], starts, rtol=1e-5)
        assert ("ddim_all" in run.errors) == (levels == TINY.many_levels)
        if levels == TINY.many_levels:
            np.testing.assert_allclose(run.errors["ddim_all"]["flow_error"], [100 * m + 5])  # of the last checkpoint


@dataclasses.dataclass
class FakeTrained:
    """What `Trainer` reads of `experts.TrainedExperts`."""

    checkpoints: np.ndarray
    params: np.ndarray
    seconds: np.ndarray
    parameter_count: int
    training_bytes: int
    failed_at: np.ndarray

    def map_models(self, function, targets):
        count, models = self.params.shape[:2]
        name = 100.0 * np.arange(models) + self.params[:, :, 0]

        def summary(offset):
            return {
                "mean": np.zeros((count, models, 3)),
                "covariance": np.broadcast_to(np.eye(3), (count, models, 3, 3)),
                "sliced_w2_squared": name,
                "sliced_standard_error": name,
                "flow_error": name + offset,
                "trajectory_error": np.broadcast_to(targets["start"].mean(axis=(1, 2)), (count, models)),
            }

        both = {"ddim": summary(0.0), "dpmpp_2m": summary(0.5)}
        return {"ddim_all": summary(0.0)} if "measure_all" in function.__name__ else both


def test_error_of_samples_that_are_not_finite_is_infinite():
    summary = {
        "mean": np.full(3, np.nan),
        "covariance": np.full((3, 3), np.nan),
        "sliced_w2_squared": np.array(np.nan),
        "sliced_standard_error": np.array(np.nan),
        "flow_error": np.array(np.nan),
        "trajectory_error": np.array(np.nan),
    }
    assert set(training.errors_of(summary, GAUSSIAN).values()) == {np.inf}


def test_measured_errors_of_the_exact_model_are_the_closed_form():
    """An exact denoiser on 40 levels sampled on 8: no error along its own chain, the chain's own error to the flow."""
    trainer = Trainer(GAUSSIAN, TINY)
    chain = trainer.chain("linear_beta", 40)
    start = trainer.starts(3)
    assert start.shape == (64, 3) and np.all(start == trainer.starts(3)) and np.all(start != trainer.starts(4))
    exact = GAUSSIAN.exact(chain.trained)
    targets = chain.targets(start)
    measured = jax.jit(lambda target: (chain.measure(exact, target), chain.measure_all(exact, target)))(targets)
    lam = np.diag(GAUSSIAN.covariance)
    flow = np.sqrt(lam / (lam + 80.0**2) * (1.0 + 80.0**2))
    np.testing.assert_allclose(targets["flow"], start * flow, rtol=1e-3)
    for summary, ladder, sampler in [
        (measured[0]["ddim"], chain.sampled, "ddim"),
        (measured[0]["dpmpp_2m"], chain.sampled, "dpmpp_2m"),
        (measured[1]["ddim_all"], chain.trained, "ddim"),
    ]:
        law = oracle.chain_variances(lam, ladder.alpha_levels, ladder.sigma_levels, sampler=sampler)[-1]
        expected = np.sqrt(np.mean((start * (np.sqrt(law) - flow)) ** 2))
        assert float(summary["flow_error"]) == pytest.approx(expected, rel=0.01)
        assert float(summary.get("trajectory_error", 0.0)) < 1e-4
        np.testing.assert_allclose(np.var(start, axis=0) * law, np.diag(summary["covariance"]), rtol=1e-3)
    assert "trajectory_error" not in measured[1]["ddim_all"] and "trajectory_error" in measured[0]["ddim"]


def read_again(results, config, where):
    """Results as a report sees them."""
    write_results(where, results)
    return read_results(where, config)


@pytest.fixture
def results(planned, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "make_tasks", lambda *names, **how: [GAUSSIAN])
    return read_again(disentangled.compute(KARRAS, None, NO_JOB), KARRAS, tmp_path)


@pytest.fixture
def outcome(results):
    return report.read_outcomes(results)[0]


def test_runs_are_read_from_the_files_as_they_were(outcome, planned):
    for kind, runs in outcome.runs.items():
        for run in runs:
            made = planned.run(planned, run.setting)
            assert run.setting.kind == kind and (run.parameters, run.diverged) == (made.parameters, made.diverged)
            for unit, cost in made.costs.items():
                np.testing.assert_array_equal(run.costs[unit], cost)
            for chain, errors in made.errors.items():
                for metric, curve in errors.items():
                    np.testing.assert_array_equal(run.errors[chain][metric], curve)
    assert (outcome.best, outcome.ladder) == ((("karras", 8, 8, 2, "v"), "ddim"), "karras")


def test_ingredients_lead_from_the_baseline_to_the_chosen_setting(outcome):
    choices = [(kind, s) for kind in outcome.runs if kind[1] == 8 for s in contest.SAMPLERS]
    for best in choices:
        steps = report.ingredients(outcome._replace(best=best))
        assert steps[0][1:] == (BASELINE, "ddim") and best in [step[1:] for step in steps]
        assert all(step[1] in outcome.runs for step in steps)
        assert all(a[1:] != b[1:] for a, b in zip(steps, steps[1:], strict=False))
        # Up to the chosen setting one thing changes at a time.
        path = steps[: [step[1:] for step in steps].index(best) + 1]
        for (_, kind, sampler), (_, after, sampler_after) in zip(path, path[1:], strict=False):
            assert sum(a != b for a, b in zip((*kind, sampler), (*after, sampler_after), strict=True)) == 1


def test_tables_show_known_speed_ups(results):
    """K = 8 with v needs 1/16 of the steps of the joint v model, 1/25 of the baseline's; K matters for nothing else."""
    text = report.report(results).text
    states, experts, table = text.split("\n\n")
    assert "8 levels against 40" in states and "K experts on the 8 levels of karras" in experts and "contest" in table
    chosen = next(line for line in table.splitlines() if line.startswith("+ K = 8") and "chosen" in line)
    assert chosen.count("25 [25, 25]") == 3 and " 0.2 " in chosen
    lines = experts.splitlines()[2:-1]
    rows = [line.split() for line in lines]
    assert [(r[0], r[1], r[2]) for r in rows] == [
        (p, m, k) for p in ("noise", "v") for m in ("2", "4") for k in ("1", "2", "8")
    ]
    assert [r[3] for r in rows[:3]] == ["100", "200", "800"]
    assert "1 [1, 1]" in experts
    assert all(("16 [16, 16]" in line) == (r[2] == "8" and r[0] == "v") for line, r in zip(lines, rows, strict=True))
    # Mean and half range over seeds of 1, 1.01 and 1.02 times 32^-1/2.
    assert "0.1785 ±0.0018" in states


def test_report_without_times_at_checkpoints_shows_the_other_units(results):
    """Workdirs of version 0.6."""
    of_all = {name: seconds[-1] for name, seconds in results.metadata["training_seconds"].items()}
    old = dataclasses.replace(results, metadata={"training_seconds": of_all})
    chosen = next(line for line in report.report(old).text.splitlines() if "chosen" in line)
    assert chosen.count("25 [25, 25]") == 2 and "not kept" in chosen


def test_records_of_known_runs(results):
    rows, arrays = results.rows, results.arrays
    assert len(rows) == 16 * 2 + 16 * 3 and len({row["name"] for row in rows}) == len(rows)
    chosen = [row for row in rows if row["chosen"]]
    assert [row["seed"] for row in chosen] == [0, 1, 2] and {row["role"] for row in chosen} == {"reported"}
    for row in chosen:
        assert (row["experts"], row["parameterisation"], row["levels"]) == (8, "v", 8)
        assert set(row["speed_up"]) == {"ddim", "dpmpp_2m"} and set(row["speed_up"]["ddim"]) == {"0.25", "0.5", "1"}
        scale = 1.0 + 0.01 * row["seed"]
        for share, steps in [("0.25", 8), ("0.5", 16), ("1", 32)]:
            found = row["speed_up"]["ddim"][share]
            assert found["target"] == pytest.approx(scale * steps**-0.5) and found["target_chain"] == "ddim"
            if steps == 8:  # reached after half a step
                assert found["reached"] == "at once" and found["sequential_steps_bound"] == 8
            else:
                assert found["reached"] == ("yes" if steps == 32 else "at once")
        assert row["speed_up"]["ddim"]["1"]["sequential_steps"] == pytest.approx(25)
        assert row["speed_up"]["ddim"]["1"]["sample_gradients_bound"] is None
    assert "speed_up" not in rows[0] and rows[0]["role"] == "selection" and rows[0]["seed"] == 100
    assert "wall" not in json.dumps(rows) and "seconds" not in json.dumps(rows)
    assert arrays["name"].tolist() == [row["name"] for row in rows]
    np.testing.assert_allclose(arrays["ddim_flow_error"][:, -1], [row["final"]["ddim"]["flow_error"] for row in rows])
    assert list(results.metadata["training_seconds"]) == arrays["name"].tolist()


def test_diverged_seed_of_the_baseline_spoils_neither_tables_nor_figure(planned, monkeypatch, tmp_path):
    """Hours of training come before them."""
    original = planned.run

    def run(self, s):
        made = original(self, s)
        if (s.kind, s.seed) != (BASELINE, 0):
            return made
        broken = make_run(BASELINE, ddim=np.full(6, np.inf), ddim_all=np.inf, seed=0, rate=0.2)
        return dataclasses.replace(broken, diverged=True)

    monkeypatch.setattr(planned, "run", run)
    monkeypatch.setattr(tasks, "make_tasks", lambda *names, **how: [GAUSSIAN])
    spoilt = read_again(disentangled.compute(KARRAS, None, NO_JOB), KARRAS, tmp_path)
    assert sum(row["diverged"] for row in spoilt.rows) == 1 and len(spoilt.rows) == 80
    made = report.report(spoilt)
    assert "its chain of 8" in made.text and list(made.figures) == ["contest_gaussian"]


@pytest.mark.parametrize("changes", [{}, {"samples_per_state": (2,)}, {"large_batch_budgets": 1}])
def test_budget_asked_for_is_the_least_that_works(changes):
    with pytest.raises(ValueError, match="sample_budget") as refusal:
        dataclasses.replace(TINY, sample_budget=1, **changes)
    least = int(re.search(r">= (\d+)", str(refusal.value)).group(1))
    config = dataclasses.replace(TINY, sample_budget=least, **changes)
    assert min(config.steps(m) for m in config.samples_per_state) >= 2 ** (config.checkpoints - 1)
    with pytest.raises(ValueError, match="sample_budget"):
        dataclasses.replace(TINY, sample_budget=least - 1, **changes)


def test_steps_spend_the_budget():
    config = dataclasses.replace(TINY, sample_budget=4096, samples_per_state=(2, 4, 16), large_batch_budgets=3)
    assert [config.steps(m) for m in (2, 4, 16)] == [4096 // 16, 3 * 4096 // 32, 3 * 4096 // 128]


SMALL = Config(
    tasks=("gaussian",),
    ladders=("linear_beta",),
    levels=8,
    many_levels=40,
    experts=(1, 8),
    samples_per_state=(2,),
    sample_budget=512,
    checkpoints=3,
    learning_rates=(0.003, 0.01),
    seeds=(0, 1),
    samples=64,
    hidden=8,
    experts_per_batch=2,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A contest that is trained."""
    results = disentangled.compute(SMALL, data.digits(), Job(tmp_path_factory.mktemp("job")))
    return read_again(results, SMALL, tmp_path_factory.mktemp("files"))


def test_every_run_has_its_record(small):
    selection = [row for row in small.rows if row["role"] == "selection"]
    reported = [row for row in small.rows if row["role"] == "reported"]
    programs = {(40, 1), (8, 1), (8, 8)}
    assert {(row["levels"], row["experts"], row["parameterisation"], row["seed"]) for row in reported} == {
        (t, k, p, seed) for t, k in programs for p in ("noise", "v") for seed in (0, 1)
    }
    assert len(selection) == 12 and len(reported) == 12 and {row["seed"] for row in selection} == {100}
    for row in reported:
        same = [other for other in selection if row["name"].split("/lr")[0] == other["name"].split("/lr")[0]]
        best = min(same, key=lambda other: min(other["final"][s][METRIC] for s in ("ddim", "dpmpp_2m")))
        assert len(same) == 2 and row["learning_rate"] == best["learning_rate"]
    for row in small.rows:
        # 512 samples in steps of 2 for each of 8 levels; the long ladder gets as many.
        assert row["steps"] == 32 and row["sample_gradients"] == 512 and row["learning_rate"] in (0.003, 0.01)
        timed = 3 * 16 * 8 if row["experts"] == 1 else 0
        assert row["parameters"] == row["experts"] * (2 * 16 * 8 + 2 * 8 * 8 + timed)
        assert row["training_bytes"] == 16 * row["parameters"]
        assert row["ladder"] == "linear_beta" and row["task"] == "gaussian" and row["primary_metric"] == METRIC
        assert row["samples_per_state"] == 2 and row["diverged"] is False
        assert set(row["final"]) == {"ddim", "dpmpp_2m"} | ({"ddim_all"} if row["levels"] == 40 else set())
        assert set(row["final"]["ddim"]) == {
            "rel_fd",
            "sliced_w2_squared",
            "sliced_standard_error",
            "flow_error",
            "trajectory_error",
        }
        assert all(0 < value < np.inf for value in row["final"]["dpmpp_2m"].values())
    assert {row["levels"] for row in small.rows if row["chosen"]} == {8} and sum(
        row["chosen"] for row in small.rows
    ) == 2
    assert all(set(row["speed_up"]["ddim"]) == {"0.25", "0.5", "1"} for row in reported)
    assert all(np.all(np.diff([0, *seconds]) > 0) for seconds in small.metadata["training_seconds"].values())


def test_every_run_has_its_curves(small):
    rows, curves = small.rows, small.arrays
    assert curves["name"].tolist() == [row["name"] for row in rows]
    assert curves["sequential_steps"].tolist() == [[8, 16, 32]] * 24
    assert curves["sample_gradients"].tolist() == [[128, 256, 512]] * 24
    for sampler in ("ddim", "dpmpp_2m"):
        finals = [row["final"][sampler][METRIC] for row in rows]
        np.testing.assert_allclose(curves[f"{sampler}_flow_error"][:, -1], finals)
    # Training helps v, which starts at a sensible place.
    v = [row["parameterisation"] == "v" for row in rows]
    assert np.all(curves["ddim_flow_error"][v, -1] < curves["ddim_flow_error"][v, 0])


def test_report_shows_the_records(small):
    made = report.report(small)
    finals = [
        row["final"]["ddim"][METRIC]
        for row in small.rows
        if (row["role"], row["levels"], row["experts"], row["parameterisation"]) == ("reported", 8, 1, "v")
    ]
    assert f"{np.mean(finals):.4f} ±{abs(finals[0] - finals[1]) / 2:.4f}" in made.text
    assert list(made.figures) == ["contest_gaussian"]
