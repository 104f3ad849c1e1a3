"""unused_states: chains against brute force, numbers of T-space, estimates, the learned part, what is shown."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from experiments import unused_states
from experiments.launch import Results, SettingError
from experiments.launch.results import read_results, write_results
from experiments.unused_states import laws, learned
from experiments.unused_states.report import report
from ldmjax import chains, data, oracle, records, schedules
from ldmjax.job import NO_JOB, Job
from ldmjax.random_matrices import twin_estimates

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
    ladder = schedules.make_ladder(ladder_name, 7, lam)
    if not chains.is_defined(sampler, ladder):
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
    ladder = schedules.make_ladder("karras", 5, lam)
    whole = laws.w2_squared(lam, drawn, ladder, "ddim")
    monkeypatch.setattr(laws, "MAX_COMPONENTS", 4)
    np.testing.assert_array_equal(laws.w2_squared(lam, drawn, ladder, "ddim"), whole)


def compute(variances, job=NO_JOB, **settings):
    """The results on a spectrum, largest first."""
    config = unused_states.Config(**{"learned": False} | settings)
    made = unused_states.compute(config, unused_states.Inputs("made", "", np.asarray(variances)), job)
    return Results(rows=made.rows, arrays=made.arrays, metadata=made.metadata, config=config)


def best(variances, dims, **settings):
    rows = compute(variances, latent_dims=dims, n=(np.inf,), **settings).rows
    return {(row["ladder"], row["sampler"], row["latent_dim"]): row["states_dropped_best"] for row in rows}


def test_t_space_numbers_of_an_exponential_spectrum():
    variances = data.spectrum_variances("exponential:0.25", 64)
    cases = best(variances, (4, 8, 16), ladders=("karras",))
    assert [cases["karras", "ddim", d] for d in (4, 8, 16)] == [12, 10, 8]
    # Less of it is left to a second-order sampler, and none without discretisation.
    assert [cases["karras", "dpmpp_2m", d] for d in (4, 8, 16)] == [9, 8, 7]
    assert [cases["karras", "exact_flow", d] for d in (4, 8, 16)] == [0, 0, 0]
    unscaled = best(variances, (4, 8, 16), ladders=("karras",), samplers=("ddim",), rescale=False)
    assert [unscaled["karras", "ddim", d] for d in (4, 8, 16)] != [12, 10, 8]


@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs {CIFAR}")
def test_t_space_numbers_of_cifar():
    dims = (16, 64, 256, 1024, 3072)
    variances = data.spectrum_variances(str(CIFAR), 1)
    cases = best(variances, dims, ladders=("karras", "spectral"), samplers=("ddim",))
    assert [cases["karras", "ddim", d] for d in dims] == [8, 8, 7, 6, 3]
    assert [cases["spectral", "ddim", d] for d in dims] == [2, 2, 2, 1, 0]


def test_one_component_needs_no_network():
    results = compute(np.array([3.0, 1.0]), latent_dims=(1, 2), n=(np.inf,), ladders=("karras",), levels=8)
    dropped = {(row["sampler"], row["latent_dim"]): row["states_dropped_best"] for row in results.rows}
    for sampler in ("ddim", "dpmpp_2m", "exact_flow"):
        assert dropped[sampler, 1] == 8 and results.arrays[f"karras_{sampler}_ninf_w2_squared"][0, 8] < 1e-30
    assert dropped["ddim", 2] < 8


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
    ladder = schedules.make_ladder("karras", 8, lam)
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


SMALL = np.array([5.0, 2.0, 1.0, 0.5])


@pytest.fixture(scope="module")
def small():
    """Results on four components, and the lines that were shown."""
    lines = []
    results = compute(
        SMALL,
        Job(show=lines.append),
        latent_dims=(2, 3),
        n=(np.inf, 30),
        ladders=("karras", "rectified_flow"),
        samplers=("ddim", "heun"),
        levels=10,
        draws=50,
        seed=3,
    )
    return results, lines


def case(results, n, sampler, d):
    """Row and curves of one case on Karras's levels."""
    key = ("karras", sampler, n, d)
    (row,) = [r for r in results.rows if (r["ladder"], r["sampler"], r["n"], r["latent_dim"]) == key]
    place = results.arrays["latent_dims"].tolist().index(d)
    names = ("w2_squared", "noise_var", "best_of_draw")
    return row, {name: results.arrays[f"karras_{sampler}_n{n:g}_{name}"][place] for name in names}


