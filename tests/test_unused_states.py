"""unused_states: chains against brute force, T_SPACE.md §3's numbers, estimates, the learned part, files and refusals."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_commands
from interrupted import lines_until
from scipy import special, stats

from experiments import flags as shared
from experiments import phase_diagram, unused_states
from experiments.flags import parsers
from experiments.unused_states import laws, learned, report
from ldmjax import data, oracle, records, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"


def brute_force(lam, lamh, alpha, sigma, sampler, stop):
    """Variance of one component after stopping on level ``stop``, step by step on the level's own x0-prediction."""
    gain, variance, before, r = 1.0, 1.0, None, sigma / alpha if alpha[0] else None
    levels = len(alpha)
    for k in range(levels - stop):
        a, s = alpha[k], sigma[k]
        a_next, s_next = (alpha[k + 1], sigma[k + 1]) if k + 1 < levels else (1.0, 0.0)
        x0 = a * lamh / (a**2 * lamh + s**2)  # times the state
        eps = (1.0 - a * x0) / s
        if sampler in ("ddim", "ddpm", "ddpm_exact"):
            tau = s_next * np.sqrt(1.0 - (s_next * a / (a_next * s)) ** 2) if sampler != "ddim" else 0.0
            c = np.sqrt(s_next**2 - tau**2)
            posterior = lamh * s**2 / (a**2 * lamh + s**2) if sampler == "ddpm_exact" else 0.0
            spread = (a_next - c * a / s) ** 2 * posterior if a else a_next**2 * posterior
            variance = (a_next * x0 + c * eps) ** 2 * variance + tau**2 + spread
        elif sampler == "heun":
            r_next = s_next / a_next
            guess = 1.0 / a + (r_next - r[k]) * eps  # state / alpha
            if k + 1 < levels - stop:  # the last update must not ask for the level it stops on
                guess = 1.0 / a + (r_next - r[k]) * 0.5 * (eps + guess * r_next / (lamh + r_next**2))
            gain *= a_next * guess
            variance = gain**2
        else:  # dpmpp_2m as an extrapolation in log(alpha / sigma)
            here, prediction = (np.log(a / s) if a else -np.inf), x0 * gain
            combined = prediction
            if before is not None and np.isfinite(before[0]) and s_next:
                q = (np.log(a_next / s_next) - here) / (2.0 * (here - before[0]))
                combined = (1.0 + q) * prediction - q * before[1]
            gain = s_next / s * gain + (a_next - a * s_next / s) * combined
            before, variance = (here, prediction), gain**2
    if stop:
        return variance / (alpha[levels - stop] ** 2 + sigma[levels - stop] ** 2) if stop < levels else 1.0
    return variance


@pytest.mark.parametrize("ladder_name", ["karras", "rectified_flow", "cosine"])
@pytest.mark.parametrize("sampler", laws.SAMPLERS)
def test_distance_after_every_stop_is_that_of_a_step_by_step_chain(ladder_name, sampler):
    lam = np.array([2.0, 0.7, 0.3])
    estimates = lam * np.array([[1.0, 1.0, 1.0], [0.8, 1.3, 1.1]])
    ladder = shared.make_ladder(ladder_name, 7, lam)
    if not laws.is_defined(sampler, ladder):
        assert ladder_name == "rectified_flow" and sampler in ("heun", "ddpm_exact")
        return
    alpha, sigma = np.array(ladder.alpha_levels), np.array(ladder.sigma_levels)
    found = laws.w2_squared(lam, estimates, ladder, sampler)
    for row, lamh in zip(found, estimates, strict=True):
        for stop in range(8):
            if sampler == "exact_flow":
                nu = sigma[7 - stop] ** 2 / (alpha[7 - stop] ** 2 + sigma[7 - stop] ** 2) if stop else 0.0
                law = (1 - nu) * lamh + nu
            else:
                law = np.array([brute_force(v, h, alpha, sigma, sampler, stop) for v, h in zip(lam, lamh, strict=True)])
            assert row[stop] == pytest.approx(np.sum((np.sqrt(law) - np.sqrt(lam)) ** 2), rel=1e-9, abs=1e-14)


def test_draws_in_several_passes_equal_one_pass(monkeypatch):
    lam, drawn = np.array([1.5, 0.5]), np.random.default_rng(0).uniform(0.5, 2.0, (7, 2))
    ladder = shared.make_ladder("karras", 5, lam)
    whole = laws.w2_squared(lam, drawn, ladder, "ddim")
    monkeypatch.setattr(laws, "MAX_COMPONENTS", 4)
    np.testing.assert_array_equal(laws.w2_squared(lam, drawn, ladder, "ddim"), whole)


def best(variances, dims, **options):
    config = unused_states.Config(latent_dims=dims, n=(np.inf,), **options)
    return {(c.ladder, c.sampler, c.latent_dim): c for c in unused_states.run(variances, config)}


def test_t_space_numbers_of_an_exponential_spectrum():
    variances = data.spectrum_variances("exponential:0.25", 64)
    cases = best(variances, (4, 8, 16), ladders=("karras",))
    assert [cases["karras", "ddim", d].best for d in (4, 8, 16)] == [12, 10, 8]
    # Less of it is left to a second-order sampler, and none without discretisation.
    assert [cases["karras", "dpmpp_2m", d].best for d in (4, 8, 16)] == [9, 8, 7]
    assert [cases["karras", "exact_flow", d].best for d in (4, 8, 16)] == [0, 0, 0]
    unscaled = best(variances, (4, 8, 16), ladders=("karras",), samplers=("ddim",), rescale=False)
    assert [unscaled["karras", "ddim", d].best for d in (4, 8, 16)] != [12, 10, 8]


@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs {CIFAR}")
def test_t_space_numbers_of_cifar():
    dims = (16, 64, 256, 1024, 3072)
    variances = data.spectrum_variances(str(CIFAR), 1)
    cases = best(variances, dims, ladders=("karras", "spectral"), samplers=("ddim",))
    assert [cases["karras", "ddim", d].best for d in dims] == [8, 8, 7, 6, 3]
    assert [cases["spectral", "ddim", d].best for d in dims] == [2, 2, 2, 1, 0]


def test_one_component_needs_no_network():
    case = best(np.array([3.0, 1.0]), (1, 2), ladders=("karras",), levels=8)
    for sampler in ("ddim", "dpmpp_2m", "exact_flow"):
        assert case["karras", sampler, 1].best == 8 and case["karras", sampler, 1].w2_squared[8] < 1e-30
    assert case["karras", "ddim", 2].best < 8


@pytest.mark.parametrize("n", [2, 10, 500, 10**6])
def test_quadrature_integrates_chi_squared(n):
    nodes, weights = laws.chi2_quadrature(n)
    root = np.sqrt(2 / n) * np.exp(special.gammaln((n + 1) / 2) - special.gammaln(n / 2))
    assert weights.sum() == pytest.approx(1, abs=1e-12) and weights @ nodes == pytest.approx(1, abs=1e-9)
    assert weights @ nodes**2 == pytest.approx(1 + 2 / n, rel=1e-8)
    # The root has a singular slope at 0, where few degrees of freedom put mass.
    assert weights @ np.sqrt(nodes) == pytest.approx(root, rel=2e-3 if n == 2 else 1e-6)


def test_expectation_is_the_mean_over_draws():
    lam = np.array([1.7, 0.9, 0.4])
    ladder = shared.make_ladder("karras", 8, lam)
    drawn = lam * np.random.default_rng(1).chisquare(20, (40_000, 3)) / 20
    for sampler in ("ddim", "exact_flow"):
        curves = laws.w2_squared(lam, drawn, ladder, sampler)
        error = curves.std(axis=0) / np.sqrt(len(drawn))
        expected = laws.expected_w2_squared(lam, 20, ladder, sampler)
        # The last level is the data themselves: no error but that of rounding.
        assert np.all(np.abs(curves.mean(axis=0) - expected) <= 4 * error + 1e-12)


def test_best_leftover_noise_and_its_formula():
    lam = np.array([2.0, 1.0, 0.5, 0.5])
    formula = (5 + 4 + 3.5 + 3.5) / (0.5 + 0 + 0.5 + 0.5) / 600
    assert laws.formula_noise_var(lam, 300) == pytest.approx(formula)
    nodes, weights = laws.chi2_quadrature(300)
    estimated = nodes[:, None] * lam
    grid = np.linspace(0, 0.1, 20_001)
    law = estimated[..., None] + grid * (1 - estimated[..., None])
    curve = weights @ np.sum((np.sqrt(law) - np.sqrt(lam)[:, None]) ** 2, axis=1)
    exact = laws.expected_best_noise_var(lam, 300)
    assert exact == pytest.approx(grid[np.argmin(curve)], abs=1e-5)
    assert exact == pytest.approx(formula, rel=0.05) and exact < formula
    assert laws.expected_best_noise_var(lam, np.inf) == 0 == laws.formula_noise_var(lam, np.inf)
    assert laws.formula_noise_var(np.array([1.0, 0.0]), 10) == 0 and laws.formula_noise_var(np.ones(2), 10) == np.inf
    assert laws.expected_best_noise_var(np.ones(2), 10) == 1