def test_cases_hold_draws_and_expectation(small):
    results, lines = small
    assert [(r["n"], r["ladder"], r["sampler"], r["latent_dim"]) for r in results.rows] == [
        (n, *pair, d)
        for n in (np.inf, 30)
        for pair in [("karras", "ddim"), ("karras", "heun"), ("rectified_flow", "ddim")]
        for d in (2, 3)
    ]
    assert len(lines) == 1 and "heun is left out on rectified_flow" in lines[0]
    row, curves = case(results, 30, "heun", 3)
    lam, ladder = SMALL[:3] / SMALL[:3].mean(), schedules.Ladder(*schedules.karras_levels(10))
    drawn = twin_estimates(SMALL, n=30, draws=50, seed=3)[:, :3] / SMALL[:3].mean()
    of_draws = laws.w2_squared(lam, drawn, ladder, "heun")
    assert curves["best_of_draw"].tolist() == [10 - int(np.argmin(c[::-1])) for c in of_draws]
    np.testing.assert_array_equal(curves["w2_squared"], laws.expected_w2_squared(lam, 30, ladder, "heun"))
    np.testing.assert_allclose(curves["noise_var"], [0, *(np.array(ladder.sigma_levels) ** 2)[::-1]], rtol=1e-12)
    gains = of_draws[:, 0] - of_draws[:, row["states_dropped_best"]]
    measured = row["measured_gain_percent"], row["measured_gain_standard_error"]
    expected = 100 * np.array([gains.mean(), gains.std(ddof=1) / np.sqrt(50)]) / of_draws[:, 0].mean()
    assert measured == pytest.approx(tuple(expected))
    low, middle, high = (row[f"states_dropped_{q}"] for q in ("low", "median", "high"))
    own = curves["best_of_draw"]
    assert np.mean(own <= low) >= 0.05 > np.mean(own < low)
    assert np.mean(own <= high) >= 0.95 > np.mean(own < high) and low <= middle <= high


def test_verdict_needs_a_gain_beyond_two_standard_errors():
    assert unused_states.verdict(1, 2.1, 1.0) == "drop"
    assert unused_states.verdict(1, 1.9, 1.0) == "cannot tell" == unused_states.verdict(1, -3.0, 1.0)
    assert unused_states.verdict(0, 2.1, 1.0) == "no gain"
    # The exact score has no error.
    assert unused_states.verdict(1, 1e-3, None) == "drop" and unused_states.verdict(1, 0.0, None) == "no gain"


def test_rows_say_what_the_curves_say(small):
    results, _ = small
    for row in (row for row in results.rows if row["ladder"] == "karras"):
        _, curves = case(results, row["n"], row["sampler"], row["latent_dim"])
        j, curve = row["states_dropped_best"], curves["w2_squared"]
        assert row["networks"] == 10 - j and row["w2_squared_best"] == curve.min() == curve[j]
        assert row["noise_var_best"] == curves["noise_var"][j]
        assert row["network_evaluations"] == (2 * (10 - j) - 1 if row["sampler"] == "heun" and j < 10 else 10 - j)
        assert row["gain_percent"] == pytest.approx(100 * (1 - row["w2_squared_best"] / row["w2_squared_end"]))
        assert row["relative_w2_end"] ** 2 == pytest.approx(row["w2_squared_end"] / row["latent_dim"])
        left_out = SMALL[row["latent_dim"] :].sum() / SMALL[: row["latent_dim"]].mean()
        allowed = {"kept": 0.01 * row["latent_dim"], "total": 0.01 * (curve[0] + left_out)}
        for name, allowance in allowed.items():
            assert row[f"states_dropped_tolerance_{name}"] == np.flatnonzero(curve <= curve[0] + allowance)[-1]
        assert ("helped_share" in row) == np.isfinite(row["n"])
        if np.isfinite(row["n"]):
            assert row["helped_count"] == np.count_nonzero(curves["best_of_draw"]) == round(50 * row["helped_share"])
            low, high = stats.binomtest(row["helped_count"], 50).proportion_ci(0.9, method="wilson")
            assert (row["helped_low"], row["helped_high"]) == pytest.approx((low, high), abs=1e-9)


def test_report_holds_every_case(small, tmp_path):
    results, _ = small
    write_results(tmp_path, results)
    made = report(read_results(tmp_path, results.config))
    row, _ = case(results, np.inf, "heun", 3)
    line = next(line for line in made.text.splitlines() if line.startswith("karras") and "heun" in line)
    assert line.endswith(f"{row['states_dropped_best']} ({row['gain_percent']:.2g} %)")
    assert "cannot tell" in made.text and f"{results.rows[-1]['noise_var_formula']:.3g}" in made.text
    lines = made.figures["levels"].axes[0].lines
    marks = [line for line in lines if line.get_linestyle() == "None" and line.get_xdata().size]
    assert sum(line.get_xdata().size for line in marks) == 2 * 2 * 10  # ddim: two ladders, two dimensions, ten levels
    crosses = sum(line.get_xdata().size for line in marks if line.get_marker() == "x")
    rows = [r for r in results.rows if np.isinf(r["n"]) and r["sampler"] == "ddim"]
    assert crosses == sum(r["states_dropped_best"] for r in rows)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"states": (8, 20)}, "states"),
        ({"states": (8, 40)}, "states"),
        ({"samplers": ("heun",), "ladders": ("rectified_flow",)}, "samplers"),
        ({"samples": 200}, "samples"),
        ({"n": (2.5,)}, "n"),
        ({"latent_dims": (65,)}, "latent_dims"),
        ({"learned_dims": (65,)}, "learned_dims"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, name):
    with pytest.raises(SettingError) as error:
        unused_states.Config(**settings).load()
    assert error.value.name == name


def test_data_without_variance_are_refused(tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros(5))
    with pytest.raises(SettingError, match=r"zeros.npy.*every variance is 0"):
        unused_states.Config(spectrum=str(tmp_path / "zeros.npy")).load()


def test_what_is_trained_follows_the_settings():
    def trained(largest=64, **settings):
        config = unused_states.Config(**settings)
        return config.trained_sampler, config.trained_dims(largest)

    assert trained() == ("ddim", [16]) and trained(3) == ("ddim", [2])
    assert trained(latent_dims=(32, 4, 8)) == ("ddim", [8]) and trained(latent_dims=(32,)) == ("ddim", [])
    assert trained(learned_dims=(20, 5)) == ("ddim", [20, 5]) and trained(learned=False) == ("ddim", [])
    assert trained(samplers=("exact_flow",)) == (None, [])
    assert trained(samplers=("exact_flow", "heun", "dpmpp_2m"), ladders=("rectified_flow",)) == ("dpmpp_2m", [16])


@pytest.mark.parametrize(
    ("sampler", "ladder_name"),
    [("ddim", "rectified_flow"), ("ddpm", "karras"), ("heun", "karras"), ("dpmpp_2m", "rectified_flow")],
)
def test_sampler_stops_with_the_closed_forms_law(sampler, ladder_name):
    lam = np.array([1.6, 0.4])
    ladder = schedules.make_ladder(ladder_name, 5, lam)
    start = jnp.asarray(learned.exact_samples(np.ones(2), 4096, [0, 0]), jnp.float32)
    exact = oracle.gaussian_denoiser(lam, ladder)

    def denoiser(z, t):  # NaN on the levels that are not trained, as in `experts`
        return jnp.where(t[:, None] <= 2, jnp.nan, exact(z, t))

    z = np.asarray(learned.run_chain(denoiser, start, ladder=ladder, sampler=sampler, seed=0, final=2), np.float64)
    assert z.shape == (4, 4096, 2) and z.dtype == np.float64
    expected = laws.w2_squared(lam, lam[None], ladder, sampler)[0, 2]
    error = learned.standard_error(z[-1], lam) if sampler in chains.STOCHASTIC else 0.0
    assert learned.distance(z[-1], lam) == pytest.approx(expected, abs=1e-5 + 4 * error)