def test_best_takes_the_most_states_and_tolerance_the_last_within_it():
    assert laws.best_dropped(np.array([[3.0, 1.0, 2.0, 1.0], [0.0, 1.0, 1.0, 1.0]])).tolist() == [3, 0]
    curve = np.array([1.0, 0.5, 1.2, 1.05, 1.3])
    assert [laws.tolerated(curve, a) for a in (0.0, 0.05, 0.25, 1.0)] == [1, 3, 3, 4]


@pytest.mark.parametrize(("sampler", "all_states", "stopped"), [("ddim", 32, 25), ("heun", 63, 49)])
def test_evaluations_are_those_of_the_sampler(sampler, all_states, stopped):
    assert laws.evaluations(sampler, 32, 0) == all_states and laws.evaluations(sampler, 32, 7) == stopped
    assert laws.evaluations(sampler, 32, 32) == 0


@pytest.fixture(scope="module")
def small():
    config = unused_states.Config(
        latent_dims=(2, 3), n=(np.inf, 30), ladders=("karras", "rectified_flow"), samplers=("ddim", "heun"), levels=10,
        draws=50, seed=3,
    )  # fmt: skip
    variances, lines = np.array([5.0, 2.0, 1.0, 0.5]), []
    return variances, config, unused_states.run(variances, config, lines.append), lines


def test_cases_hold_draws_and_expectation(small):
    variances, config, cases, lines = small
    assert [(c.n, c.ladder, c.sampler, c.latent_dim) for c in cases] == [
        (n, *pair, d)
        for n in (np.inf, 30)
        for pair in [("karras", "ddim"), ("karras", "heun"), ("rectified_flow", "ddim")]
        for d in (2, 3)
    ]
    assert len(lines) == 1 and "heun is left out on rectified_flow" in lines[0]
    case = next(c for c in cases if (c.n, c.ladder, c.sampler, c.latent_dim) == (30, "karras", "heun", 3))
    lam = variances[:3] / variances[:3].mean()
    assert case.kept == pytest.approx(3) and case.left_out == pytest.approx(0.5 / variances[:3].mean())
    ladder = schedules.Ladder(*schedules.karras_levels(10))
    drawn = phase_diagram.twin_estimates(variances, n=30, draws=50, seed=3)[:, :3] / variances[:3].mean()
    curves = laws.w2_squared(lam, drawn, ladder, "heun")
    assert case.best_of_draw.tolist() == [10 - int(np.argmin(c[::-1])) for c in curves]
    np.testing.assert_allclose(case.gain_of_draw, curves[:, 0] - curves[:, case.best], rtol=1e-12)
    np.testing.assert_array_equal(case.w2_squared, laws.expected_w2_squared(lam, 30, ladder, "heun"))
    levels = np.array(ladder.sigma_levels) ** 2
    np.testing.assert_allclose(case.noise_var, [0, *levels[::-1]], rtol=1e-12)
    allowed = {"kept": 0.03, "total": 0.01 * (case.w2_squared[0] + case.left_out)}
    assert case.allowance == pytest.approx(allowed)
    low, middle, high = case.spread
    assert np.mean(case.best_of_draw <= low) >= 0.05 > np.mean(case.best_of_draw < low)
    assert np.mean(case.best_of_draw <= high) >= 0.95 > np.mean(case.best_of_draw < high) and low <= middle <= high


def test_verdict_needs_a_gain_beyond_two_standard_errors(small):
    case = next(c for c in small[2] if c.n == 30 and c.best > 0)
    gains = np.array([1.0, 3.0, 2.0, 2.0])

    def verdict(**changes):
        fields = {"gain_of_draw": gains, "end_of_draw": np.full(4, 50.0), "best_of_draw": np.ones(4, int)}
        return dataclasses.replace(case, **fields | changes)

    error = np.std(gains, ddof=1) / 2
    assert verdict().measured_gain_percent == pytest.approx((4, 2 * error))
    assert verdict().verdict == "drop"
    assert verdict(gain_of_draw=gains - 2 + 1.9 * error).verdict == "cannot tell"
    assert verdict(gain_of_draw=gains - 2 + 2.1 * error).verdict == "drop"
    assert verdict(gain_of_draw=-gains).verdict == "cannot tell"
    assert verdict(w2_squared=np.arange(11.0)).verdict == "no gain"


def test_records_say_what_a_case_says(small):
    variances, config, cases, _ = small
    rows = unused_states.make_records(cases, config)
    assert len(rows) == len(cases)
    for row, case in zip(rows, cases, strict=True):
        j = row["states_dropped_best"]
        assert row["networks"] == 10 - j and row["w2_squared_best"] == case.w2_squared.min()
        assert row["network_evaluations"] == (2 * (10 - j) - 1 if case.sampler == "heun" and j < 10 else 10 - j)
        assert row["gain_percent"] == pytest.approx(100 * (1 - row["w2_squared_best"] / row["w2_squared_end"]))
        assert row["relative_w2_end"] ** 2 == pytest.approx(row["w2_squared_end"] / row["latent_dim"])
        within = case.w2_squared <= case.w2_squared[0] + 0.01 * row["latent_dim"]
        assert row["states_dropped_tolerance_kept"] == np.flatnonzero(within)[-1]
        assert ("helped_share" in row) == np.isfinite(case.n)
        if np.isfinite(case.n):
            assert row["helped_count"] == np.count_nonzero(case.best_of_draw) == round(50 * row["helped_share"])
            low, high = stats.binomtest(row["helped_count"], 50).proportion_ci(0.9, method="wilson")
            assert (row["helped_low"], row["helped_high"]) == pytest.approx((low, high), abs=1e-9)


def test_table_and_figures_hold_every_case(small):
    variances, config, cases, _ = small
    text = report.table(cases, config, [], None)
    case = next(c for c in cases if (c.n, c.sampler, c.latent_dim) == (np.inf, "heun", 3))
    line = next(line for line in text.splitlines() if line.startswith("karras") and "heun" in line)
    assert line.split()[2:] == f"{report._drop_cell(cases[2])} {report._drop_cell(case)}".split()
    assert "cannot tell" in text and f"{cases[-1].noise_var_formula:.3g}" in text
    figure = report.draw_levels(cases, variances, config, "data")
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == "None" and line.get_xdata().size]
    assert sum(line.get_xdata().size for line in marks) == 2 * 2 * 10  # ddim: two ladders, two dimensions, ten levels
    crosses = sum(line.get_xdata().size for line in marks if line.get_marker() == "x")
    assert crosses == sum(c.best for c in cases if np.isinf(c.n) and c.sampler == "ddim")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"levels": 0}, "levels must be >= 1"),
        ({"draws": 1}, "draws must be >= 2"),
        ({"n": (2.5,)}, "whole numbers"),
        ({"latent_dims": ()}, "latent_dims"),
        ({"samplers": ("rk4",)}, "'rk4'"),
        ({"tolerance": -0.1}, "tolerance"),
    ],
)
def test_configuration_refuses(changes, reason):
    with pytest.raises(ValueError, match=reason):
        unused_states.Config(**{"latent_dims": (2,)} | changes)


def test_run_refuses_what_does_not_fit():
    def config(**changes):
        return unused_states.Config(**{"latent_dims": (2,), "levels": 4} | changes)

    with pytest.raises(ValueError, match="1..1"):
        unused_states.run(np.ones(1), config())
    with pytest.raises(ValueError, match="no variance is positive"):
        unused_states.run(np.zeros(2), config())
    with pytest.raises(ValueError, match="pure noise"):
        unused_states.run(np.ones(2), config(ladders=("rectified_flow",), samplers=("heun",)))
    with pytest.raises(ValueError, match="multiple of 64"):
        learned.LearnedConfig(latent_dims=(2,), ladder="karras", sampler="ddim", samples=100)
    with pytest.raises(ValueError, match="sampler must be"):
        learned.LearnedConfig(latent_dims=(2,), ladder="karras", sampler="exact_flow")