def test_states_to_drop_are_the_closed_forms_best_unless_given():
    def dropped(lam, **settings):
        config = unused_states.Config(levels=8, **settings)
        return learned.dropped_states(lam, config.ladder("karras", lam), config)

    lam = np.array([4.0, 2.0, 0.5]) / 6.5 * 3
    expected = best(np.array([4.0, 2.0, 0.5]), (3,), ladders=("karras",), levels=8)["karras", "ddim", 3]
    assert 0 < expected < 8 and dropped(lam) == expected and dropped(lam, states=(4, 8)) == 3
    # A whitened component asks for no state at all, but a model has one; an exact chain asks for all, but one is dropped.
    assert dropped(np.ones(1)) == 7 and dropped(lam, samplers=("ddpm_exact",)) == 1


def test_latents_and_start_states_have_their_covariance_exactly():
    lam = np.array([2.0, 0.5, 0.0])
    z = learned.exact_samples(lam, 300, [0, 1])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.T @ z / 300, np.diag(lam), atol=1e-12)
    assert learned.distance(z, np.array([0.5, 0.5, 0.1])) == pytest.approx(0.5 + 0.1)
    assert learned.distance(z * np.nan, lam) == np.inf
    draws = np.random.default_rng(0).standard_normal((200, 640, 1))
    spread = np.std([learned.distance(1.5 * x, np.ones(1)) for x in draws])
    assert learned.standard_error(1.5 * draws[0], np.ones(1)) == pytest.approx(spread, rel=0.5)


@pytest.fixture(scope="module")
def trained():
    """Results with seven of ten states trained, on two components."""
    return compute(
        np.exp(-0.25 * np.arange(12)),
        latent_dims=(2, 8),
        n=(np.inf,),
        ladders=("karras",),
        samplers=("ddim", "exact_flow"),
        levels=10,
        learned=True,
        learned_dims=(2,),
        states=(4, 10),
        steps=100,
        samples=2048,
    )


def test_states_that_are_asked_for_are_trained(trained):
    (row,) = trained.of_kind("learned")
    assert (row["ladder"], row["sampler"], row["latent_dim"]) == ("karras", "ddim", 2)
    assert row["states"] == [4, 10] and row["diverged"] == 0
    assert (row["networks_all_states"], row["networks_kept_states"]) == (10, 7)
    assert (row["network_evaluations_all_states"], row["network_evaluations_kept_states"]) == (10, 7)
    per_network = 2 * 32 + 32 * 32 + 32 * 32 + 32 * 2
    assert (row["parameters_all_states"], row["parameters_kept_states"]) == (10 * per_network, 7 * per_network)
    work = 100 * 128
    assert (row["sample_gradients_all_states"], row["sample_gradients_kept_states"]) == (10 * work, 7 * work)
    assert set(trained.metadata["training_seconds"]) == {"d2_all_states", "d2_kept_states"}
    made = report(dataclasses.replace(trained, rows=[records.plain(row) for row in trained.rows]))
    assert f"networks: 10 → 7 (30 % saved)\n  parameters: {10 * per_network:,} → {7 * per_network:,}" in made.text
    assert set(made.figures) == {"levels", "learned"}


def test_kept_states_alone_give_the_samples_of_all_and_the_closed_forms_distance(trained):
    (row,) = trained.of_kind("learned")
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
    full = trained.arrays["learned_d2_w2_squared"]
    np.testing.assert_allclose(trained.arrays["learned_d2_closed_form"], expected, rtol=1e-10)
    assert full.shape == (11,) and full[3] == pytest.approx(row["w2_squared_learned"], rel=1e-5)
    assert full[10] == pytest.approx(expected[10], rel=1e-3)  # x_T itself
    assert full[0] == pytest.approx(row["w2_squared_learned_all_states"])