@pytest.mark.parametrize("name", shared.LADDERS)
def test_ladder_names_stand_for_the_librarys_ladders(name):
    variances = np.array([3.0, 1.0, 0.2])
    made = shared.make_ladder(name, 9, variances, sigma_min=0.01, sigma_max=50.0)
    arguments = (variances, 9) if name == "spectral" else (9,)
    limits = {"sigma_min": 0.01, "sigma_max": 50.0} if name in ("karras", "uniform_logsnr") else {}
    assert made == schedules.Ladder(*getattr(schedules, f"{name}_levels")(*arguments, **limits))
    with pytest.raises(ValueError, match="got 'sigmoid'"):
        shared.make_ladder("sigmoid", 9, variances)


def test_states_and_names_are_parsed():
    parser, names = parsers._RangeParser(), parsers._ListParser(parsers._ChoiceParser(("a", "b", "c")))
    assert parser.parse("8:32") == (8, 32) == parser.parse(parsers._Serializer().serialize((8, 32)))
    assert parser.parse("1:1") == (1, 1) and names.parse("c, a") == ["c", "a"]
    for word in ["8", "8:", "0:4", "5:4", "8-32", "1:2:3", "1.5:3", ""]:
        with pytest.raises(ValueError, match="LOW:HIGH"):
            parser.parse(word)
    for word in ["a,a", "d", "", "a,,b"]:
        with pytest.raises(ValueError, match="out of a, b, c"):
            names.parse(word)


SETTINGS = learned.LearnedConfig(latent_dims=(3,), ladder="karras", sampler="ddim", states=(4, 8), samples=4096)
LEVELS = unused_states.Config(latent_dims=(3,), levels=8)


@pytest.mark.parametrize(
    ("sampler", "ladder_name"),
    [("ddim", "rectified_flow"), ("ddpm", "karras"), ("heun", "karras"), ("dpmpp_2m", "rectified_flow")],
)
def test_sampler_stops_with_the_closed_forms_law(sampler, ladder_name):
    lam, settings = np.array([1.6, 0.4]), dataclasses.replace(SETTINGS, sampler=sampler)
    ladder = shared.make_ladder(ladder_name, 5, lam)
    start = jnp.asarray(learned.exact_samples(np.ones(2), 4096, [0, 0]), jnp.float32)
    exact = oracle.gaussian_denoiser(lam, ladder)

    def denoiser(z, t):  # NaN on the levels that are not trained, as in `experts`
        return jnp.where(t[:, None] <= 2, jnp.nan, exact(z, t))

    z = np.asarray(learned._chain(denoiser, start, ladder=ladder, learned=settings, final=2), np.float64)
    assert z.shape == (4, 4096, 2) and z.dtype == np.float64
    expected = laws.w2_squared(lam, lam[None], ladder, sampler)[0, 2]
    error = learned._standard_error(z[-1], lam) if sampler in learned.STOCHASTIC else 0.0
    assert learned._distance(z[-1], lam) == pytest.approx(expected, abs=1e-5 + 4 * error)


def test_states_to_drop_are_the_closed_forms_best_unless_given():
    lam = np.array([4.0, 2.0, 0.5]) / 6.5 * 3
    free = dataclasses.replace(SETTINGS, states=None)
    expected = best(np.array([4.0, 2.0, 0.5]), (3,), ladders=("karras",), levels=8)["karras", "ddim", 3].best
    assert 0 < expected < 8 and learned.dropped_states(lam, LEVELS, free) == expected
    # A whitened component asks for no state at all, but a model has one; an exact chain asks for all, but one is dropped.
    assert learned.dropped_states(np.ones(1), LEVELS, free) == 7
    exact = dataclasses.replace(free, sampler="ddpm_exact")
    assert learned.dropped_states(lam, LEVELS, exact) == 1 and learned.dropped_states(lam, LEVELS, SETTINGS) == 3


def test_latents_and_start_states_have_their_covariance_exactly():
    lam = np.array([2.0, 0.5, 0.0])
    z = learned.exact_samples(lam, 300, [0, 1])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.T @ z / 300, np.diag(lam), atol=1e-12)
    assert learned._distance(z, np.array([0.5, 0.5, 0.1])) == pytest.approx(0.5 + 0.1)
    assert learned._distance(z * np.nan, lam) == np.inf
    draws = np.random.default_rng(0).standard_normal((200, 640, 1))
    spread = np.std([learned._distance(1.5 * x, np.ones(1)) for x in draws])
    assert learned._standard_error(1.5 * draws[0], np.ones(1)) == pytest.approx(spread, rel=0.5)


@pytest.mark.slow
def test_an_interrupted_job_goes_on_to_the_same_records(tmp_path):
    variances = np.exp(-0.25 * np.arange(4))
    config = unused_states.Config(latent_dims=(2, 4), n=(np.inf, 40), ladders=("karras",), levels=5, draws=4)
    training = learned.LearnedConfig(latent_dims=(2,), ladder="karras", sampler="ddim", steps=8, samples=128, hidden=4)

    def start(store, until=""):
        lines, note = lines_until(until)
        cases = unused_states.run(variances, config, note, store)
        comparisons = learned.compare(variances, config, training, note, store)
        rows = unused_states.make_records(cases, config) + learned.make_records(comparisons, training)
        return json.dumps(records.plain(rows)), lines

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        start(store, until="step 8/8")
    assert len(list((tmp_path / "pieces").iterdir())) == 6
    resumed, _ = start(store)
    again, lines = start(store)
    assert not any(" step " in line for line in lines)
    assert resumed == again == start(NOTHING_KEPT)[0]


SMALL = [
    "--quick", "--spectrum=exponential:0.25", "--data_dim=12", "--latent_dims=2,8", "--levels=10", "--draws=8",
    "--ladders=karras,rectified_flow", "--n=inf,40",
]  # fmt: skip
COMMANDS = {
    "learned": [*SMALL, "--samplers=ddim,heun,exact_flow", "--states=4:10", "--learned_dims=2", "--steps=100"],
    "closed": [*SMALL, "--nolearned", "--samplers=ddim,dpmpp_2m", "--norescale", "--seed=5"],
}
REFUSED = [
    ("--ladders=karras,sigmoid", "names out of karras, uniform_logsnr"),
    ("--ladders=karras,karras", "none twice"),
    ("--samplers=rk4", "names out of ddim"),
    ("--samplers=heun --ladders=rectified_flow", "starts at pure noise"),
    ("--states=8:20", "must end at 32"),
    ("--states=8:40", "within 1:32"),
    ("--states=0:32", "1 <= LOW <= HIGH"),
    ("--states=8-32", "LOW:HIGH"),
    ("--levels=0", ">= 1 and <= 10_000"),
    ("--levels=2000", "linear_beta: the number of levels must be 1..1000"),
    ("--sigma_min=90", "< --sigma_max=80.0"),
    ("--sigma_min=nan", "> 0"),
    ("--n=1", ">= 2"),
    ("--n=2.5", "whole numbers >= 2 and"),
    ("--latent_dims=65", "1..64"),
    ("--learned_dims=65", "1..64"),
    ("--tolerance=-1", ">= 0"),
    ("--tolerance=nan", "finite"),
    ("--draws=1", "whole number >= 2"),
    ("--spectrum={where}/zeros.npy", "every variance is 0"),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    where = tmp_path_factory.mktemp("runs")
    np.save(where / "zeros.npy", np.zeros(5))
    cases = [("unused_states", [f"--workdir={where / name}", *flags]) for name, flags in COMMANDS.items()]
    again = [f"--flagfile={where / 'closed' / 'flags.txt'}", f"--workdir={where / 'again'}"]
    cases.append(("unused_states", again, False))
    cases += [
        ("unused_states", [f"--workdir={where / f'out{i}'}", *flag.format(where=where).split()])
        for i, (flag, _) in enumerate(REFUSED)
    ]
    answers = run_commands(cases, where)
    return where, answers[:3], answers[3:]


def test_command_writes_its_files_and_reruns_to_the_same_bytes(commands):
    where, answers, _ = commands
    for status, out, err in answers:
        assert status == 0 and err == "" and "results in" in out
    common = ["checkpoints", "curves.npz", "estimates.png", "flags.txt", "levels.png", "metadata.json", "records.jsonl"]
    assert sorted(p.name for p in (where / "learned").iterdir()) == sorted([*common, "learned.png"])
    assert sorted(p.name for p in (where / "closed").iterdir()) == common
    for file in ["records.jsonl", "flags.txt"]:
        assert (where / "closed" / file).read_bytes() == (where / "again" / file).read_bytes()
    assert "--states=4:10" in (where / "learned" / "flags.txt").read_text()
    meta = json.loads((where / "learned" / "metadata.json").read_text())
    assert meta["seconds"] > 0 and set(meta["training_seconds"]) == {"d2_all_states", "d2_kept_states"}


def test_command_equals_the_function(commands):
    config = unused_states.Config(
        latent_dims=(2, 8), n=(np.inf, 40), ladders=("karras", "rectified_flow"), samplers=("ddim", "dpmpp_2m"),
        levels=10, draws=8, seed=5, rescale=False,
    )  # fmt: skip
    cases = unused_states.run(data.spectrum_variances("exponential:0.25", 12), config)
    first = {"schema_version": 1, "precision": "float32", "float32_products": "highest"}
    expected = [records.plain(first | row) for row in unused_states.make_records(cases, config)]
    assert records.load_records(commands[0] / "closed") == expected
    with np.load(commands[0] / "closed" / "curves.npz") as curves:
        assert curves["karras_ddim_n40_w2_squared"].shape == (2, 11)
        np.testing.assert_array_equal(curves["karras_ddim_n40_best_of_draw"][1], cases[9].best_of_draw)
        assert (cases[9].n, cases[9].latent_dim) == (40, 8)


def test_command_trains_the_states_asked_for(commands):
    where, answers, _ = commands
    rows = records.load_records(where / "learned")
    assert {r["sampler"] for r in rows if r["ladder"] == "rectified_flow"} == {"ddim", "exact_flow"}
    assert "heun is left out on rectified_flow" in answers[0][1]
    (row,) = [r for r in rows if r["kind"] == "learned"]
    assert (row["ladder"], row["sampler"], row["latent_dim"]) == ("karras", "ddim", 2)
    assert row["states"] == [4, 10] and row["diverged"] == 0
    assert (row["networks_all_states"], row["networks_kept_states"]) == (10, 7)
    assert (row["network_evaluations_all_states"], row["network_evaluations_kept_states"]) == (10, 7)
    per_network = 2 * 32 + 32 * 32 + 32 * 32 + 32 * 2
    assert (row["parameters_all_states"], row["parameters_kept_states"]) == (10 * per_network, 7 * per_network)
    work = 100 * 128
    assert (row["sample_gradients_all_states"], row["sample_gradients_kept_states"]) == (10 * work, 7 * work)
    assert f"networks: 10 → 7 (30 % saved)\n  parameters: {10 * per_network:,} → {7 * per_network:,}" in answers[0][1]


def test_kept_states_alone_give_the_samples_of_all_and_the_closed_forms_distance(commands):
    where = commands[0] / "learned"
    (row,) = [r for r in records.load_records(where) if r["kind"] == "learned"]
    lam = np.exp([0.0, -0.25])
    lam, ladder = 2 * lam / lam.sum(), schedules.Ladder(*schedules.karras_levels(10))
    levels = np.array(ladder.alpha_levels), np.array(ladder.sigma_levels)
    law = [[brute_force(v, v, *levels, "ddim", stop) for v in lam] for stop in range(11)]
    expected = np.sum((np.sqrt(law) - np.sqrt(lam)) ** 2, axis=1)
    assert row["largest_difference_to_full_model"] < 1e-5
    assert row["w2_squared_closed_form"] == pytest.approx(expected[3], rel=1e-10)
    # x_T has covariance I to rounding, so there is no Monte-Carlo error.
    assert row["w2_squared_exact_score"] == pytest.approx(expected[3], rel=1e-3)
    assert row["exact_score_standard_error"] == 0
    shift = abs(np.sqrt(row["w2_squared_learned"]) - np.sqrt(expected[3]))
    assert row["w2_shift_by_network"] == pytest.approx(shift, abs=1e-4)
    assert shift - 1e-4 <= row["trajectory_error"] < 0.1 * np.sqrt(2)
    with np.load(where / "curves.npz") as curves:
        full = curves["learned_d2_w2_squared"]
        np.testing.assert_allclose(curves["learned_d2_closed_form"], expected, rtol=1e-10)
    assert full.shape == (11,) and full[3] == pytest.approx(row["w2_squared_learned"], rel=1e-5)
    assert full[10] == pytest.approx(expected[10], rel=1e-3)  # x_T itself
    assert full[0] == pytest.approx(row["w2_squared_learned_all_states"])


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[flag for flag, _ in REFUSED])
def test_bad_input_is_one_line_and_touches_nothing(commands, index):
    where, _, answers = commands
    flag, reason = REFUSED[index]
    status, out, err = answers[index]
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    name, _, value = flag.format(where=where).split()[0].lstrip("-").partition("=")
    assert name in err and value in err and reason in err
    assert not (where / f"out{index}").exists()
